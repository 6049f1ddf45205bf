use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId, StepId};
use crate::page::{Direction, Page, Paged};
use crate::ports::Digest;
use crate::run::{Admission, Illegal, NewRun, NodeReport, QueueSnapshot, Run, RunEvent, RunStatus, RunStep, StepState};
use crate::time::Timestamp;

/// The most log bytes one report may carry.
pub const BATCH_LIMIT_BYTES: usize = 1024 * 1024;
/// The most steps plus nodes plus log chunks one report may carry.
pub const BATCH_LIMIT_ITEMS: usize = 2_000;
/// How long the message of a run may grow while it is being stopped.
pub const MESSAGE_LIMIT_BYTES: usize = 16 * 1024;

/// A process of the control plane that may hold leases; new at every start.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(String);

impl Owner {
    /// An owner of this name, which must be unique among living processes.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// By what right a run is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The driver that claimed it: its lease epoch.
    Driver {
        /// Counts claims.
        epoch: u64,
    },
    /// The agent of this attempt.
    Agent {
        /// Counts executions.
        attempt: u32,
    },
}

/// The right to write to a run. Every write after a claim carries it; a write with an overtaken one is
/// refused with `Fenced`, and whoever is refused must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    run: RunId,
    holder: Holder,
}

impl Fence {
    /// Makes a fence. Only for storage adapters: a lint keeps every other room from calling it.
    pub const fn issue(run: RunId, holder: Holder) -> Self {
        Self { run, holder }
    }

    /// Which run.
    pub const fn run(&self) -> RunId {
        self.run
    }

    /// By what right.
    pub const fn holder(&self) -> Holder {
        self.holder
    }
}

/// What came of queueing a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Enqueued {
    /// It is queued.
    Created(Run),
    /// The job has a run for this `scheduled_for` already: this one.
    Existing(Run),
}

impl Enqueued {
    /// The run, whichever way it came to be.
    pub fn into_run(self) -> Run {
        match self {
            Self::Created(run) | Self::Existing(run) => run,
        }
    }
}

/// A request for a run that may be made again: its answer may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRequest {
    /// Digest of the key that whoever asks made up for it.
    pub key: Digest,
    /// Digest of all that is asked for: another one by the same key is another request.
    pub asked: Digest,
    /// Until when the key stands for it.
    pub until: Timestamp,
}

/// A run that was claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// The run as it is now.
    pub run: Run,
    /// The driver's right to write to it.
    pub fence: Fence,
}

/// Where a run stands, without the rest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunState {
    /// Which run.
    pub run: RunId,
    /// Where it stands.
    pub status: RunStatus,
    /// Its attempt.
    pub attempt: u32,
}

/// What a renewal tells of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Renewed {
    /// The run as it is now. A terminal one needs no lease any more.
    pub run: Run,
}

/// A change of a run's status. Made by [`RunChange::new`] alone, so that no status comes from anywhere but
/// [`RunStatus::apply`].
#[derive(Clone, Debug, PartialEq)]
pub struct RunChange {
    from: RunStatus,
    to: RunStatus,
    event: RunEvent,
    /// What else changes.
    pub patch: RunPatch,
    /// When.
    pub at: Timestamp,
}

impl RunChange {
    /// The change that an event makes to a run that is in `from`.
    ///
    /// # Errors
    /// [`Illegal`] when the event cannot happen there.
    pub fn new(from: RunStatus, event: RunEvent, patch: RunPatch, at: Timestamp) -> Result<Self, Illegal> {
        Ok(Self {
            from,
            to: from.apply(event)?,
            event,
            patch,
            at,
        })
    }

    /// What it must be now.
    pub fn from(&self) -> RunStatus {
        self.from
    }

    /// What it becomes.
    pub fn to(&self) -> RunStatus {
        self.to
    }

    /// What happened.
    pub fn event(&self) -> RunEvent {
        self.event
    }
}

/// Fields of a run that a change may set; `None` leaves them.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunPatch {
    /// See [`Run::message`].
    pub message: Option<String>,
    /// See [`Run::git_branch`].
    pub git_branch: Option<String>,
    /// See [`Run::git_sha`].
    pub git_sha: Option<String>,
    /// See [`Run::dbt_version`].
    pub dbt_version: Option<String>,
    /// See [`Run::artifacts_saved`].
    pub artifacts_saved: Option<bool>,
    /// See [`Run::has_docs`].
    pub has_docs: Option<bool>,
    /// See [`Run::has_sources`].
    pub has_sources: Option<bool>,
}

impl RunPatch {
    /// A patch that sets the message only.
    pub fn message(text: impl Into<String>) -> Self {
        Self {
            message: Some(text.into()),
            ..Self::default()
        }
    }

