//! Every call goes through the faults. What makes a new thing every time never happens twice of itself.

mod runs;

use std::sync::Arc;

use async_trait::async_trait;
use dbtcloud_core::audit::{Entry, Logged};
use dbtcloud_core::catalog::{Draft, Kind, Query, Row};
use dbtcloud_core::error::Result;
use dbtcloud_core::id::{AccountId, JobId, RunId, SessionId};
use dbtcloud_core::page::{Page, Paged};
use dbtcloud_core::ports::{
    Addressee, AgentIdentity, Audit, Bell, BellStream, Catalog, Channel, Consumer, Delivery, Digest, Dispatch,
    DispatchId, Dispatched, Dispatches, EndedFilter, Event, Fired, Firing, History, Journal, Leases, LogPage, LogPart,
    Logs, NewSession, Next, Outbox, Owner, RunPart, ScheduleEntry, Schedules, SessionChange, Sessions, Storage,
    TicketIssue, Tickets, Try, Wakeups,
};
use dbtcloud_core::run::Month;
use dbtcloud_core::session::{Session, SessionStatus};
use dbtcloud_core::time::Timestamp;

use super::Faults;
use crate::suite::Stores;

/// A storage whose calls go wrong.
#[derive(Clone)]
pub struct FaultyStorage {
    stores: Stores,
    faults: Arc<Faults>,
    deaf: bool,
}

impl FaultyStorage {
    /// Wraps a storage.
    pub fn new(storage: Arc<impl Storage>, faults: Arc<Faults>) -> Self {
        Self {
            stores: Stores::of(storage),
            faults,
            deaf: false,
        }
    }

    /// Wraps a storage whose calls go right, but for its bells, which nobody ever hears.
    pub fn deaf(storage: Arc<impl Storage>) -> Self {
        Self {
            deaf: true,
            ..Self::new(storage, Arc::new(Faults::new(0, super::Rates::CALM)))
        }
    }
}

#[async_trait]
impl Audit for FaultyStorage {
    async fn note(&self, entry: &Entry) -> Result<()> {
        self.faults
            .strike("audit.note", false, || self.stores.audit.note(entry))
            .await
    }

    async fn entries(
        &self,
        account: AccountId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        page: Page,
    ) -> Result<Paged<Logged>> {
        self.faults
            .strike("audit.entries", true, || {
                self.stores.audit.entries(account, from, to, page)
            })
            .await
    }

    async fn forget_entries(&self, account: AccountId, before: Timestamp, limit: u32) -> Result<u64> {
        self.faults
            .strike("audit.forget_entries", true, || {
                self.stores.audit.forget_entries(account, before, limit)
            })
            .await
    }
}

#[async_trait]
impl Catalog for FaultyStorage {
    async fn insert(&self, draft: Draft) -> Result<Row> {
        self.faults
            .strike("catalog.insert", false, || self.stores.catalog.insert(draft.clone()))
            .await
    }

    async fn get(&self, kind: Kind, account: AccountId, id: i64) -> Result<Row> {
        self.faults
            .strike("catalog.get", true, || self.stores.catalog.get(kind, account, id))
            .await
    }

    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Row>> {
        self.faults
            .strike("catalog.find", true, || self.stores.catalog.find(kind, lookup))
            .await
    }

    async fn list(&self, query: &Query, page: Page) -> Result<Paged<Row>> {
        self.faults
            .strike("catalog.list", true, || self.stores.catalog.list(query, page))
            .await
    }

    async fn update(&self, id: i64, version: u64, draft: Draft) -> Result<Row> {
        self.faults
            .strike("catalog.update", false, || {
                self.stores.catalog.update(id, version, draft.clone())
            })
            .await
    }

    async fn scan(&self, kind: Kind, after: i64, limit: u32) -> Result<Vec<Row>> {
        self.faults
            .strike("catalog.scan", true, || self.stores.catalog.scan(kind, after, limit))
            .await
    }
}

#[async_trait]
impl Journal for FaultyStorage {
    async fn of_run(&self, account: AccountId, run: RunId, after: u64, limit: u32) -> Result<Vec<Event>> {
        self.faults
            .strike("journal.of_run", true, || {
                self.stores.journal.of_run(account, run, after, limit)
            })
            .await
    }
}

#[async_trait]
impl Leases for FaultyStorage {
    async fn acquire(&self, name: &str, owner: &Owner, now: Timestamp, until: Timestamp) -> Result<Option<u64>> {
        self.faults
            .strike("leases.acquire", true, || {
                self.stores.leases.acquire(name, owner, now, until)
            })
            .await
    }

    async fn release(&self, name: &str, owner: &Owner) -> Result<()> {
        self.faults
            .strike("leases.release", true, || self.stores.leases.release(name, owner))
            .await
    }

