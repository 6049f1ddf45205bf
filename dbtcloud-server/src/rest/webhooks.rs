//! Webhooks: who is told, what they were told, and trying one out.

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use dbtcloud_core::catalog::{CatalogExt, Kind, Query, Record};
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{Addressee, Try};
use dbtcloud_core::webhook::{HookEvent, Webhook};
use dbtcloud_core::{ErrorKind, Page};
use dbtcloud_runtime::dispatch::{Webhooks, event_of};
use dbtcloud_runtime::plan::context;
use serde_json::{Value, json};

use super::resource::{CHANGE_TRIES, check_reference};
use crate::auth::Right;
use crate::call::{Answer, Body, Call};
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::{envelope, webhook};

/// Webhooks on a page when nobody says how many (dbt Cloud's default for these lists).
const PAGE: u32 = 10;

fn page(call: &Call) -> Result<Page, Fault> {
    let asked = call.params.page()?;
    Ok(match call.params.text("limit") {
        Some(_) => asked,
        None => Page::new(PAGE, asked.offset()),
    })
}

async fn fetch(call: &Call) -> Result<Record<Webhook>, Fault> {
    call.demand(Right::Webhooks, None)?;
    let text = call.text("id");
    let absent = || Fault::not_found(format!("webhook {text} not found"));
    let id = webhook::parse_id(text).ok_or_else(absent)?;
    match call.plane().catalog().fetch::<Webhook>(call.account, id).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(absent()),
        other => Ok(other?),
    }
}

/// What a webhook was last sent.
async fn last(call: &Call, record: &Record<Webhook>) -> Result<Option<Try>, Fault> {
    let to = Addressee::Webhook(record.id);
    let last = call.plane().dispatches().last_tries(to, false, 1).await?;
    Ok(last.into_iter().next().and_then(|sent| sent.last))
}

async fn view(call: &Call, record: &Record<Webhook>) -> Result<Value, Fault> {
    Ok(webhook::view(record, last(call, record).await?.as_ref(), None).into())
}

pub(crate) async fn list(call: Call) -> Answer {
    call.demand(Right::Webhooks, None)?;
    let page = page(&call)?;
    let query = Query::new(Kind::Webhook, call.account);
    let found = call.plane().catalog().page::<Webhook>(&query, page).await?;
    let mut views = Vec::with_capacity(found.items.len());
    for record in &found.items {
        views.push(view(&call, record).await?);
    }
    Ok(envelope::list(views, found.total, call.params.extra(page)))
}

pub(crate) async fn get(call: Call) -> Answer {
    let record = fetch(&call).await?;
    Ok(envelope::ok(view(&call, &record).await?))
}

/// Reads a request over a webhook and checks what it refers to.
async fn read(call: &Call, fields: &mut Fields, body: &mut Webhook) -> Result<(), Fault> {
    webhook::read(fields, body, call.plane().webhooks(), call.now());
    fields.check()?;
    for job in &body.jobs {
        check_reference::<Job>(call, "job_ids", Some(*job), None).await?;
    }
    Ok(())
}

/// Makes one; the only answer that shows its secret.
pub(crate) async fn create(call: Call, Body(mut fields): Body) -> Answer {
    call.demand(Right::Webhooks, None)?;
    fields.require::<String>("name");
    fields.require::<String>("client_url");
    fields.require::<Vec<String>>("event_types");
    fields.check()?;
    let secret = Webhooks::new_secret()?;
    let sealed = call.plane().vault()?.seal(context::WEBHOOK, &secret).await?;
    let mut body = webhook::blank(sealed, call.now());
    read(&call, &mut fields, &mut body).await?;
    let catalog = call.plane().catalog();
    let record = catalog
        .create_by(&call.who.by(), call.account, &body, call.now())
        .await?;
    Ok(envelope::created(webhook::view(&record, None, Some(&secret))))
}

/// Changes one; begins again when somebody else wrote it meanwhile.
async fn change(call: &Call, fields: &mut Fields, deleted: bool) -> Result<Record<Webhook>, Fault> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut record = fetch(call).await?;
        if deleted {
            record.deleted = true;
        } else {
            read(call, fields, &mut record.body).await?;
        }
        match call
            .plane()
            .catalog()
            .save_by(&call.who.by(), &record, call.now())
            .await
        {
            Err(error) if error.kind() == ErrorKind::Conflict && tries < CHANGE_TRIES => {}
            other => return Ok(other?),
        }
    }
}

pub(crate) async fn update(call: Call, Body(mut fields): Body) -> Answer {
    let record = change(&call, &mut fields, false).await?;
    Ok(envelope::ok(view(&call, &record).await?))
}

/// Deletes one. The answer has a short status, and of the webhook its id.
pub(crate) async fn delete(call: Call) -> Answer {
    let record = change(&call, &mut Fields::default(), true).await?;
    let status = json!({ "code": StatusCode::OK.as_u16(), "is_success": true });
    let body = json!({ "data": { "id": webhook::id(record.id) }, "status": status });
    Ok(Json(body).into_response())
}

/// Sends a sample at once and tells what came of it.
pub(crate) async fn test(call: Call) -> Answer {
    let record = fetch(&call).await?;
    let Some(webhooks) = call.plane().webhooks() else {
        return Err(dbtcloud_core::Error::unavailable("this server sends no webhooks").into());
    };
    let event = record.events.first().copied().unwrap_or(HookEvent::Completed);
    let (event_id, body) = Webhooks::sample(&record, event, call.now());
    let secret = call.plane().vault()?.open(context::WEBHOOK, &record.secret).await?;
    let answer = webhooks.post(&record.url, &secret, &body).await;
    Ok(envelope::ok(webhook::verified(&event_id, answer.code, &answer.error)))
}

/// What a webhook was sent and is to be sent, the newest first.
pub(crate) async fn events(call: Call) -> Answer {
    let record = fetch(&call).await?;
    let page = page(&call)?;
    let to = Addressee::Webhook(record.id);
    let found = call.plane().dispatches().dispatches(call.account, to, page).await?;
    let views = found.items.iter().map(webhook::event).collect();
    Ok(envelope::list(views, found.total, call.params.extra(page)))
}

/// What came of sending one event.
pub(crate) async fn receipt(call: Call) -> Answer {
    let record = fetch(&call).await?;
    let text = call.text("event");
    let absent = || Fault::not_found(format!("event {text} not found"));
    let id = event_of(text).filter(|id| id.to == Addressee::Webhook(record.id));
    let id = id.ok_or_else(absent)?;
    match call.plane().dispatches().dispatch(call.account, &id).await {
        Ok(sent) => Ok(envelope::ok(webhook::receipts(&sent))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(absent()),
        Err(error) => Err(error.into()),
    }
}
