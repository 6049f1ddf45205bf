//! Which fields of an adapter's connection and credentials are secret, and what is shown in their place.

use std::collections::BTreeMap;

use dbtcloud_core::catalog::Extras;
use dbtcloud_core::secret::Sealed;
use serde_json::Value;

use super::body::Fields;

/// What is shown in place of a secret. Sent back, it leaves the secret as it is.
pub(crate) const MASK: &str = "**********";

/// Secret fields that any adapter may have.
const COMMON: [&str; 7] = [
    "password",
    "pass",
    "token",
    "private_key",
    "private_key_passphrase",
    "client_secret",
    "refresh_token",
];

/// Secret fields of one adapter beyond the common ones.
fn of_adapter(adapter: &str) -> &'static [&'static str] {
    match adapter {
        "duckdb" => &[
            "motherduck_token",
            "s3_access_key_id",
            "s3_secret_access_key",
            "s3_session_token",
        ],
        "snowflake" => &["oauth_client_id", "oauth_client_secret", "_refresh_token"],
        "bigquery" => &["keyfile_json", "application_id", "application_secret"],
        "databricks" | "databricks_spark" | "apache_spark" | "spark" => &["client_id"],
        "athena" => &["aws_access_key_id", "aws_secret_access_key"],
        "trino" => &["jwt_token", "http_headers"],
        "redshift" => &["access_key_id", "secret_access_key"],
        "fabric" | "synapse" => &["access_token"],
        _ => &[],
    }
}

/// Whether a profile field of an adapter is secret.
pub(crate) fn is_secret(adapter: &str, field: &str) -> bool {
    COMMON.contains(&field) || of_adapter(adapter).contains(&field)
}

/// What a request says about fields: plain values to keep, secrets to seal, names to forget.
#[derive(Debug, Default)]
pub(crate) struct Split {
    /// Plain values, by profile field.
    pub(crate) plain: Extras,
    /// Secrets, by profile field.
    pub(crate) secret: BTreeMap<String, String>,
    /// Fields that were sent as null.
    pub(crate) forget: Vec<String>,
}

impl Split {
    /// Sorts fields of a request. `rename` says what the profile calls a field of the wire.
    pub(crate) fn sort(
        adapter: &str,
        sent: serde_json::Map<String, Value>,
        rename: impl Fn(&str) -> String,
        at: &str,
        fields: &mut Fields,
    ) -> Self {
        let mut split = Self::default();
        for (name, value) in sent {
            let field = rename(&name);
            match value {
                Value::Null => split.forget.push(field),
                Value::String(text) if is_secret(adapter, &field) => {
                    // A mask is what was read; an empty text is how forms say "as it was".
                    if text != MASK && !text.is_empty() {
                        split.secret.insert(field, text);
                    }
                }
                Value::Object(object) if is_secret(adapter, &field) => {
                    split.secret.insert(field, Value::Object(object).to_string());
                }
                _ if is_secret(adapter, &field) => fields.reject(&format!("{at}.{name}"), "expected a text"),
                value => {
                    split.plain.insert(field, value);
                }
            }
        }
        split
    }

    /// Merges what was sent, its secrets sealed, over what there is.
    pub(crate) fn merge(
        &self,
        sealed: &BTreeMap<String, Sealed>,
        plain: &mut Extras,
        secrets: &mut BTreeMap<String, Sealed>,
    ) {
        for field in &self.forget {
            plain.remove(field);
            secrets.remove(field);
        }
        plain.extend(self.plain.clone());
        secrets.extend(sealed.clone());
    }
}
