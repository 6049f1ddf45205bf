//! What a control plane counts. Plain numbers; the server gives them names.
//!
//! A thing is counted where it was committed, by the process that committed it, and by nobody else: sums over
//! processes are right with any number of them and with every call made twice. What a process can only look at (the
//! queue's depth) is the same number in each of them. Labels are words of this program, so that they have a bound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dbtcloud_core::Timestamp;
use dbtcloud_core::job::JobType;
use dbtcloud_core::ports::Observation;
use dbtcloud_core::run::{CauseCategory, Run, RunStatus, WaitReason};

use crate::cleanup::Report;
use crate::protocol::Counted;

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

/// The values of `N` labels, in the order of their names.
pub type Labels<const N: usize> = [&'static str; N];

/// One number for each combination of labels that occurred.
#[derive(Debug)]
pub struct Table<const N: usize, T>(Mutex<BTreeMap<Labels<N>, T>>);

impl<const N: usize, T> Default for Table<N, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<const N: usize, T: Copy> Table<N, T> {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<Labels<N>, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them now.
    pub fn get(&self) -> Vec<(Labels<N>, T)> {
        self.rows().iter().map(|(labels, value)| (*labels, *value)).collect()
    }
}

/// Numbers that only grow, by labels.
pub type Counters<const N: usize> = Table<N, u64>;

impl<const N: usize> Counters<N> {
    /// Counts `n` more. With 0 the combination is shown from now on.
    pub fn add(&self, labels: Labels<N>, n: u64) {
        *self.rows().entry(labels).or_default() += n;
    }
}

/// Numbers that go up and down, by labels.
pub type Gauges<const N: usize> = Table<N, i64>;

impl<const N: usize> Gauges<N> {
    /// Sets one.
    pub fn set(&self, labels: Labels<N>, value: i64) {
        self.rows().insert(labels, value);
    }

    /// Sets all: how often each combination is in `seen`. One that was shown before and is not in it is 0.
    pub fn tally(&self, seen: impl IntoIterator<Item = Labels<N>>) {
        let mut rows = self.rows();
        rows.values_mut().for_each(|value| *value = 0);
        for labels in seen {
            *rows.entry(labels).or_default() += 1;
        }
    }
}

/// Bounds of the buckets of spans, in seconds: from what a tick takes to what a long run takes.
pub const SPAN_BOUNDS_SECONDS: [f64; 16] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0,
];

/// How long things took.
#[derive(Debug, Default)]
pub struct Spans {
    /// One more than there are bounds: what is longer than all of them.
    buckets: [AtomicU64; SPAN_BOUNDS_SECONDS.len() + 1],
    micros: AtomicU64,
}

impl Spans {
    /// Takes one in.
    pub fn observe(&self, span: Duration) {
        let bucket = SPAN_BOUNDS_SECONDS.partition_point(|bound| *bound < span.as_secs_f64());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many were taken in up to each bound and not up to the one before; the last bound is infinite.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = SPAN_BOUNDS_SECONDS.into_iter().chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        bounds.zip(counts).collect()
    }

