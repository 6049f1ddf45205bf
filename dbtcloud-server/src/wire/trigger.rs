//! What sets a run off: the request, and its view inside a run.

use dbtcloud_core::run::{CauseCategory, Overrides, Run, Trigger};
use serde_json::{Map, Value};

use super::body::Fields;
use super::{codes, time};

/// What stands in `cause` when a client sends none (one posts `{}`).
pub(crate) const DEFAULT_CAUSE: &str = "Triggered via API";

/// Reads a request to run a job. Nulls and fields that are not known do nothing.
pub(crate) fn read(fields: &mut Fields) -> Trigger {
    let cause = fields.take::<String>("cause").filter(|cause| !cause.trim().is_empty());
    let mut trigger = Trigger::new(CauseCategory::Api, cause.as_deref().unwrap_or(DEFAULT_CAUSE));
    let text = |fields: &mut Fields, name: &str| fields.take::<String>(name).filter(|text| !text.is_empty());
    trigger.git_sha = text(fields, "git_sha");
    trigger.git_branch = text(fields, "git_branch");
    trigger.github_pull_request_id = fields.take("github_pull_request_id");
    trigger.gitlab_merge_request_id = fields.take("gitlab_merge_request_id");
    trigger.azure_pull_request_id = fields.take("azure_pull_request_id");
    trigger.non_native_pull_request_id = fields.take("non_native_pull_request_id");
    trigger.overrides = Overrides {
        schema: text(fields, "schema_override"),
        dbt_version: text(fields, "dbt_version_override"),
        threads: fields.take("threads_override"),
        target_name: text(fields, "target_name_override"),
        generate_docs: fields.take("generate_docs_override"),
        timeout_seconds: fields.take("timeout_seconds_override"),
        // An empty list is how some clients say that there is no override.
        steps: fields
            .take::<Vec<String>>("steps_override")
            .filter(|steps| !steps.is_empty()),
    };
    for (name, value) in [("git_branch", &trigger.git_branch), ("git_sha", &trigger.git_sha)] {
        if value
            .as_ref()
            .is_some_and(|value| value.starts_with('-') || value.chars().any(char::is_control))
        {
            fields.reject(name, "expected the name of a branch or commit");
        }
    }
    trigger
}

/// The trigger of a run. It has no identity of its own: its id is the run's.
pub(crate) fn view(run: &Run) -> Map<String, Value> {
    let trigger = &run.new.trigger;
    let overrides = &trigger.overrides;
    object! {
        "id": run.id.get(),
        "job_definition_id": run.new.job.get(),
        "cause": trigger.cause,
        "cause_category": codes::cause(trigger.category),
        "cause_humanized": trigger.cause,
        "git_branch": trigger.git_branch,
        "git_sha": trigger.git_sha,
        "github_pull_request_id": trigger.github_pull_request_id,
        "gitlab_merge_request_id": trigger.gitlab_merge_request_id,
        "azure_pull_request_id": trigger.azure_pull_request_id,
        "non_native_pull_request_id": trigger.non_native_pull_request_id,
        "schema_override": overrides.schema,
        "dbt_version_override": overrides.dbt_version,
        "threads_override": overrides.threads,
        "target_name_override": overrides.target_name,
        "generate_docs_override": overrides.generate_docs,
        "timeout_seconds_override": overrides.timeout_seconds,
        "steps_override": overrides.steps,
        "created_at": time::spaced(run.created_at),
    }
}
