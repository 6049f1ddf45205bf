//! Runs.

use std::time::Duration;

use dbtcloud_core::Timestamp;
use dbtcloud_core::run::{Run, RunStatus, Wait};
use dbtcloud_runtime::NotRetryable;
use serde_json::{Map, Value, json};

use super::{codes, time};

/// Where a person can look at a run; clients print it.
pub(crate) fn href(base: &str, run: &Run) -> String {
    format!(
        "{base}/deploy/{}/projects/{}/runs/{}/",
        run.new.account, run.new.project, run.id
    )
}

/// What a view of a run needs beyond the run.
#[derive(Clone, Debug)]
pub(crate) struct Shown<'a> {
    /// Scheme, host and prefix of this server.
    pub(crate) base: &'a str,
    /// For spans that have not ended.
    pub(crate) now: Timestamp,
    /// Why it waits, if that was looked up and it does.
    pub(crate) wait: Option<Wait>,
    /// Why it cannot be retried; `Ok(None)` when it can, `Err(())` when that was not looked up.
    pub(crate) retry: Result<Option<NotRetryable>, ()>,
}

fn span(from: Option<Timestamp>, to: Option<Timestamp>) -> Duration {
    match (from, to) {
        (Some(from), Some(to)) => to.since(from),
        _ => Duration::ZERO,
    }
}

/// Why a run waits. Not in dbt Cloud's API: a word for programs, a sentence, and its place in the account's line.
fn wait_reason(wait: &Wait) -> Value {
    json!({
        "code": wait.cause.code(),
        "text": wait.cause.to_string(),
        "position": wait.position,
    })
}

/// A run; related objects are null until somebody fills them in.
pub(crate) fn view(run: &Run, shown: &Shown<'_>) -> Map<String, Value> {
    let code = codes::run(run.status);
    let wait = shown.wait.as_ref();
    let blocked_by = wait.into_iter().flat_map(|wait| &wait.blocked_by);
    let text = |at: Option<Timestamp>| at.map(time::spaced);
    let ended = run.finished_at.or(Some(shown.now));
    let left_queue = run.dequeued_at.or(ended);
    let total = span(Some(run.created_at), ended);
    let queued = span(Some(run.created_at), left_queue);
    let running = span(run.started_at, ended);
    let ago = |at: Timestamp| format!("{} ago", time::humanized(shown.now.since(at)));
    let complete = run.status.is_terminal();
    let (can_retry, reason) = match shown.retry {
        Ok(None) => (Some(true), None),
        Ok(Some(reason)) => (Some(false), Some(codes::not_retryable(reason))),
        Err(()) if run.status == RunStatus::Error => (None, None),
        Err(()) => (Some(false), Some(codes::not_retryable(NotRetryable::NotFailedRun))),
    };
    object! {
        "id": run.id.get(),
        "account_id": run.new.account.get(),
        "project_id": run.new.project.get(),
        "environment_id": run.new.environment.get(),
        "job_id": run.new.job.get(),
        "job_definition_id": run.new.job.get(),
        "trigger_id": run.id.get(),
        "status": code.number,
        "status_humanized": code.word,
        "status_message": run.message.clone().or(wait.map(|wait| wait.cause.to_string())),
        "in_progress": !complete,
        "is_complete": complete,
        "is_running": code.number == 3,
        "is_success": code.number == 10,
        "is_error": code.number == 20,
        "is_cancelled": code.number == 30,
        "dbt_version": run.dbt_version.as_ref().unwrap_or(&run.new.spec.dbt_version),
        "git_branch": run.git_branch.as_ref().or(run.new.spec.git_branch.as_ref()),
        "git_sha": run.git_sha.as_ref().or(run.new.spec.git_sha.as_ref()),
        "artifacts_saved": run.artifacts_saved,
        "artifact_s3_path": Value::Null,
        "has_docs_generated": run.has_docs,
        "has_sources_generated": run.has_sources,
        "notifications_sent": false,
        "used_repo_cache": Value::Null,
        "repo_cache_restore": Value::Null,
        "owner_thread_id": Value::Null,
        "executed_by_thread_id": Value::Null,
        "deferring_run_id": Value::Null,
        "blocked_by": blocked_by.map(|id| id.get()).collect::<Vec<_>>(),
        "wait_reason": wait.map(wait_reason),
        "created_at": time::spaced(run.created_at),
        "updated_at": time::spaced(run.updated_at),
        "should_start_at": time::spaced(run.new.due_at),
        "dequeued_at": text(run.dequeued_at),
        "started_at": text(run.started_at),
        "finished_at": text(run.finished_at),
        "last_checked_at": text(run.heartbeat_at),
        "last_heartbeat_at": text(run.heartbeat_at),
        "duration": time::clock(total),
        "duration_humanized": time::humanized(total),
        "queued_duration": time::clock(queued),
        "queued_duration_humanized": time::humanized(queued),
        "run_duration": time::clock(running),
        "run_duration_humanized": time::humanized(running),
        "created_at_humanized": ago(run.created_at),
        "finished_at_humanized": run.finished_at.map(ago),
        "retrying_run_id": run.new.retry_of.map(i64::from),
        "can_retry": can_retry,
        "retry_not_supported_reason": reason,
        "href": href(shown.base, run),
        "trigger": Value::Null,
        "job": Value::Null,
        "environment": Value::Null,
        "repository": Value::Null,
        "run_steps": Value::Array(Vec::new()),
        "run_retries": Value::Null,
        "audit": Value::Null,
        "deprecation": Value::Null,
    }
}
