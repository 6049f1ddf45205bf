//! Jobs: what is run, when, and how.

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Extras, Kind};
use crate::error::{Error, Result};
use crate::id::{EnvironmentId, JobId, ProjectId};
use crate::run::Outcome;
use crate::schedule::Schedule;

/// Steps a job may have.
pub const STEP_LIMIT: usize = 100;
/// The longest one step's command may be, in bytes.
pub const COMMAND_LIMIT_BYTES: usize = 16 * 1024;
/// The most threads a job may ask for.
pub const THREAD_LIMIT: u32 = 256;
/// Failed runs in a row after which a job's triggers stop (dbt Cloud's rule).
pub const FAILURES_TO_DEACTIVATE: u32 = 100;

/// What kind of job it is (dbt Cloud's `job_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobType {
    /// Pull requests.
    Ci,
    /// A schedule.
    Scheduled,
    /// By hand, by API, by another job.
    Other,
    /// A merge into the default branch.
    Merge,
    /// Decided by the platform.
    Adaptive,
}

/// What starts a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Triggers {
    /// Pull requests at GitHub.
    pub github_webhook: bool,
    /// Pull requests at another host.
    pub git_provider_webhook: bool,
    /// Its schedule.
    pub schedule: bool,
    /// A merge.
    pub on_merge: bool,
}

/// Starts a job when another has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTrigger {
    /// The job that must have ended.
    pub job: JobId,
    /// Its project.
    pub project: ProjectId,
    /// Ended how.
    pub outcomes: Vec<Outcome>,
}

/// A job definition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The project.
    pub project: ProjectId,
    /// The environment it runs in.
    pub environment: EnvironmentId,
    /// Display name; round-trips exactly.
    pub name: String,
    /// Free text; round-trips exactly.
    #[serde(default)]
    pub description: String,
    /// dbt commands, each `dbt …`, run in order.
    pub execute_steps: Vec<String>,
    /// What starts it.
    pub triggers: Triggers,
    /// When it is due; in force only while `triggers.schedule` is set.
    pub schedule: Option<Schedule>,
    /// The kind, inferred from the triggers unless the caller enforced `ci`, `merge` or `adaptive`.
    pub job_type: JobType,
    /// dbt's `--threads`.
    pub threads: u32,
    /// dbt's `--target`.
    pub target_name: String,
    /// The longest a run may take, in seconds; 0 leaves it to the account's limit.
    pub timeout_seconds: u64,
    /// Whether `dbt docs generate` runs last.
    pub generate_docs: bool,
    /// Whether `dbt source freshness` runs first.
    pub run_generate_sources: bool,
    /// Which dbt, when not the environment's.
    pub dbt_version: Option<String>,
    /// Defer to the newest successful run of this environment.
    pub deferring_environment: Option<EnvironmentId>,
    /// Defer to the newest successful run of this job.
    pub deferring_job: Option<JobId>,
    /// Starts it when another job has ended.
    pub completion_trigger: Option<CompletionTrigger>,
    /// Triggers stopped after too many failures in a row.
    #[serde(default)]
    pub deactivated: bool,
    /// Failed runs in a row.
    #[serde(default)]
    pub run_failure_count: u32,
    /// What clients send and read back and nothing here acts on.
    #[serde(default)]
    pub extras: Extras,
}

impl Job {
    /// A job with dbt Cloud's defaults: `dbt build`, 4 threads, target `default`, no triggers, no time-out.
    pub fn new(project: ProjectId, environment: EnvironmentId, name: impl Into<String>) -> Self {
        Self {
            project,
            environment,
            name: name.into(),
            description: String::new(),
            execute_steps: vec!["dbt build".to_owned()],
            triggers: Triggers::default(),
            schedule: None,
            job_type: JobType::Other,
            threads: 4,
            target_name: "default".to_owned(),
            timeout_seconds: 0,
            generate_docs: false,
            run_generate_sources: false,
            dbt_version: None,
            deferring_environment: None,
            deferring_job: None,
            completion_trigger: None,
            deactivated: false,
            run_failure_count: 0,
            extras: Extras::new(),
        }
    }

    /// The kind that follows from the triggers (dbt Cloud's inference).
    pub fn inferred_type(&self) -> JobType {
        match self.triggers {
            Triggers {
                github_webhook: true, ..
            }
            | Triggers {
                git_provider_webhook: true,
                ..
            } => JobType::Ci,
            Triggers { on_merge: true, .. } => JobType::Merge,
            Triggers { schedule: true, .. } => JobType::Scheduled,
            _ => JobType::Other,
        }
    }

    /// The schedule, while it is in force.
    pub fn active_schedule(&self) -> Option<&Schedule> {
        self.schedule
            .as_ref()
            .filter(|_| self.triggers.schedule && !self.deactivated)
    }

    /// Checks everything that can be checked without asking anybody.
    ///
    /// # Errors
    /// `Invalid`, naming the field as dbt Cloud's API names it.
    pub fn validate(&self) -> Result<()> {
        if self.name.trim().is_empty() {
            return Err(Error::invalid("name", "expected a name, got an empty text"));
        }
        validate_steps("execute_steps", &self.execute_steps)?;
        if self.threads == 0 || self.threads > THREAD_LIMIT {
            return Err(Error::invalid(
                "settings.threads",
                format!("expected 1 to {THREAD_LIMIT}, got {}", self.threads),
            ));
        }
        if self.triggers.schedule && self.schedule.is_none() {
            return Err(Error::invalid(
                "schedule",
                "expected a schedule because triggers.schedule is true",
            ));
        }
        Ok(())
    }
}

impl Entity for Job {
    const KIND: Kind = Kind::Job;
    type Id = JobId;
    fn name(&self) -> &str {
        &self.name
    }
    fn project(&self) -> Option<ProjectId> {
        Some(self.project)
    }
    /// Its environment.
    fn parent(&self) -> Option<i64> {
        Some(self.environment.get())
    }
}

/// Checks a list of dbt commands, of a job or of a trigger's override.
///
/// # Errors
/// `Invalid`, naming `field` and the step's position.
pub fn validate_steps(field: &'static str, steps: &[String]) -> Result<()> {
    if steps.is_empty() || steps.len() > STEP_LIMIT {
        return Err(Error::invalid(
            field,
            format!("expected 1 to {STEP_LIMIT} commands, got {}", steps.len()),
        ));
    }
    for (index, step) in steps.iter().enumerate() {
        let expected = |what: &str| Error::invalid(field, format!("command {}: {what}", index + 1));
        if step.len() > COMMAND_LIMIT_BYTES {
            return Err(expected(&format!(
                "expected at most {COMMAND_LIMIT_BYTES} bytes, got {}",
                step.len()
            )));
        }
        if step.chars().any(|c| c.is_control()) {
            return Err(expected("expected one line without control characters"));
        }
        if step.split_whitespace().next() != Some("dbt") || step.split_whitespace().nth(1).is_none() {
            return Err(expected(&format!(
                "expected a dbt command such as 'dbt build', got '{step}'"
            )));
        }
    }
    Ok(())
}
