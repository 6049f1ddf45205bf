//! Users.

use dbtcloud_core::account::User;
use dbtcloud_core::catalog::Record;
use serde_json::{Map, Value, json};

use super::Api;
use super::codes::STATE_ACTIVE;

/// A user, in the union of what v2 and v3 show.
pub(crate) fn view(record: &Record<User>, api: Api) -> Map<String, Value> {
    let license = json!({
        "license_type": if record.is_admin { "it" } else { "developer" },
        "state": STATE_ACTIVE,
        "account_id": record.account.get(),
        "user_id": record.id.get(),
        "groups": json!([]),
        "permission_statements": json!([]),
    });
    let name = format!("{} {}", record.first_name, record.last_name);
    object! {
        "id": record.id.get(),
        "email": record.email,
        "first_name": record.first_name,
        "last_name": record.last_name,
        "fullname": name.trim(),
        "is_active": !record.deleted,
        "is_staff": false,
        "email_verified": true,
        "email_connected": true,
        "enterprise_connected": false,
        "enterprise_authentication_method": Value::Null,
        "sso_only_user": false,
        "scim_managed": false,
        "github_connected": false,
        "github_username": Value::Null,
        "github_token_retrieval_failure": false,
        "gitlab_connected": false,
        "gitlab_username": Value::Null,
        "gitlab_token_retrieval_failure": false,
        "azure_active_directory_connected": false,
        "azure_active_directory_username": Value::Null,
        "azure_active_directory_token_retrieval_failure": false,
        "auth_provider_infos": json!([]),
        "apitoken_last_used": Value::Null,
        "last_login": Value::Null,
        "license": license.clone(),
        "licenses": json!({ (record.account.get().to_string()): license.clone() }),
        "permissions": json!([license]),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
    }
}
