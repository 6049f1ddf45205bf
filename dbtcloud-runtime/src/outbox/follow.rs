//! What follows from the end of a run within the platform: jobs that wait for it start, a job that fails
//! again and again stops.

use async_trait::async_trait;
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt, Entity, Query, Record};
use dbtcloud_core::job::{FAILURES_TO_DEACTIVATE, Job};
use dbtcloud_core::page::PAGE_LIMIT;
use dbtcloud_core::ports::{Bell, Delivery, RunFilter};
use dbtcloud_core::run::{CauseCategory, Outcome, Request, Run, RunStatus, Trigger};
use dbtcloud_core::{Direction, Error, ErrorKind, Page, Result};

use super::{Consume, Handled};
use crate::{ControlPlane, trace};

/// The consumer of that name.
pub(crate) struct Follow;

#[async_trait]
impl Consume for Follow {
    async fn consume(&self, plane: &ControlPlane, delivery: &Delivery) -> Result<Handled> {
        let event = &delivery.event;
        match plane.runs().get(event.account, event.run).await {
            Ok(run) => {
                chain(plane, &run).await?;
                deactivate(plane, &run).await?;
            }
            // Its history was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Handled::Delivered)
    }
}

/// Starts the jobs that wait for the end of this one. The end of a run is an instant of its own, so that a
/// second call queues nothing twice.
async fn chain(plane: &ControlPlane, run: &Run) -> Result<()> {
    let (Some(outcome), account) = (run.status.outcome(), run.new.account) else {
        return Ok(());
    };
    let mut offset = 0;
    loop {
        let query = Query::new(Job::KIND, account);
        let page = plane
            .catalog()
            .page::<Job>(&query, Page::new(PAGE_LIMIT, offset))
            .await?;
        let count = u32::try_from(page.items.len()).unwrap_or(u32::MAX);
        for job in &page.items {
            let waits = job.completion_trigger.as_ref().is_some_and(|trigger| {
                let warned = outcome == Outcome::Warned && trigger.outcomes.contains(&Outcome::Success);
                trigger.job == run.new.job && (trigger.outcomes.contains(&outcome) || warned)
            });
            if waits && !job.deactivated {
                follow(plane, run, job).await?;
            }
        }
        offset = offset.saturating_add(count);
        if count < PAGE_LIMIT {
            return Ok(());
        }
    }
}

async fn follow(plane: &ControlPlane, run: &Run, job: &Record<Job>) -> Result<()> {
    let account = plane.catalog().fetch(run.new.account, run.new.account).await?;
    let environment = plane.catalog().fetch(run.new.account, job.environment).await?;
    let now = plane.clock().now();
    let mut trigger = Trigger::new(
        CauseCategory::JobCompletion,
        &format!("Triggered by the end of run {} of job {}", run.id, run.new.job),
    );
    trigger.traceparent = trace::Context::begin().map(|begun| begun.to_string());
    let request = Request {
        account: &account,
        job,
        environment: &environment,
        trigger: &trigger,
        scheduled_for: run.finished_at,
        retry_of: None,
        due_at: now,
    };
    match request.compose() {
        Ok(new) => {
            plane.runs().enqueue(&new, now).await?;
            plane.ring(Bell::Queue);
        }
        Err(error) => {
            tracing::warn!(account_id = job.account.get(), job_id = job.id.get(), error = %error.chain(), "chained job cannot be started");
        }
    }
    Ok(())
}

/// Stops a job's triggers after too many failures in a row (dbt Cloud's rule).
async fn deactivate(plane: &ControlPlane, run: &Run) -> Result<()> {
    if run.status != RunStatus::Error {
        return Ok(());
    }
    let filter = RunFilter {
        job: Some(run.new.job),
        direction: Direction::Descending,
        ..RunFilter::default()
    };
    let newest = plane
        .runs()
        .list(run.new.account, &filter, Page::new(FAILURES_TO_DEACTIVATE, 0))
        .await?;
    let failures = newest.items.iter().filter(|run| run.status == RunStatus::Error).count();
    if failures < FAILURES_TO_DEACTIVATE as usize {
        return Ok(());
    }
    let mut job = match plane.catalog().fetch::<Job>(run.new.account, run.new.job).await {
        Ok(job) if !job.deactivated => job,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    job.body.deactivated = true;
    match plane.save_job(&Actor::System, &job).await {
        Ok(_) => tracing::warn!(
            account_id = job.account.get(),
            job_id = job.id.get(),
            failures,
            "job deactivated after failures in a row"
        ),
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => return Err::<(), Error>(error),
    }
    Ok(())
}
