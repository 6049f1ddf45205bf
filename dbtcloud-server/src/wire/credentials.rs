//! Credentials: who logs in to a warehouse. Each adapter has its own names for the same few things.

use std::collections::BTreeMap;

use dbtcloud_core::catalog::{Extras, Record};
use dbtcloud_core::connection::Credentials;
use dbtcloud_core::id::ProjectId;
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::connection::{adapter_of, expected_adapter};
use super::extras::{self, Keep, Table};
use super::secrets::{MASK, Split};
use super::{Api, state};

const EXTRAS: Table = &[("adapter_id", Keep::Int(None)), ("connection_id", Keep::Int(None))];

/// Top-level fields that are not profile fields of any adapter.
const OWN_FIELDS: [&str; 18] = [
    "id",
    "account_id",
    "project_id",
    "type",
    "state",
    "threads",
    "target_name",
    "adapter_version",
    "adapter_id",
    "adapter",
    "connection_id",
    "credential_details",
    "unencrypted_credential_details",
    "schema",
    "default_schema",
    "dataset",
    "created_at",
    "updated_at",
];

/// What the wire calls a field of credentials, where the profile has another name.
fn renames(adapter: &str) -> &'static [(&'static str, &'static str)] {
    match adapter {
        "postgres" | "redshift" => &[("username", "user")],
        _ => &[],
    }
}

/// What this adapter calls the target schema at top level.
fn schema_name(adapter: &str) -> &'static str {
    match adapter {
        "postgres" | "redshift" => "default_schema",
        _ => "schema",
    }
}

/// Credentials of no adapter, to read a request into.
pub(crate) fn blank(project: ProjectId) -> Credentials {
    Credentials {
        project,
        adapter: String::new(),
        adapter_version: String::new(),
        schema: None,
        threads: None,
        target_name: None,
        fields: Extras::new(),
        secrets: BTreeMap::new(),
        extras: Extras::new(),
    }
}

/// Takes a request's fields over; what goes into the profile is returned apart.
///
/// Both forms are understood: fields at top level (`postgres`, `redshift`, `snowflake`, `bigquery`) and
/// `credential_details.fields.<name>.value` (`adapter`).
pub(crate) fn read(fields: &mut Fields, credentials: &mut Credentials) -> Split {
    let mut version = credentials.adapter_version.clone();
    fields.set("adapter_version", &mut version);
    if version.is_empty()
        && let Some(kind) = fields.take::<String>("type")
    {
        version = format!("{kind}_v0");
    }
    match adapter_of(&version) {
        Some(adapter) => {
            credentials.adapter = adapter.to_owned();
            credentials.adapter_version = version;
        }
        None => fields.reject("adapter_version", expected_adapter()),
    }
    for name in ["default_schema", "schema", "dataset"] {
        fields.set_optional_text(name, &mut credentials.schema);
    }
    fields.set_optional("threads", &mut credentials.threads);
    fields.set_optional_text("target_name", &mut credentials.target_name);
    extras::read(fields, EXTRAS, &mut credentials.extras);

    let adapter = credentials.adapter.clone();
    let mut sent = Map::new();
    if let Some(details) = fields.take::<Map<String, Value>>("credential_details") {
        let detailed = details
            .get("fields")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or(details);
        for (name, value) in detailed {
            let value = match value {
                Value::Object(mut field) => field.remove("value").unwrap_or(Value::Null),
                value => value,
            };
            sent.insert(name, value);
        }
    } else {
        sent = fields.rest(&OWN_FIELDS);
    }
    // A schema among the details is the target schema too.
    for name in ["schema", "dataset"] {
        if let Some(Value::String(schema)) = sent.remove(name) {
            credentials.schema = Some(schema).filter(|schema| !schema.is_empty());
        }
    }
    if let Some(threads) = sent.remove("threads").and_then(|threads| threads.as_u64()) {
        credentials.threads = u32::try_from(threads).ok();
    }
    if let Some(Value::String(target)) = sent.remove("target_name") {
        credentials.target_name = Some(target).filter(|target| !target.is_empty());
    }
    let to_profile = |name: &str| {
        renames(&adapter)
            .iter()
            .find(|(wire, _)| *wire == name)
            .map_or(name, |(_, own)| own)
            .to_owned()
    };
    Split::sort(&adapter, sent, to_profile, "credential_details", fields)
}

fn to_wire(adapter: &str, name: &str) -> String {
    renames(adapter)
        .iter()
        .find(|(_, own)| *own == name)
        .map_or(name, |(wire, _)| wire)
        .to_owned()
}

/// Credentials, secrets masked. `detailed` adds what clients ask for with `include_related=[adapter]`.
pub(crate) fn view(record: &Record<Credentials>, detailed: bool, api: Api) -> Map<String, Value> {
    let adapter = record.adapter.as_str();
    let kind = match adapter {
        known @ ("postgres" | "redshift" | "snowflake" | "bigquery") => known,
        _ => "adapter",
    };
    let mut view = object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "project_id": record.project.get(),
        "type": kind,
        "adapter_version": record.adapter_version,
        "threads": record.threads.unwrap_or(4),
        "target_name": record.target_name.as_deref().unwrap_or("default"),
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
    };
    extras::show(&record.extras, EXTRAS, &mut view);
    view.insert(schema_name(adapter).to_owned(), json!(record.schema));
    let plain = record.fields.iter().map(|(name, value)| (name, value.clone(), false));
    let masked = record.secrets.keys().map(|name| (name, Value::from(MASK), true));
    let mut details = Map::new();
    let mut values = Map::new();
    for (name, value, secret) in plain.chain(masked) {
        let name = to_wire(adapter, name);
        let metadata = json!({
            "label": name,
            "description": "",
            "field_type": "text",
            "encrypt": secret,
            "overrideable": false,
            "validation": { "required": false },
        });
        details.insert(name.clone(), json!({ "metadata": metadata, "value": value }));
        values.insert(name.clone(), if secret { Value::Null } else { value.clone() });
        if kind != "adapter" {
            view.insert(name, value);
        }
    }
    if kind == "adapter" || detailed {
        if let Some(schema) = &record.schema {
            let metadata = json!({
                "label": "Schema",
                "description": "",
                "field_type": "text",
                "encrypt": false,
                "overrideable": false,
                "validation": { "required": true },
            });
            details.insert("schema".to_owned(), json!({ "metadata": metadata, "value": schema }));
            values.insert("schema".to_owned(), schema.as_str().into());
        }
        view.insert(
            "credential_details".to_owned(),
            json!({ "fields": details, "field_order": [] }),
        );
        view.insert("unencrypted_credential_details".to_owned(), Value::Object(values));
    }
    view
}
