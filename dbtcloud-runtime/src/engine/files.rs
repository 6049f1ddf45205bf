//! Locks, private directories and atomic writes, shared by the parts of the engine.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::error::EngineError;

const LOCK_POLL: Duration = Duration::from_millis(25);

/// Takes an exclusive lock between processes; dropping the file releases it, and so does the end of the process.
pub(super) async fn lock(path: &Path, limit: Duration) -> Result<File, EngineError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(EngineError::io("opening", path))?;
    let locked = tokio::time::timeout(limit, async {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    })
    .await;
    match locked {
        Ok(Ok(())) => Ok(file),
        Ok(Err(error)) => Err(EngineError::io("locking", path)(error)),
        Err(_) => Err(EngineError::Timeout {
            what: "waiting for a lock",
            seconds: limit.as_secs(),
        }),
    }
}

/// Makes sure `path` is a directory of ours that nobody else can enter.
pub(super) fn private_dir(path: &Path) -> Result<(), EngineError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(EngineError::io("creating", path))?;
    let meta = std::fs::symlink_metadata(path).map_err(EngineError::io("looking at", path))?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(EngineError::Invalid {
            field: "directory",
            reason: format!("{} belongs to another user", path.display()),
        });
    }
    if meta.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(EngineError::io("closing", path))?;
    }
    Ok(())
}

/// Writes a file so that a reader sees the old content or the new one.
pub(super) fn write_atomic(path: &Path, content: &[u8]) -> Result<(), EngineError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(EngineError::io("writing in", dir))?;
    file.write_all(content).map_err(EngineError::io("writing", path))?;
    file.persist(path)
        .map_err(|error| EngineError::io("renaming", path)(error.error))?;
    Ok(())
}

/// [`write_atomic`], unless the file already says so.
pub(super) fn write_if_different(path: &Path, content: &[u8]) -> Result<(), EngineError> {
    if std::fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    write_atomic(path, content)
}
