//! Webhooks, what they were sent and what came of it. Ids are texts here, and instants microseconds in texts.

use dbtcloud_core::Timestamp;
use dbtcloud_core::catalog::Record;
use dbtcloud_core::id::{AccountId, JobId, WebhookId};
use dbtcloud_core::ports::{Dispatched, Try};
use dbtcloud_core::secret::{Sealed, Secret};
use dbtcloud_core::webhook::{HookEvent, Webhook};
use dbtcloud_runtime::dispatch::{Webhooks, event_id};
use serde_json::{Map, Value, json};

use super::body::Fields;

/// What an id begins with.
const PREFIX: &str = "wsu_";
/// Names, descriptions and URLs are no longer, in bytes.
const TEXT_LIMIT_BYTES: usize = 2_048;

pub(crate) fn id(id: WebhookId) -> String {
    format!("{PREFIX}{id}")
}

/// The id that a text names; with or without what it begins with.
pub(crate) fn parse_id(text: &str) -> Option<WebhookId> {
    let number = text.strip_prefix(PREFIX).unwrap_or(text).parse::<i64>().ok()?;
    (number > 0).then(|| WebhookId::new(number))
}

/// A webhook of nothing, to read a request into.
pub(crate) fn blank(secret: Sealed, now: Timestamp) -> Webhook {
    Webhook {
        name: String::new(),
        description: String::new(),
        events: Vec::new(),
        jobs: Vec::new(),
        url: String::new(),
        active: true,
        secret,
        active_since: now,
        deactivated: None,
    }
}

/// Takes a request's fields over.
pub(crate) fn read(fields: &mut Fields, hook: &mut Webhook, webhooks: Option<&Webhooks>, now: Timestamp) {
    let (was_active, old_url) = (hook.active, hook.url.clone());
    fields.set("name", &mut hook.name);
    fields.set("description", &mut hook.description);
    fields.set("client_url", &mut hook.url);
    fields.set("active", &mut hook.active);
    for (name, text) in [
        ("name", &hook.name),
        ("description", &hook.description),
        ("client_url", &hook.url),
    ] {
        if text.len() > TEXT_LIMIT_BYTES || text.contains('\0') {
            fields.reject(name, format!("expected at most {TEXT_LIMIT_BYTES} bytes without a NUL"));
        }
    }
    if hook.name.trim().is_empty() {
        fields.reject("name", "expected a name, got an empty text");
    }
    if let Some(names) = fields.take::<Vec<String>>("event_types") {
        let known = names
            .iter()
            .map(|name| HookEvent::from_name(name))
            .collect::<Option<Vec<_>>>();
        match known {
            Some(events) => hook.events = events,
            None => {
                let all = HookEvent::ALL.map(HookEvent::name).join(", ");
                fields.reject("event_types", format!("expected some of {all}"));
            }
        }
    }
    hook.events.sort_unstable();
    hook.events.dedup();
    if hook.events.is_empty() {
        fields.reject("event_types", "expected at least one event");
    }
    if let Some(jobs) = fields.take::<Vec<JobId>>("job_ids") {
        hook.jobs = jobs;
        hook.jobs.sort_unstable();
        hook.jobs.dedup();
    }
    if hook.url != old_url
        && let Err(expected) = Webhooks::check(&hook.url, webhooks)
    {
        fields.reject("client_url", expected);
    }
    if hook.active {
        hook.deactivated = None;
        if !was_active || hook.url != old_url {
            hook.active_since = now;
        }
    }
}

/// A webhook. `last` is what it was last sent; the secret is shown to whoever made it, once.
pub(crate) fn view(record: &Record<Webhook>, last: Option<&Try>, secret: Option<&Secret>) -> Map<String, Value> {
    let mut view = object! {
        "id": id(record.id),
        "account_id": record.account.get(),
        "account_identifier": account(record.account),
        "name": record.name,
        "description": record.description,
        "event_types": record.events.iter().map(|event| event.name()).collect::<Vec<_>>(),
        "job_ids": record.jobs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "client_url": record.url,
        "active": record.active,
        "http_status_code": code(last),
        "dispatched_at": last.map_or_else(|| "0".to_owned(), |last| last.at.as_micros().to_string()),
        "deactivate_reason": record.deactivated.as_deref().unwrap_or_default(),
    };
    if let Some(secret) = secret {
        view.insert("hmac_secret".to_owned(), secret.expose().into());
    }
    view
}

fn account(id: AccountId) -> String {
    format!("act_{id}")
}

/// The status of the last answer; `0` when nothing was sent or nobody answered.
fn code(last: Option<&Try>) -> String {
    last.and_then(|last| last.code).unwrap_or(0).to_string()
}

/// Something that a webhook was sent, or is to be.
pub(crate) fn event(sent: &Dispatched) -> Value {
    let dispatch = &sent.dispatch;
    json!({
        "id": event_id(&dispatch.id),
        "subscription_id": format!("{PREFIX}{}", dispatch.id.to.id()),
        "account_id": dispatch.account.to_string(),
        "account_identifier": account(dispatch.account),
        "job_id": dispatch.job.to_string(),
        "trigger_event_type": dispatch.event,
        "payload": dispatch.body,
        "http_status_code": code(sent.last.as_ref()),
        "status": sent.state.name(),
        "tries": sent.tries,
    })
}

/// What came of sending it, as far as it was tried: the last try.
pub(crate) fn receipts(sent: &Dispatched) -> Vec<Value> {
    let id = event_id(&sent.dispatch.id);
    let receipt = |last: &Try| {
        json!({
            "id": format!("{id}_{}", sent.tries),
            "event_id": id,
            "subscription_id": format!("{PREFIX}{}", sent.dispatch.id.to.id()),
            "dispatched_at": last.at.as_micros().to_string(),
            "http_status_code": code(Some(last)),
            "error_info": last.error,
            "request_body": sent.dispatch.body,
            "request_headers": r#"{"Content-Type": "application/json"}"#,
            "response_body": last.answer,
        })
    };
    sent.last.iter().map(receipt).collect()
}

/// What came of trying a webhook out.
pub(crate) fn verified(event_id: &str, code: Option<u16>, error: &str) -> Value {
    json!({
        "event_id": event_id,
        "verification_error": if error.is_empty() { Value::Null } else { error.into() },
        "verification_status_code": code.unwrap_or(0).to_string(),
    })
}
