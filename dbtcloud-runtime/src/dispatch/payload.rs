//! What a webhook is sent: dbt Cloud's shape, field for field. Source: dbt Cloud's documentation, "Webhooks for your
//! jobs". Ids inside `data` are texts there; `accountId` is a number.

use dbtcloud_core::Timestamp;
use dbtcloud_core::catalog::Record;
use dbtcloud_core::id::{RunId, WebhookId};
use dbtcloud_core::ports::{Addressee, DispatchId};
use dbtcloud_core::run::{Run, RunStatus};
use dbtcloud_core::webhook::{HookEvent, Webhook};
use serde_json::{Value, json};

/// What is told of a run, with the names that its ids have.
pub(crate) struct Told<'a> {
    pub(crate) run: &'a Run,
    /// The status that the event tells of; the run may have moved on.
    pub(crate) status: RunStatus,
    /// When it came to it.
    pub(crate) at: Timestamp,
    pub(crate) message: Option<&'a str>,
    pub(crate) job: &'a str,
    pub(crate) environment: &'a str,
    pub(crate) project: &'a str,
}

/// The id of an event for one webhook: the same whenever it is sent.
///
/// Shape: `wev_<webhook>_<run>_<sequence>_<part>`.
///
/// ```
/// use dbtcloud_core::id::{RunId, WebhookId};
/// use dbtcloud_core::ports::{Addressee, DispatchId};
/// use dbtcloud_runtime::dispatch::{event_id, event_of};
/// let id = DispatchId { to: Addressee::Webhook(WebhookId::new(3)), run: RunId::new(20), sequence: 5, part: 1 };
/// assert_eq!(event_of(&event_id(&id)), Some(id));
/// assert_eq!(event_of("wev_3_20"), None);
/// ```
pub fn event_id(id: &DispatchId) -> String {
    format!("wev_{}_{}_{}_{}", id.to.id(), id.run, id.sequence, id.part)
}

/// What an event's id names, if it is one.
pub fn event_of(text: &str) -> Option<DispatchId> {
    let numbers: Option<Vec<i64>> = text
        .strip_prefix("wev_")?
        .split('_')
        .map(|part| part.parse().ok())
        .collect();
    match numbers?.as_slice() {
        [hook, run, sequence, part] => Some(DispatchId {
            to: Addressee::Webhook(WebhookId::new(*hook)),
            run: RunId::new(*run),
            sequence: u64::try_from(*sequence).ok()?,
            part: u32::try_from(*part).ok()?,
        }),
        _ => None,
    }
}

/// dbt Cloud's words and numbers. Its samples have no cancelled run; the word is that of its API.
const fn status_of(status: RunStatus) -> (&'static str, u8) {
    match status {
        RunStatus::Queued => ("Queued", 1),
        RunStatus::Starting => ("Starting", 2),
        RunStatus::Running | RunStatus::Cancelling => ("Running", 3),
        RunStatus::Success | RunStatus::Warned => ("Success", 10),
        RunStatus::Error => ("Errored", 20),
        RunStatus::Cancelled => ("Cancelled", 30),
    }
}

fn nanoseconds(at: Timestamp) -> Option<String> {
    Some(at.to_chrono()?.format("%Y-%m-%dT%H:%M:%S%.9fZ").to_string())
}

fn seconds(at: Timestamp) -> Option<String> {
    Some(at.to_chrono()?.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

impl Told<'_> {
    /// The body that a webhook of this name is sent.
    pub(crate) fn body(&self, id: &DispatchId, name: &str, event: HookEvent) -> Value {
        let (run, new) = (self.run, &self.run.new);
        let (word, code) = status_of(self.status);
        let mut data = json!({
            "jobId": new.job.to_string(),
            "jobName": self.job,
            "runId": run.id.to_string(),
            "environmentId": new.environment.to_string(),
            "environmentName": self.environment,
            "dbtVersion": run.dbt_version.as_deref().unwrap_or(&new.spec.dbt_version),
            "projectName": self.project,
            "projectId": new.project.to_string(),
            "runStatus": word,
            "runStatusCode": code,
            "runStatusMessage": self.message.unwrap_or("None"),
            "runReason": new.trigger.cause,
            "runStartedAt": run.started_at.and_then(seconds),
        });
        match event {
            HookEvent::Started => {}
            HookEvent::Completed => data["runFinishedAt"] = seconds(self.at).into(),
            HookEvent::Errored => data["runErroredAt"] = seconds(self.at).into(),
        }
        json!({
            "accountId": new.account.get(),
            "webhooksID": hook_id(id.to),
            "eventId": event_id(id),
            "timestamp": nanoseconds(self.at),
            "eventType": event.name(),
            "webhookName": name,
            "data": data,
        })
    }
}

/// What a webhook is sent to try it out: its event's id and the body. The run in it never was.
pub(super) fn sample(hook: &Record<Webhook>, event: HookEvent, at: Timestamp) -> (String, Value) {
    let (id, at_seconds) = (format!("wev_{}_test", hook.id), seconds(at));
    let (word, code) = status_of(match event {
        HookEvent::Started => RunStatus::Running,
        HookEvent::Completed => RunStatus::Success,
        HookEvent::Errored => RunStatus::Error,
    });
    let mut data = json!({
        "jobId": "123",
        "jobName": "Daily Job (dbt build)",
        "runId": "12345",
        "environmentId": "1234",
        "environmentName": "Production",
        "dbtVersion": "1.0.0",
        "projectName": "Sample Project",
        "projectId": "167194",
        "runStatus": word,
        "runStatusCode": code,
        "runStatusMessage": "None",
        "runReason": "A test of this webhook",
        "runStartedAt": at_seconds,
    });
    match event {
        HookEvent::Started => {}
        HookEvent::Completed => data["runFinishedAt"] = at_seconds.into(),
        HookEvent::Errored => data["runErroredAt"] = at_seconds.into(),
    }
    let body = json!({
        "accountId": hook.account.get(),
        "webhooksID": hook_id(Addressee::Webhook(hook.id)),
        "eventId": id,
        "timestamp": nanoseconds(at),
        "eventType": event.name(),
        "webhookName": hook.name,
        "data": data,
    });
    (id, body)
}

/// A webhook's id as the wire has it.
fn hook_id(to: Addressee) -> String {
    format!("wsu_{}", to.id())
}
