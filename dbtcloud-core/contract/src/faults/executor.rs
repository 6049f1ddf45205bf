use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::error::Result;
use dbtcloud_core::ports::{Execution, ExecutionId, ExecutionSpec, Executor, Observation};

use super::Faults;

/// An executor whose calls go wrong.
#[derive(Clone)]
pub struct FaultyExecutor {
    inner: Arc<dyn Executor>,
    faults: Arc<Faults>,
}

impl FaultyExecutor {
    /// Wraps an executor.
    pub fn new(inner: Arc<dyn Executor>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl Executor for FaultyExecutor {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        self.faults
            .strike("executor.start", true, || self.inner.start(spec))
            .await
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        self.faults
            .strike("executor.observe", true, || self.inner.observe(id))
            .await
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        self.faults
            .strike("executor.cancel", true, || self.inner.cancel(id, grace))
            .await
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        self.faults
            .strike("executor.remove", true, || self.inner.remove(id))
            .await
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        self.faults.strike("executor.list", true, || self.inner.list()).await
    }
}