    async fn any_held(&self, prefix: &str, now: Timestamp) -> Result<bool> {
        self.faults
            .strike("leases.any_held", true, || self.stores.leases.any_held(prefix, now))
            .await
    }

    async fn purge(&self, prefix: &str, before: Timestamp, limit: u32) -> Result<u64> {
        self.faults
            .strike("leases.purge", true, || self.stores.leases.purge(prefix, before, limit))
            .await
    }

    async fn over(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        self.faults
            .strike("leases.over", true, || self.stores.leases.over(prefix, before))
            .await
    }
}

#[async_trait]
impl Logs for FaultyStorage {
    async fn read(&self, account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> Result<LogPage> {
        self.faults
            .strike("logs.read", true, || {
                self.stores.logs.read(account, run, step, offset, limit)
            })
            .await
    }

    async fn moved(&self, account: AccountId, run: RunId, step: u32, part: LogPart) -> Result<()> {
        self.faults
            .strike("logs.moved", true, || self.stores.logs.moved(account, run, step, part))
            .await
    }

    async fn unmoved(&self, after: RunId, live_bytes: u64, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        self.faults
            .strike("logs.unmoved", true, || {
                self.stores.logs.unmoved(after, live_bytes, limit)
            })
            .await
    }
}

#[async_trait]
impl Outbox for FaultyStorage {
    async fn take(&self, consumer: Consumer, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Delivery>> {
        self.faults
            .strike("outbox.take", true, || {
                self.stores.outbox.take(consumer, now, until, limit)
            })
            .await
    }

    async fn delivered(&self, consumer: Consumer, run: RunId, sequence: u64) -> Result<()> {
        self.faults
            .strike("outbox.delivered", true, || {
                self.stores.outbox.delivered(consumer, run, sequence)
            })
            .await
    }

    async fn postpone(&self, consumer: Consumer, run: RunId, sequence: u64, until: Timestamp) -> Result<()> {
        self.faults
            .strike("outbox.postpone", true, || {
                self.stores.outbox.postpone(consumer, run, sequence, until)
            })
            .await
    }

    async fn depth(&self, consumer: Consumer) -> Result<u64> {
        self.faults
            .strike("outbox.depth", true, || self.stores.outbox.depth(consumer))
            .await
    }
}

#[async_trait]
impl Dispatches for FaultyStorage {
    async fn post(&self, dispatches: &[Dispatch]) -> Result<()> {
        self.faults
            .strike("dispatches.post", true, || self.stores.dispatches.post(dispatches))
            .await
    }

    async fn take(
        &self,
        channel: Channel,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
        each: u32,
        except: &[Addressee],
    ) -> Result<Vec<Dispatched>> {
        self.faults
            .strike("dispatches.take", true, || {
                self.stores.dispatches.take(channel, now, until, limit, each, except)
            })
            .await
    }

    async fn settle(&self, id: &DispatchId, tried: &Try, next: Next) -> Result<()> {
        self.faults
            .strike("dispatches.settle", true, || {
                self.stores.dispatches.settle(id, tried, next)
            })
            .await
    }

    async fn dispatch(&self, account: AccountId, id: &DispatchId) -> Result<Dispatched> {
        self.faults
            .strike("dispatches.dispatch", true, || {
                self.stores.dispatches.dispatch(account, id)
            })
            .await
    }

    async fn dispatches(&self, account: AccountId, to: Addressee, page: Page) -> Result<Paged<Dispatched>> {
        self.faults
            .strike("dispatches.dispatches", true, || {
                self.stores.dispatches.dispatches(account, to, page)
            })
            .await
    }

    async fn last_tries(&self, to: Addressee, ended: bool, limit: u32) -> Result<Vec<Dispatched>> {
        self.faults
            .strike("dispatches.last_tries", true, || {
                self.stores.dispatches.last_tries(to, ended, limit)
            })
            .await
    }

    async fn undelivered(&self, channel: Channel) -> Result<u64> {
        self.faults
            .strike("dispatches.undelivered", true, || {
                self.stores.dispatches.undelivered(channel)
            })
            .await
    }

    async fn forget_dispatches(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.faults
            .strike("dispatches.forget_dispatches", true, || {
                self.stores.dispatches.forget_dispatches(before, limit)
            })
            .await
    }

    async fn old_dispatches(&self, before: Timestamp) -> Result<u64> {
        self.faults
            .strike("dispatches.old_dispatches", true, || {
                self.stores.dispatches.old_dispatches(before)
            })
            .await
    }
}

#[async_trait]
impl History for FaultyStorage {
    async fn prepare(&self, now: Timestamp) -> Result<()> {
        self.faults
            .strike("history.prepare", true, || self.stores.history.prepare(now))
            .await
    }

    async fn months(&self) -> Result<Vec<Month>> {
        self.faults
            .strike("history.months", true, || self.stores.history.months())
            .await
    }

