//! The audit log.

use dbtcloud_core::Timestamp;

use crate::auth::Right;
use crate::call::{Answer, Call};
use crate::wire::fault::Fault;
use crate::wire::{audit, envelope, time};

fn instant(call: &Call, name: &str) -> Result<Option<Timestamp>, Fault> {
    let bad = || Fault::field(name, "expected an ISO 8601 time");
    call.params
        .text(name)
        .map(|text| time::parse(text).ok_or_else(bad))
        .transpose()
}

/// Who changed what, newest first, within `logged_at_start` and `logged_at_end`.
pub(crate) async fn list(call: Call) -> Answer {
    call.demand(Right::EditAccount, None)?;
    let page = call.params.page()?;
    let (from, to) = (instant(&call, "logged_at_start")?, instant(&call, "logged_at_end")?);
    let found = call.plane().audit().entries(call.account, from, to, page).await?;
    let views = found.items.iter().map(audit::view).collect();
    Ok(envelope::list(views, found.total, call.params.extra(page)))
}
