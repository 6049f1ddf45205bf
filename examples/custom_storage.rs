//! Replaces storage: a decorator over *any* storage that keeps a trail of who wrote what.
//!
//! `cargo run --example custom_storage` shows a trail; its tests hold the decorator to the same contract
//! suite as the storages that come with the platform.
//!
//! One line per write: when, who, which verb of which port, what, and how it ended. The line is written
//! before the answer is given. A write whose line could not be kept is answered `Unavailable`, and that is
//! exactly what this kind means at every port: it may have happened, and calling again is safe.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dbtcloud_core::audit::{Entry, Logged};
use dbtcloud_core::catalog::{Draft, Kind, Query, Row};
use dbtcloud_core::id::{AccountId, JobId, RunId, SessionId, StepId};
use dbtcloud_core::ports::*;
use dbtcloud_core::run::{Admission, Month, NewRun, QueueSnapshot, Run, RunStep};
use dbtcloud_core::session::{Session, SessionStatus};
use dbtcloud_core::{Error, Page, Paged, Result, Timestamp};
use dbtcloud_runtime::clock::SystemClock;

tokio::task_local! {
    /// On whose behalf this task writes. A server sets it where it knows who asks.
    static ACTOR: String;
}

/// Any storage, with a trail.
#[derive(Clone)]
pub struct Audited<S> {
    inner: S,
    trail: Arc<Mutex<File>>,
}

impl<S: Storage> Audited<S> {
    /// Decorates `inner`; the trail is appended to, never written over.
    pub fn new(inner: S, trail: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(trail)?;
        Ok(Self {
            inner,
            trail: Arc::new(Mutex::new(file)),
        })
    }

    /// Writes of `future` are `actor`'s; everybody else's are the control plane's own.
    pub async fn by<T>(actor: &str, future: impl Future<Output = T>) -> T {
        ACTOR.scope(actor.to_owned(), future).await
    }

