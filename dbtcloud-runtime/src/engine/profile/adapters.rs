//! What each adapter's target is made of. Names are those of dbt's profile documentation; aliases are those of dbt
//! Cloud's API details. duckdb and postgres are run in the tests; the others are tested to the generated text.

use serde_json::{Map, Value};

use super::ProfileError;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number; text of one is converted.
    Integer,
    /// True or false; text of one is converted.
    Flag,
    /// Text that only the environment may hold.
    Secret,
    /// Whatever the adapter takes; nested fields with secret names move to the environment.
    Any,
}

/// One field of a target.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// dbt's name.
    pub name: &'static str,
    /// Other names it comes under.
    pub aliases: &'static [&'static str],
    /// What it holds.
    pub kind: Kind,
    /// Whether nothing works without it.
    pub required: bool,
}

const fn field(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        aliases: &[],
        kind,
        required: false,
    }
}

const fn must(name: &'static str, aliases: &'static [&'static str], kind: Kind) -> Field {
    Field {
        name,
        aliases,
        kind,
        required: true,
    }
}

const fn also(name: &'static str, aliases: &'static [&'static str], kind: Kind) -> Field {
    Field {
        name,
        aliases,
        kind,
        required: false,
    }
}

use Kind::{Any, Flag, Integer, Secret, Text};

const DUCKDB: &[Field] = &[
    field("path", Text),
    also("database", &["dbname", "catalog"], Text),
    also("schema", &["default_schema"], Text),
    field("attach", Any),
    field("config_options", Any),
    field("disable_transactions", Flag),
    field("extensions", Any),
    field("external_root", Text),
    field("filesystems", Any),
    field("is_ducklake", Flag),
    field("keep_open", Flag),
    field("module_paths", Any),
    field("plugins", Any),
    field("remote", Any),
    field("retries", Any),
    field("secrets", Any),
    field("settings", Any),
    field("use_credential_provider", Text),
];

const POSTGRES: &[Field] = &[
    must("host", &["hostname"], Text),
    also("port", &[], Integer),
    must("user", &["username"], Text),
    also("password", &["pass"], Secret),
    must("dbname", &["database"], Text),
    must("schema", &["default_schema"], Text),
    field("role", Text),
    field("search_path", Text),
    field("connect_timeout", Integer),
    field("keepalives_idle", Integer),
    field("retries", Integer),
    field("sslmode", Text),
    field("sslcert", Text),
    field("sslkey", Text),
    field("sslrootcert", Text),
];

const REDSHIFT: &[Field] = &[
    must("host", &["hostname"], Text),
    also("port", &[], Integer),
    must("dbname", &["database"], Text),
    must("schema", &["default_schema"], Text),
    also("method", &["auth_type"], Text),
    also("user", &["username"], Text),
    also("password", &["pass"], Secret),
    field("cluster_id", Text),
    field("iam_profile", Text),
    field("region", Text),
    field("role", Text),
    field("ra3_node", Flag),
    field("autocommit", Flag),
    field("autocreate", Flag),
    field("db_groups", Any),
    field("connect_timeout", Integer),
    field("retries", Integer),
    field("sslmode", Text),
    field("idp_response_timeout", Integer),
    field("client_id", Text),
    field("client_secret", Secret),
    field("access_key_id", Text),
    field("secret_access_key", Secret),
];

const SNOWFLAKE: &[Field] = &[
    must("account", &[], Text),
    must("database", &["dbname"], Text),
    also("warehouse", &[], Text),
    must("schema", &["default_schema"], Text),
    also("user", &["username"], Text),
    field("password", Secret),
    field("authenticator", Text),
    field("private_key", Secret),
    field("private_key_path", Text),
    field("private_key_passphrase", Secret),
    field("token", Secret),
    field("oauth_client_id", Text),
    field("oauth_client_secret", Secret),
    field("role", Text),
    field("client_session_keep_alive", Flag),
    field("query_tag", Text),
    field("connect_retries", Integer),
    field("connect_timeout", Integer),
    field("retry_on_database_errors", Flag),
    field("retry_all", Flag),
    field("reuse_connections", Flag),
    field("host", Text),
];

const BIGQUERY: &[Field] = &[
    also("project", &["gcp_project_id", "project_id", "database"], Text),
    also("schema", &["dataset", "default_schema"], Text),
    also("method", &["auth_type"], Text),
    field("keyfile", Text),
    field("keyfile_json", Secret),
    field("token", Secret),
    field("refresh_token", Secret),
    also("client_id", &["application_id"], Text),
    also("client_secret", &["application_secret"], Secret),
    field("token_uri", Text),
    field("private_key_id", Text),
    field("private_key", Secret),
    field("client_email", Text),
    field("auth_uri", Text),
    field("auth_provider_x509_cert_url", Text),
    field("client_x509_cert_url", Text),
    field("location", Text),
    field("priority", Text),
    field("maximum_bytes_billed", Integer),
    also("job_execution_timeout_seconds", &["timeout_seconds"], Integer),
    also("job_retries", &["retries"], Integer),
    field("job_creation_timeout_seconds", Integer),
    field("job_retry_deadline_seconds", Integer),
    field("execution_project", Text),
    field("quota_project", Text),
    field("impersonate_service_account", Text),
    field("scopes", Any),
    field("gcs_bucket", Text),
    field("dataproc_region", Text),
    field("dataproc_cluster_name", Text),
    field("compute_region", Text),
];

const DATABRICKS: &[Field] = &[
    must("host", &["hostname"], Text),
    must("http_path", &[], Text),
    also("catalog", &["database"], Text),
    must("schema", &["default_schema"], Text),
    field("token", Secret),
    field("auth_type", Text),
    field("client_id", Text),
    field("client_secret", Secret),
    field("azure_client_id", Text),
    field("azure_client_secret", Secret),
    field("connect_retries", Integer),
    field("connect_timeout", Integer),
    field("session_properties", Any),
    field("connection_parameters", Any),
    field("compute", Any),
];

const SPARK: &[Field] = &[
    must("method", &[], Text),
    must("host", &["hostname"], Text),
    must("schema", &["default_schema"], Text),
    field("port", Integer),
    also("user", &["username"], Text),
    field("password", Secret),
    field("token", Secret),
    field("auth", Text),
    field("kerberos_service_name", Text),
    field("cluster", Text),
    field("endpoint", Text),
    field("driver", Text),
    field("organization", Text),
    field("connect_retries", Integer),
    field("connect_timeout", Integer),
    field("retry_all", Flag),
    field("use_ssl", Flag),
    field("server_side_parameters", Any),
];

const TRINO: &[Field] = &[
    must("host", &["hostname"], Text),
    must("database", &["dbname", "catalog"], Text),
    must("schema", &["default_schema"], Text),
    also("method", &["auth_type"], Text),
    field("port", Integer),
    also("user", &["username"], Text),
    field("password", Secret),
    field("jwt_token", Secret),
    field("impersonation_user", Text),
    field("client_certificate", Text),
    field("client_private_key", Secret),
    field("cert", Text),
    field("http_scheme", Text),
    field("http_headers", Any),
    field("session_properties", Any),
    field("roles", Any),
    field("timezone", Text),
    field("retries", Integer),
    field("prepared_statements_enabled", Flag),
    field("suppress_cert_warning", Flag),
];

/// The adapters there is a table for.
pub fn supported() -> &'static [&'static str] {
    &[
        "duckdb",
        "postgres",
        "snowflake",
        "bigquery",
        "redshift",
        "databricks",
        "spark",
        "trino",
    ]
}

/// The table of an adapter.
pub fn fields(adapter: &str) -> Option<&'static [Field]> {
    Some(match adapter {
        "duckdb" => DUCKDB,
        "postgres" => POSTGRES,
        "snowflake" => SNOWFLAKE,
        "bigquery" => BIGQUERY,
        "redshift" => REDSHIFT,
        "databricks" => DATABRICKS,
        "spark" => SPARK,
        "trino" => TRINO,
        _ => return None,
    })
}

