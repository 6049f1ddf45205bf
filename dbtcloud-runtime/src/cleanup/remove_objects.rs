//! Removes files of runs that the database does not know. Whoever forgets a run removes its files first, so there are
//! few: a log that was being moved just then, an upload of an agent that came too late.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::run::Month;
use dbtcloud_core::{Error, Result, Timestamp};
use futures::{StreamExt, TryStreamExt};

use super::retention::remove_files;
use super::{Chore, Failures, PAGE, PAGES, Swept, Work};

/// How long ago the month of a run must have ended that nobody knows.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// So many unknown runs are no accident when there are more of them than known ones: it is another database's store.
const ACCIDENTS: u64 = 100;

/// Removes objects.
#[derive(Debug)]
pub(super) struct RemoveObjects;

#[async_trait]
impl Chore for RemoveObjects {
    fn name(&self) -> &'static str {
        "remove_objects"
    }

    fn kind(&self) -> &'static str {
        "orphaned_files"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/remove_objects")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 2880
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let Ok(store) = work.plane.artifacts() else {
            return Ok(());
        };
        let (mut known, mut unknown, mut orphans) = (0_u64, 0_u64, Vec::new());
        let mut pages = store.runs().await?.try_chunks(PAGE as usize);
        while let Some(page) = pages.next().await {
            let page = page.map_err(|broken| broken.1)?;
            swept.examined += page.len() as u64;
            let ids: Vec<RunId> = page.iter().map(|(_, run)| *run).collect();
            let states = work.plane.runs().states(&ids).await?;
            for (account, run) in page {
                if states.iter().any(|state| state.run == run) {
                    known += 1;
                    continue;
                }
                unknown += 1;
                if !is_old(run, work.now) {
                    swept.keep("young");
                } else if orphans.len() < PAGE as usize * PAGES {
                    orphans.push((account, run));
                } else {
                    swept.more = work.acts();
                }
            }
        }
        orphans.sort_unstable();
        orphans.dedup();
        if unknown > known && unknown > ACCIDENTS {
            swept.more = false;
            return Err(Error::conflict(format!(
                "the artifact store has files of {unknown} runs that the database does not know and of {known} that it \
                 does: see whether database_url and artifacts_url belong together; nothing was removed"
            )));
        }
        remove(work, orphans, swept).await
    }
}

async fn remove(work: &Work<'_>, orphans: Vec<(AccountId, RunId)>, swept: &mut Swept) -> Result<()> {
    let mut failures = Failures::default();
    for page in orphans.chunks(PAGE as usize) {
        for (account, run, bytes) in remove_files(work, page.to_vec(), None, &mut failures).await? {
            swept.done += 1;
            swept.bytes += bytes;
            if work.acts() {
                tracing::info!(
                    account_id = account.get(),
                    run_id = run.get(),
                    bytes,
                    "files of no run removed"
                );
            }
        }
    }
    failures.end()
}

/// Whether the id of a run says that nobody can be about to write it down. One that says no month is older than that.
fn is_old(run: RunId, now: Timestamp) -> bool {
    Month::of_run(run).is_none_or(|month| month.next().start().plus(AGE) <= now)
}
