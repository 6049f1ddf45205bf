//! Setting runs off, stopping and retrying them.

use std::time::Duration;

use dbtcloud_core::account::Account;
use dbtcloud_core::audit::{Action, Actor, Entry, Subject};
use dbtcloud_core::catalog::{CatalogExt, Record};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::{AccountId, JobId, RunId};
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{Area, Bell, RunFilter, RunRequest, RunSort};
use dbtcloud_core::run::{CauseCategory, Request, Run, RunStatus, StepStatus, Trigger};
use dbtcloud_core::{Direction, Error, ErrorKind, Page, Result, Timestamp};

use super::ControlPlane;
use crate::desk::digest;
use crate::trace;

/// How long the key of a request for a run stands for it.
pub const REQUEST_KEPT: Duration = Duration::from_secs(24 * 3600);

/// dbt commands that `dbt retry` can resume. Source: dbt's documentation, "About dbt retry command".
const RETRYABLE_COMMANDS: [&str; 9] = [
    "build",
    "compile",
    "clone",
    "docs",
    "seed",
    "snapshot",
    "test",
    "run",
    "run-operation",
];

/// Why a run cannot be retried from its point of failure (dbt Cloud's reasons).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRetryable {
    /// The command that failed cannot be resumed.
    UnsupportedCommand,
    /// A newer run of the job exists.
    NotLatestRun,
    /// It did not end in an error.
    NotFailedRun,
    /// The failed step left no `run_results.json`.
    NoRunResults,
}

impl ControlPlane {
    /// Queues a run of a job and returns at once, before anything is provisioned. A second call queues a
    /// second run.
    ///
    /// # Errors
    /// `NotFound` for the job; `Invalid` for an override, naming it; `Conflict` when the account has as
    /// many queued runs as it may.
    pub async fn trigger(&self, account: AccountId, job: JobId, trigger: Trigger) -> Result<Run> {
        let job = self.catalog().fetch::<Job>(account, job).await?;
        self.enqueue(&job, &trigger, None, None).await
    }

    /// Queues a run of a job as [`trigger`](ControlPlane::trigger) does, once: a second call by the same `key` within
    /// [`REQUEST_KEPT`] that asks for the same queues nothing and answers with that run, whatever has become of it and
    /// however full the queue is. A key is of its account.
    ///
    /// # Errors
    /// As [`trigger`](ControlPlane::trigger); `AlreadyExists` when the key was used for something else.
    pub async fn trigger_once(&self, account: AccountId, job: JobId, trigger: Trigger, key: &str) -> Result<Run> {
        // Who asks, and in which trace, is not what is asked for.
        let mut asked = trigger.clone();
        (asked.by, asked.traceparent) = (Actor::System, None);
        let asked = serde_json::to_string(&(job, &asked))
            .map_err(|error| Error::invalid("trigger", "cannot be written as JSON").because(error))?;
        let now = self.clock().now();
        let request = RunRequest {
            key: digest(key),
            asked: digest(&asked),
            until: now.plus(REQUEST_KEPT),
        };
        if let Some(run) = self.runs().of_request(account, &request, now).await? {
            return Ok(run);
        }
        let job = self.catalog().fetch::<Job>(account, job).await?;
        self.enqueue(&job, &trigger, None, Some(&request)).await
    }

    async fn enqueue(
        &self,
        job: &Record<Job>,
        trigger: &Trigger,
        retry_of: Option<RunId>,
        asked: Option<&RunRequest>,
    ) -> Result<Run> {
        let (environment, account) = tokio::try_join!(
            self.catalog().fetch::<Environment>(job.account, job.environment),
            self.catalog().fetch::<Account>(job.account, job.account),
        )?;
        let queued = self.runs().queued(job.account).await?;
        if queued >= u64::from(account.queue_limit) {
            return Err(Error::conflict(format!(
                "account {} has {queued} queued runs, as many as it may; wait or raise its queue_limit",
                job.account
            )));
        }
        let now = self.clock().now();
        let mut trigger = trigger.clone();
        if trigger.traceparent.is_none() {
            trigger.traceparent = trace::Context::begin().map(|begun| begun.to_string());
        }
        let request = Request {
            account: &account,
            job,
            environment: &environment,
            trigger: &trigger,
            scheduled_for: None,
            retry_of,
            due_at: now,
        };
        let new = request.compose()?;
        let queued = match asked {
            Some(asked) => self.runs().enqueue_for(&new, asked, now).await?,
            None => self.runs().enqueue(&new, now).await?,
        };
        let run = queued.into_run();
        if new.trigger.line().is_some() {
            // It may have taken the place of others.
            self.ring(Bell::Reports);
            self.ring(Bell::Outbox);
        }
        self.ring(Bell::Queue);
        Ok(run)
    }

