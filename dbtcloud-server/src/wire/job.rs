//! Jobs. The set of keys is exactly what strict clients know: a new one would stop them.

use dbtcloud_core::Timestamp;
use dbtcloud_core::catalog::Record;
use dbtcloud_core::id::{EnvironmentId, JobId, ProjectId};
use dbtcloud_core::job::{CompletionTrigger, Job, JobType};
use dbtcloud_core::schedule::Schedule;
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::extras::{self, Keep, Table};
use super::{Api, codes, schedule, state, time};

const EXTRAS: Table = &[
    ("run_compare_changes", Keep::Bool(Some(false))),
    ("compare_changes_flags", Keep::Text(Some("--select state:modified"))),
    ("run_lint", Keep::Bool(Some(false))),
    ("errors_on_lint_failure", Keep::Bool(Some(true))),
    ("triggers_on_draft_pr", Keep::Bool(Some(false))),
    ("cost_optimization_features", Keep::Texts),
    ("force_node_selection", Keep::Bool(None)),
    ("is_fusion_ready_override", Keep::Bool(Some(false))),
    ("lifecycle_webhooks", Keep::Bool(Some(false))),
    ("lifecycle_webhooks_url", Keep::Text(None)),
    ("deactivation_reason", Keep::Text(None)),
];

/// The most characters a description may have.
const DESCRIPTION_LIMIT_CHARS: usize = 10_000;

/// A job with dbt Cloud's defaults, to read a request into.
pub(crate) fn blank(project: ProjectId, environment: EnvironmentId) -> Job {
    Job::new(project, environment, String::new())
}

/// Takes a request's fields over.
pub(crate) fn read(fields: &mut Fields, job: &mut Job) {
    fields.set("project_id", &mut job.project);
    fields.set("environment_id", &mut job.environment);
    fields.set("name", &mut job.name);
    fields.set("description", &mut job.description);
    fields.set("execute_steps", &mut job.execute_steps);
    fields.set_optional_text("dbt_version", &mut job.dbt_version);
    fields.set_optional("deferring_environment_id", &mut job.deferring_environment);
    fields.set_optional("deferring_job_definition_id", &mut job.deferring_job);
    fields.set("generate_docs", &mut job.generate_docs);
    fields.set("run_generate_sources", &mut job.run_generate_sources);
    fields.nested("settings", |settings| {
        settings.set("threads", &mut job.threads);
        settings.set("target_name", &mut job.target_name);
    });
    fields.nested("execution", |execution| {
        execution.set("timeout_seconds", &mut job.timeout_seconds)
    });
    fields.nested("triggers", |triggers| {
        triggers.set("github_webhook", &mut job.triggers.github_webhook);
        triggers.set("git_provider_webhook", &mut job.triggers.git_provider_webhook);
        triggers.set("schedule", &mut job.triggers.schedule);
        triggers.set("on_merge", &mut job.triggers.on_merge);
    });
    let current = job.schedule.clone();
    if let Some(Some(schedule)) = fields.nested("schedule", |inner| schedule::read(inner, current.as_ref())) {
        job.schedule = Some(schedule);
    }
    read_completion(fields, job);
    extras::read(fields, EXTRAS, &mut job.extras);
    read_type(fields, job);
    if job.description.chars().count() > DESCRIPTION_LIMIT_CHARS {
        fields.reject(
            "description",
            format!("expected at most {DESCRIPTION_LIMIT_CHARS} characters"),
        );
    }
    // Saving a job's settings is how a person says that it may run again.
    job.deactivated = false;
}

/// Only `ci`, `merge` and `adaptive` can be enforced; the rest follows from the triggers.
fn read_type(fields: &mut Fields, job: &mut Job) {
    job.job_type = match fields.take::<String>("job_type").as_deref() {
        Some("ci") => JobType::Ci,
        Some("merge") => JobType::Merge,
        Some("adaptive") => JobType::Adaptive,
        None | Some("scheduled" | "other" | "hybrid" | "exposure_sync") => job.inferred_type(),
        Some(_) => {
            fields.reject("job_type", "expected ci, scheduled, other, merge or adaptive");
            job.inferred_type()
        }
    };
}

