use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, ArtifactKey, ArtifactMeta, Artifacts, ByteRange, ByteStream, RunStream};
use futures::{StreamExt, TryStreamExt, stream};

/// How much of a file one item of a stream holds.
const CHUNK_BYTES: usize = 64 * 1024;

type Files = BTreeMap<ArtifactKey, Bytes>;

/// An artifact store in memory. The only one that holds whole files: it is a model, not an example.
#[derive(Clone, Default)]
pub struct MemoryArtifacts {
    files: Arc<Mutex<Files>>,
}

impl MemoryArtifacts {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Artifacts for MemoryArtifacts {
    async fn put(&self, key: &ArtifactKey, mut bytes: ByteStream) -> Result<u64> {
        let mut whole = BytesMut::new();
        while let Some(part) = bytes.try_next().await? {
            whole.extend_from_slice(&part);
        }
        let length = whole.len() as u64;
        self.lock().insert(key.clone(), whole.freeze());
        Ok(length)
    }

    async fn open(&self, key: &ArtifactKey, range: ByteRange) -> Result<ByteStream> {
        let whole = self
            .lock()
            .get(key)
            .cloned()
            .ok_or_else(|| Error::not_found("artifact", &key.path))?;
        let length = whole.len() as u64;
        let end = range.end.unwrap_or(length).min(length);
        let start = range.start.min(end);
        let part = whole.slice(start as usize..end as usize);
        let chunks: Vec<Bytes> = part.chunks(CHUNK_BYTES).map(|chunk| part.slice_ref(chunk)).collect();
        Ok(stream::iter(chunks).map(Ok).boxed())
    }

    async fn stat(&self, key: &ArtifactKey) -> Result<Option<ArtifactMeta>> {
        Ok(self.lock().get(key).map(|bytes| meta(key, bytes)))
    }

    async fn list(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<Vec<ArtifactMeta>> {
        let files = self.lock();
        let own = files
            .iter()
            .filter(|(key, _)| key.account == account && key.run == run && area.is_none_or(|area| key.area == area));
        Ok(own.map(|(key, bytes)| meta(key, bytes)).collect())
    }

    async fn runs(&self) -> Result<RunStream> {
        let runs: BTreeSet<_> = self.lock().keys().map(|key| (key.account, key.run)).collect();
        Ok(stream::iter(runs).map(Ok).boxed())
    }

    async fn remove(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<()> {
        self.lock()
            .retain(|key, _| key.account != account || key.run != run || area.is_some_and(|area| key.area != area));
        Ok(())
    }
}

fn meta(key: &ArtifactKey, bytes: &Bytes) -> ArtifactMeta {
    ArtifactMeta {
        area: key.area,
        path: key.path.clone(),
        bytes: bytes.len() as u64,
    }
}
