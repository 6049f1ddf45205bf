//! Environment variables and the three views of them.

use dbtcloud_core::catalog::Record;
use dbtcloud_core::id::{EnvironmentId, JobId, UserId};
use dbtcloud_core::variable::{Scope, Value as Held, Variable};
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::secrets::MASK;
use super::{Api, state};

/// `type` of a variable.
pub(crate) const fn kind(scope: Scope) -> &'static str {
    match scope {
        Scope::Project => "project",
        Scope::Environment(_) => "environment",
        Scope::Job(_) => "job",
        Scope::User(_) => "user",
    }
}

/// The value, or the mask of a secret.
pub(crate) fn shown(variable: &Variable) -> &str {
    match &variable.value {
        Held::Plain(value) => value,
        Held::Sealed(_) => MASK,
    }
}

/// `{id, value}` as the views have it.
pub(crate) fn value(record: &Record<Variable>) -> Value {
    json!({ "id": record.id.get(), "value": shown(&record.body) })
}

/// The scope that a request names by `type` and the id that goes with it.
pub(crate) fn read_scope(fields: &mut Fields) -> Option<Scope> {
    let kind = fields.take::<String>("type").unwrap_or_else(|| "project".to_owned());
    match kind.as_str() {
        "project" => Some(Scope::Project),
        "environment" => fields
            .require::<EnvironmentId>("environment_id")
            .map(Scope::Environment),
        "job" => fields.require::<JobId>("job_definition_id").map(Scope::Job),
        "user" => fields.require::<UserId>("user_id").map(Scope::User),
        _ => {
            fields.reject("type", "expected project, environment, job or user");
            None
        }
    }
}

/// The value that a request brings: `raw_value`, or `display_value` where a client sends only that. `None`
/// when there is none or when it is the mask that was read.
pub(crate) fn read_value(fields: &mut Fields) -> Option<String> {
    let raw = fields
        .take::<String>("raw_value")
        .or_else(|| fields.take::<String>("display_value"));
    raw.filter(|value| value != MASK)
}

/// A variable in one scope.
pub(crate) fn view(record: &Record<Variable>, api: Api) -> Map<String, Value> {
    let (environment, job, user) = match record.scope {
        Scope::Project => (None, None, None),
        Scope::Environment(id) => (Some(id.get()), None, None),
        Scope::Job(id) => (None, Some(id.get()), None),
        Scope::User(id) => (None, None, Some(id.get())),
    };
    object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "project_id": record.project.get(),
        "name": record.name,
        "type": kind(record.scope),
        "environment_id": environment,
        "job_definition_id": job,
        "user_id": user,
        "display_value": shown(&record.body),
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
        "environment": Value::Null,
    }
}