    fn keep<T>(&self, verb: &str, what: &dyn Display, answer: &Result<T>) -> Result<()> {
        let actor = ACTOR
            .try_with(Clone::clone)
            .unwrap_or_else(|_| "control-plane".to_owned());
        let ending = match answer {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        let line = format!("{} {actor} {verb} {what}: {ending}\n", SystemClock.now());
        // One short write in append mode: lines of several processes do not mix.
        let mut trail = self.trail.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = trail.write_all(line.as_bytes());
        kept.map_err(|error| Error::unavailable("the audit trail cannot be written").because(error))
    }
}

/// Implements the ports. `reads` go through; `writes` also say what they are about in the trail: ids and
/// rights, never contents, for those may hold sealed secrets and warehouse values.
macro_rules! forward {
    ($($port:ident { $($how:ident $verb:ident($($name:ident: $type:ty),*) -> $answer:ty $(= $what:expr)?;)* })*) => {$(
        #[async_trait]
        impl<S: Storage> $port for Audited<S> {$(
            async fn $verb(&self, $($name: $type),*) -> Result<$answer> {
                forward!(@$how self $port $verb [$($name),*] $($what)?)
            }
        )*}
    )*};
    (@reads $this:ident $port:ident $verb:ident [$($name:ident),*]) => {
        $port::$verb(&$this.inner, $($name),*).await
    };
    (@writes $this:ident $port:ident $verb:ident [$($name:ident),*] $what:expr) => {{
        let what = $what;
        let answer = $port::$verb(&$this.inner, $($name),*).await;
        $this.keep(concat!(stringify!($port), "::", stringify!($verb)), &what, &answer)?;
        answer
    }};
}

forward! {
    Audit {
        writes note(entry: &Entry) -> () = format!("{} {}", entry.subject.name(), entry.id);
        reads entries(
            account: AccountId, from: Option<Timestamp>, to: Option<Timestamp>, page: Page
        ) -> Paged<Logged>;
        writes forget_entries(account: AccountId, before: Timestamp, limit: u32) -> u64 =
            format!("entries of account {account} before {before}");
    }
    Catalog {
        writes insert(draft: Draft) -> Row = format!("a {} of account {}", draft.kind.noun(), draft.account);
        reads get(kind: Kind, account: AccountId, id: i64) -> Row;
        reads find(kind: Kind, lookup: &str) -> Option<Row>;
        reads list(query: &Query, page: Page) -> Paged<Row>;
        writes update(id: i64, version: u64, draft: Draft) -> Row =
            format!("{} {id} of account {}, version {version}", draft.kind.noun(), draft.account);
        reads scan(kind: Kind, after: i64, limit: u32) -> Vec<Row>;
    }
    Dispatches {
        writes post(dispatches: &[Dispatch]) -> () = format!("{} dispatches", dispatches.len());
        writes take(
            channel: Channel, now: Timestamp, until: Timestamp, limit: u32, each: u32, except: &[Addressee]
        ) -> Vec<Dispatched> = format!("at most {limit} by {}", channel.name());
        writes settle(id: &DispatchId, tried: &Try, next: Next) -> () =
            format!("{} {} of run {}", id.to.channel().name(), id.to.id(), id.run);
        reads dispatch(account: AccountId, id: &DispatchId) -> Dispatched;
        reads dispatches(account: AccountId, to: Addressee, page: Page) -> Paged<Dispatched>;
        reads last_tries(to: Addressee, ended: bool, limit: u32) -> Vec<Dispatched>;
        reads undelivered(channel: Channel) -> u64;
        writes forget_dispatches(before: Timestamp, limit: u32) -> u64 = format!("dispatches before {before}");
        reads old_dispatches(before: Timestamp) -> u64;
    }
    History {
        writes prepare(now: Timestamp) -> () = format!("months from {now}");
        reads months() -> Vec<Month>;
        reads ended(filter: &EndedFilter, limit: u32) -> Vec<(AccountId, RunId)>;
        writes expire(account: AccountId, run: RunId, part: RunPart, now: Timestamp) -> () = format!("{part:?} of run {run}");
        writes forget(runs: &[RunId]) -> u64 = format!("{} runs", runs.len());
        writes drop_month(month: Month, before: Timestamp) -> () = format!("month {month}");
    }
    Journal {
        reads of_run(account: AccountId, run: RunId, after: u64, limit: u32) -> Vec<Event>;
    }
    Leases {
        writes acquire(name: &str, owner: &Owner, now: Timestamp, until: Timestamp) -> Option<u64> =
            format!("lease '{name}' until {until} for {}", owner.as_str());
        writes release(name: &str, owner: &Owner) -> () = format!("lease '{name}' of {}", owner.as_str());
        reads any_held(prefix: &str, now: Timestamp) -> bool;
        writes purge(prefix: &str, before: Timestamp, limit: u32) -> u64 = format!("leases '{prefix}' before {before}");
        reads over(prefix: &str, before: Timestamp) -> u64;
    }
    Logs {
        reads read(account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> LogPage;
        writes moved(account: AccountId, run: RunId, step: u32, part: LogPart) -> () =
            format!("log of step {step} of run {run}, bytes {} to {}", part.start, part.end);
        reads unmoved(after: RunId, live_bytes: u64, limit: u32) -> Vec<(AccountId, RunId)>;
    }
    Outbox {
        writes take(consumer: Consumer, now: Timestamp, until: Timestamp, limit: u32) -> Vec<Delivery> =
            format!("at most {limit} for {}", consumer.name());
        writes delivered(consumer: Consumer, run: RunId, sequence: u64) -> () =
            format!("event {sequence} of run {run} to {}", consumer.name());
        writes postpone(consumer: Consumer, run: RunId, sequence: u64, until: Timestamp) -> () =
            format!("event {sequence} of run {run} to {} until {until}", consumer.name());
        reads depth(consumer: Consumer) -> u64;
    }
    Runs {
        writes enqueue(new: &NewRun, now: Timestamp) -> Enqueued =
            format!("a run of job {} of account {}", new.job, new.account);
        writes enqueue_for(new: &NewRun, request: &RunRequest, now: Timestamp) -> Enqueued =
            format!("a run of job {} of account {}, once", new.job, new.account);
        reads of_request(account: AccountId, request: &RunRequest, now: Timestamp) -> Option<Run>;
        writes purge_requests(before: Timestamp, limit: u32) -> u64 = format!("at most {limit} before {before}");
        reads old_requests(before: Timestamp) -> u64;
        reads get(account: AccountId, id: RunId) -> Run;
        reads list(account: AccountId, filter: &RunFilter, page: Page) -> Paged<Run>;
        reads newest(account: AccountId, jobs: &[JobId]) -> Vec<Run>;
        reads states(ids: &[RunId]) -> Vec<RunState>;
        reads steps(account: AccountId, run: RunId) -> Vec<RunStep>;
        reads step(account: AccountId, step: StepId) -> RunStep;
        reads queue(now: Timestamp, per_account: u32, since: Option<Since>) -> QueueSnapshot;
        reads queue_of(account: AccountId, limit: u32) -> QueueSnapshot;
        reads queued(account: AccountId) -> u64;
        writes claim(owner: &Owner, admissions: &[Admission], now: Timestamp, until: Timestamp) -> Vec<Claimed> =
            format!("{:?} for {}", admissions.iter().map(|one| one.run.get()).collect::<Vec<_>>(), owner.as_str());
        writes reclaim(owner: &Owner, now: Timestamp, until: Timestamp, limit: u32) -> Vec<Claimed> =
            format!("at most {limit} for {}", owner.as_str());
        writes renew(fences: &[Fence], until: Timestamp) -> Vec<Renewed> = format!("{} leases", fences.len());
        writes release(fences: &[Fence], now: Timestamp) -> () = format!("{} leases", fences.len());
        writes change(fence: &Fence, change: &RunChange) -> Run =
            format!("run {} to {} by {:?}", fence.run(), change.to().name(), fence.holder());
        writes request_cancel(account: AccountId, id: RunId, message: &str, now: Timestamp) -> Run =
            format!("run {id} of account {account}");
        writes report(fence: &Fence, batch: &Batch) -> Ack =
            format!("number {} of run {} by {:?}", batch.number, fence.run(), fence.holder());
    }
    Schedules {
        writes put(entry: &ScheduleEntry, now: Timestamp) -> () = format!("job {} to {:?}", entry.job, entry.next_at);
        reads due(now: Timestamp, limit: u32) -> Vec<ScheduleEntry>;
        reads next() -> Option<Timestamp>;
        reads of(jobs: &[JobId]) -> Vec<ScheduleEntry>;
        writes fire(firings: &[Firing], now: Timestamp) -> Vec<Fired> = format!("{} schedules", firings.len());
    }
    Sessions {
        writes open(new: NewSession, now: Timestamp) -> Session =
            format!("of user {} in project {}", new.user, new.project);
        reads get(account: AccountId, id: SessionId) -> Session;
        reads scan(states: &[SessionStatus], after: SessionId, limit: u32) -> Vec<Session>;
        writes change(account: AccountId, id: SessionId, change: &SessionChange, now: Timestamp) -> Session =
            format!("session {id} by {:?}", change.event);
        writes forget(sessions: &[SessionId]) -> u64 = format!("{} sessions", sessions.len());
    }
    Tickets {
        writes issue(issue: &TicketIssue) -> () = format!("for attempt {} of run {}", issue.attempt, issue.run);
        writes redeem(ticket: Digest, key: Digest, now: Timestamp) -> AgentIdentity = "a ticket";
        reads authenticate(key: Digest) -> AgentIdentity;
        reads redeemed(run: RunId, attempt: u32) -> bool;
        writes purge(before: Timestamp, limit: u32) -> u64 = format!("before {before}");
        reads spent(before: Timestamp) -> u64;
    }
    Wakeups {
        reads ring(bell: Bell) -> ();
        reads listen() -> BellStream;
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    use dbtcloud_core::run::{CauseCategory, Trigger};
    use dbtcloud_runtime::{AgentLaunch, Blueprint, Config, ControlPlane};

    let data = tempfile::tempdir()?;
    let trail = data.path().join("audit.log");
    let database = format!("sqlite://{}", data.path().join("plane.db").display());
    let storage = dbtcloud_sql::SqlStorage::connect(&database, Default::default()).await?;
    storage.migrate().await?;

    // Whoever builds a control plane says which storage it gets; nothing else knows the difference.
    let storage = Audited::new(storage, &trail)?;
    let executor = dbtcloud_local::LocalExecutor::new(data.path().join("executions"))?;
    let launch = AgentLaunch::local(vec!["dbtcloud".to_owned(), "agent".to_owned()], data.path(), []);
    let plane = ControlPlane::builder(storage, executor, Config::new("audited", launch)).build();

    type Trail = Audited<dbtcloud_sql::SqlStorage>;
    let blueprint = Blueprint::new("shop", "https://git.example/shop.git", "duckdb");
    let job = Trail::by("nadia", plane.install(&blueprint)).await?;
    let trigger = Trigger::new(CauseCategory::Api, "custom_storage");
    Trail::by("tomás", plane.trigger(job.account, job.id, trigger)).await?;
    print!("{}", std::fs::read_to_string(trail)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use dbtcloud_contract::memory::MemoryStorage;
    use dbtcloud_contract::suite::Subject;
    use dbtcloud_core::ErrorKind;
    use dbtcloud_sql::SqlStorage;

    use super::*;

    // The whole contract, twice: the decorator must be transparent whatever is under it.
    dbtcloud_contract::storage_suite!(over_memory, || async {
        let directory = tempfile::tempdir().unwrap();
        let storage = Audited::new(MemoryStorage::new(), &directory.path().join("trail")).unwrap();
        Subject::storage(storage).keeping(directory)
    });
    dbtcloud_contract::storage_suite!(over_sqlite, || async {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("plane.db").display());
        let inner = SqlStorage::connect(&url, Default::default()).await.unwrap();
        inner.migrate().await.unwrap();
        let storage = Audited::new(inner, &directory.path().join("trail")).unwrap();
        Subject::storage(storage).keeping(directory)
    });

    #[tokio::test]
    async fn the_trail_tells_who_wrote_what_and_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let trail = directory.path().join("trail");
        let storage = Audited::new(MemoryStorage::new(), &trail).unwrap();
        let (owner, at) = (Owner::new("a"), Timestamp::from_micros);
        let nadia = async {
            storage.acquire("cleanup", &owner, at(0), at(9)).await.unwrap();
            Runs::get(&storage, AccountId::new(1), RunId::new(7)).await.unwrap_err();
        };
        Audited::<MemoryStorage>::by("nadia", nadia).await;
        let cancel = storage.request_cancel(AccountId::new(1), RunId::new(7), "stop", at(1));
        assert_eq!(cancel.await.unwrap_err().kind(), ErrorKind::NotFound);

        let told = std::fs::read_to_string(trail).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 2, "reads leave nothing: {lines:?}");
        assert!(lines[0].contains(" nadia Leases::acquire lease 'cleanup'") && lines[0].ends_with(" for a: ok"));
        assert!(lines[1].ends_with(" control-plane Runs::request_cancel run 7 of account 1: NotFound"));
    }

    #[tokio::test]
    async fn a_write_whose_line_is_lost_is_unavailable() {
        let storage = Audited::new(MemoryStorage::new(), Path::new("/dev/full")).unwrap();
        let at = Timestamp::from_micros;
        let write = storage.acquire("cleanup", &Owner::new("a"), at(0), at(9)).await;
        assert_eq!(write.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
