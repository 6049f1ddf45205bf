//! Users. They are made by `dbtcloud bootstrap`; inviting them by API is yet to come.

use dbtcloud_core::account::{Account, User};
use dbtcloud_core::catalog::{CatalogExt, Record};
use serde_json::{Value, json};

use super::resource::{Resource, read};
use crate::auth::{Actor, Right};
use crate::call::{Answer, Call};
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::{account, envelope, user};

impl Resource for User {
    const EDIT: Right = Right::EditAccount;

    fn blank(_: &Call, _: &mut Fields) -> Result<Option<Self>, Fault> {
        Ok(None)
    }

    async fn read(_: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        fields.set("first_name", &mut body.first_name);
        fields.set("last_name", &mut body.last_name);
        fields.check()
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        Ok(records
            .iter()
            .map(|record| user::view(record, call.api).into())
            .collect())
    }
}

/// One user; `v2/users/{id}` has no account in its path and looks in the token's own.
pub(crate) async fn by_id(call: Call) -> Answer {
    read::<User>(call).await
}

/// Who has this token. A service token has no user.
pub(crate) async fn whoami(call: Call) -> Answer {
    let owner = match call.who.actor {
        Actor::User(id) => {
            let record = call.plane().catalog().fetch::<User>(call.account, id).await?;
            Value::Object(user::view(&record, call.api))
        }
        Actor::Service(_) => Value::Null,
    };
    let home = call
        .plane()
        .catalog()
        .fetch::<Account>(call.account, call.account)
        .await?;
    let token = match call.who.actor {
        Actor::User(_) => Value::Null,
        Actor::Service(id) => json!({ "id": id.get(), "name": call.who.name }),
    };
    Ok(envelope::ok(json!({
        "user": owner,
        "service_token": token,
        "accounts": [account::view(&home, call.api)],
    })))
}
