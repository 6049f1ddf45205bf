//! Background cleanup: chores that take no input and converge. Each is safe to run anywhere, any number of
//! times; a lease only spares work.

mod flush_logs;

use std::collections::BTreeSet;
use std::time::Duration;

use dbtcloud_core::Result;
use dbtcloud_core::catalog::{Kind, Record};
use dbtcloud_core::id::RunId;
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::ExecutionId;
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;

/// The lease that spares several processes the same chores.
const LEASE: &str = "cleanup";
/// Things that one chore takes at one time.
const PAGE: u32 = 200;
/// Pages that one chore takes in one round.
const PAGES: usize = 50;
/// How long an execution may exist before it can be called an orphan.
const ORPHAN_AGE: Duration = Duration::from_secs(120);
/// How long tickets of ended runs are kept.
const TICKET_AGE: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(plane: &ControlPlane, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        if let Err(error) = round(plane).await {
            tracing::warn!(error = %error.chain(), "cleanup failed; it is tried again");
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = plane.clock().sleep(plane.config().cleanup_interval) => {}
        }
    }
    plane.metrics().leads(LEASE, false);
    if let Err(error) = plane.leases().release(LEASE, &plane.owner()).await {
        tracing::warn!(error = %error.chain(), "cleanup lease could not be given up; it expires");
    }
}

/// What a round of cleanup did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cleaned {
    /// Executions whose run had ended or moved on.
    pub executions: u64,
    /// Tickets and keys of ended runs.
    pub tickets: u64,
    /// Parts of step logs moved to the artifact store.
    pub logs: u64,
    /// Scratch folders without an execution.
    pub folders: u64,
}

/// Runs every chore once, if no other process holds the lease.
///
/// # Errors
/// The first that a chore met; the chores before it are done.
pub async fn round(plane: &ControlPlane) -> Result<Cleaned> {
    let now = plane.clock().now();
    let until = now.plus(plane.config().cleanup_interval.saturating_mul(2));
    let held = plane.leases().acquire(LEASE, &plane.owner(), now, until).await?;
    plane.metrics().leads(LEASE, held.is_some());
    if held.is_none() {
        return Ok(Cleaned::default());
    }
    plane.history().prepare(now).await?;
    heal_hands(plane).await?;
    let cleaned = Cleaned {
        executions: remove_orphans(plane).await?,
        tickets: plane.tickets().purge(now.minus(TICKET_AGE), PAGE).await?,
        logs: flush_logs::round(plane).await?,
        folders: remove_folders(plane).await?,
    };
    for (kind, count) in [
        ("execution", cleaned.executions),
        ("ticket", cleaned.tickets),
        ("scratch_folder", cleaned.folders),
    ] {
        plane.metrics().cleanup_deleted.add([kind], count);
    }
    Ok(cleaned)
}

/// Sets clock hands that a crash left behind their job: those of active jobs whose hand was worked out from
/// another version of the job, or is missing.
async fn heal_hands(plane: &ControlPlane) -> Result<()> {
    let mut after = 0;
    loop {
        let rows = plane.catalog().scan(Kind::Job, after, PAGE).await?;
        let Some(last) = rows.last().map(|row| row.id) else {
            return Ok(());
        };
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            match Record::<Job>::try_from(row) {
                Ok(job) => jobs.push(job),
                Err(error) => tracing::error!(error = %error.chain(), "stored job cannot be read"),
            }
        }
        let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
        let hands = plane.schedules().of(&ids).await?;
        for job in jobs {
            let hand = hands.iter().find(|hand| hand.job == job.id);
            let stale = match hand {
                Some(hand) => hand.job_version < job.version,
                None => job.active_schedule().is_some(),
            };
            if stale {
                plane.set_hand(&job).await?;
            }
        }
        after = last;
    }
}

/// Removes executions whose run has ended, moved on to another attempt, or never was. One that is young is
/// left alone: its run may be about to say something.
async fn remove_orphans(plane: &ControlPlane) -> Result<u64> {
    let now = plane.clock().now();
    let executions = plane.executor().list().await?;
    let old: Vec<(RunId, u32)> = executions
        .iter()
        .filter(|execution| now.since(execution.started_at) > ORPHAN_AGE)
        .filter_map(|execution| match execution.id {
            ExecutionId::Run { run, attempt } => Some((run, attempt)),
            ExecutionId::Session { .. } => None,
        })
        .collect();
    let mut removed = 0;
    for page in old.chunks(PAGE as usize) {
        let ids: Vec<RunId> = page.iter().map(|(run, _)| *run).collect();
        let states = plane.runs().states(&ids).await?;
        for (run, attempt) in page {
            let state = states.iter().find(|state| state.run == *run);
            // Gone for certain: terminal, overtaken, or unknown to a storage that answered.
            let orphan = state.is_none_or(|state| state.status.is_terminal() || state.attempt > *attempt);
            if orphan {
                plane
                    .executor()
                    .remove(ExecutionId::Run {
                        run: *run,
                        attempt: *attempt,
                    })
                    .await?;
                removed += 1;
                tracing::info!(run_id = run.get(), attempt, "orphaned execution removed");
            }
        }
    }
    Ok(removed)
}

/// Removes scratch folders of executions that are gone, where they are on this host.
async fn remove_folders(plane: &ControlPlane) -> Result<u64> {
    let root = &plane.config().agent.work_dir;
    let Ok(mut folders) = tokio::fs::read_dir(root).await else {
        return Ok(0);
    };
    let mut found = Vec::new();
    while let Ok(Some(folder)) = folders.next_entry().await {
        if let Some(id) = folder
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<ExecutionId>().ok())
        {
            found.push(id);
        }
    }
    // Listed after the folders: an execution that begins in between is in this list.
    let alive: BTreeSet<ExecutionId> = plane.executor().list().await?.into_iter().map(|one| one.id).collect();
    let mut removed = 0;
    for id in found.into_iter().filter(|id| !alive.contains(id)) {
        match tokio::fs::remove_dir_all(root.join(id.to_string())).await {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(%error, execution = %id, "scratch folder cannot be removed")
            }
        }
    }
    Ok(removed)
}
