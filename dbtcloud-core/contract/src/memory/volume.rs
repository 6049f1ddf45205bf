use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::ports::{Mount, Volume, VolumeId};
use tempfile::TempDir;

/// Volumes that are temporary directories, gone when the last handle is dropped. A clone is the same
/// store.
#[derive(Clone, Default)]
pub struct TemporaryVolume {
    volumes: Arc<Mutex<BTreeMap<String, (VolumeId, TempDir)>>>,
}

impl TemporaryVolume {
    /// No volumes.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<String, (VolumeId, TempDir)>) -> T) -> T {
        act(&mut self.volumes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Volume for TemporaryVolume {
    async fn ensure(&self, id: VolumeId) -> Result<()> {
        self.with(|volumes| {
            if let Entry::Vacant(place) = volumes.entry(id.to_string()) {
                let directory = TempDir::new().map_err(|e| Error::unavailable("temporary directory").because(e))?;
                place.insert((id, directory));
            }
            Ok(())
        })
    }

    async fn mount(&self, id: VolumeId) -> Result<Mount> {
        let source = self.path(id).await?.to_string_lossy().into_owned();
        Ok(Mount {
            source,
            target: PathBuf::from("/work"),
        })
    }

    async fn path(&self, id: VolumeId) -> Result<PathBuf> {
        self.with(|volumes| {
            volumes
                .get(&id.to_string())
                .map(|(_, directory)| directory.path().to_owned())
        })
        .ok_or_else(|| Error::not_found("volume", id))
    }

    async fn remove(&self, id: VolumeId) -> Result<()> {
        self.with(|volumes| volumes.remove(&id.to_string()));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<VolumeId>> {
        Ok(self.with(|volumes| volumes.values().map(|(id, _)| *id).collect()))
    }
}