    /// Sets the fields. What is said while a run is being stopped goes behind what is known already, so that
    /// a client finds dbt Cloud's own words ("Cancelled by user.") at the beginning.
    pub fn apply(&self, run: &mut Run) {
        let set = |field: &mut Option<String>, value: &Option<String>| {
            if value.is_some() {
                field.clone_from(value);
            }
        };
        match (&mut run.message, &self.message) {
            (Some(said), Some(more)) if run.status == RunStatus::Cancelling && !more.starts_with(said.as_str()) => {
                if !said.contains(more.as_str()) && said.len() + more.len() < MESSAGE_LIMIT_BYTES {
                    said.push(' ');
                    said.push_str(more);
                }
            }
            (said, more) => set(said, more),
        }
        set(&mut run.git_branch, &self.git_branch);
        set(&mut run.git_sha, &self.git_sha);
        set(&mut run.dbt_version, &self.dbt_version);
        run.artifacts_saved = self.artifacts_saved.unwrap_or(run.artifacts_saved);
        run.has_docs = self.has_docs.unwrap_or(run.has_docs);
        run.has_sources = self.has_sources.unwrap_or(run.has_sources);
    }
}

/// Log bytes of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// The step's index.
    pub step: u32,
    /// Where they begin: the length of the step's log before them.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// What an agent reports at one time. Numbered from 1 within its attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number.
    pub number: u64,
    /// When it is received, by the control plane's clock.
    pub at: Timestamp,
    /// Steps that came to be or changed.
    pub steps: Vec<StepState>,
    /// Nodes that began or ended.
    pub nodes: Vec<NodeReport>,
    /// Log bytes.
    pub logs: Vec<LogChunk>,
    /// What happened to the run.
    pub event: Option<RunEvent>,
    /// Fields of the run that are known now.
    pub patch: RunPatch,
}

/// The answer to a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack {
    /// The highest number that has been taken in.
    pub number: u64,
    /// Where the run stands.
    pub status: RunStatus,
    /// What this very call did; `None` when the report had been taken in before. What is counted, is counted by it.
    pub taken: Option<Box<Taken>>,
}

/// What a report did when it was taken in.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// Where the run stood before.
    pub before: RunStatus,
    /// The run as it is now.
    pub run: Run,
}

/// From where on a look at the queue is interesting: waiting runs that are due from an instant on, executing runs
/// with ids from one on. Rows that died before it are passed over, also while some long transaction elsewhere keeps
/// the database from removing them. Whoever looks so must look without from time to time: a run may come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// The earliest `due_at` of what waits.
    pub due_at: Timestamp,
    /// The lowest id of what executes.
    pub run: RunId,
}

/// By what a list of runs is ordered; ties are broken by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RunSort {
    /// The id.
    #[default]
    Id,
    /// When it was queued.
    CreatedAt,
    /// When it ended; runs that have not are last ascending and first descending.
    FinishedAt,
}

/// Which runs a list holds. Every condition must hold; an absent one always does.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RunFilter {
    /// Of one of these projects.
    pub projects: Option<Vec<ProjectId>>,
    /// In this environment.
    pub environment: Option<EnvironmentId>,
    /// Of this job.
    pub job: Option<JobId>,
    /// In one of these states.
    pub statuses: Option<Vec<RunStatus>>,
    /// One of these.
    pub ids: Option<Vec<RunId>>,
    /// With an id above this.
    pub id_above: Option<RunId>,
    /// Queued within (inclusive).
    pub created_within: Option<(Timestamp, Timestamp)>,
    /// Ended within (inclusive).
    pub finished_within: Option<(Timestamp, Timestamp)>,
    /// With `has_docs` so.
    pub has_docs: Option<bool>,
    /// With `has_sources` so.
    pub has_sources: Option<bool>,
    /// By what it is ordered.
    pub sort: RunSort,
    /// Which way.
    pub direction: Direction,
}

/// Runs, from the queue to the end. Every change of a status also writes the journal, in the same step.
#[async_trait]
pub trait Runs: Send + Sync {
    /// Queues a run. With `scheduled_for`, at most one run exists per job and instant.
    ///
    /// A run that is in a [line](crate::run::Line) takes the place of those of its job and line that this
    /// [supersedes](crate::run::Line::supersedes), in the same step: a queued one is cancelled, a live one is
    /// `Cancelling`, each with the line's message. With any number of callers one run of a line is queued in
    /// the end. An `Existing` answer cancels nothing. A run that is requeued is superseded by the next one.
    ///
    /// A new one whose trigger is somebody's is written to the audit log with it.
    async fn enqueue(&self, new: &NewRun, now: Timestamp) -> Result<Enqueued>;

    /// Queues a run as [`enqueue`](Runs::enqueue) does, once for a request: where the run's account made it before and
    /// its key has not run out, nothing is queued and the run of then is `Existing`, as it is now. With any number of
    /// callers one of them queues. What is refused leaves the key to others.
    ///
    /// Errors: `AlreadyExists` when the account used the key for another request.
    async fn enqueue_for(&self, new: &NewRun, request: &RunRequest, now: Timestamp) -> Result<Enqueued>;

    /// The run that an account's request queued, as it is now; `None` when there is none or the key has run out.
    ///
    /// Errors: `AlreadyExists` as for [`enqueue_for`](Runs::enqueue_for).
    async fn of_request(&self, account: AccountId, request: &RunRequest, now: Timestamp) -> Result<Option<Run>>;