    /// The sum of all.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// The numbers of one control plane since it was built.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Runs that this process ended, by status, trigger and job type.
    pub runs_ended: Counters<3>,
    /// Runs that this process drives now.
    pub runs_driven: Gauge,
    /// Runs that wait, by reason, as last seen.
    pub queue_depth: Gauges<1>,
    /// From queued to out of the queue.
    pub queue_wait: Spans,
    /// From out of the queue to the agent's beginning.
    pub run_prep: Spans,
    /// From the agent's beginning to the end.
    pub run_duration: Spans,
    /// From the wish to stop a live run to its confirmed end.
    pub cancel: Spans,
    /// Queries that went on in a warehouse after dbt was killed, and were ended there.
    pub orphan_queries: Counter,
    /// Nodes that dbt executed, by resource type and status.
    pub node_executions: Counters<2>,
    /// How late schedules fired.
    pub dispatch_lag: Spans,
    /// When the scheduler last finished a tick, in microseconds since the epoch; 0 before the first.
    pub scheduler_tick_at: Gauge,
    /// Scheduler ticks that failed.
    pub scheduler_failures: Counter,
    /// Executions of the runs that this process drives, by phase.
    pub executions: Gauges<1>,
    /// Phases seen in the tick that goes on.
    seen: Mutex<Vec<Labels<1>>>,
    /// Parse states that runs asked for, by result and reason of a miss.
    pub parse_cache: Counters<2>,
    /// Log bytes taken in from agents.
    pub log_bytes: Counter,
    /// Artifacts stored.
    pub artifacts_stored: Counter,
    /// Artifacts that could not be stored.
    pub artifact_failures: Counter,
    /// Reports of agents that were refused as overtaken.
    pub fenced_reports: Counter,
    /// Whether the bells of other processes are heard: 1 or 0.
    pub wakeups_listening: Gauge,
    /// How often they could not be heard any more, or not yet.
    pub wakeups_lost: Counter,
    /// Changes of runs' statuses that a consumer was told of.
    pub deliveries: Counter,
    /// Tries to tell one that failed.
    pub deliveries_failed: Counter,
    /// Deliveries that consumers have still to be given, as last seen.
    pub outbox_depth: Gauges<1>,
    /// What came of tries to send a dispatch that were written down, by channel and result.
    pub dispatches: Counters<2>,
    /// Dispatches that are still to be sent, by channel, as last seen.
    pub dispatches_waiting: Gauges<1>,
    /// Develop sessions that have not ended, by state, as last seen.
    pub sessions: Gauges<1>,
    /// Things that cleanup removed, moved or set right, by kind.
    pub cleanup_deleted: Counters<1>,
    /// Their bytes, by chore.
    pub cleanup_bytes: Counters<1>,
    /// Sweeps of cleanup, by chore.
    pub cleanup_sweeps: Counters<1>,
    /// Sweeps that failed, by chore.
    pub cleanup_failures: Counters<1>,
    /// Microseconds that sweeps took, by chore.
    pub cleanup_busy: Counters<1>,
    /// When a chore last came to its end, in microseconds since the epoch.
    pub cleanup_done_at: Gauges<1>,
    /// Leases, by name: 1 while this process holds it.
    pub leader: Gauges<1>,
}

impl Metrics {
    /// A run was moved on by this process, and that was written down.
    pub(crate) fn moved(&self, before: RunStatus, run: &Run) {
        if before == run.status {
            return;
        }
        let between = |from: Option<Timestamp>, to: Option<Timestamp>, spans: &Spans| {
            if let (Some(from), Some(to)) = (from, to) {
                spans.observe(to.since(from));
            }
        };
        if run.status == RunStatus::Running {
            between(run.dequeued_at, run.started_at, &self.run_prep);
        }
        if run.status.is_terminal() {
            let labels = [
                run.status.name(),
                trigger(run.new.trigger.category),
                job_type(run.new.spec.job_type),
            ];
            self.runs_ended.add(labels, 1);
            between(run.started_at, run.finished_at, &self.run_duration);
            if before == RunStatus::Cancelling {
                between(run.cancel_requested_at, run.finished_at, &self.cancel);
            }
        }
    }

    /// A run was taken out of the queue by this process.
    pub(crate) fn dequeued(&self, run: &Run) {
        if let Some(at) = run.dequeued_at {
            self.queue_wait.observe(at.since(run.created_at));
        }
    }

    /// What an agent counted, from a report that was taken in.
    pub(crate) fn counted(&self, counted: &[Counted]) {
        for one in counted {
            match one {
                Counted::Nodes {
                    resource_type,
                    status,
                    count,
                } => {
                    let labels = [known(&RESOURCE_TYPES, resource_type), known(&NODE_STATUSES, status)];
                    self.node_executions.add(labels, *count);
                }
                Counted::ParseState { result, reason } => {
                    let labels = [known(&PARSE_RESULTS, result), known(&PARSE_REASONS, reason)];
                    self.parse_cache.add(labels, 1);
                }
                Counted::OrphanQueries { count } => self.orphan_queries.add(*count),
            }
        }
    }

    pub(crate) fn waiting(&self, reasons: impl Iterator<Item = WaitReason>) {
        self.queue_depth.tally(reasons.map(|reason| [wait_reason(reason)]));
    }