/// Adds what follows from the rest.
pub(super) fn complete(adapter: &str, target: &mut Map<String, Value>, application_name: Option<&str>) {
    let oauth = target.contains_key("client_secret") || target.contains_key("azure_client_secret");
    let mut default = |name: &str, value: Value| {
        target.entry(name).or_insert(value);
    };
    match adapter {
        "duckdb" => default("schema", "main".into()),
        "postgres" => {
            default("port", 5432.into());
            if let Some(name) = application_name {
                default("application_name", name.into());
            }
        }
        "redshift" => default("port", 5439.into()),
        "snowflake" => {
            if let Some(name) = application_name {
                default("query_tag", name.into());
            }
        }
        "bigquery" => bigquery(target),
        "databricks" if oauth => default("auth_type", "oauth".into()),
        "trino" => default("port", 443.into()),
        _ => {}
    }
}

/// dbt Cloud keeps the fields of a service account apart; dbt wants them as one key file.
fn bigquery(target: &mut Map<String, Value>) {
    const PARTS: &[&str] = &[
        "private_key_id",
        "private_key",
        "client_email",
        "auth_uri",
        "auth_provider_x509_cert_url",
        "client_x509_cert_url",
    ];
    if matches!(
        target.get("method").and_then(Value::as_str),
        Some("service-account-json") | None
    ) && target.contains_key("private_key")
    {
        let mut file = Map::new();
        file.insert("type".into(), "service_account".into());
        if let Some(project) = target.get("project") {
            file.insert("project_id".into(), project.clone());
        }
        for part in PARTS.iter().chain(&["client_id", "token_uri"]) {
            if let Some(value) = target.remove(*part) {
                file.insert((*part).into(), value);
            }
        }
        target.insert("keyfile_json".into(), file.into());
        target.insert("method".into(), "service-account-json".into());
    }
    let method = if target.contains_key("keyfile_json") {
        "service-account-json"
    } else if target.contains_key("keyfile") {
        "service-account"
    } else if target.contains_key("refresh_token") || target.contains_key("token") {
        "oauth-secrets"
    } else {
        "oauth"
    };
    target.entry("method").or_insert(method.into());
    // What is left of a key file's parts is not a field of the target.
    for part in PARTS {
        target.remove(*part);
    }
}