    /// Drops keys of requests that ran out before `before`, at most `limit`; how many were dropped.
    async fn purge_requests(&self, before: Timestamp, limit: u32) -> Result<u64>;

    /// How many a purge without a limit would drop.
    async fn old_requests(&self, before: Timestamp) -> Result<u64>;

    /// The run.
    ///
    /// Errors: `NotFound`, also when it belongs to another account.
    async fn get(&self, account: AccountId, id: RunId) -> Result<Run>;

    /// One page of the runs that match, with the total.
    async fn list(&self, account: AccountId, filter: &RunFilter, page: Page) -> Result<Paged<Run>>;

    /// The newest run of each of these jobs.
    async fn newest(&self, account: AccountId, jobs: &[JobId]) -> Result<Vec<Run>>;

    /// Status and attempt of these runs, whatever their account, for loops that hold execution names only.
    /// Those that do not exist are left out.
    async fn states(&self, ids: &[RunId]) -> Result<Vec<RunState>>;

    /// Steps of a run, by index.
    ///
    /// Errors: `NotFound` as for `get`.
    async fn steps(&self, account: AccountId, run: RunId) -> Result<Vec<RunStep>>;

    /// A step by its own id.
    ///
    /// Errors: `NotFound`, also when it belongs to another account.
    async fn step(&self, account: AccountId, step: StepId) -> Result<RunStep>;

    /// What waits and what executes: due runs of all accounts, of each at most `per_account` that take a slot
    /// and as many that take none. Exclusive runs whose job is kept busy by another are left out, so that a
    /// long line of them hides nothing that could start. `since` leaves out what a look before has shown to be
    /// over: see [`Since`].
    async fn queue(&self, now: Timestamp, per_account: u32, since: Option<Since>) -> Result<QueueSnapshot>;

    /// The line of one account: the first `limit` of its queued runs by (`due_at`, `run`), due or not, and all
    /// of its runs that execute.
    async fn queue_of(&self, account: AccountId, limit: u32) -> Result<QueueSnapshot>;

    /// How many runs of an account wait.
    async fn queued(&self, account: AccountId) -> Result<u64>;

    /// Takes these runs out of the queue (`Starting`, attempt and epoch counted up, lease until `until`).
    /// Those that are not `Queued` any more, whose slot of the account is held, or of whose job an
    /// exclusive run executes are left out of the answer. With any number of callers a slot is held once,
    /// an exclusive job executes once and a run is claimed once.
    async fn claim(
        &self,
        owner: &Owner,
        admissions: &[Admission],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>>;

    /// Takes over live runs whose lease expired before `now`: epoch counted up, status and attempt as they
    /// are; at most `limit`. With any number of callers each is taken over once.
    async fn reclaim(&self, owner: &Owner, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Claimed>>;

    /// Renews the leases of these driver fences. Those that were overtaken are left out of the answer; a
    /// run that ended is in it one more time or as often as it is asked for.
    async fn renew(&self, fences: &[Fence], until: Timestamp) -> Result<Vec<Renewed>>;

    /// Gives up leases, so that another may reclaim at once.
    async fn release(&self, fences: &[Fence], now: Timestamp) -> Result<()>;

    /// Changes a run's status and fields, and writes the journal. A run that becomes terminal frees its
    /// slot and its job; one that is requeued (`Starting` to `Queued`) does too and is due again at once.
    ///
    /// Errors: `Fenced` when the fence was overtaken: stop. `Conflict` when the run is not in the state the
    /// change was made for: reread. `NotFound`. The same change on a run that is terminal in `to` already
    /// is `Ok`.
    async fn change(&self, fence: &Fence, change: &RunChange) -> Result<Run>;

    /// Asks for a run's end. `Queued` becomes `Cancelled` at once; a live one becomes `Cancelling`; one
    /// that has ended or is `Cancelling` stays as it is. The message is kept when the status changes.
    ///
    /// Errors: `NotFound` as for `get`.
    async fn request_cancel(&self, account: AccountId, id: RunId, message: &str, now: Timestamp) -> Result<Run>;

    /// Takes in an agent's report, whole or not at all: steps, nodes, log bytes, run status, heartbeat.
    /// A number that has been taken in already changes nothing, is `Ok`, and is answered without
    /// [`Ack::taken`]. An event that is illegal in
    /// the present state of the run (its cancellation was quicker) is left out, the rest is taken in.
    ///
    /// Errors: `Fenced` when another attempt has begun or the run ended by other means than this agent's
    /// own report: stop dbt and exit. `Conflict` when a number was left out or a log chunk does not begin
    /// where the log ends; the message says what was expected. `Invalid` beyond [`BATCH_LIMIT_BYTES`] or
    /// [`BATCH_LIMIT_ITEMS`], or for a step that may not become what is reported.
    async fn report(&self, fence: &Fence, batch: &Batch) -> Result<Ack>;
}
