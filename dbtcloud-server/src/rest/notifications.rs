//! Notifications: who is told how runs ended. They are kept and answered here, and sent by `dbtcloud_runtime::dispatch`.

use dbtcloud_core::account::User;
use dbtcloud_core::catalog::{CatalogExt, Kind, Query, Record};
use dbtcloud_core::id::UserId;
use dbtcloud_core::job::Job;
use dbtcloud_core::notification::{Notification, Way};
use serde_json::{Value, json};

use super::resource::{Filter, Resource, all, by_ids, check_reference};
use crate::auth::{Actor, Right};
use crate::call::{Answer, Call};
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::{envelope, notification, user};

impl Resource for Notification {
    const EDIT: Right = Right::EditAccount;

    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        let own = match call.who.actor {
            Actor::User(id) => Some(id),
            Actor::Service(_) => None,
        };
        let user = match own {
            Some(own) if !fields.has("user_id") => Some(own),
            _ => fields.require::<UserId>("user_id"),
        };
        Ok(user.map(notification::blank))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        notification::read(fields, body);
        fields.check()?;
        check_reference::<User>(call, "user_id", Some(body.user), None).await?;
        for (name, jobs) in [
            ("on_success", &body.on_success),
            ("on_warning", &body.on_warning),
            ("on_failure", &body.on_failure),
            ("on_cancel", &body.on_cancel),
        ] {
            for job in jobs {
                check_reference::<Job>(call, name, Some(*job), None).await?;
            }
        }
        Ok(())
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        let users = by_ids::<User>(call, records.iter().map(|record| record.user.get())).await?;
        let view = |record: &Record<Self>| {
            let told = users.get(&record.user.get());
            let told = told.map_or(Value::Null, |told| user::view(told, call.api).into());
            notification::view(record, told, call.api).into()
        };
        Ok(records.iter().map(view).collect())
    }

    fn filter(call: &Call) -> Result<Option<Filter<Self>>, Fault> {
        let (kind, told) = (call.params.int("type")?, call.params.int("user_id")?);
        let text = |name| call.params.text(name).map(ToOwned::to_owned);
        let (address, channel) = (text("external_email"), text("slack_channel_id"));
        if kind.is_none() && told.is_none() && address.is_none() && channel.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(move |record| {
            let (own_address, own_channel) = match &record.way {
                Way::User => (None, None),
                Way::Email { address } => (Some(address), None),
                Way::Slack { channel_id, .. } => (None, Some(channel_id)),
            };
            kind.is_none_or(|kind| notification::kind(&record.way) == kind)
                && told.is_none_or(|told| record.user.get() == told)
                && address.as_ref().is_none_or(|wanted| own_address == Some(wanted))
                && channel.as_ref().is_none_or(|wanted| own_channel == Some(wanted))
        })))
    }
}

/// Whoever asks is told of nothing by mail any more.
pub(crate) async fn unsubscribe(call: Call) -> Answer {
    let Actor::User(own) = call.who.actor else {
        return Err(Fault::forbidden("to be a person's"));
    };
    let query = Query::new(Kind::Notification, call.account).under(own.get());
    for mut record in all::<Notification>(&call, &query).await? {
        if record.way == Way::User {
            record.deleted = true;
            let catalog = call.plane().catalog();
            catalog.save_by(&call.who.by(), &record, call.now()).await?;
        }
    }
    Ok(envelope::ok(json!({})))
}
