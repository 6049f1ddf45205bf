//! Runs: one execution of a job's commands.

mod compose;
mod line;
mod month;
mod queue;
mod status;
mod steps;
mod wait;

use serde::{Deserialize, Serialize};

pub use compose::Request;
pub use line::{Host, Line};
pub use month::{Month, RUN_IDS_PER_MONTH};
pub use queue::{Admission, Busy, Decision, Limits, QueueSnapshot, WaitReason, Waiting, admit};
pub use status::{Illegal, RunEvent, RunStatus, StepEvent, StepStatus};
pub use steps::{StepKind, StepPlan, plan_steps};
pub use wait::{Wait, WaitCause, explain};

use crate::audit::Actor;
use crate::environment::Placement;
use crate::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId, StepId};
use crate::job::JobType;
use crate::ports::LogPart;
use crate::time::Timestamp;

/// The longest a trigger's cause may be, in characters (dbt Cloud's rule).
pub const CAUSE_LIMIT_CHARS: usize = 255;

/// The most that one part of a step's log in the artifact store holds.
pub const LOG_PART_BYTES: u64 = 16 * 1024 * 1024;
/// How much of the end of a growing log stays in the database.
pub const LOG_TAIL_BYTES: u64 = 1024 * 1024;

/// How a run ended. A warning is an outcome of its own; on the wire it is a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything passed.
    Success,
    /// Everything passed or warned.
    Warned,
    /// Something failed.
    Error,
    /// It was stopped.
    Cancelled,
}

/// What set a run off (dbt Cloud's `cause_category`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseCategory {
    /// A request.
    Api,
    /// A pull request.
    Ci,
    /// Its schedule.
    Scheduled,
    /// Somebody in the console.
    Ui,
    /// A retry of an earlier run.
    Rerun,
    /// The end of another job.
    JobCompletion,
    /// A merge.
    Merge,
}

/// Who or what set a run off, and with what git reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// The category.
    pub category: CauseCategory,
    /// Free text of at most [`CAUSE_LIMIT_CHARS`].
    pub cause: String,
    /// Commit to check out.
    pub git_sha: Option<String>,
    /// Branch to check out.
    pub git_branch: Option<String>,
    /// GitHub pull request.
    pub github_pull_request_id: Option<i64>,
    /// GitLab merge request.
    pub gitlab_merge_request_id: Option<i64>,
    /// Azure pull request.
    pub azure_pull_request_id: Option<i64>,
    /// Pull request of another host.
    pub non_native_pull_request_id: Option<i64>,
    /// Overrides as the caller sent them; `None` where it sent none.
    pub overrides: Overrides,
    /// The trace that the run belongs to, as W3C's `traceparent`: its parent in it.
    #[serde(default)]
    pub traceparent: Option<String>,
    /// Who set it off, for the audit log.
    #[serde(default, skip_serializing_if = "Actor::is_system")]
    pub by: Actor,
}

impl Trigger {
    /// A trigger with a cause and nothing else. A longer cause is cut at [`CAUSE_LIMIT_CHARS`].
    pub fn new(category: CauseCategory, cause: &str) -> Self {
        Self {
            category,
            cause: cause.chars().take(CAUSE_LIMIT_CHARS).collect(),
            git_sha: None,
            git_branch: None,
            github_pull_request_id: None,
            gitlab_merge_request_id: None,
            azure_pull_request_id: None,
            non_native_pull_request_id: None,
            overrides: Overrides::default(),
            traceparent: None,
            by: Actor::System,
        }
    }
}

/// What a trigger changes for this run only.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overrides {
    /// Target schema.
    pub schema: Option<String>,
    /// dbt version.
    pub dbt_version: Option<String>,
    /// Threads.
    pub threads: Option<u32>,
    /// Target name.
    pub target_name: Option<String>,
    /// Whether docs are generated.
    pub generate_docs: Option<bool>,
    /// Time-out in seconds.
    pub timeout_seconds: Option<u64>,
    /// The commands, in place of the job's.
    pub steps: Option<Vec<String>>,
}

