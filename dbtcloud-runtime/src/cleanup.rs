//! Background cleanup: chores that take no input and converge, one file each. Each is safe to run anywhere, any
//! number of times, beside others of its kind, and may be killed at any line; a lease only spares work.
//!
//! What is removed from outside of the database is removed before the rows that know of it, so that a crash in
//! between leaves nothing that nobody knows.

mod expire_artifacts;
mod expire_audit;
mod expire_logs;
mod expire_runs;
mod expire_sessions;
mod flush_logs;
mod heal_hands;
mod make_months;
mod purge_dispatches;
mod purge_leases;
mod purge_requests;
mod purge_tickets;
mod remove_executions;
mod remove_folders;
mod remove_objects;
mod remove_volumes;
mod retention;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;

/// Things that one chore takes at one time.
const PAGE: u32 = 200;
/// Pages that one chore takes in one sweep.
const PAGES: usize = 50;
/// Things of one sweep that may be `Unavailable` before it is given up: a store is away, not one thing odd.
const FAILURE_LIMIT: usize = 5;

/// Whether a chore acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does what there is to do.
    Act,
    /// It tells what it would do and changes nothing.
    DryRun,
}

/// What a chore is given for one sweep.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Where it works.
    pub plane: &'a ControlPlane,
    /// When it began.
    pub now: Timestamp,
    /// Whether it acts.
    pub mode: Mode,
    /// Set when the process is to end.
    stop: &'a CancellationToken,
}

impl Work<'_> {
    /// Whether it acts.
    pub fn acts(&self) -> bool {
        self.mode == Mode::Act
    }

    /// Whether it is to end soon: what was begun is finished, nothing else is begun.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Lets go of all that `count` counts, a page at a time; a dry run counts.
    async fn purge<F>(
        &self,
        swept: &mut Swept,
        count: impl Future<Output = Result<u64>>,
        mut forget: impl FnMut() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<u64>>,
    {
        if !self.acts() {
            let old = count.await?;
            (swept.examined, swept.done) = (old, old);
            return Ok(());
        }
        for _ in 0..PAGES {
            let gone = forget().await?;
            swept.examined += gone;
            swept.done += gone;
            if gone == 0 {
                return Ok(());
            }
            if self.is_stopping() {
                break;
            }
        }
        swept.more = true;
        Ok(())
    }
}

/// What one sweep saw and did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Swept {
    /// Things that were looked at.
    pub examined: u64,
    /// Things that were removed, moved or set right; in a dry run, that would have been.
    pub done: u64,
    /// Their bytes, where they have any that can be told.
    pub bytes: u64,
    /// Things that were left alone although they might have gone, by the reason.
    pub kept: BTreeMap<&'static str, u64>,
    /// Whether the sweep ended at its bound, and the next one has more to do.
    pub more: bool,
}

impl Swept {
    fn keep(&mut self, why: &'static str) {
        *self.kept.entry(why).or_default() += 1;
    }
}

/// One kind of background work. It takes no input, looks at the world, and makes it converge: a second sweep right
/// after the first has nothing to do.
#[async_trait]
pub trait Chore: Send + Sync {
    /// Its name, as people and numbers have it.
    fn name(&self) -> &'static str;

    /// What it removes, moves or sets right, one of it.
    fn kind(&self) -> &'static str;

    /// The lease that spares several processes the same work. `None` when the work is on this host: every process
    /// does its own.
    fn lease(&self) -> Option<&'static str>;

    /// How often it sweeps, by how often the most frequent chores do.
    fn every(&self, interval: Duration) -> Duration;

    /// Does what there is to do, up to a bound, and adds to `swept` as it goes. What fails with one thing does not
    /// keep it from the others, and is not tried again: the next sweep is the retry.
    ///
    /// Errors: the first that it met, of whatever kind. What `swept` says is done, is done.
    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()>;
}

