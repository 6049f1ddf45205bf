//! From a job and a trigger to a run that can be queued.

use super::{Line, NewRun, RunSpec, Trigger};
use crate::account::Account;
use crate::catalog::Record;
use crate::environment::{Environment, EnvironmentKind};
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::job::{Job, THREAD_LIMIT, validate_steps};
use crate::time::Timestamp;

/// What a run is made from.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The account, for its limits.
    pub account: &'a Record<Account>,
    /// The job.
    pub job: &'a Record<Job>,
    /// The job's environment.
    pub environment: &'a Record<Environment>,
    /// What sets it off.
    pub trigger: &'a Trigger,
    /// The instant of the schedule it stands for.
    pub scheduled_for: Option<Timestamp>,
    /// The run it retries.
    pub retry_of: Option<RunId>,
    /// Not before this instant.
    pub due_at: Timestamp,
}

impl Request<'_> {
    /// The run: the job's settings with the trigger's overrides over them, fixed from here on.
    ///
    /// A pull-request run takes no slot and runs beside others of its job. Source: dbt Cloud's
    /// documentation, "Job scheduler".
    ///
    /// # Errors
    /// `Invalid`, naming the override as dbt Cloud's API names it.
    pub fn compose(&self) -> Result<NewRun> {
        let (job, overrides) = (&self.job.body, &self.trigger.overrides);
        if self.environment.kind != EnvironmentKind::Deployment {
            return Err(Error::invalid("environment_id", "expected a deployment environment"));
        }
        if let Some(steps) = &overrides.steps {
            validate_steps("steps_override", steps)?;
        }
        if let Some(threads) = overrides
            .threads
            .filter(|threads| *threads == 0 || *threads > THREAD_LIMIT)
        {
            return Err(Error::invalid(
                "threads_override",
                format!("expected 1 to {THREAD_LIMIT}, got {threads}"),
            ));
        }
        let limit = self.account.run_duration_limit_seconds.max(1);
        let timeout = match overrides.timeout_seconds.unwrap_or(job.timeout_seconds) {
            0 => limit,
            seconds => seconds.min(limit),
        };
        let of_pull_request = matches!(self.trigger.line(), Some(Line::PullRequest(..)));
        let spec = RunSpec {
            commands: overrides.steps.clone().unwrap_or_else(|| job.execute_steps.clone()),
            generate_docs: overrides.generate_docs.unwrap_or(job.generate_docs),
            source_freshness: job.run_generate_sources,
            dbt_version: overrides
                .dbt_version
                .clone()
                .or_else(|| job.dbt_version.clone())
                .unwrap_or_else(|| self.environment.dbt_version.clone()),
            threads: overrides.threads.unwrap_or(job.threads),
            target_name: overrides.target_name.clone().unwrap_or_else(|| job.target_name.clone()),
            schema: overrides.schema.clone(),
            timeout_seconds: timeout,
            git_branch: self
                .trigger
                .git_branch
                .clone()
                .or_else(|| self.environment.branch().map(str::to_owned)),
            git_sha: self.trigger.git_sha.clone(),
            job_type: job.job_type,
            placement: self.environment.execution.clone(),
        };
        Ok(NewRun {
            account: self.job.account,
            project: job.project,
            environment: job.environment,
            job: self.job.id,
            trigger: self.trigger.clone(),
            spec,
            scheduled_for: self.scheduled_for,
            exclusive: !of_pull_request,
            takes_slot: !of_pull_request,
            retry_of: self.retry_of,
            due_at: self.due_at,
        })
    }
}
