//! Runs: list, look, stop, retry.

use std::collections::BTreeMap;

use dbtcloud_core::ErrorKind;
use dbtcloud_core::catalog::Record;
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::{EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{RunFilter, RunSort};
use dbtcloud_core::project::{Project, Repository};
use dbtcloud_core::run::{Run, RunStatus, StepStatus};
use dbtcloud_runtime::NotRetryable;
use serde_json::{Map, Value, json};

use super::resource::by_ids;
use super::steps;
use crate::auth::Right;
use crate::call::{Answer, Body, Call};
use crate::wire::fault::Fault;
use crate::wire::query::Params;
use crate::wire::run::{Shown, view};
use crate::wire::{codes, envelope, environment, job, project, trigger};

/// What stands in `status_message` of a run that was stopped through the API: "Cancelled by user."
const CANCELLED_BY: &str = "user";

fn shown<'a>(call: &'a Call) -> Shown<'a> {
    Shown {
        base: &call.base,
        now: call.now(),
        wait: None,
        retry: Err(()),
    }
}

/// A run without anything that would have to be looked up.
pub(crate) fn plain_view(call: &Call, run: &Run) -> Map<String, Value> {
    view(run, &shown(call))
}

/// The answer to a trigger: the run, what set it off, and its job.
pub(crate) fn triggered_view(call: &Call, run: &Run, job: &Record<Job>) -> Map<String, Value> {
    let mut view = plain_view(call, run);
    view.insert("trigger".to_owned(), trigger::view(run).into());
    view.insert("job".to_owned(), job::view(job, None, call.now(), call.api).into());
    view
}

/// The run of the path, if it may be seen.
pub(crate) async fn fetch_run(call: &Call) -> Result<Run, Fault> {
    let id = call.id("id")?;
    let run = call.plane().runs().get(call.account, RunId::new(id)).await?;
    if !call.who.may(Right::Read, Some(run.new.project)) {
        return Err(Fault::not_found(format!("run {id} not found")));
    }
    Ok(run)
}

fn statuses(params: &Params) -> Result<Option<Vec<RunStatus>>, Fault> {
    let Some(numbers) = params.one_of(&["status"])? else {
        return Ok(None);
    };
    let mut statuses = Vec::new();
    for number in numbers {
        let found = codes::run_statuses(number);
        if found.is_empty() {
            return Err(Fault::field(
                "status",
                format!("expected 1, 2, 3, 10, 20 or 30, got {number}"),
            ));
        }
        statuses.extend(found);
    }
    Ok(Some(statuses))
}

fn filter(call: &Call) -> Result<RunFilter, Fault> {
    let params = &call.params;
    let mut projects: Option<Vec<ProjectId>> = params
        .one_of(&["project_id"])?
        .map(|ids| ids.into_iter().map(ProjectId::new).collect());
    if let Some(readable) = call.who.readable_projects() {
        projects = Some(match projects {
            Some(asked) => asked.into_iter().filter(|id| readable.contains(id)).collect(),
            None => readable,
        });
    }
    let (sort, direction) = match params.order() {
        Some(("created_at", direction)) => (RunSort::CreatedAt, direction),
        Some(("finished_at", direction)) => (RunSort::FinishedAt, direction),
        Some((_, direction)) => (RunSort::Id, direction),
        None => Default::default(),
    };
    let job = params.int("job_definition_id")?.or(params.int("job_id")?);
    Ok(RunFilter {
        projects,
        environment: params.int("environment_id")?.map(EnvironmentId::new),
        job: job.map(JobId::new),
        statuses: statuses(params)?,
        ids: params
            .one_of(&["id", "pk"])?
            .map(|ids| ids.into_iter().map(RunId::new).collect()),
        id_above: params.int("id__gt")?.or(params.int("pk__gt")?).map(RunId::new),
        created_within: params.range("created_at__range")?,
        finished_within: params.range("finished_at__range")?,
        has_docs: params.bool("has_docs_generated")?,
        has_sources: params.bool("has_sources_generated")?,
        sort,
        direction,
    })
}

