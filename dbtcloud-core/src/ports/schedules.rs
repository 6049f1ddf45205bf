use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::id::{AccountId, JobId};
use crate::run::{NewRun, Run};
use crate::time::Timestamp;

/// The most schedules that one call may fire.
pub const FIRE_LIMIT: usize = 200;

/// When a job is next due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleEntry {
    /// Whose.
    pub account: AccountId,
    /// Which job.
    pub job: JobId,
    /// The version of the job record that this was worked out from.
    pub job_version: u64,
    /// When; never, when absent.
    pub next_at: Option<Timestamp>,
}

/// A schedule that is to fire.
#[derive(Clone, Debug, PartialEq)]
pub struct Firing {
    /// Which job.
    pub job: JobId,
    /// The instant that is due, as read.
    pub seen: Timestamp,
    /// The version of the job record, as read.
    pub job_version: u64,
    /// When it is due after that.
    pub next: Option<Timestamp>,
    /// The run for the instant that is due; `None` only moves the hand on.
    pub run: Option<NewRun>,
}

impl Firing {
    /// Whether one call may fire these.
    ///
    /// # Errors
    /// `Invalid` for more than [`FIRE_LIMIT`], and for a job that is named twice.
    pub fn check(firings: &[Self]) -> Result<()> {
        if firings.len() > FIRE_LIMIT {
            let text = format!("expected at most {FIRE_LIMIT}, got {}", firings.len());
            return Err(Error::invalid("firings", text));
        }
        let mut jobs: Vec<JobId> = firings.iter().map(|firing| firing.job).collect();
        jobs.sort_unstable();
        match jobs.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::invalid(
                "firings",
                format!("expected every job once, got {} twice", pair[0]),
            )),
            None => Ok(()),
        }
    }
}

/// What came of a firing.
#[derive(Clone, Debug, PartialEq)]
pub enum Fired {
    /// The run was queued and the hand moved, both at once.
    Queued(Box<Run>),
    /// The hand moved; no run was asked for, or one for this instant existed already.
    Moved,
    /// Somebody else was first, or the job changed.
    Lost,
}

/// The clock hands of all jobs that have a schedule.
#[async_trait]
pub trait Schedules: Send + Sync {
    /// Sets a job's hand, unless what is stored was worked out from a newer version of the job. `next_at`
    /// `None` takes it off the clock. A second call changes nothing.
    async fn put(&self, entry: &ScheduleEntry, now: Timestamp) -> Result<()>;

    /// Hands that are due at `now`, longest due first, at most `limit`.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<ScheduleEntry>>;

    /// The earliest hand, if any.
    async fn next(&self) -> Result<Option<Timestamp>>;

    /// Of these jobs, the hands.
    async fn of(&self, jobs: &[JobId]) -> Result<Vec<ScheduleEntry>>;

    /// Queues the run of each and moves its hand in one step, if the hand still stands at `seen` and was worked
    /// out from `job_version`; an answer for each, in their order. On an error none of them has fired. With any
    /// number of callers one instant of one job fires exactly once.
    ///
    /// Errors: `Invalid` as for [`Firing::check`], and for a run that cannot be stored.
    async fn fire(&self, firings: &[Firing], now: Timestamp) -> Result<Vec<Fired>>;
}
