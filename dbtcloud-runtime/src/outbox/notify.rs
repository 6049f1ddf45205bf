//! What follows from a change of a run for people and programs outside: who wants to be told is posted a dispatch
//! each. Nothing is sent here; see [`crate::dispatch`].

use async_trait::async_trait;
use dbtcloud_core::catalog::{CatalogExt, Entity, Kind, Query, Record};
use dbtcloud_core::id::{AccountId, JobId, NotificationId};
use dbtcloud_core::notification::{Notification, Way};
use dbtcloud_core::page::PAGE_LIMIT;
use dbtcloud_core::ports::{Addressee, Bell, Delivery, Dispatch, DispatchId, Event, EventBody};
use dbtcloud_core::run::RunStatus;
use dbtcloud_core::webhook::{HookEvent, Webhook};
use dbtcloud_core::{Error, ErrorKind, Page, Result};

use super::{Consume, Handled};
use crate::ControlPlane;
use crate::dispatch::Told;

/// The consumer of that name.
pub(crate) struct Notify;

#[async_trait]
impl Consume for Notify {
    async fn consume(&self, plane: &ControlPlane, delivery: &Delivery) -> Result<Handled> {
        let event = &delivery.event;
        if let EventBody::Run { status, message } = &event.body {
            let posts = posts(plane, event, *status, message.as_deref()).await?;
            if !posts.is_empty() {
                plane.dispatches().post(&posts).await?;
                plane.ring(Bell::Outbox);
            }
        }
        Ok(Handled::Delivered)
    }
}

/// What is to be sent because a run came to this status.
async fn posts(plane: &ControlPlane, event: &Event, status: RunStatus, message: Option<&str>) -> Result<Vec<Dispatch>> {
    let run = match plane.runs().get(event.account, event.run).await {
        Ok(run) => run,
        // Its history was removed meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (account, job) = (event.account, run.new.job);
    let mut wanted = Vec::new();
    if plane.webhooks().is_some() {
        for hook in all::<Webhook>(plane, account).await? {
            for (part, told) in (0..).zip(HookEvent::of(status)) {
                if hook.wants(*told, job) {
                    wanted.push((part, *told, hook.clone()));
                }
            }
        }
    }
    let people = people(plane, account, job, status).await?;
    if wanted.is_empty() && people.is_empty() {
        return Ok(Vec::new());
    }
    let name = |kind, id| name_of(plane, account, kind, id);
    let told = Told {
        run: &run,
        status,
        at: event.at,
        message,
        job: &name(Kind::Job, job.get()).await?,
        environment: &name(Kind::Environment, run.new.environment.get()).await?,
        project: &name(Kind::Project, run.new.project.get()).await?,
    };
    let now = plane.clock().now();
    let post = |(part, told_of, hook): (u32, HookEvent, Record<Webhook>)| {
        let id = DispatchId {
            to: Addressee::Webhook(hook.id),
            run: run.id,
            sequence: event.sequence,
            part,
        };
        Dispatch {
            id,
            account,
            job,
            event: told_of.name().to_owned(),
            body: told.body(&id, &hook.name, told_of).to_string(),
            created_at: now,
        }
    };
    let mut posts: Vec<_> = wanted.into_iter().map(post).collect();
    if let Some(mail) = plane.mail().filter(|_| !people.is_empty()) {
        let steps = plane.runs().steps(account, run.id).await?;
        let letter = told.letter(mail.base(), &steps);
        let body =
            serde_json::to_string(&letter).map_err(|e| Error::corrupt("a letter cannot be written").because(e))?;
        posts.extend(people.into_iter().map(|notification| Dispatch {
            id: DispatchId {
                to: Addressee::Notification(notification),
                run: run.id,
                sequence: event.sequence,
                part: 0,
            },
            account,
            job,
            event: status.name().to_owned(),
            body: body.clone(),
            created_at: now,
        }));
    }
    Ok(posts)
}

/// Who is told by mail that a run of this job came to this status; nobody when this process sends no mail.
async fn people(
    plane: &ControlPlane,
    account: AccountId,
    job: JobId,
    status: RunStatus,
) -> Result<Vec<NotificationId>> {
    let (Some(_), Some(outcome)) = (plane.mail(), status.outcome()) else {
        return Ok(Vec::new());
    };
    let told = |record: &Record<Notification>| !matches!(record.way, Way::Slack { .. }) && record.wants(outcome, job);
    let all = all::<Notification>(plane, account).await?;
    Ok(all
        .iter()
        .filter(|record| told(record))
        .map(|record| record.id)
        .collect())
}

/// All records of a kind that an account has.
async fn all<T: Entity>(plane: &ControlPlane, account: AccountId) -> Result<Vec<Record<T>>> {
    let query = Query::new(T::KIND, account);
    let mut all = Vec::new();
    loop {
        let offset = u32::try_from(all.len()).unwrap_or(u32::MAX);
        let page = plane.catalog().page::<T>(&query, Page::new(PAGE_LIMIT, offset)).await?;
        let got = page.items.len();
        all.extend(page.items);
        if got < PAGE_LIMIT as usize {
            return Ok(all);
        }
    }
}

/// The name of a record, deleted or not; empty when it never was.
async fn name_of(plane: &ControlPlane, account: AccountId, kind: Kind, id: i64) -> Result<String> {
    match plane.catalog().get(kind, account, id).await {
        Ok(row) => Ok(row.name),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}
