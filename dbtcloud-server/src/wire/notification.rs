//! Notifications: who is told how runs ended.

use dbtcloud_core::catalog::Record;
use dbtcloud_core::id::{JobId, UserId};
use dbtcloud_core::notification::{Notification, Way};
use serde_json::{Map, Value};

use super::body::Fields;
use super::{Api, state};

/// `type`: by mail to a user, in Slack, by mail to somebody else, in Slack by the newer application. 3 is gone.
const USER: i64 = 1;
const SLACK: i64 = 2;
const EMAIL: i64 = 4;
const SLACK_V2: i64 = 5;
/// The longest address or name of a channel, in bytes.
const TEXT_LIMIT_BYTES: usize = 512;

/// A notification of nothing to this user, to read a request into.
pub(crate) fn blank(user: UserId) -> Notification {
    Notification {
        user,
        way: Way::User,
        on_success: Vec::new(),
        on_warning: Vec::new(),
        on_failure: Vec::new(),
        on_cancel: Vec::new(),
    }
}

/// The number of a way.
pub(crate) const fn kind(way: &Way) -> i64 {
    match way {
        Way::User => USER,
        Way::Email { .. } => EMAIL,
        Way::Slack { newer: false, .. } => SLACK,
        Way::Slack { newer: true, .. } => SLACK_V2,
    }
}

fn text(fields: &mut Fields, name: &str, now: &str) -> String {
    let text = fields.take::<String>(name).unwrap_or_else(|| now.to_owned());
    let fine = !text.trim().is_empty() && text.len() <= TEXT_LIMIT_BYTES && !text.chars().any(char::is_control);
    if !fine {
        fields.reject(
            name,
            format!("expected a text of at most {TEXT_LIMIT_BYTES} bytes for this type"),
        );
    }
    text
}

/// Takes a request's fields over.
pub(crate) fn read(fields: &mut Fields, notification: &mut Notification) {
    fields.set("user_id", &mut notification.user);
    for (name, jobs) in [
        ("on_success", &mut notification.on_success),
        ("on_warning", &mut notification.on_warning),
        ("on_failure", &mut notification.on_failure),
        ("on_cancel", &mut notification.on_cancel),
    ] {
        if let Some(given) = fields.take::<Vec<JobId>>(name) {
            *jobs = given;
            jobs.sort_unstable();
            jobs.dedup();
        }
    }
    let asked = fields.take::<i64>("type").unwrap_or_else(|| kind(&notification.way));
    let (address, channel_id, channel_name) = match &notification.way {
        Way::User => ("", "", ""),
        Way::Email { address } => (address.as_str(), "", ""),
        Way::Slack {
            channel_id,
            channel_name,
            ..
        } => ("", channel_id.as_str(), channel_name.as_str()),
    };
    let way = match asked {
        USER => Way::User,
        EMAIL => {
            let address = text(fields, "external_email", address);
            if !address
                .split_once('@')
                .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
            {
                fields.reject("external_email", "expected an address such as ada@example.com");
            }
            Way::Email { address }
        }
        SLACK | SLACK_V2 => Way::Slack {
            newer: asked == SLACK_V2,
            channel_id: text(fields, "slack_channel_id", channel_id),
            channel_name: text(fields, "slack_channel_name", channel_name),
        },
        _ => {
            fields.reject("type", "expected 1 (user), 2 or 5 (Slack) or 4 (external email)");
            return;
        }
    };
    notification.way = way;
}

/// A notification.
pub(crate) fn view(record: &Record<Notification>, user: Value, api: Api) -> Map<String, Value> {
    let ids = |jobs: &[JobId]| jobs.iter().map(|job| job.get()).collect::<Vec<_>>();
    let (address, channel) = match &record.way {
        Way::User => (None, None),
        Way::Email { address } => (Some(address), None),
        Way::Slack {
            channel_id,
            channel_name,
            ..
        } => (None, Some((channel_id, channel_name))),
    };
    object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "user_id": record.user.get(),
        "type": kind(&record.way),
        "external_email": address,
        "slack_channel_id": channel.map(|(id, _)| id),
        "slack_channel_name": channel.map(|(_, name)| name),
        "on_success": ids(&record.on_success),
        "on_warning": ids(&record.on_warning),
        "on_failure": ids(&record.on_failure),
        "on_cancel": ids(&record.on_cancel),
        "state": state(record),
        "user": user,
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
    }
}
