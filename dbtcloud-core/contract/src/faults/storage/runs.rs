use async_trait::async_trait;
use dbtcloud_core::error::Result;
use dbtcloud_core::id::{AccountId, JobId, RunId, StepId};
use dbtcloud_core::page::{Page, Paged};
use dbtcloud_core::ports::{
    Ack, Batch, Claimed, Enqueued, Fence, Owner, Renewed, RunChange, RunFilter, RunRequest, RunState, Runs, Since,
};
use dbtcloud_core::run::{Admission, NewRun, QueueSnapshot, Run, RunStep};
use dbtcloud_core::time::Timestamp;

use super::FaultyStorage;

#[async_trait]
impl Runs for FaultyStorage {
    async fn enqueue(&self, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
        self.faults
            .strike("runs.enqueue", new.scheduled_for.is_some(), || {
                self.stores.runs.enqueue(new, now)
            })
            .await
    }

    async fn enqueue_for(&self, new: &NewRun, request: &RunRequest, now: Timestamp) -> Result<Enqueued> {
        self.faults
            .strike("runs.enqueue_for", true, || {
                self.stores.runs.enqueue_for(new, request, now)
            })
            .await
    }

    async fn of_request(&self, account: AccountId, request: &RunRequest, now: Timestamp) -> Result<Option<Run>> {
        self.faults
            .strike("runs.of_request", true, || {
                self.stores.runs.of_request(account, request, now)
            })
            .await
    }

    async fn purge_requests(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.faults
            .strike("runs.purge_requests", true, || {
                self.stores.runs.purge_requests(before, limit)
            })
            .await
    }

    async fn old_requests(&self, before: Timestamp) -> Result<u64> {
        self.faults
            .strike("runs.old_requests", true, || self.stores.runs.old_requests(before))
            .await
    }

    async fn get(&self, account: AccountId, id: RunId) -> Result<Run> {
        self.faults
            .strike("runs.get", true, || self.stores.runs.get(account, id))
            .await
    }

    async fn list(&self, account: AccountId, filter: &RunFilter, page: Page) -> Result<Paged<Run>> {
        self.faults
            .strike("runs.list", true, || self.stores.runs.list(account, filter, page))
            .await
    }

    async fn newest(&self, account: AccountId, jobs: &[JobId]) -> Result<Vec<Run>> {
        self.faults
            .strike("runs.newest", true, || self.stores.runs.newest(account, jobs))
            .await
    }

    async fn states(&self, ids: &[RunId]) -> Result<Vec<RunState>> {
        self.faults
            .strike("runs.states", true, || self.stores.runs.states(ids))
            .await
    }

    async fn steps(&self, account: AccountId, run: RunId) -> Result<Vec<RunStep>> {
        self.faults
            .strike("runs.steps", true, || self.stores.runs.steps(account, run))
            .await
    }

    async fn step(&self, account: AccountId, step: StepId) -> Result<RunStep> {
        self.faults
            .strike("runs.step", true, || self.stores.runs.step(account, step))
            .await
    }

    async fn queue(&self, now: Timestamp, per_account: u32, since: Option<Since>) -> Result<QueueSnapshot> {
        self.faults
            .strike("runs.queue", true, || self.stores.runs.queue(now, per_account, since))
            .await
    }

    async fn queue_of(&self, account: AccountId, limit: u32) -> Result<QueueSnapshot> {
        self.faults
            .strike("runs.queue_of", true, || self.stores.runs.queue_of(account, limit))
            .await
    }

    async fn queued(&self, account: AccountId) -> Result<u64> {
        self.faults
            .strike("runs.queued", true, || self.stores.runs.queued(account))
            .await
    }

    async fn claim(
        &self,
        owner: &Owner,
        admissions: &[Admission],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>> {
        self.faults
            .strike("runs.claim", true, || {
                self.stores.runs.claim(owner, admissions, now, until)
            })
            .await
    }

    async fn reclaim(&self, owner: &Owner, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Claimed>> {
        self.faults
            .strike("runs.reclaim", true, || {
                self.stores.runs.reclaim(owner, now, until, limit)
            })
            .await
    }

    async fn renew(&self, fences: &[Fence], until: Timestamp) -> Result<Vec<Renewed>> {
        self.faults
            .strike("runs.renew", true, || self.stores.runs.renew(fences, until))
            .await
    }

    async fn release(&self, fences: &[Fence], now: Timestamp) -> Result<()> {
        self.faults
            .strike("runs.release", true, || self.stores.runs.release(fences, now))
            .await
    }

    async fn change(&self, fence: &Fence, change: &RunChange) -> Result<Run> {
        self.faults
            .strike("runs.change", true, || self.stores.runs.change(fence, change))
            .await
    }

    async fn request_cancel(&self, account: AccountId, id: RunId, message: &str, now: Timestamp) -> Result<Run> {
        self.faults
            .strike("runs.request_cancel", true, || {
                self.stores.runs.request_cancel(account, id, message, now)
            })
            .await
    }

    async fn report(&self, fence: &Fence, batch: &Batch) -> Result<Ack> {
        self.faults
            .strike("runs.report", true, || self.stores.runs.report(fence, batch))
            .await
    }
}