/// Runs with the related objects that a list can show.
async fn views(call: &Call, runs: &[Run]) -> Result<Vec<Map<String, Value>>, Fault> {
    let include = call.params.include();
    let mut waits = match runs.iter().any(|run| run.status == RunStatus::Queued) {
        true => call.plane().waits(call.account).await?,
        false => BTreeMap::new(),
    };
    let mut views: Vec<_> = runs
        .iter()
        .map(|run| {
            let wait = waits.remove(&run.id).filter(|_| run.status == RunStatus::Queued);
            view(run, &Shown { wait, ..shown(call) })
        })
        .collect();
    if include.has("trigger") {
        for (view, run) in views.iter_mut().zip(runs) {
            view.insert("trigger".to_owned(), trigger::view(run).into());
        }
    }
    if include.has("job") {
        let found = by_ids::<Job>(call, runs.iter().map(|run| run.new.job.get())).await?;
        for (view, run) in views.iter_mut().zip(runs) {
            let related = found.get(&run.new.job.get());
            let shown = related.map(|related| job::view(related, None, call.now(), call.api));
            view.insert("job".to_owned(), shown.into());
        }
    }
    if include.has("environment") {
        let found = by_ids::<Environment>(call, runs.iter().map(|run| run.new.environment.get())).await?;
        for (view, run) in views.iter_mut().zip(runs) {
            let related = found.get(&run.new.environment.get());
            let shown = related.map(|related| environment::view(related, call.api));
            view.insert("environment".to_owned(), shown.into());
        }
    }
    if include.has("repository") {
        let projects = by_ids::<Project>(call, runs.iter().map(|run| run.new.project.get())).await?;
        let ids = projects
            .values()
            .filter_map(|project| project.repository)
            .map(i64::from);
        let found = by_ids::<Repository>(call, ids).await?;
        for (view, run) in views.iter_mut().zip(runs) {
            let parent = projects.get(&run.new.project.get());
            let related = parent
                .and_then(|parent| parent.repository)
                .and_then(|id| found.get(&id.get()));
            let shown = related.map(|related| project::repository(related, call.api));
            view.insert("repository".to_owned(), shown.into());
        }
    }
    if include.has("audit") {
        for view in &mut views {
            view.insert("audit".to_owned(), json!({ "trigger": null, "cancellation": null }));
        }
    }
    Ok(views)
}

pub(crate) async fn list(call: Call) -> Answer {
    let page = call.params.page()?;
    let found = call.plane().runs().list(call.account, &filter(&call)?, page).await?;
    let views = views(&call, &found.items)
        .await?
        .into_iter()
        .map(Value::Object)
        .collect();
    Ok(envelope::list(views, found.total, call.params.extra(page)))
}

/// One run with everything that was asked for.
async fn full_view(call: &Call, run: &Run) -> Result<Map<String, Value>, Fault> {
    let include = call.params.include();
    let mut views = views(call, std::slice::from_ref(run)).await?;
    let mut view = views.pop().unwrap_or_default();
    let retry = match call.plane().not_retryable(run).await {
        Ok(reason) => reason,
        // A store that cannot be asked must not hide the run.
        Err(error) if error.kind() == ErrorKind::Unavailable => Some(NotRetryable::NoRunResults),
        Err(error) => return Err(error.into()),
    };
    view.insert("can_retry".to_owned(), retry.is_none().into());
    view.insert(
        "retry_not_supported_reason".to_owned(),
        retry.map(codes::not_retryable).into(),
    );
    if include.has("run_steps") || include.has("debug_logs") {
        let steps = steps::of_run(call, run, include.has("debug_logs")).await?;
        view.insert("run_steps".to_owned(), Value::Array(steps));
    }
    if include.has("run_retries") {
        view.insert("run_retries".to_owned(), json!([]));
    }
    Ok(view)
}

pub(crate) async fn get(call: Call) -> Answer {
    let run = fetch_run(&call).await?;
    Ok(envelope::ok(full_view(&call, &run).await?))
}

/// Asks for a run's end. One that has ended stays as it is and is answered as it is.
pub(crate) async fn cancel(call: Call, _: Body) -> Answer {
    let run = fetch_run(&call).await?;
    call.demand(Right::Run, Some(run.new.project))?;
    let run = call
        .plane()
        .cancel(&call.who.by(), call.account, run.id, CANCELLED_BY)
        .await?;
    Ok(envelope::ok(full_view(&call, &run).await?))
}

/// Which step failed, and which were left out because of it.
pub(crate) async fn failure(call: Call) -> Answer {
    let run = fetch_run(&call).await?;
    let steps = call.plane().runs().steps(call.account, run.id).await?;
    let failed = steps
        .iter()
        .find(|step| step.state.status == StepStatus::Error && step.state.kind.decides());
    let skipped = steps.iter().filter(|step| step.state.status == StepStatus::Skipped);
    Ok(envelope::ok(json!({
        "failed_step": failed.map(|step| step.state.name.as_str()),
        "skipped_steps": skipped.map(|step| step.state.name.as_str()).collect::<Vec<_>>(),
    })))
}

/// Queues a run that resumes this one where it failed; `retrying_run_id` of the new one names the old.
pub(crate) async fn retry(call: Call, Body(mut fields): Body) -> Answer {
    let run = fetch_run(&call).await?;
    call.demand(Right::Run, Some(run.new.project))?;
    let cause = fields
        .take::<String>("cause")
        .unwrap_or_else(|| format!("Retry of run {}", run.id));
    fields.check()?;
    if let Some(reason) = call.plane().not_retryable(&run).await? {
        return Err(Fault::field("retry_not_supported_reason", codes::not_retryable(reason)));
    }
    let run = call.plane().retry(&call.who.by(), call.account, run.id, &cause).await?;
    Ok(envelope::ok(full_view(&call, &run).await?))
}
