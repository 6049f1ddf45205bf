//! Entries of the audit log: the fields of dbt Cloud's document and those that its answers have beside it.

use dbtcloud_core::audit::{Action, Actor, Logged, Subject};
use dbtcloud_core::catalog::Kind;
use serde_json::{Value, json};

use super::time;

/// dbt Cloud's word for a kind of thing, where it has one.
const fn object(subject: Subject) -> &'static str {
    match subject {
        Subject::Run => "run",
        Subject::Record(Kind::Account) => "account_settings",
        Subject::Record(Kind::Connection) => "connection",
        Subject::Record(Kind::Credentials) => "credentials",
        Subject::Record(Kind::Environment) => "environment",
        Subject::Record(Kind::ExtendedAttributes) => "extended_attributes",
        Subject::Record(Kind::Job) => "job_definition",
        Subject::Record(Kind::Notification) => "job_notification",
        Subject::Record(Kind::Project) => "project",
        Subject::Record(Kind::Repository) => "repository",
        Subject::Record(Kind::Token) => "service_token",
        Subject::Record(Kind::User) => "user",
        Subject::Record(Kind::Variable) => "environment_variable",
        Subject::Record(Kind::Webhook) => "webhook_subscription",
    }
}

const fn verb(action: Action) -> &'static str {
    match action {
        Action::Added => "Added",
        Action::Changed => "Changed",
        Action::Removed => "Removed",
        Action::Triggered => "Triggered",
        Action::Cancelled => "Cancelled",
    }
}

/// One entry. Its times have a space in place of the `T`.
pub(crate) fn view(logged: &Logged) -> Value {
    let entry = &logged.entry;
    let (object, verb) = (object(entry.subject), verb(entry.action));
    let at = time::spaced(entry.at);
    let actor = match &entry.by {
        Actor::System | Actor::Operator => json!({ "type": entry.by.kind() }),
        Actor::User { id, name } => json!({ "type": "user", "id": id.get(), "email": name, "name": name }),
        Actor::Service { id, name } => json!({ "type": "service_token", "id": id.get(), "name": name }),
    };
    let source = match &entry.by {
        Actor::System => "SYSTEM",
        Actor::Operator => "CLI",
        Actor::User { .. } | Actor::Service { .. } => "API",
    };
    json!({
        "id": logged.id.to_string(),
        "uuid": format!("aud_{}", logged.id),
        "account_id": entry.account.get(),
        "source": source,
        "service": "SERVICE_DBT_CLOUD",
        "routing_key": format!("v1.events.{object}.{}", verb.to_lowercase()),
        "actor": actor,
        "event_type": format!("{object}.{verb}"),
        "event_label": format!("{} {}", entry.subject.name(), verb.to_lowercase()),
        "event_context": {
            "object_type": object,
            "object_id": entry.id,
            "object_name": entry.name,
            "project_id": entry.project.map(|project| project.get()),
        },
        "logged_at": at,
        "created_at": at,
    })
}