/// What a run does, fixed at the instant of the trigger: a later change of the job does not reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// dbt commands.
    pub commands: Vec<String>,
    /// Whether `dbt docs generate` runs last.
    pub generate_docs: bool,
    /// Whether `dbt source freshness` runs first.
    pub source_freshness: bool,
    /// Which dbt.
    pub dbt_version: String,
    /// dbt's `--threads`.
    pub threads: u32,
    /// dbt's `--target`.
    pub target_name: String,
    /// Target schema in place of the credentials'.
    pub schema: Option<String>,
    /// The longest the run may take, in seconds; never 0.
    pub timeout_seconds: u64,
    /// Branch to check out; the repository's default when absent.
    pub git_branch: Option<String>,
    /// Commit to check out.
    pub git_sha: Option<String>,
    /// What kind of job it is of.
    #[serde(default = "no_special_job")]
    pub job_type: JobType,
    /// Where and with how much it executes.
    #[serde(default, skip_serializing_if = "Placement::is_default")]
    pub placement: Placement,
}

fn no_special_job() -> JobType {
    JobType::Other
}

/// A run that is to be queued.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// Whose.
    pub account: AccountId,
    /// Of which project.
    pub project: ProjectId,
    /// In which environment.
    pub environment: EnvironmentId,
    /// Of which job.
    pub job: JobId,
    /// What set it off.
    pub trigger: Trigger,
    /// What it does.
    pub spec: RunSpec,
    /// The instant of the schedule it stands for. Unique per job.
    pub scheduled_for: Option<Timestamp>,
    /// Whether no other run of the job may execute beside it (all but CI).
    pub exclusive: bool,
    /// Whether it takes a run slot (all but CI).
    pub takes_slot: bool,
    /// The run that this one retries.
    pub retry_of: Option<RunId>,
    /// Not before this instant.
    pub due_at: Timestamp,
}

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// What was asked.
    pub new: NewRun,
    /// Where it stands.
    pub status: RunStatus,
    /// Counts executions of this run, from 1 once it is admitted; the agent's fence.
    pub attempt: u32,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it left the queue.
    pub dequeued_at: Option<Timestamp>,
    /// When its agent began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When its agent last reported.
    pub heartbeat_at: Option<Timestamp>,
    /// When somebody asked for its end.
    pub cancel_requested_at: Option<Timestamp>,
    /// The branch that was checked out.
    pub git_branch: Option<String>,
    /// The commit that was checked out.
    pub git_sha: Option<String>,
    /// The dbt version that ran.
    pub dbt_version: Option<String>,
    /// What a person should know: why it failed, what was confirmed stopped.
    pub message: Option<String>,
    /// Whether artifacts are in the store.
    pub artifacts_saved: bool,
    /// Whether `catalog.json` is among them.
    pub has_docs: bool,
    /// Whether `sources.json` is among them.
    pub has_sources: bool,
    /// Since when its logs are gone.
    pub logs_expired_at: Option<Timestamp>,
    /// Since when its artifacts are gone.
    pub artifacts_expired_at: Option<Timestamp>,
}

impl Run {
    /// A run as it is when it has just been queued.
    pub const fn queued(id: RunId, new: NewRun, now: Timestamp) -> Self {
        Self {
            id,
            new,
            status: RunStatus::Queued,
            attempt: 0,
            created_at: now,
            updated_at: now,
            dequeued_at: None,
            started_at: None,
            finished_at: None,
            heartbeat_at: None,
            cancel_requested_at: None,
            git_branch: None,
            git_sha: None,
            dbt_version: None,
            message: None,
            artifacts_saved: false,
            has_docs: false,
            has_sources: false,
            logs_expired_at: None,
            artifacts_expired_at: None,
        }
    }

