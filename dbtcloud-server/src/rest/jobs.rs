//! Jobs: what is run, and setting it off.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use dbtcloud_core::catalog::{Kind, Query, Record};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::{EnvironmentId, JobId, ProjectId};
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::RunFilter;
use dbtcloud_core::run::{Run, RunStatus};
use dbtcloud_core::variable::{Scope, Variable};
use dbtcloud_core::{Direction, ErrorKind, Page};
use serde_json::Value;

use super::resource::{Filter, Resource, all, by_ids, check_reference, fetch};
use super::runs::plain_view;
use crate::auth::Right;
use crate::call::{Answer, Body, Call};
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::{envelope, environment, job, trigger, variable};

impl Resource for Job {
    const EDIT: Right = Right::EditJobs;

    fn blank(_: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        let name = fields.require::<String>("name");
        let project = fields.require::<ProjectId>("project_id");
        let environment = fields.require::<EnvironmentId>("environment_id");
        fields.check()?;
        Ok(name
            .and(project)
            .zip(environment)
            .map(|(project, environment)| job::blank(project, environment)))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        job::read(fields, body);
        fields.check()?;
        if job::refuses_features(body) {
            return Err(Fault::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "cost_optimization_features cannot be switched on for a CI or merge job.",
            ));
        }
        check_reference::<Environment>(call, "deferring_environment_id", body.deferring_environment, None).await?;
        check_reference::<Job>(call, "deferring_job_definition_id", body.deferring_job, None).await?;
        let after = body.completion_trigger.as_ref().map(|trigger| trigger.job);
        check_reference::<Job>(call, "job_completion_trigger_condition.condition.job_id", after, None).await
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        let ids: Vec<JobId> = records.iter().map(|record| record.id).collect();
        let hands = call.plane().schedules().of(&ids).await?;
        let hands: BTreeMap<JobId, _> = hands.into_iter().map(|hand| (hand.job, hand.next_at)).collect();
        let now = call.now();
        let mut views: Vec<_> = records
            .iter()
            .map(|record| job::view(record, hands.get(&record.id).copied().flatten(), now, call.api))
            .collect();
        let include = call.params.include();
        if include.has("environment") {
            let found = by_ids::<Environment>(call, records.iter().map(|record| record.environment.get())).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let related = found.get(&record.environment.get());
                let shown = related.map(|related| environment::view(related, call.api));
                view.insert("environment".to_owned(), shown.into());
            }
        }
        if include.has("custom_environment_variables") {
            for (view, record) in views.iter_mut().zip(records) {
                let query = Query::new(Kind::Variable, call.account)
                    .in_project(record.project)
                    .under(record.id.get());
                let found = all::<Variable>(call, &query).await?;
                let own = found.iter().filter(|found| found.scope == Scope::Job(record.id));
                let shown = own.map(|own| Value::Object(variable::view(own, call.api)));
                view.insert("custom_environment_variables".to_owned(), shown.collect());
            }
        }
        let (newest, completed) = (include.has("most_recent_run"), include.has("most_recent_completed_run"));
        if newest || completed {
            let found = call.plane().runs().newest(call.account, &ids).await?;
            let found: BTreeMap<JobId, Run> = found.into_iter().map(|run| (run.new.job, run)).collect();
            for (view, record) in views.iter_mut().zip(records) {
                let latest = found.get(&record.id);
                if newest {
                    let shown = latest.map(|run| plain_view(call, run));
                    view.insert("most_recent_run".to_owned(), shown.into());
                }
                if completed {
                    let ended = match latest {
                        Some(run) if !run.status.is_terminal() => newest_ended(call, record.id).await?,
                        other => other.cloned(),
                    };
                    let shown = ended.map(|run| plain_view(call, &run));
                    view.insert("most_recent_completed_run".to_owned(), shown.into());
                }
            }
        }
        Ok(views.into_iter().map(Value::Object).collect())
    }

    fn filter(call: &Call) -> Result<Option<Filter<Self>>, Fault> {
        let params = &call.params;
        let scheduled = params.bool("triggers_schedule")?;
        let system = params.bool("is_system")?;
        let versions = params.list("dbt_version__in").or_else(|| params.list("dbt_version"));
        let versions: Option<Vec<String>> = versions.map(|list| list.into_iter().map(ToOwned::to_owned).collect());
        let kinds = params.list("job_type__in").or_else(|| params.list("job_type"));
        let kinds: Option<Vec<String>> = kinds.map(|list| list.into_iter().map(ToOwned::to_owned).collect());
        if scheduled.is_none() && system != Some(true) && versions.is_none() && kinds.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(move |record| {
            let kind = crate::wire::codes::job_type(record.job_type);
            system != Some(true)
                && scheduled.is_none_or(|scheduled| record.triggers.schedule == scheduled)
                && kinds
                    .as_ref()
                    .is_none_or(|kinds| kinds.iter().any(|wanted| wanted == kind))
                && versions.as_ref().is_none_or(|versions| {
                    record
                        .dbt_version
                        .as_ref()
                        .is_some_and(|version| versions.contains(version))
                })
        })))
    }

    async fn insert(call: &Call, body: &Self) -> dbtcloud_core::Result<Record<Self>> {
        call.plane()
            .create_job(&call.who.by(), call.account, body.clone())
            .await
    }

    async fn save(call: &Call, record: &Record<Self>) -> dbtcloud_core::Result<Record<Self>> {
        call.plane().save_job(&call.who.by(), record).await
    }
}

