//! The audit log.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::IntoResponse;
use dbtcloud_core::page::{PAGE_LIMIT, Page};
use dbtcloud_core::{Error, Timestamp};
use futures::{StreamExt, stream};

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

/// Entries that one file has at most: the newest. Older ones are had by `logged_at_end`.
const DOWNLOAD_LIMIT: u32 = 10_000;

/// The same as a CSV file, without pages; read as it is sent.
pub(crate) async fn download(call: Call) -> Answer {
    call.demand(Right::EditAccount, None)?;
    let from = instant(&call, "logged_at_start")?;
    // What is logged meanwhile would move what is still to come.
    let end = instant(&call, "logged_at_end")?;
    let to = end.unwrap_or_else(|| call.now().plus(Duration::from_micros(1)));
    let lines = stream::try_unfold(0, move |offset| {
        let call = call.clone();
        async move {
            if offset >= DOWNLOAD_LIMIT {
                return Ok(None);
            }
            let log = call.plane().audit();
            let page = Page::new(PAGE_LIMIT, offset);
            let found = log.entries(call.account, from, Some(to), page).await?.items;
            if found.is_empty() {
                return Ok::<_, Error>(None);
            }
            Ok(Some((audit::lines(&found)?, offset + PAGE_LIMIT)))
        }
    });
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8"),
        (CONTENT_DISPOSITION, "attachment; filename=\"audit-logs.csv\""),
    ];
    let lines = stream::once(async { audit::head() }).chain(lines);
    Ok((headers, Body::from_stream(lines)).into_response())
}
