//! Accounts.

use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::Record;
use serde_json::{Map, Value, json};

use super::{Api, state};

/// Mebibytes that a run asks for, as dbt Cloud reports them. Nothing here acts on it.
const POD_MEMORY_MEBIBYTES: u32 = 600;

/// An account. `static_subdomain` and `vanity_subdomain` are there and null: a client that reads a name in
/// them rewrites its host.
pub(crate) fn view(record: &Record<Account>, api: Api) -> Map<String, Value> {
    object! {
        "id": record.id.get(),
        "name": record.name,
        "state": state(record),
        "plan": "enterprise",
        "identifier": format!("act_{}", record.id),
        "run_slots": record.run_slots,
        "queue_limit": record.queue_limit,
        "run_duration_limit_seconds": record.run_duration_limit_seconds,
        "pod_memory_request_mebibytes": POD_MEMORY_MEBIBYTES,
        "develop_pod_memory_request_mebibytes": 0,
        "developer_seats": 0,
        "it_seats": 0,
        "explorer_seats": 0,
        "analyst_seats": 0,
        "read_only_seats": 0,
        "locked": false,
        "lock_reason": Value::Null,
        "lock_cause": Value::Null,
        "unlocked_at": Value::Null,
        "run_locked_until": Value::Null,
        "copilot_locked_until": Value::Null,
        "agent_credit_locked": false,
        "pending_cancel": false,
        "billing_email_address": Value::Null,
        "enterprise_login_slug": Value::Null,
        "business_critical": false,
        "starter_repo_url": Value::Null,
        "git_auth_level": "team",
        "trial_end_date": Value::Null,
        "static_subdomain": Value::Null,
        "vanity_subdomain": Value::Null,
        "docs_job_id": Value::Null,
        "freshness_job_id": Value::Null,
        "docs_job": Value::Null,
        "freshness_job": Value::Null,
        "account_migration_events": json!([]),
        "groups": json!([]),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
    }
}