    /// Writes down that somebody asks for a run's end, before it is asked for. Of one that has ended nothing is.
    async fn note_cancel(&self, by: &Actor, account: AccountId, run: RunId, now: Timestamp) -> Result<()> {
        let run = self.runs().get(account, run).await?;
        if run.status.is_terminal() {
            return Ok(());
        }
        let entry = Entry {
            account,
            at: now,
            by: by.clone(),
            action: Action::Cancelled,
            subject: Subject::Run,
            id: run.id.get(),
            name: run.new.trigger.cause,
            project: Some(run.new.project),
        };
        self.audit().note(&entry).await
    }

    /// Asks for a run's end. One that is queued is cancelled at once; a live one is interrupted by its
    /// agent, and ended by force after the grace time. A second call changes nothing.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn cancel(&self, by: &Actor, account: AccountId, run: RunId, said: &str) -> Result<Run> {
        let message = format!("Cancelled by {said}.");
        let now = self.clock().now();
        if !by.is_system() {
            self.note_cancel(by, account, run, now).await?;
        }
        let run = self.runs().request_cancel(account, run, &message, now).await?;
        // What ends at once was queued; what had ended before has another instant.
        if run.finished_at == Some(now) {
            self.moved(RunStatus::Queued, &run);
        }
        self.ring(Bell::Queue);
        self.ring(Bell::Reports);
        self.ring(Bell::Outbox);
        Ok(run)
    }

    /// Why a run cannot be retried from its point of failure; `None` when it can.
    ///
    /// # Errors
    /// Those of storage.
    pub async fn not_retryable(&self, run: &Run) -> Result<Option<NotRetryable>> {
        if run.status != RunStatus::Error {
            return Ok(Some(NotRetryable::NotFailedRun));
        }
        let newest = self.runs().newest(run.new.account, &[run.new.job]).await?;
        if newest.first().is_some_and(|newest| newest.id != run.id) {
            return Ok(Some(NotRetryable::NotLatestRun));
        }
        let Some((step, command)) = self.failed_step(run).await? else {
            return Ok(Some(NotRetryable::UnsupportedCommand));
        };
        if !command
            .split_whitespace()
            .skip(1)
            .any(|word| RETRYABLE_COMMANDS.contains(&word))
        {
            return Ok(Some(NotRetryable::UnsupportedCommand));
        }
        let kept = self
            .artifacts()?
            .list(run.new.account, run.id, Some(Area::Step(step)))
            .await?;
        let has_results = kept.iter().any(|artifact| artifact.path.as_str() == "run_results.json");
        Ok(if has_results {
            None
        } else {
            Some(NotRetryable::NoRunResults)
        })
    }

    /// The step that failed a run and its dbt command.
    ///
    /// # Errors
    /// Those of storage.
    pub async fn failed_step(&self, run: &Run) -> Result<Option<(u32, String)>> {
        let steps = self.runs().steps(run.new.account, run.id).await?;
        Ok(steps
            .into_iter()
            .find(|step| step.state.status == StepStatus::Error && step.state.kind.decides())
            .and_then(|step| {
                let command = step
                    .state
                    .name
                    .strip_prefix("Invoke dbt with `")?
                    .strip_suffix('`')?
                    .to_owned();
                Some((step.state.index, command))
            }))
    }

    /// Queues a run that resumes another at its point of failure: `dbt retry`, then the commands that came
    /// after.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it cannot be retried, with the reason.
    pub async fn retry(&self, by: &Actor, account: AccountId, run: RunId, cause: &str) -> Result<Run> {
        let run = self.runs().get(account, run).await?;
        if let Some(reason) = self.not_retryable(&run).await? {
            return Err(Error::invalid(
                "run",
                format!("run {} cannot be retried: {reason:?}", run.id),
            ));
        }
        let job = self.catalog().fetch::<Job>(account, run.new.job).await?;
        let commands = &run.new.spec.commands;
        let failed = self.failed_step(&run).await?.map(|(_, command)| command);
        let position = commands.iter().position(|command| Some(command) == failed.as_ref());
        let mut steps = vec!["dbt retry".to_owned()];
        steps.extend(
            commands
                .iter()
                .skip(position.map_or(commands.len(), |at| at + 1))
                .cloned(),
        );
        let mut trigger = Trigger::new(CauseCategory::Rerun, cause);
        trigger.by = by.clone();
        trigger.git_sha = run.git_sha.clone().or(run.new.trigger.git_sha.clone());
        trigger.git_branch = run.new.trigger.git_branch.clone();
        // What was a run of a pull request is one again: beside others, without a slot.
        trigger.github_pull_request_id = run.new.trigger.github_pull_request_id;
        trigger.gitlab_merge_request_id = run.new.trigger.gitlab_merge_request_id;
        trigger.azure_pull_request_id = run.new.trigger.azure_pull_request_id;
        trigger.non_native_pull_request_id = run.new.trigger.non_native_pull_request_id;
        trigger.overrides = run.new.trigger.overrides.clone();
        trigger.overrides.steps = Some(steps);
        self.enqueue(&job, &trigger, Some(run.id), None).await
    }

    /// Retries the newest run of a job from its point of failure if that can be done, and otherwise starts
    /// an ordinary run.
    ///
    /// # Errors
    /// `NotFound` for the job.
    pub async fn rerun(&self, by: &Actor, account: AccountId, job: JobId, cause: &str) -> Result<Run> {
        let newest = self.runs().newest(account, &[job]).await?;
        if let Some(newest) = newest.first() {
            match self.retry(by, account, newest.id, cause).await {
                Err(error) if error.kind() == ErrorKind::Invalid => {}
                other => return other,
            }
        }
        let mut trigger = Trigger::new(CauseCategory::Rerun, cause);
        trigger.by = by.clone();
        self.trigger(account, job, trigger).await
    }

    /// The run whose manifest a run of this job defers to: the newest one of the environment or job it
    /// names that ended well, pull-request runs left out.
    ///
    /// # Errors
    /// Those of storage.
    pub async fn deferred_to(&self, job: &Record<Job>) -> Result<Option<Run>> {
        let mut filter = RunFilter {
            statuses: Some(vec![RunStatus::Success, RunStatus::Warned]),
            sort: RunSort::FinishedAt,
            direction: Direction::Descending,
            ..RunFilter::default()
        };
        match (job.deferring_environment, job.deferring_job) {
            (Some(environment), _) => filter.environment = Some(environment),
            (None, Some(other)) => filter.job = Some(other),
            (None, None) => return Ok(None),
        }
        let runs = self.runs().list(job.account, &filter, Page::default()).await?;
        Ok(runs
            .items
            .into_iter()
            .find(|run| run.new.exclusive && run.artifacts_saved))
    }

    /// The last step of a run that left a file of this name.
    ///
    /// # Errors
    /// `NotFound` when none did.
    pub async fn newest_step_with(&self, run: &Run, file: &str) -> Result<u32> {
        let kept = self.artifacts()?.list(run.new.account, run.id, None).await?;
        let steps = kept
            .iter()
            .filter(|artifact| artifact.path.as_str() == file)
            .filter_map(|artifact| match artifact.area {
                Area::Step(step) => Some(step),
                Area::Logs => None,
            });
        steps
            .max()
            .ok_or_else(|| Error::not_found("artifact", format!("{file} of run {}", run.id)))
    }

    /// Waits until a run has ended.
    ///
    /// # Errors
    /// `NotFound`. Cancellation-safe.
    pub async fn wait(&self, account: AccountId, run: RunId) -> Result<Run> {
        let mut bell = self.bell(Bell::Reports);
        loop {
            let current = self.runs().get(account, run).await?;
            if current.status.is_terminal() {
                return Ok(current);
            }
            tokio::select! {
                _ = bell.changed() => {}
                () = self.clock().sleep(self.config().poll) => {}
            }
        }
    }
}
