//! An executor whose calls arrive twice where a test says so; only in the binary that tests start. Agents make their own
//! calls so: they are told by the same variables.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::ports::{Execution, ExecutionId, ExecutionSpec, Executor, Observation};
use dbtcloud_core::{Result, failpoint};

/// How calls to the outside are made: once each when not said.
pub const CALLS: &str = "DBTCLOUD_CALLS";
/// A file to which the name of every place is appended that is reached.
pub const SEEN: &str = "DBTCLOUD_FAILPOINTS_SEEN";

/// Makes each call of an executor as [`CALLS`] says.
#[derive(Debug)]
pub struct Twice<E>(pub E);

#[async_trait]
impl<E: Executor> Executor for Twice<E> {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        failpoint::call("executor", "start", || self.0.start(spec)).await
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        failpoint::call("executor", "observe", || self.0.observe(id)).await
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        failpoint::call("executor", "cancel", || self.0.cancel(id, grace)).await
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        failpoint::call("executor", "remove", || self.0.remove(id)).await
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        failpoint::call("executor", "list", || self.0.list()).await
    }
}