/// All chores, in the order in which one process alone does them. They remember where they were in what they look
/// through page by page, and nothing else.
pub fn chores() -> Vec<Box<dyn Chore>> {
    vec![
        Box::new(make_months::MakeMonths),
        Box::new(heal_hands::HealHands::default()),
        Box::new(remove_executions::RemoveExecutions),
        Box::new(remove_folders::RemoveFolders),
        Box::new(expire_runs::ExpireRuns::default()),
        Box::new(expire_logs::ExpireLogs),
        Box::new(expire_artifacts::ExpireArtifacts),
        Box::new(expire_sessions::ExpireSessions::default()),
        Box::new(expire_audit::ExpireAudit),
        Box::new(flush_logs::FlushLogs::default()),
        Box::new(remove_objects::RemoveObjects),
        Box::new(remove_volumes::RemoveVolumes),
        Box::new(purge_tickets::PurgeTickets),
        Box::new(purge_leases::PurgeLeases),
        Box::new(purge_dispatches::PurgeDispatches),
        Box::new(purge_requests::PurgeRequests),
    ]
}

/// What became of one sweep.
#[derive(Debug)]
pub struct Report {
    /// Whose.
    pub chore: &'static str,
    /// What it did.
    pub swept: Swept,
    /// How long it took.
    pub took: Duration,
    /// Why it did not come to its end.
    pub error: Option<Error>,
}

/// Sweeps until `shutdown`, every chore in a loop of its own, so that a slow one holds up nobody else.
pub(crate) async fn run(plane: &ControlPlane, shutdown: &CancellationToken) {
    let mut loops = tokio::task::JoinSet::new();
    for chore in chores() {
        let (plane, shutdown) = (plane.clone(), shutdown.clone());
        loops.spawn(async move { sweep_on(&plane, &*chore, &shutdown).await });
    }
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a loop of cleanup ended");
        }
    }
}

async fn sweep_on(plane: &ControlPlane, chore: &dyn Chore, shutdown: &CancellationToken) {
    let mut failing = false;
    while !shutdown.is_cancelled() {
        let mut pause = chore.every(plane.config().cleanup_interval);
        if let Some(report) = turn(plane, chore, shutdown).await {
            match &report.error {
                None if failing => tracing::info!(chore = report.chore, "cleanup works again"),
                Some(error) if !failing => tracing::warn!(
                    chore = report.chore,
                    error = %error.chain(),
                    "cleanup failed and is tried again; {}",
                    advice(error.kind())
                ),
                Some(error) => tracing::debug!(chore = report.chore, error = %error.chain(), "cleanup still fails"),
                None => {}
            }
            failing = report.error.is_some();
            if report.swept.more && !failing {
                pause = plane.config().poll;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = plane.clock().sleep(pause) => {}
        }
    }
    let Some(lease) = chore.lease() else { return };
    plane.metrics().leads(lease, false);
    if let Err(error) = plane.leases().release(lease, &plane.owner()).await {
        tracing::warn!(error = %error.chain(), lease, "cleanup lease could not be given up; it expires");
    }
}

/// What a person can do about a chore that fails.
const fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "see whether the database and the artifact store can be reached",
        ErrorKind::Corrupt => "what is stored there must be looked at",
        ErrorKind::Denied => "see what this server may do there",
        _ => "when it goes on, `dbtcloud cleanup --once --chore NAME` tells more",
    }
}

/// Sweeps once with every chore whose lease is free.
pub async fn round(plane: &ControlPlane) -> Vec<Report> {
    let (mut reports, stop) = (Vec::new(), CancellationToken::new());
    for chore in chores() {
        reports.extend(turn(plane, &*chore, &stop).await);
    }
    reports
}

