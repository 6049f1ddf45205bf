//! Replaces the executor: agents run at low priority, and only so many of them at once.
//!
//! `cargo run --example custom_executor` shows it at work; its tests hold it to the same contract suite as
//! the executors that come with the platform.
//!
//! It decorates another executor and keeps no state of its own: how many run is asked of the world, every
//! time, so a restart of the control plane loses nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Execution, ExecutionId, ExecutionSpec, Executor, Observation, Workload, WorkloadLimits};
use dbtcloud_core::{Error, Result};
use dbtcloud_local::LocalExecutor;
use tokio::sync::Mutex;

/// What stands before every command: both become the command, so its process, its signals and its exit
/// code are its own.
const GENTLY: [&str; 6] = ["/usr/bin/nice", "-n10", "/usr/bin/ionice", "-c3", "-t", "--"];

/// Any executor on Linux, made a good neighbour.
///
/// With `limit` executions under way a further start is `Unavailable`: the driver comes back later, for as
/// long as `Config::provision_timeout` allows. Within a process the limit is exact; several control planes
/// over one executor may for a moment exceed it by one each. A program that is not there is not refused at
/// the start, as it would be without us: `nice` looks for it, and ends with 127.
pub struct Gentle<E> {
    inner: E,
    limit: usize,
    /// Between counting and starting nobody else may start.
    turn: Mutex<()>,
}

impl<E: Executor> Gentle<E> {
    /// Decorates an executor.
    pub fn new(inner: E, limit: usize) -> Self {
        Self {
            inner,
            limit,
            turn: Mutex::new(()),
        }
    }

    async fn under_way(&self) -> Result<usize> {
        let mut count = 0;
        for execution in self.inner.list().await? {
            let seen = self.inner.observe(execution.id).await?;
            count += usize::from(matches!(
                seen,
                Observation::Pending { .. } | Observation::Running { .. }
            ));
        }
        Ok(count)
    }
}

#[async_trait]
impl<E: Executor> Executor for Gentle<E> {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        let _turn = self.turn.lock().await;
        // A second start of the same name does nothing and needs no room.
        let known = self.inner.observe(spec.id).await? != Observation::Absent;
        if !known && self.under_way().await? >= self.limit {
            return Err(Error::unavailable(format!(
                "{} executions are under way already",
                self.limit
            )));
        }
        let mut spec = spec.clone();
        // An empty command is for the executor beneath to refuse.
        if !spec.command.is_empty() {
            spec.command.splice(0..0, GENTLY.map(str::to_owned));
        }
        self.inner.start(&spec).await
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        self.inner.observe(id).await
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        self.inner.cancel(id, grace).await
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        self.inner.remove(id).await
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        self.inner.list().await
    }
}

/// A task that is no agent: `ControlPlane::builder(storage, Gentle::new(executor, 8), config)` starts those.
fn task(run: i64, script: &str) -> ExecutionSpec {
    ExecutionSpec {
        id: ExecutionId::Run {
            run: RunId::new(run),
            attempt: 1,
        },
        account: AccountId::new(1),
        workload: Workload::Task,
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        environment: BTreeMap::new(),
        ticket: None,
        mounts: Vec::new(),
        limits: WorkloadLimits::default(),
        placement: Default::default(),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let executor = Gentle::new(LocalExecutor::new(directory.path())?, 2);
    for run in 1..=3 {
        match executor.start(&task(run, "exec sleep 60")).await {
            Ok(()) => println!("run {run}: started"),
            Err(error) => println!("run {run}: {error}"),
        }
    }
    for execution in executor.list().await? {
        println!("{}: {:?}", execution.id, executor.observe(execution.id).await?);
        executor.remove(execution.id).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "custom_executor_tests.rs"]
mod tests;