/// Says which field is missing, extended attributes considered.
pub(super) fn check(adapter: &str, table: &[Field], target: &Map<String, Value>) -> Result<(), ProfileError> {
    let present = |name: &str| {
        target
            .get(name)
            .is_some_and(|value| !value.is_null() && *value != Value::String(String::new()))
    };
    let missing = |field| {
        Err(ProfileError::Missing {
            adapter: adapter.to_owned(),
            field,
        })
    };
    for field in table.iter().filter(|field| field.required) {
        let alias = field.aliases.iter().any(|alias| present(alias));
        if !present(field.name) && !alias {
            return missing(field.name);
        }
    }
    let any = |names: &[&str]| names.iter().any(|name| present(name));
    match adapter {
        "postgres" if !any(&["password", "pass", "sslcert"]) => missing("password"),
        "redshift" if !any(&["password", "pass", "iam_profile", "cluster_id", "method"]) => missing("password"),
        "snowflake" if !any(&["user", "token", "oauth_client_id"]) => missing("user"),
        "snowflake" if !any(&["password", "private_key", "private_key_path", "token", "authenticator"]) => {
            missing("password")
        }
        "bigquery" if !any(&["project", "database", "keyfile", "keyfile_json"]) => missing("project"),
        "bigquery" if !any(&["schema", "dataset"]) => missing("schema"),
        "databricks" if !any(&["token", "client_secret", "azure_client_secret", "auth_type"]) => missing("token"),
        "trino" if !any(&["user", "jwt_token", "client_certificate"]) => missing("user"),
        _ => Ok(()),
    }
}
