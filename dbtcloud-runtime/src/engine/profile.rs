//! Writing `profiles.yml`: where the warehouse is and who logs in, with every secret moved to the environment.
//!
//! A pure function from connection and credentials to the file's text and the variables it refers to. The text is
//! JSON, which dbt reads as YAML. Strings of the connection and the credentials are data: one that holds Jinja is
//! passed through a variable as well, so that nothing in it is evaluated. Extended attributes are the user's own
//! profile text and may use `{{ env_var('…') }}`; a plain secret in them is moved all the same.

mod adapters;

use std::collections::BTreeMap;

use dbtcloud_core::secret::Secret;
use serde_json::{Map, Value, json};

pub use adapters::{Field, Kind, fields, supported};

/// Variables of secret fields begin with this; dbt masks their values in logs.
pub const SECRET_PREFIX: &str = "DBT_ENV_SECRET_DBTCLOUD_PROFILE_";
/// Variables of other fields that must not be evaluated begin with this.
pub const PLAIN_PREFIX: &str = "DBT_DBTCLOUD_PROFILE_";

/// Why no profile can be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No table for this adapter.
    #[error("adapter {adapter:?} is not supported")]
    UnknownAdapter {
        /// The adapter.
        adapter: String,
    },
    /// A field without which the adapter cannot connect.
    #[error("{adapter}: {field} is missing")]
    Missing {
        /// The adapter.
        adapter: String,
        /// The field, in dbt's spelling.
        field: &'static str,
    },
    /// A field of the wrong kind.
    #[error("{adapter}: {field} {reason}")]
    Invalid {
        /// The adapter.
        adapter: String,
        /// The field, in dbt's spelling.
        field: &'static str,
        /// What is wrong; never the value.
        reason: &'static str,
    },
}

/// What a profile is made of.
#[derive(Clone, Copy)]
pub struct ProfileInput<'a> {
    /// Name in `dbt_project.yml`.
    pub profile: &'a str,
    /// Target name.
    pub target: &'a str,
    /// Adapter.
    pub adapter: &'a str,
    /// Connection details, secrets included, in dbt's or dbt Cloud's spelling.
    pub connection: &'a Map<String, Value>,
    /// Credentials, secrets included. They win over the connection.
    pub credentials: &'a Map<String, Value>,
    /// Target schema or dataset; wins over both.
    pub schema: Option<&'a str>,
    /// Threads.
    pub threads: u32,
    /// Merged over the target at top level; wins over everything.
    pub extended_attributes: &'a Map<String, Value>,
    /// Carried by database sessions where the adapter can (`dbtcloud_run_<id>`), so that they can be found and ended.
    pub application_name: Option<&'a str>,
}

/// A profile, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Content of `profiles.yml`. Holds no secret.
    pub text: String,
    /// Variables it refers to. Values are secret.
    pub env: BTreeMap<String, Secret>,
    /// Fields of the connection and the credentials that no table knows, which were left out.
    pub ignored: Vec<String>,
}

/// Writes a profile.
///
/// # Errors
/// [`ProfileError`], naming the field and never its value.
///
/// ```
/// use dbtcloud_runtime::engine::profile::{generate, ProfileInput};
/// use serde_json::{json, Map};
/// let empty = Map::new();
/// let connection = json!({"hostname": "db", "dbname": "dw", "port": "5432"});
/// let credentials = json!({"username": "u", "password": "hunter2"});
/// let profile = generate(&ProfileInput {
///     profile: "shop", target: "prod", adapter: "postgres",
///     connection: connection.as_object().unwrap(), credentials: credentials.as_object().unwrap(),
///     schema: Some("analytics"), threads: 4, extended_attributes: &empty, application_name: Some("dbtcloud_run_7"),
/// }).unwrap();
/// assert!(!profile.text.contains("hunter2"));
/// assert_eq!(profile.env["DBT_ENV_SECRET_DBTCLOUD_PROFILE_PASSWORD"].expose(), "hunter2");
/// ```
pub fn generate(input: &ProfileInput<'_>) -> Result<Profile, ProfileError> {
    let adapter = input.adapter;
    let table = fields(adapter).ok_or_else(|| ProfileError::UnknownAdapter {
        adapter: adapter.to_owned(),
    })?;
    for (field, name) in [("profile", input.profile), ("target", input.target)] {
        if name.is_empty() || has_jinja(name) {
            return Err(ProfileError::Invalid {
                adapter: adapter.into(),
                field,
                reason: "is empty or holds Jinja",
            });
        }
    }
    let mut target = Map::new();
    let mut env = BTreeMap::new();
    for field in table {
        let given = [input.credentials, input.connection].into_iter().find_map(|map| {
            std::iter::once(&field.name).chain(field.aliases).find_map(|name| {
                map.get(*name)
                    .filter(|value| !value.is_null() && **value != Value::String(String::new()))
            })
        });
        if let Some(value) = given {
            let value = typed(adapter, field, value)?;
            target.insert(
                field.name.into(),
                guard(field.name, value, field.kind == Kind::Secret, false, &mut env),
            );
        }
    }
    if let Some(schema) = input.schema.filter(|schema| !schema.is_empty()) {
        target.insert("schema".into(), guard("schema", schema.into(), false, false, &mut env));
    }
    target.insert("type".into(), adapter.into());
    target.insert("threads".into(), input.threads.max(1).into());
    adapters::complete(adapter, &mut target, input.application_name);
    for (name, value) in input.extended_attributes {
        target.insert(
            name.clone(),
            guard(name, value.clone(), is_secret(name), true, &mut env),
        );
    }
    adapters::check(adapter, table, &target)?;

    let known = |name: &str| {
        table
            .iter()
            .any(|field| field.name == name || field.aliases.contains(&name))
    };
    let mut ignored: Vec<String> = [input.connection, input.credentials]
        .into_iter()
        .flat_map(Map::keys)
        .filter(|name| !known(name))
        .cloned()
        .collect();
    ignored.sort();
    ignored.dedup();
    let file = json!({ input.profile: { "target": input.target, "outputs": { input.target: target } } });
    Ok(Profile {
        text: yaml_safe(&file.to_string()),
        env,
        ignored,
    })
}

