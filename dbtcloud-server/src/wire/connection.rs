//! Connections: account-level ones, and the deprecated project-level view of them.

use dbtcloud_core::catalog::{Extras, Record};
use dbtcloud_core::connection::Connection;
use dbtcloud_core::id::ProjectId;
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::extras::{self, Keep, Table};
use super::secrets::Split;
use super::{Api, state};

const EXTRAS: Table = &[
    ("private_link_endpoint_id", Keep::Text(None)),
    ("is_ssh_tunnel_enabled", Keep::Bool(Some(false))),
    ("oauth_configuration_id", Keep::Int(None)),
    ("platform_metadata_credentials_id", Keep::Int(None)),
    ("analytics_credentials_id", Keep::Int(None)),
];
/// The project that a connection was made for through the deprecated endpoints.
const HOME: &str = "project_id";

/// Every `adapter_version` that is understood. `duckdb_v0` is this server's own.
const ADAPTER_VERSIONS: [&str; 15] = [
    "apache_spark_v0",
    "athena_v0",
    "bigquery_v0",
    "bigquery_v1",
    "databricks_spark_v0",
    "databricks_v0",
    "duckdb_v0",
    "fabric_v0",
    "postgres_v0",
    "redshift_v0",
    "salesforce_v0",
    "snowflake_v0",
    "synapse_v0",
    "teradata_v0",
    "trino_v0",
];

/// The adapter of an `adapter_version`: its name without the version.
pub(crate) fn adapter_of(adapter_version: &str) -> Option<&str> {
    let known = ADAPTER_VERSIONS.contains(&adapter_version);
    adapter_version
        .rsplit_once("_v")
        .map(|(adapter, _)| adapter)
        .filter(|_| known)
}

pub(crate) fn expected_adapter() -> String {
    format!("expected one of {}", ADAPTER_VERSIONS.join(", "))
}

/// What the wire calls a connection's fields, where the profile has another name.
fn renames(adapter: &str) -> &'static [(&'static str, &'static str)] {
    match adapter {
        "postgres" | "redshift" => &[("hostname", "host")],
        "bigquery" => &[
            ("project_id", "project"),
            ("timeout_seconds", "job_execution_timeout_seconds"),
        ],
        "fabric" | "synapse" => &[("server", "host")],
        _ => &[],
    }
}

fn to_profile(adapter: &str, name: &str) -> String {
    renames(adapter)
        .iter()
        .find(|(wire, _)| *wire == name)
        .map_or(name, |(_, profile)| profile)
        .to_owned()
}

fn to_wire(adapter: &str, name: &str) -> String {
    renames(adapter)
        .iter()
        .find(|(_, profile)| *profile == name)
        .map_or(name, |(wire, _)| wire)
        .to_owned()
}

/// A connection of no adapter, to read a request into.
pub(crate) fn blank() -> Connection {
    Connection {
        name: String::new(),
        adapter: String::new(),
        adapter_version: String::new(),
        config: Extras::new(),
        secrets: std::collections::BTreeMap::new(),
        extras: Extras::new(),
    }
}

/// Takes a request's fields over; what goes into the profile is returned apart.
pub(crate) fn read(fields: &mut Fields, connection: &mut Connection) -> Split {
    fields.set("name", &mut connection.name);
    let mut version = connection.adapter_version.clone();
    fields.set("adapter_version", &mut version);
    // The deprecated form says only `type`.
    if version.is_empty()
        && let Some(kind) = fields.take::<String>("type")
    {
        version = format!("{kind}_v0");
    }
    match adapter_of(&version) {
        Some(adapter) if connection.adapter.is_empty() || connection.adapter == adapter => {
            connection.adapter = adapter.to_owned();
            connection.adapter_version = version;
        }
        Some(_) => fields.reject(
            "adapter_version",
            "expected the adapter that the connection was made with",
        ),
        None => fields.reject("adapter_version", expected_adapter()),
    }
    extras::read(fields, EXTRAS, &mut connection.extras);
    if connection.name.trim().is_empty() {
        fields.reject("name", "expected a name, got an empty text");
    }
    let at = if fields.has("config") { "config" } else { "details" };
    let sent = fields.take::<Map<String, Value>>(at).unwrap_or_default();
    let adapter = connection.adapter.clone();
    let split = Split::sort(&adapter, sent, |name| to_profile(&adapter, name), at, fields);
    let port = split.plain.get("port").or_else(|| connection.config.get("port"));
    if port.is_some_and(|port| !port.as_i64().is_some_and(|port| (1..=65_535).contains(&port))) {
        fields.reject(&format!("{at}.port"), "expected a port from 1 to 65535");
    }
    split
}

/// The non-secret fields under the names of the wire.
fn config(connection: &Connection) -> Map<String, Value> {
    connection
        .config
        .iter()
        .map(|(name, value)| (to_wire(&connection.adapter, name), value.clone()))
        .collect()
}

/// Notes the project that a connection was made for.
pub(crate) fn set_home(connection: &mut Connection, project: ProjectId) {
    connection.extras.insert(HOME.to_owned(), project.get().into());
}

/// The project that a connection was made for, if it was made for one.
pub(crate) fn home(connection: &Connection) -> Option<ProjectId> {
    connection.extras.get(HOME).and_then(Value::as_i64).map(ProjectId::new)
}

/// An account-level connection. Secrets are not shown, not even masked, as dbt Cloud has it.
pub(crate) fn view(record: &Record<Connection>, api: Api) -> Map<String, Value> {
    let mut view = object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "name": record.name,
        "adapter_version": record.adapter_version,
        "config": config(record),
        "oauth_redirect_uri": Value::Null,
        "is_configured_for_native_oauth": false,
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
    };
    extras::show(&record.extras, EXTRAS, &mut view);
    view
}

/// The same in the deprecated project-level shape, also shown as a related object.
pub(crate) fn legacy(record: &Record<Connection>, project: Option<ProjectId>, api: Api) -> Map<String, Value> {
    let kind = match record.adapter.as_str() {
        known @ ("postgres" | "redshift" | "snowflake" | "bigquery") => known,
        _ => "adapter",
    };
    let mut view = view(record, api);
    view.extend(object! {
        "project_id": project.or_else(|| home(record)).map(i64::from),
        "dbt_project_id": project.or_else(|| home(record)).map(i64::from),
        "type": kind,
        "details": config(record),
        "created_by_id": Value::Null,
        "created_by_service_token_id": Value::Null,
    });
    for (name, value) in config(record) {
        if ["hostname", "dbname", "port"].contains(&name.as_str()) {
            view.insert(name, value);
        }
    }
    view.insert("tunnel_enabled".to_owned(), json!(false));
    view
}
