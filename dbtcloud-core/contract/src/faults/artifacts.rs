use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use dbtcloud_core::error::Result;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, ArtifactKey, ArtifactMeta, Artifacts, ByteRange, ByteStream, RunStream};
use futures::{StreamExt, TryStreamExt, stream};

use super::Faults;

/// An artifact store whose calls go wrong.
///
/// A `put` that arrives *twice* keeps only half of the bytes, of a file that was not there before, and says
/// that it kept all: what no store promises to do, and what reading back finds.
#[derive(Clone)]
pub struct FaultyArtifacts {
    inner: Arc<dyn Artifacts>,
    faults: Arc<Faults>,
    /// What it says it kept of files it tore, if it lies about them when it is asked, too.
    pretended: Option<Pretended>,
}

type Pretended = Arc<Mutex<BTreeMap<ArtifactKey, Bytes>>>;

impl FaultyArtifacts {
    /// Wraps an artifact store.
    pub fn new(inner: Arc<dyn Artifacts>, faults: Arc<Faults>) -> Self {
        Self {
            inner,
            faults,
            pretended: None,
        }
    }

    /// A store that also pretends to whoever reads back: as if nobody did.
    #[must_use]
    pub fn blind(mut self) -> Self {
        self.pretended = Some(Arc::default());
        self
    }

    /// The same store as another process sees it, with faults of its own.
    #[must_use]
    pub fn seen_with(&self, faults: Arc<Faults>) -> Self {
        Self { faults, ..self.clone() }
    }

    fn pretend(&self, key: &ArtifactKey) -> Option<Bytes> {
        let pretended = self.pretended.as_ref()?;
        let pretended = pretended.lock().unwrap_or_else(PoisonError::into_inner);
        pretended.get(key).cloned()
    }

    async fn tear(&self, key: &ArtifactKey, whole: &Bytes) -> Result<u64> {
        let half = whole.slice(..whole.len() / 2);
        self.inner.put(key, stream::iter([Ok(half)]).boxed()).await?;
        if let Some(pretended) = &self.pretended {
            let mut pretended = pretended.lock().unwrap_or_else(PoisonError::into_inner);
            pretended.insert(key.clone(), whole.clone());
        }
        Ok(whole.len() as u64)
    }
}

#[async_trait]
impl Artifacts for FaultyArtifacts {
    async fn put(&self, key: &ArtifactKey, mut bytes: ByteStream) -> Result<u64> {
        let mut whole = BytesMut::new();
        while let Some(part) = bytes.try_next().await? {
            whole.extend_from_slice(&part);
        }
        let whole = whole.freeze();
        if self.faults.tears("artifacts.tear") && self.inner.stat(key).await?.is_none() {
            return self.tear(key, &whole).await;
        }
        self.faults
            .strike("artifacts.put", false, || {
                let whole = whole.clone();
                self.inner.put(key, stream::iter([Ok(whole)]).boxed())
            })
            .await
    }

    async fn open(&self, key: &ArtifactKey, range: ByteRange) -> Result<ByteStream> {
        if let Some(whole) = self.pretend(key) {
            let end = range.end.map_or(whole.len(), |end| {
                whole.len().min(usize::try_from(end).unwrap_or(usize::MAX))
            });
            let start = end.min(usize::try_from(range.start).unwrap_or(usize::MAX));
            return Ok(stream::iter([Ok(whole.slice(start..end))]).boxed());
        }
        self.faults
            .strike("artifacts.open", true, || self.inner.open(key, range))
            .await
    }

    async fn stat(&self, key: &ArtifactKey) -> Result<Option<ArtifactMeta>> {
        if let Some(whole) = self.pretend(key) {
            return Ok(Some(ArtifactMeta {
                area: key.area,
                path: key.path.clone(),
                bytes: whole.len() as u64,
            }));
        }
        self.faults
            .strike("artifacts.stat", true, || self.inner.stat(key))
            .await
    }

    async fn list(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<Vec<ArtifactMeta>> {
        self.faults
            .strike("artifacts.list", true, || self.inner.list(account, run, area))
            .await
    }

    async fn runs(&self) -> Result<RunStream> {
        self.faults.strike("artifacts.runs", true, || self.inner.runs()).await
    }

    async fn remove(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<()> {
        self.faults
            .strike("artifacts.remove", true, || self.inner.remove(account, run, area))
            .await
    }
}