fn read_completion(fields: &mut Fields, job: &mut Job) {
    const NAME: &str = "job_completion_trigger_condition";
    if fields.raw(NAME).is_some_and(Value::is_null) {
        job.completion_trigger = None;
        return;
    }
    let read = |inner: &mut Fields| -> Option<CompletionTrigger> {
        let after: Option<JobId> = inner.require("job_id");
        let project: Option<ProjectId> = inner.require("project_id");
        let statuses: Vec<i64> = inner.take("statuses").unwrap_or_else(|| vec![10, 20, 30]);
        let mut outcomes = Vec::new();
        for status in statuses {
            match codes::outcomes(status) {
                Some(found) => outcomes.extend_from_slice(found),
                None => inner.reject("statuses", "expected a list of 10, 20 and 30"),
            }
        }
        Some(CompletionTrigger {
            job: after?,
            project: project?,
            outcomes,
        })
    };
    let condition = fields.nested(NAME, |outer| {
        if outer.has("condition") {
            outer.nested("condition", read).flatten()
        } else {
            read(outer)
        }
    });
    if let Some(Some(condition)) = condition {
        job.completion_trigger = Some(condition);
    }
}

/// Whether a job asks for a feature that its kind cannot have (dbt Cloud answers 405).
pub(crate) fn refuses_features(job: &Job) -> bool {
    let asked = job.extras.get("cost_optimization_features").and_then(Value::as_array);
    matches!(job.job_type, JobType::Ci | JobType::Merge) && asked.is_some_and(|features| !features.is_empty())
}

fn completion(trigger: &CompletionTrigger) -> Value {
    let mut statuses: Vec<i64> = trigger
        .outcomes
        .iter()
        .map(|outcome| codes::outcome(*outcome))
        .collect();
    statuses.dedup();
    json!({ "condition": {
        "job_id": trigger.job.get(),
        "project_id": trigger.project.get(),
        "statuses": statuses,
    }})
}

/// A job; related objects are null until somebody fills them in.
pub(crate) fn view(record: &Record<Job>, next_at: Option<Timestamp>, now: Timestamp, api: Api) -> Map<String, Value> {
    let job = &record.body;
    let mut view = object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "project_id": job.project.get(),
        "environment_id": job.environment.get(),
        "name": job.name,
        "description": job.description,
        "execute_steps": job.execute_steps,
        "job_type": codes::job_type(job.job_type),
        "dbt_version": job.dbt_version,
        "raw_dbt_version": job.dbt_version,
        "deferring_environment_id": job.deferring_environment.map(i64::from),
        "deferring_job_definition_id": job.deferring_job.map(i64::from),
        "generate_docs": job.generate_docs,
        "run_generate_sources": job.run_generate_sources,
        "generate_sources": job.run_generate_sources,
        "settings": json!({ "threads": job.threads, "target_name": job.target_name }),
        "execution": json!({ "timeout_seconds": job.timeout_seconds }),
        "triggers": json!({
            "github_webhook": job.triggers.github_webhook,
            "git_provider_webhook": job.triggers.git_provider_webhook,
            "schedule": job.triggers.schedule,
            "on_merge": job.triggers.on_merge,
            "custom_branch_only": false,
        }),
        "schedule": schedule::view(job.schedule.as_ref()),
        "job_completion_trigger_condition": job.completion_trigger.as_ref().map(completion),
        "deactivated": job.deactivated,
        "run_failure_count": job.run_failure_count,
        "is_deferrable": job.job_type != JobType::Ci,
        "is_system": false,
        "cron_humanized": job.schedule.as_ref().map_or_else(|| "Every hour".to_owned(), Schedule::describe),
        "next_run": next_at.map(|at| api.time(at)),
        "next_run_humanized": next_at.map(|at| time::humanized(at.since(now))),
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
        "account": Value::Null,
        "project": Value::Null,
        "environment": Value::Null,
        "fusion_readiness": Value::Null,
        "most_recent_run": Value::Null,
        "most_recent_completed_run": Value::Null,
        "custom_environment_variables": Value::Null,
    };
    extras::show(&job.extras, EXTRAS, &mut view);
    view
}
