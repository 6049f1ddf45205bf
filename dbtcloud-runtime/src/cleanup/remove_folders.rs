//! Removes scratch folders of executions that are gone, where they are on this host.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::ports::ExecutionId;
use dbtcloud_core::{Error, Result};

use super::{Chore, Failures, Swept, Work};

/// Removes folders.
#[derive(Debug)]
pub(super) struct RemoveFolders;

#[async_trait]
impl Chore for RemoveFolders {
    fn name(&self) -> &'static str {
        "remove_folders"
    }

    fn kind(&self) -> &'static str {
        "scratch_folder"
    }

    fn lease(&self) -> Option<&'static str> {
        None
    }

    fn every(&self, interval: Duration) -> Duration {
        interval
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let root = &work.plane.config().agent.work_dir;
        let Ok(mut folders) = tokio::fs::read_dir(root).await else {
            return Ok(());
        };
        let mut found = Vec::new();
        while let Ok(Some(folder)) = folders.next_entry().await {
            let name = folder.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<ExecutionId>().ok()));
        }
        swept.examined += found.len() as u64;
        // Listed after the folders: an execution that begins in between is in this list.
        let executions = work.plane.executor().list().await?;
        let alive: BTreeSet<ExecutionId> = executions.into_iter().map(|one| one.id).collect();
        let mut failures = Failures::default();
        for id in found.into_iter().filter(|id| !alive.contains(id)) {
            if work.acts() {
                let gone = tokio::fs::remove_dir_all(root.join(id.to_string())).await;
                let gone = gone.map_err(|error| {
                    Error::unavailable(format!("scratch folder {id} cannot be removed")).because(error)
                });
                if failures.note(gone)?.is_none() {
                    continue;
                }
            }
            swept.done += 1;
        }
        failures.end()
    }
}
