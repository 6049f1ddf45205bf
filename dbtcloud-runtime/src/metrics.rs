//! What a control plane counts. Plain numbers; the server gives them names.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use dbtcloud_core::Timestamp;
use dbtcloud_core::run::RunStatus;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of one control plane since it was built.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Runs that this process saw end, by how.
    pub runs_succeeded: Counter,
    /// Runs that ended with warnings.
    pub runs_warned: Counter,
    /// Runs that failed.
    pub runs_failed: Counter,
    /// Runs that were cancelled.
    pub runs_cancelled: Counter,
    /// Runs that this process drives now.
    pub runs_driven: Gauge,
    /// Runs that wait, as last seen.
    pub queue_depth: Gauge,
    /// How late the last schedule fired, in microseconds.
    pub dispatch_lag_micros: Gauge,
    /// When the scheduler last finished a tick, in microseconds since the epoch; 0 before the first.
    pub scheduler_tick_at: Gauge,
    /// Scheduler ticks that failed.
    pub scheduler_failures: Counter,
    /// Log bytes taken in from agents.
    pub log_bytes: Counter,
    /// Artifacts stored.
    pub artifacts_stored: Counter,
    /// Artifacts that could not be stored.
    pub artifact_failures: Counter,
    /// Reports of agents that were refused as overtaken.
    pub fenced_reports: Counter,
    /// Things that cleanup removed.
    pub cleanup_deleted: Counter,
}

impl Metrics {
    pub(crate) fn run_ended(&self, status: RunStatus) {
        match status {
            RunStatus::Success => self.runs_succeeded.add(1),
            RunStatus::Warned => self.runs_warned.add(1),
            RunStatus::Error => self.runs_failed.add(1),
            RunStatus::Cancelled => self.runs_cancelled.add(1),
            RunStatus::Queued | RunStatus::Starting | RunStatus::Running | RunStatus::Cancelling => {}
        }
    }

    pub(crate) fn ticked(&self, now: Timestamp) {
        self.scheduler_tick_at.set(now.as_micros());
    }
}
