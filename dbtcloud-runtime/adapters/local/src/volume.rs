//! [`DirectoryVolume`]: the volume port as directories of this machine.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, ProjectId, UserId};
use dbtcloud_core::ports::{Mount, Volume, VolumeId};
use dbtcloud_core::{Error, Result};

use crate::executor::unavailable;
use crate::tree;

/// Volumes as directories below one root, named after their id (`develop-<account>-<project>-<user>`).
///
/// A mount's source and target are the directory itself: a process sees it where it is. A removal takes the
/// directory away under its name at once and deletes its content then; a removal that died is finished when
/// the root is opened again.
///
/// ```
/// use dbtcloud_core::id::{AccountId, ProjectId, UserId};
/// use dbtcloud_core::ports::{Volume, VolumeId};
/// use dbtcloud_local::DirectoryVolume;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dbtcloud_core::Result<()> {
/// # let root = tempfile::tempdir().unwrap();
/// let volume = DirectoryVolume::new(root.path())?;
/// let id = VolumeId { account: AccountId::new(1), project: ProjectId::new(2), user: UserId::new(3) };
/// volume.ensure(id).await?;
/// assert!(volume.path(id).await?.is_dir());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DirectoryVolume {
    root: Arc<PathBuf>,
}

impl DirectoryVolume {
    /// Opens the volumes in `root`, which is made if it is not there.
    ///
    /// Errors: `Unavailable` when it cannot be made or written.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let failed = |error| unavailable(format!("volumes in {}", root.display()), error);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        tree::empty_trash(&root).map_err(failed)?;
        Ok(Self { root: Arc::new(root) })
    }

    fn directory(&self, id: VolumeId) -> PathBuf {
        self.root.join(id.to_string())
    }

    async fn blocking<T, F>(&self, what: String, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| unavailable(what, error)),
            Err(error) => Err(Error::unavailable(format!("{what}: interrupted")).because(error)),
        }
    }
}

#[async_trait]
impl Volume for DirectoryVolume {
    async fn ensure(&self, id: VolumeId) -> Result<()> {
        let directory = self.directory(id);
        self.blocking(format!("volume {id} in {}", self.root.display()), move || {
            loop {
                match DirBuilder::new().mode(0o700).create(&directory) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => return made,
                }
                match fs::metadata(&directory) {
                    Ok(meta) if meta.is_dir() => return Ok(()),
                    Ok(_) => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
                    // Removed in between: once more.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        })
        .await
    }

    async fn mount(&self, id: VolumeId) -> Result<Mount> {
        let target = self.path(id).await?;
        let Some(source) = target.to_str().map(str::to_owned) else {
            return Err(Error::unavailable(format!(
                "volume {id}: {} is not UTF-8",
                target.display()
            )));
        };
        Ok(Mount { source, target })
    }

    async fn path(&self, id: VolumeId) -> Result<PathBuf> {
        let directory = self.directory(id);
        let found = directory.clone();
        let there = self.blocking(format!("volume {id}"), move || match fs::metadata(&directory) {
            Ok(meta) => Ok(meta.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        });
        if there.await? {
            Ok(found)
        } else {
            Err(Error::not_found("volume", id))
        }
    }

    async fn remove(&self, id: VolumeId) -> Result<()> {
        let directory = self.directory(id);
        self.blocking(format!("removal of volume {id}"), move || tree::remove(&directory))
            .await
    }

    async fn list(&self) -> Result<Vec<VolumeId>> {
        let root = Arc::clone(&self.root);
        self.blocking(format!("volumes in {}", self.root.display()), move || {
            let mut found = Vec::new();
            for entry in fs::read_dir(root.as_path())? {
                let entry = entry?;
                if let Some(id) = parse(&entry.file_name().to_string_lossy())
                    && entry.file_type()?.is_dir()
                {
                    found.push(id);
                }
            }
            found.sort();
            Ok(found)
        })
        .await
    }
}

fn parse(name: &str) -> Option<VolumeId> {
    let mut parts = name
        .strip_prefix("develop-")?
        .split('-')
        .map(|part| part.parse::<i64>().ok());
    let id = VolumeId {
        account: AccountId::new(parts.next()??),
        project: ProjectId::new(parts.next()??),
        user: UserId::new(parts.next()??),
    };
    // Also refuses what a number may be written as besides: "+1", "01".
    (id.to_string() == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let id = VolumeId {
            account: AccountId::new(1),
            project: ProjectId::new(22),
            user: UserId::new(333),
        };
        assert_eq!(parse(&id.to_string()), Some(id));
        for other in [
            "develop-1-2",
            "develop-1-2-3-4",
            "develop-01-2-3",
            "develop-+1-2-3",
            ".removed-develop-1-2-3",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
