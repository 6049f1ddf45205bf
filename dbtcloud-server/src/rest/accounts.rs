//! Accounts. A token sees its own.

use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::{CatalogExt, Record};

use crate::auth::Right;
use crate::call::{Answer, Call};
use crate::wire::fault::Fault;
use crate::wire::{account, envelope};

async fn own(call: &Call) -> Result<Record<Account>, Fault> {
    Ok(call
        .plane()
        .catalog()
        .fetch::<Account>(call.account, call.account)
        .await?)
}

/// Exactly the accounts that the token can see; a client stops unless its own is among them.
pub(crate) async fn list(call: Call) -> Answer {
    let record = own(&call).await?;
    let page = call.params.page()?;
    Ok(envelope::whole(
        vec![account::view(&record, call.api).into()],
        call.params.extra(page),
    ))
}

pub(crate) async fn get(call: Call) -> Answer {
    call.demand(Right::Read, None)?;
    Ok(envelope::ok(account::view(&own(&call).await?, call.api)))
}