/// Sweeps with the chores of these names, or with all when there are none, until nothing is left to do. Leases are
/// not asked for: servers may be at it at the same time.
///
/// # Errors
/// `Invalid` for a name that no chore has, with the names that there are; nothing was done then.
pub async fn once(plane: &ControlPlane, names: &[String], mode: Mode) -> Result<Vec<Report>> {
    let mut chores = chores();
    if let Some(unknown) = names
        .iter()
        .find(|name| chores.iter().all(|chore| chore.name() != **name))
    {
        let known: Vec<_> = chores.iter().map(|chore| chore.name()).collect();
        return Err(Error::invalid(
            "chore",
            format!("expected one of {}, got '{unknown}'", known.join(", ")),
        ));
    }
    chores.retain(|chore| names.is_empty() || names.iter().any(|name| name == chore.name()));
    let (mut reports, stop) = (Vec::new(), CancellationToken::new());
    for chore in chores {
        let mut whole = sweep(plane, &*chore, mode, &stop).await;
        while whole.swept.more && whole.error.is_none() {
            let next = sweep(plane, &*chore, mode, &stop).await;
            whole.swept.examined += next.swept.examined;
            whole.swept.done += next.swept.done;
            whole.swept.bytes += next.swept.bytes;
            for (why, count) in next.swept.kept {
                *whole.swept.kept.entry(why).or_default() += count;
            }
            whole.swept.more = next.swept.more;
            whole.took += next.took;
            whole.error = next.error;
        }
        reports.push(whole);
    }
    Ok(reports)
}

/// A sweep, if the chore's lease can be had.
async fn turn(plane: &ControlPlane, chore: &dyn Chore, stop: &CancellationToken) -> Option<Report> {
    if let Some(lease) = chore.lease() {
        let now = plane.clock().now();
        let interval = plane.config().cleanup_interval;
        let until = now.plus(chore.every(interval) + interval);
        let held = plane.leases().acquire(lease, &plane.owner(), now, until).await;
        plane.metrics().leads(lease, matches!(held, Ok(Some(_))));
        match held {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => {
                let report = Report {
                    chore: chore.name(),
                    swept: Swept::default(),
                    took: Duration::ZERO,
                    error: Some(error),
                };
                plane.metrics().swept(chore.kind(), &report, now);
                return Some(report);
            }
        }
    }
    Some(sweep(plane, chore, Mode::Act, stop).await)
}

async fn sweep(plane: &ControlPlane, chore: &dyn Chore, mode: Mode, stop: &CancellationToken) -> Report {
    let now = plane.clock().now();
    let mut swept = Swept::default();
    let work = Work { plane, now, mode, stop };
    let ended = AssertUnwindSafe(chore.sweep(&work, &mut swept)).catch_unwind().await;
    let ended = ended.unwrap_or_else(|_| Err(Error::corrupt("the chore panicked")));
    let ended_at = plane.clock().now();
    let report = Report {
        chore: chore.name(),
        swept,
        took: ended_at.since(now),
        error: ended.err(),
    };
    if work.acts() {
        plane.metrics().swept(chore.kind(), &report, ended_at);
    }
    report
}

/// Where the next sweep of a chore goes on that looks through more than one can. Lost with the process: it begins
/// again then.
#[derive(Debug, Default)]
struct Cursor(AtomicI64);

impl Cursor {
    fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, at: i64) {
        self.0.store(at, Ordering::Relaxed);
    }
}

/// What failed with single things of a sweep.
#[derive(Debug, Default)]
struct Failures {
    first: Option<Error>,
    count: usize,
}

impl Failures {
    /// Takes note of what became of one thing; `None` when it failed.
    ///
    /// # Errors
    /// The first failure, when the sweep is to be given up.
    fn note<T>(&mut self, became: Result<T>) -> Result<Option<T>> {
        match became {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.count += usize::from(error.kind() == ErrorKind::Unavailable);
                let first = self.first.take().unwrap_or(error);
                if self.count >= FAILURE_LIMIT {
                    return Err(first);
                }
                self.first = Some(first);
                Ok(None)
            }
        }
    }

    /// The first failure, if there was one.
    fn end(self) -> Result<()> {
        self.first.map_or(Ok(()), Err)
    }
}