/// A target that parses and compiles without a connection, for the warm parent.
pub(super) fn dummy_target(adapter: &str) -> Value {
    match adapter {
        "postgres" => json!({
            "type": adapter, "host": "localhost", "port": 5432, "user": "nobody", "password": "none",
            "dbname": "none", "schema": "none", "threads": 1,
        }),
        _ => json!({ "type": adapter, "path": ":memory:", "schema": "main", "threads": 1 }),
    }
}

fn typed(adapter: &str, field: &Field, value: &Value) -> Result<Value, ProfileError> {
    let invalid = |reason| ProfileError::Invalid {
        adapter: adapter.to_owned(),
        field: field.name,
        reason,
    };
    match (field.kind, value) {
        (Kind::Integer, Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(value.clone()),
        (Kind::Integer, Value::String(text)) => text
            .trim()
            .parse::<i64>()
            .map(Value::from)
            .map_err(|_| invalid("is not a number")),
        (Kind::Integer, _) => Err(invalid("is not a number")),
        (Kind::Flag, Value::Bool(_)) | (Kind::Any, _) => Ok(value.clone()),
        (Kind::Flag, Value::String(text)) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true.into()),
            "false" | "0" | "no" => Ok(false.into()),
            _ => Err(invalid("is neither true nor false")),
        },
        (Kind::Flag, _) => Err(invalid("is neither true nor false")),
        (Kind::Text, Value::Number(number)) => Ok(number.to_string().into()),
        (Kind::Secret, Value::Object(_)) | (Kind::Text | Kind::Secret, Value::String(_)) => Ok(value.clone()),
        (Kind::Text | Kind::Secret, _) => Err(invalid("is not text")),
    }
}

/// Whether a field of this name is a secret, whoever defines it.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [
        "password",
        "passwd",
        "token",
        "secret",
        "private_key",
        "passphrase",
        "access_key",
        "api_key",
        "credentials",
    ]
    .iter()
    .any(|end| name == *end || name.ends_with(&format!("_{end}")))
        || matches!(name.as_str(), "pass" | "pwd" | "keyfile_json")
}

fn has_jinja(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|mark| text.contains(mark))
}

/// Moves what must not stand in the file to variables, at any depth. `trusted` text may hold Jinja of its own.
fn guard(path: &str, value: Value, secret: bool, trusted: bool, env: &mut BTreeMap<String, Secret>) -> Value {
    match value {
        Value::String(text) => {
            let jinja = has_jinja(&text);
            if (trusted && jinja) || (!secret && !jinja) {
                return text.into();
            }
            let letters = path.chars().map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_uppercase()
                } else {
                    '_'
                }
            });
            let stem = letters.collect::<String>();
            let prefix = if secret { SECRET_PREFIX } else { PLAIN_PREFIX };
            let mut name = format!("{prefix}{stem}");
            let mut number = 1;
            while env.get(&name).is_some_and(|present| present.expose() != text) {
                number += 1;
                name = format!("{prefix}{stem}_{number}");
            }
            let reference = format!("{{{{ env_var('{name}') }}}}");
            env.insert(name, Secret::new(text));
            reference.into()
        }
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(name, value)| {
                    // Within a secret object only the secret leaves move: the rest of a key file is addresses.
                    let value = guard(&format!("{path}_{name}"), value, is_secret(&name), trusted, env);
                    (name, value)
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| guard(&format!("{path}_{index}"), item, secret, trusted, env))
                .collect(),
        ),
        other => other,
    }
}

/// JSON allows a few characters in strings that YAML does not.
fn yaml_safe(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests;
