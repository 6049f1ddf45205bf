//! Entries of the audit log: the fields of dbt Cloud's document and those that its answers have beside it.

use dbtcloud_core::audit::{Action, Actor, Logged, Subject};
use dbtcloud_core::catalog::Kind;
use serde_json::{Value, json};

use super::time;
use bytes::Bytes;
use dbtcloud_core::{Error, Result};

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

const fn source(by: &Actor) -> &'static str {
    match by {
        Actor::System => "SYSTEM",
        Actor::Operator => "CLI",
        Actor::User { .. } | Actor::Service { .. } => "API",
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
    json!({
        "id": logged.id.to_string(),
        "uuid": format!("aud_{}", logged.id),
        "account_id": entry.account.get(),
        "source": source(&entry.by),
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

/// What the columns of the file are called: the names that the fields have in JSON.
const COLUMNS: [&str; 12] = [
    "id",
    "logged_at",
    "account_id",
    "event_type",
    "source",
    "actor_type",
    "actor_id",
    "actor_name",
    "object_type",
    "object_id",
    "object_name",
    "project_id",
];

fn written<I: AsRef<[u8]>>(rows: impl Iterator<Item = Vec<I>>) -> Result<Bytes> {
    let bad = |error: String| Error::corrupt("an audit entry cannot be written as CSV").because(error);
    let mut file = csv::Writer::from_writer(Vec::new());
    for row in rows {
        file.write_record(row).map_err(|error| bad(error.to_string()))?;
    }
    let bytes = file.into_inner().map_err(|error| bad(error.to_string()))?;
    Ok(bytes.into())
}

/// The first line of a CSV file (RFC 4180).
pub(crate) fn head() -> Result<Bytes> {
    written([COLUMNS.to_vec()].into_iter())
}

/// The lines of these entries in it.
pub(crate) fn lines(entries: &[Logged]) -> Result<Bytes> {
    let number = |id: Option<i64>| id.map(|id| id.to_string()).unwrap_or_default();
    written(entries.iter().map(|logged| {
        let (entry, object) = (&logged.entry, object(logged.entry.subject));
        vec![
            logged.id.to_string(),
            time::spaced(entry.at),
            entry.account.to_string(),
            format!("{object}.{}", verb(entry.action)),
            source(&entry.by).to_owned(),
            entry.by.kind().to_owned(),
            number(entry.by.id()),
            entry.by.name().to_owned(),
            object.to_owned(),
            entry.id.to_string(),
            entry.name.clone(),
            number(entry.project.map(|project| project.get())),
        ]
    }))
}