    /// An execution was looked at.
    pub(crate) fn saw(&self, seen: &Observation) {
        let phase = match seen {
            Observation::Absent => "absent",
            Observation::Pending { .. } => "pending",
            Observation::Running { .. } => "running",
            Observation::Exited(_) => "exited",
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push([phase]);
    }

    /// A tick is over: everything that it drives was looked at once.
    pub(crate) fn ticked(&self, driven: usize, now: Timestamp) {
        self.runs_driven.set(i64::try_from(driven).unwrap_or(i64::MAX));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.executions.tally(seen.drain(..));
        self.scheduler_tick_at.set(now.as_micros());
    }

    /// A chore of cleanup has swept.
    pub(crate) fn swept(&self, kind: &'static str, report: &Report, now: Timestamp) {
        let chore = [report.chore];
        self.cleanup_deleted.add([kind], report.swept.done);
        self.cleanup_bytes.add(chore, report.swept.bytes);
        self.cleanup_sweeps.add(chore, 1);
        self.cleanup_failures.add(chore, u64::from(report.error.is_some()));
        let micros = u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX);
        self.cleanup_busy.add(chore, micros);
        if report.error.is_none() {
            self.cleanup_done_at.set(chore, now.as_micros());
        }
    }

    /// Whether this process holds a lease.
    pub(crate) fn leads(&self, lease: &'static str, held: bool) {
        self.leader.set([lease], i64::from(held));
    }
}

/// The label of what is in no list.
const OTHER: &str = "other";
/// dbt's resource types.
const RESOURCE_TYPES: [&str; 13] = [
    "analysis",
    "exposure",
    "function",
    "metric",
    "model",
    "operation",
    "saved_query",
    "seed",
    "semantic_model",
    "snapshot",
    "source",
    "test",
    "unit_test",
];
/// dbt's words for how a node ended, and ours for one that was interrupted.
const NODE_STATUSES: [&str; 11] = [
    "error",
    "fail",
    "interrupted",
    "no-op",
    "partial success",
    "pass",
    "reused",
    "runtime error",
    "skipped",
    "success",
    "warn",
];
const PARSE_RESULTS: [&str; 3] = ["hit", "miss", "partial"];
/// Parts of the key that differed; `several` of them; `absent`: there was no state.
const PARSE_REASONS: [&str; 9] = [
    "", "absent", "adapter", "commit", "engine", "env", "several", "target", "vars",
];

/// The word if it is in the list: what an agent says has no bound of its own.
fn known(words: &[&'static str], word: &str) -> &'static str {
    words.iter().find(|known| **known == word).copied().unwrap_or(OTHER)
}

const fn trigger(category: CauseCategory) -> &'static str {
    match category {
        CauseCategory::Api => "api",
        CauseCategory::Ci => "ci",
        CauseCategory::Scheduled => "scheduled",
        CauseCategory::Ui => "ui",
        CauseCategory::Rerun => "rerun",
        CauseCategory::JobCompletion => "job_completion",
        CauseCategory::Merge => "merge",
    }
}

const fn job_type(kind: JobType) -> &'static str {
    match kind {
        JobType::Ci => "ci",
        JobType::Scheduled => "scheduled",
        JobType::Other => OTHER,
        JobType::Merge => "merge",
        JobType::Adaptive => "adaptive",
    }
}

const fn wait_reason(reason: WaitReason) -> &'static str {
    match reason {
        WaitReason::NoSlot => "no_slot",
        WaitReason::JobBusy(_) => "job_busy",
        WaitReason::NoCapacity => "no_capacity",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_in_one_bucket() {
        let spans = Spans::default();
        for millis in [10, 11, 99_999_999_999] {
            spans.observe(Duration::from_millis(millis));
        }
        let full: Vec<_> = spans.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(full, [(0.01, 1), (0.05, 1), (f64::INFINITY, 1)]);
        assert_eq!(spans.sum(), Duration::from_millis(100_000_000_020));
    }

    #[test]
    fn what_an_agent_says_is_bounded() {
        let metrics = Metrics::default();
        for (resource_type, status) in [("model", "success"), ("model", "hacked-1"), ("x-2", "success")] {
            let nodes = Counted::Nodes {
                resource_type: resource_type.to_owned(),
                status: status.to_owned(),
                count: 2,
            };
            metrics.counted(&[nodes]);
        }
        assert_eq!(
            metrics.node_executions.get(),
            [
                (["model", "other"], 2),
                (["model", "success"], 2),
                (["other", "success"], 2)
            ]
        );
    }

    #[test]
    fn a_tally_forgets_what_is_over() {
        let gauges = Gauges::<1>::default();
        gauges.tally([["running"], ["running"], ["pending"]]);
        gauges.tally([["pending"]]);
        assert_eq!(gauges.get(), [(["pending"], 1), (["running"], 0)]);
    }
}