async fn newest_ended(call: &Call, job: JobId) -> Result<Option<Run>, Fault> {
    let filter = RunFilter {
        job: Some(job),
        statuses: Some(
            RunStatus::ALL
                .into_iter()
                .filter(|status| status.is_terminal())
                .collect(),
        ),
        direction: Direction::Descending,
        ..RunFilter::default()
    };
    let found = call.plane().runs().list(call.account, &filter, Page::new(1, 0)).await?;
    Ok(found.items.into_iter().next())
}

/// The job of the path, for somebody who may run it.
async fn runnable(call: &Call) -> Result<Record<Job>, Fault> {
    let job = fetch::<Job>(call, call.id("id")?).await?;
    call.demand(Right::Run, Some(job.project))?;
    Ok(job)
}

/// The longest `Idempotency-Key`, in bytes.
const KEY_LIMIT_BYTES: usize = 255;

/// The key by which a client may make its request again.
fn key(call: &Call) -> Result<Option<&str>, Fault> {
    let Some(key) = call.headers.get("idempotency-key") else {
        return Ok(None);
    };
    let fits = |key: &&str| !key.is_empty() && key.len() <= KEY_LIMIT_BYTES;
    match key.to_str().ok().filter(fits) {
        Some(key) => Ok(Some(key)),
        None => Err(Fault::field(
            "Idempotency-Key",
            format!("expected 1 to {KEY_LIMIT_BYTES} visible characters"),
        )),
    }
}

/// Queues a run and answers with all of it before anything is provisioned: one client waits 5 seconds. With an
/// `Idempotency-Key`, which dbt Cloud does not know, a request that is made again is answered with the run of the first.
pub(crate) async fn run(call: Call, Body(mut fields): Body) -> Answer {
    let job = runnable(&call).await?;
    let mut trigger = trigger::read(&mut fields);
    trigger.by = call.who.by();
    trigger.traceparent = call.trace.map(|context| context.to_string());
    fields.check()?;
    let run = match key(&call)? {
        None => call.plane().trigger(call.account, job.id, trigger).await?,
        Some(key) => {
            let queued = call.plane().trigger_once(call.account, job.id, trigger, key).await;
            queued.map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => Fault::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    format!("Idempotency-Key: {error}. Send this one with a key of its own."),
                ),
                _ => error.into(),
            })?
        }
    };
    Ok(envelope::ok(super::runs::triggered_view(&call, &run, &job)))
}

/// Resumes the newest run of the job if it failed and can be resumed; otherwise starts an ordinary one.
pub(crate) async fn rerun(call: Call, Body(mut fields): Body) -> Answer {
    let job = runnable(&call).await?;
    let cause = fields.take::<String>("cause");
    fields.check()?;
    let cause = cause.unwrap_or_else(|| "Rerun via API".to_owned());
    let run = call.plane().rerun(&call.who.by(), call.account, job.id, &cause).await?;
    Ok(envelope::ok(super::runs::triggered_view(&call, &run, &job)))
}