    async fn ended(&self, filter: &EndedFilter, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        self.faults
            .strike("history.ended", true, || self.stores.history.ended(filter, limit))
            .await
    }

    async fn expire(&self, account: AccountId, run: RunId, part: RunPart, now: Timestamp) -> Result<()> {
        self.faults
            .strike("history.expire", true, || {
                self.stores.history.expire(account, run, part, now)
            })
            .await
    }

    async fn forget(&self, runs: &[RunId]) -> Result<u64> {
        self.faults
            .strike("history.forget", true, || self.stores.history.forget(runs))
            .await
    }

    async fn drop_month(&self, month: Month, before: Timestamp) -> Result<()> {
        self.faults
            .strike("history.drop_month", true, || {
                self.stores.history.drop_month(month, before)
            })
            .await
    }
}

#[async_trait]
impl Schedules for FaultyStorage {
    async fn put(&self, entry: &ScheduleEntry, now: Timestamp) -> Result<()> {
        self.faults
            .strike("schedules.put", true, || self.stores.schedules.put(entry, now))
            .await
    }

    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<ScheduleEntry>> {
        self.faults
            .strike("schedules.due", true, || self.stores.schedules.due(now, limit))
            .await
    }

    async fn next(&self) -> Result<Option<Timestamp>> {
        self.faults
            .strike("schedules.next", true, || self.stores.schedules.next())
            .await
    }

    async fn of(&self, jobs: &[JobId]) -> Result<Vec<ScheduleEntry>> {
        self.faults
            .strike("schedules.of", true, || self.stores.schedules.of(jobs))
            .await
    }

    async fn fire(&self, firings: &[Firing], now: Timestamp) -> Result<Vec<Fired>> {
        self.faults
            .strike("schedules.fire", true, || self.stores.schedules.fire(firings, now))
            .await
    }
}

#[async_trait]
impl Sessions for FaultyStorage {
    async fn open(&self, new: NewSession, now: Timestamp) -> Result<Session> {
        self.faults
            .strike("sessions.open", true, || self.stores.sessions.open(new, now))
            .await
    }

    async fn get(&self, account: AccountId, id: SessionId) -> Result<Session> {
        self.faults
            .strike("sessions.get", true, || self.stores.sessions.get(account, id))
            .await
    }

    async fn scan(&self, states: &[SessionStatus], after: SessionId, limit: u32) -> Result<Vec<Session>> {
        self.faults
            .strike("sessions.scan", true, || {
                self.stores.sessions.scan(states, after, limit)
            })
            .await
    }

    async fn change(
        &self,
        account: AccountId,
        id: SessionId,
        change: &SessionChange,
        now: Timestamp,
    ) -> Result<Session> {
        self.faults
            .strike("sessions.change", true, || {
                self.stores.sessions.change(account, id, change, now)
            })
            .await
    }

    async fn forget(&self, sessions: &[SessionId]) -> Result<u64> {
        self.faults
            .strike("sessions.forget", true, || self.stores.sessions.forget(sessions))
            .await
    }
}

#[async_trait]
impl Tickets for FaultyStorage {
    async fn issue(&self, issue: &TicketIssue) -> Result<()> {
        self.faults
            .strike("tickets.issue", true, || self.stores.tickets.issue(issue))
            .await
    }

    async fn redeem(&self, ticket: Digest, key: Digest, now: Timestamp) -> Result<AgentIdentity> {
        self.faults
            .strike("tickets.redeem", true, || self.stores.tickets.redeem(ticket, key, now))
            .await
    }

    async fn authenticate(&self, key: Digest) -> Result<AgentIdentity> {
        self.faults
            .strike("tickets.authenticate", true, || self.stores.tickets.authenticate(key))
            .await
    }

    async fn redeemed(&self, run: RunId, attempt: u32) -> Result<bool> {
        self.faults
            .strike("tickets.redeemed", true, || self.stores.tickets.redeemed(run, attempt))
            .await
    }

    async fn purge(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.faults
            .strike("tickets.purge", true, || self.stores.tickets.purge(before, limit))
            .await
    }

    async fn spent(&self, before: Timestamp) -> Result<u64> {
        self.faults
            .strike("tickets.spent", true, || self.stores.tickets.spent(before))
            .await
    }
}

#[async_trait]
impl Wakeups for FaultyStorage {
    async fn ring(&self, bell: Bell) -> Result<()> {
        if self.deaf {
            return Ok(());
        }
        self.faults
            .strike("wakeups.ring", true, || self.stores.wakeups.ring(bell))
            .await
    }

    async fn listen(&self) -> Result<BellStream> {
        if self.deaf {
            return Ok(Box::pin(futures::stream::pending()));
        }
        self.faults
            .strike("wakeups.listen", true, || self.stores.wakeups.listen())
            .await
    }
}