    /// Moves the run to `to` because of `event`, with all that follows from it; whether the status is
    /// another one now.
    pub fn advance(&mut self, to: RunStatus, event: RunEvent, at: Timestamp) -> bool {
        let from = std::mem::replace(&mut self.status, to);
        self.updated_at = at;
        if !from.is_terminal() {
            match event {
                RunEvent::Started => drop(self.started_at.get_or_insert(at)),
                RunEvent::CancelRequested => drop(self.cancel_requested_at.get_or_insert(at)),
                _ => {}
            }
        }
        if from == to {
            return false;
        }
        if to.is_terminal() {
            self.finished_at = Some(at);
        }
        if to == RunStatus::Queued {
            self.dequeued_at = None;
            self.new.due_at = self.new.due_at.min(at);
        }
        true
    }
}

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStep {
    /// Its id.
    pub id: StepId,
    /// Of which run.
    pub run: RunId,
    /// What it is.
    pub state: StepState,
    /// When it was first reported.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The length of the log.
    pub log_bytes: u64,
    /// Where the bytes in the database begin; at the end of the log when there are none.
    pub log_first: u64,
    /// Where the parts in the artifact store end, in order: the first begins at 0, each other one where the one
    /// before it ends, and the last ends at `log_first`. Empty too when the log has expired.
    pub log_parts: Vec<u64>,
    /// The name of the whole log in the artifact store, when version 0.1 moved it there.
    pub log_object: Option<String>,
}

impl RunStep {
    /// The part in the artifact store that has this byte, if one has.
    pub fn log_part(&self, offset: u64) -> Option<LogPart> {
        let at = self.log_parts.partition_point(|end| *end <= offset);
        let end = *self.log_parts.get(at)?;
        let start = at.checked_sub(1).and_then(|before| self.log_parts.get(before));
        Some(LogPart {
            start: start.copied().unwrap_or(0),
            end,
        })
    }

    /// The part of the log that is to be moved to the artifact store next, if any: of a run that has ended
    /// all there is, of another one no more than leaves [`LOG_TAIL_BYTES`] to those who follow it. A part has
    /// [`LOG_PART_BYTES`] at most.
    ///
    /// It depends on nothing but the log, so whoever tries again, or at the same time, moves the same part.
    pub fn part_to_move(&self, ended: bool) -> Option<LogPart> {
        let there = self.log_bytes.saturating_sub(self.log_first);
        let kept = if ended { 0 } else { LOG_TAIL_BYTES };
        let whole = there >= LOG_PART_BYTES + kept;
        (whole || ended && there > 0).then(|| LogPart {
            start: self.log_first,
            end: self.log_first + there.min(LOG_PART_BYTES),
        })
    }
}

/// A step as its agent reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepState {
    /// Position, from 1.
    pub index: u32,
    /// dbt Cloud's name for it.
    pub name: String,
    /// What it does.
    pub kind: StepKind,
    /// Where it stands.
    pub status: StepStatus,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code of its process.
    pub exit_code: Option<i32>,
    /// What a person should know.
    pub message: Option<String>,
    /// Which backend of the dbt engine ran it (`warm`, `cli`, `native`).
    pub backend: Option<String>,
}

/// What is known about one node of the dbt graph in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The step.
    pub step: u32,
    /// dbt's `unique_id`.
    pub unique_id: String,
    /// `model`, `test`, `seed`, …
    pub resource_type: String,
    /// Short name.
    pub name: String,
    /// dbt's own word: `started`, `success`, `pass`, `warn`, `error`, `fail`, `skipped`, … (open-ended).
    pub status: String,
    /// dbt's message. It can quote warehouse values, so it goes no further than the journal.
    pub message: Option<String>,
    /// How long it took.
    pub execution_time: Option<f64>,
    /// Position among the nodes of the step, from 1.
    pub index: Option<u32>,
    /// Nodes of the step.
    pub total: Option<u32>,
    /// When.
    pub at: Timestamp,
}
