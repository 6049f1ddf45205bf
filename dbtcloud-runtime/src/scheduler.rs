//! The scheduler: fires due schedules, admits queued runs, takes over abandoned ones and drives its own.
//!
//! A tick takes no input and converges the world; what fails is tried again by the next tick, never inside
//! this one. Any number of schedulers may tick at the same time: storage decides every race.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::{CatalogExt, Kind, Query, Record, Row};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, RunId};
use dbtcloud_core::job::Job;
use dbtcloud_core::page::{PAGE_LIMIT, Page};
use dbtcloud_core::ports::{Bell, Claimed, FIRE_LIMIT, Fence, Fired, Firing, ScheduleEntry, Since};
use dbtcloud_core::run::{CauseCategory, Limits, QueueSnapshot, Request, Run, Trigger, admit};
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::ControlPlane;
use crate::driver::{self, Next};
use crate::trace::{self, log_span};

/// Hands that one tick takes at most.
const DUE_PAGE: u32 = 500;
/// Waiting runs of one account that one tick looks at, those that take a slot and those that do not apart.
const WAITING_PER_ACCOUNT: u32 = 200;
/// What the names of the leases begin with by which schedulers are seen from elsewhere; the instance follows.
pub(crate) const PRESENCE: &str = "scheduler/";
/// Of its time, a scheduler spends no more than one part in so many on looks at the whole queue.
const WHOLE_LOOKS: u32 = 20;
/// The longest without a look at the whole queue.
const WHOLE_LOOK_EVERY: Duration = Duration::from_secs(5);
/// How much later than it was due a run may come and still be seen between two such looks.
const COMES_LATE: Duration = Duration::from_secs(60);
/// Accounts whose last turn is remembered.
const TURNS_LIMIT: usize = 100_000;
/// Runs that are driven side by side.
const DRIVE_WIDTH: usize = 16;
/// The least time between two ticks, so that many bells make few ticks.
const TICK_GAP: Duration = Duration::from_millis(10);
/// How long a loop that failed waits before it begins again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Runs ticks until `shutdown`, then gives up its leases.
pub(crate) async fn run(plane: &ControlPlane, shutdown: &CancellationToken) {
    let mut scheduler = Scheduler::new(plane.clone());
    let mut bell = plane.bell(Bell::Queue);
    let mut clock_fault = None;
    while !shutdown.is_cancelled() {
        bell.mark_unchanged();
        let before = std::mem::replace(&mut clock_fault, plane.clock_fault());
        if let (None, Some(fault)) = (before, &clock_fault) {
            tracing::warn!("{fault}");
        }
        let ticked = AssertUnwindSafe(scheduler.tick()).catch_unwind().await;
        let fault = match ticked {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                plane.metrics().scheduler_failures.add(1);
                tracing::warn!(error = %error.chain(), "scheduler tick failed; it is tried again");
                Some(error.to_string())
            }
            Err(_) => {
                plane.metrics().scheduler_failures.add(1);
                tracing::error!("scheduler tick panicked; it is tried again");
                Some("it panicked; see the log".to_owned())
            }
        };
        let failed = fault.is_some();
        plane.set_scheduler_fault(fault);
        let pause = if failed { FAILURE_PAUSE } else { scheduler.pause().await };
        plane.clock().sleep(TICK_GAP).await;
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = bell.changed(), if !failed => {}
            () = plane.clock().sleep(pause) => {}
        }
    }
    scheduler.retire().await;
}

/// What one tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tick {
    /// Schedules that fired.
    pub fired: usize,
    /// Runs taken out of the queue.
    pub claimed: usize,
    /// Runs taken over from a process that is gone.
    pub reclaimed: usize,
    /// Runs that ended and were settled.
    pub settled: usize,
}

/// A run that this process drives.
#[derive(Clone, Debug)]
pub(crate) struct Driven {
    pub run: Run,
    pub fence: Fence,
}

/// One scheduler. [`ControlPlane::run`] runs one; tests and simulations tick their own.
#[derive(Debug)]
pub struct Scheduler {
    plane: ControlPlane,
    driven: BTreeMap<RunId, Driven>,
    /// Whose turn was when.
    served: BTreeMap<AccountId, u64>,
    turn: u64,
    /// When it last showed that it is there.
    seen_at: Option<Timestamp>,
    /// What the last look at the whole queue left to look at, and until when that will do.
    since: Option<(Since, Timestamp)>,
}

impl Scheduler {
    /// A scheduler that drives nothing yet.
    pub fn new(plane: ControlPlane) -> Self {
        Self {
            plane,
            driven: BTreeMap::new(),
            served: BTreeMap::new(),
            turn: 0,
            seen_at: None,
            since: None,
        }
    }

    /// Looks at everything once. See the module's text.
    ///
    /// # Errors
    /// The first that storage answered; what was done before stays done.
    pub async fn tick(&mut self) -> Result<Tick> {
        self.show().await?;
        let fired = self.fire_due().await?;
        let lost = self.renew().await?;
        for run in lost {
            if let Some(driven) = self.driven.remove(&run) {
                log_span(&driven.run).in_scope(|| tracing::info!("run was taken over by another scheduler"));
            }
        }
        let reclaimed = self.reclaim().await?;
        let claimed = self.admit().await?;
        let settled = self.drive().await;
        self.plane.metrics().ticked(self.driven.len(), self.plane.clock().now());
        Ok(Tick {
            fired,
            claimed,
            reclaimed,
            settled,
        })
    }

    /// How long nothing is due: until the next clock hand, and no longer than the poll interval.
    async fn pause(&self) -> Duration {
        let poll = self.plane.config().poll;
        match self.plane.schedules().next().await {
            Ok(Some(next)) => next.since(self.plane.clock().now()).min(poll),
            Ok(None) => poll,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "cannot tell when the next schedule is due");
                poll
            }
        }
    }

    async fn fire_due(&self) -> Result<usize> {
        let now = self.plane.clock().now();
        let mut due = self.plane.schedules().due(now, DUE_PAGE).await?;
        if due.is_empty() {
            return Ok(0);
        }
        // Every scheduler begins elsewhere, so that they seldom race for the same hand.
        let start = self
            .plane
            .config()
            .instance
            .bytes()
            .fold(0usize, |sum, byte| sum.wrapping_mul(31) + byte as usize);
        let length = due.len().max(1);
        due.rotate_left(start % length);
        let mut cache = Cache::default();
        cache.jobs(&self.plane, &due).await?;
        let accounts: BTreeMap<_, _> = due.iter().map(|entry| (entry.job, entry.account)).collect();
        let mut firings = Vec::with_capacity(due.len());
        for entry in due {
            let prepared = self.prepare(&entry, now, &mut cache).await;
            firings.extend(cannot_fire(entry.account, entry.job, prepared)?.flatten());
        }
        let mut fired = 0;
        for some in firings.chunks(FIRE_LIMIT) {
            match self.fire(some, now).await {
                Ok(count) => fired += count,
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                // One of them cannot be stored: the others fire without it.
                Err(_) => {
                    for one in some {
                        let count = self.fire(std::slice::from_ref(one), now).await;
                        fired += cannot_fire(accounts[&one.job], one.job, count)?.unwrap_or(0);
                    }
                }
            }
        }
        Ok(fired)
    }

    /// What one hand is to do: a run for the instant that is due, and on to the first instant after now.
    /// Instants that were missed meanwhile (the platform was down) are made up for by this one run.
    async fn prepare(&self, entry: &ScheduleEntry, now: Timestamp, cache: &mut Cache) -> Result<Option<Firing>> {
        let Some(seen) = entry.next_at else {
            return Ok(None);
        };
        let Some(job) = cache.job(entry)? else {
            let off = ScheduleEntry {
                next_at: None,
                job_version: u64::MAX >> 1,
                ..entry.clone()
            };
            self.plane.schedules().put(&off, now).await?;
            return Ok(None);
        };
        let Some(schedule) = job.active_schedule().filter(|_| job.version == entry.job_version) else {
            self.plane.set_hand(&job).await?;
            return Ok(None);
        };
        let next = schedule.next_after(seen.max(now));
        let mut trigger = Trigger::new(CauseCategory::Scheduled, "scheduled");
        trigger.traceparent = trace::Context::begin().map(|begun| begun.to_string());
        let account = cache.account(&self.plane, job.account).await?;
        let environment = cache.environment(&self.plane, job.account, job.environment).await?;
        let request = Request {
            account: &account,
            job: &job,
            environment: &environment,
            trigger: &trigger,
            scheduled_for: Some(seen),
            retry_of: None,
            due_at: seen,
        };
        let run = match request.compose() {
            Ok(run) => Some(run),
            Err(error) => {
                tracing::warn!(account_id = job.account.get(), job_id = job.id.get(), error = %error.chain(), "scheduled run cannot be made; instant passed over");
                None
            }
        };
        Ok(Some(Firing {
            job: job.id,
            seen,
            job_version: job.version,
            next,
            run,
        }))
    }

    /// Fires these at once; how many runs came of it.
    async fn fire(&self, firings: &[Firing], now: Timestamp) -> Result<usize> {
        let fired = self.plane.schedules().fire(firings, now).await?;
        let mut queued = 0;
        for (firing, fired) in firings.iter().zip(fired) {
            if let Fired::Queued(_) = fired {
                queued += 1;
                self.plane.metrics().dispatch_lag.observe(now.since(firing.seen));
            }
        }
        if queued > 0 {
            // They may have taken the places of others.
            self.plane.ring(Bell::Outbox);
        }
        Ok(queued)
    }

    /// Renews what it drives and learns where each run stands. Returns those that are another's now.
    async fn renew(&mut self) -> Result<Vec<RunId>> {
        if self.driven.is_empty() {
            return Ok(Vec::new());
        }
        let fences: Vec<Fence> = self.driven.values().map(|driven| driven.fence).collect();
        let until = self.plane.clock().now().plus(self.plane.config().lease);
        let mut renewed: BTreeMap<RunId, Run> = self
            .plane
            .runs()
            .renew(&fences, until)
            .await?
            .into_iter()
            .map(|r| (r.run.id, r.run))
            .collect();
        let mut lost = Vec::new();
        for (id, driven) in &mut self.driven {
            match renewed.remove(id) {
                Some(run) => driven.run = run,
                None => lost.push(*id),
            }
        }
        Ok(lost)
    }

    async fn reclaim(&mut self) -> Result<usize> {
        let room = self.room();
        if room == 0 {
            return Ok(0);
        }
        let now = self.plane.clock().now();
        let until = now.plus(self.plane.config().lease);
        let limit = u32::try_from(room).unwrap_or(u32::MAX);
        let claimed = self
            .plane
            .runs()
            .reclaim(&self.plane.owner(), now, until, limit)
            .await?;
        let count = claimed.len();
        for one in &claimed {
            log_span(&one.run).in_scope(|| tracing::info!(status = one.run.status.name(), "run taken over"));
        }
        self.take(claimed);
        Ok(count)
    }

    /// Looks at the queue, the whole of it as long as that is cheap: where something keeps the database from
    /// removing dead rows, from where on live ones were seen last, and at the whole more seldom.
    async fn look(&mut self, now: Timestamp) -> Result<QueueSnapshot> {
        let runs = self.plane.runs();
        if let Some((since, until)) = self.since
            && now < until
            && until.since(now) <= WHOLE_LOOK_EVERY
        {
            return runs.queue(now, WAITING_PER_ACCOUNT, Some(since)).await;
        }
        let snapshot = runs.queue(now, WAITING_PER_ACCOUNT, None).await?;
        let after = self.plane.clock().now();
        let pause = (after.since(now) * WHOLE_LOOKS).min(WHOLE_LOOK_EVERY);
        let due_at = snapshot.waiting.iter().map(|waiting| waiting.due_at).min();
        let ids = snapshot.waiting.iter().map(|waiting| waiting.run);
        let run = ids.chain(snapshot.busy.iter().map(|busy| busy.run)).min();
        let since = Since {
            due_at: due_at.unwrap_or(now).minus(COMES_LATE),
            run: run.unwrap_or(RunId::new(i64::MIN)),
        };
        self.since = Some((since, after.plus(pause)));
        Ok(snapshot)
    }

    async fn admit(&mut self) -> Result<usize> {
        let now = self.plane.clock().now();
        let snapshot = self.look(now).await?;
        let metrics = self.plane.metrics();
        if snapshot.waiting.is_empty() {
            metrics.waiting(std::iter::empty());
            return Ok(0);
        }
        let mut limits = Limits {
            slots: BTreeMap::new(),
            capacity: self.room(),
            served: self.served.clone(),
        };
        let mut cache = Cache::default();
        for waiting in &snapshot.waiting {
            if let std::collections::btree_map::Entry::Vacant(slots) = limits.slots.entry(waiting.account) {
                slots.insert(cache.account(&self.plane, waiting.account).await?.run_slots);
            }
        }
        let decision = admit(&snapshot, &limits);
        metrics.waiting(decision.refused.iter().map(|(_, reason)| *reason));
        if decision.admitted.is_empty() {
            return Ok(0);
        }
        let until = now.plus(self.plane.config().lease);
        let claimed = self
            .plane
            .runs()
            .claim(&self.plane.owner(), &decision.admitted, now, until)
            .await?;
        for one in &claimed {
            metrics.dequeued(&one.run);
        }
        let count = claimed.len();
        for one in &claimed {
            self.turn += 1;
            self.served.insert(one.run.new.account, self.turn);
        }
        if self.served.len() > TURNS_LIMIT {
            let old = self.turn.saturating_sub(TURNS_LIMIT as u64 / 2);
            self.served.retain(|_, turn| *turn > old);
        }
        self.take(claimed);
        Ok(count)
    }

    /// Shows from time to time that it is there. Cleanup forgets those that are gone.
    async fn show(&mut self) -> Result<()> {
        let (now, lease) = (self.plane.clock().now(), self.plane.config().lease);
        if self.seen_at.is_some_and(|seen| now.since(seen) < lease / 3) {
            return Ok(());
        }
        self.plane
            .leases()
            .acquire(&self.presence(), &self.plane.owner(), now, now.plus(lease * 2))
            .await?;
        self.seen_at = Some(now);
        Ok(())
    }

    fn presence(&self) -> String {
        format!("{PRESENCE}{}", self.plane.config().instance)
    }

    fn room(&self) -> usize {
        self.plane.config().run_capacity.saturating_sub(self.driven.len())
    }

    fn take(&mut self, claimed: Vec<Claimed>) {
        for Claimed { run, fence } in claimed {
            self.driven.insert(run.id, Driven { run, fence });
        }
    }

    /// Takes every driven run one step further. A failure concerns one run and is tried again.
    async fn drive(&mut self) -> usize {
        let plane = &self.plane;
        let steps: Vec<(RunId, tracing::Span, Result<Next>)> = futures::stream::iter(self.driven.values().cloned())
            .map(|driven| async move {
                let span = log_span(&driven.run);
                let step = driver::drive(plane, &driven).instrument(span.clone()).await;
                (driven.run.id, span, step)
            })
            .buffer_unordered(DRIVE_WIDTH)
            .collect()
            .await;
        let mut settled = 0;
        for (run, span, step) in steps {
            let _here = span.enter();
            match step {
                Ok(Next::Keep) => {}
                Ok(Next::Settled) => {
                    settled += 1;
                    self.driven.remove(&run);
                }
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    tracing::info!("run was taken over by another scheduler");
                    self.driven.remove(&run);
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tracing::debug!(error = %error.chain(), "run changed meanwhile; looked at again");
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "run cannot be driven now; tried again");
                }
            }
        }
        settled
    }

    /// Gives up all leases, so that another process may take over at once. Executions go on.
    pub async fn retire(&mut self) {
        let fences: Vec<Fence> = self.driven.values().map(|driven| driven.fence).collect();
        self.driven.clear();
        if self.seen_at.take().is_some()
            && let Err(error) = self.plane.leases().release(&self.presence(), &self.plane.owner()).await
        {
            tracing::warn!(error = %error.chain(), "the sign of this scheduler could not be taken away; it expires");
        }
        if fences.is_empty() {
            return;
        }
        if let Err(error) = self.plane.runs().release(&fences, self.plane.clock().now()).await {
            tracing::warn!(error = %error.chain(), "leases could not be given up; they expire");
        }
    }
}

/// Says that a schedule cannot fire, which concerns no other; that storage is away concerns all.
fn cannot_fire<T>(account: AccountId, job: JobId, done: Result<T>) -> Result<Option<T>> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
        Err(error) => {
            tracing::warn!(account_id = account.get(), job_id = job.get(), error = %error.chain(), "schedule cannot fire");
            Ok(None)
        }
    }
}

/// What one tick has read already.
#[derive(Default)]
struct Cache {
    jobs: BTreeMap<JobId, Row>,
    accounts: BTreeMap<AccountId, Record<Account>>,
    environments: BTreeMap<EnvironmentId, Record<Environment>>,
}

impl Cache {
    /// Reads the jobs of these hands, a page of an account at a time.
    async fn jobs(&mut self, plane: &ControlPlane, entries: &[ScheduleEntry]) -> Result<()> {
        let mut of_accounts: BTreeMap<AccountId, Vec<i64>> = BTreeMap::new();
        for entry in entries {
            of_accounts.entry(entry.account).or_default().push(entry.job.get());
        }
        for (account, ids) in of_accounts {
            for ids in ids.chunks(PAGE_LIMIT as usize) {
                let query = Query {
                    ids: Some(ids.to_vec()),
                    ..Query::new(Kind::Job, account)
                };
                let page = plane.catalog().list(&query, Page::default()).await?;
                self.jobs
                    .extend(page.items.into_iter().map(|row| (JobId::new(row.id), row)));
            }
        }
        Ok(())
    }

    /// The job of a hand; `None` when it is deleted.
    fn job(&mut self, entry: &ScheduleEntry) -> Result<Option<Record<Job>>> {
        self.jobs.remove(&entry.job).map(Record::try_from).transpose()
    }

    async fn account(&mut self, plane: &ControlPlane, id: AccountId) -> Result<Record<Account>> {
        if let Some(known) = self.accounts.get(&id) {
            return Ok(known.clone());
        }
        let record = plane.catalog().fetch::<Account>(id, id).await?;
        self.accounts.insert(id, record.clone());
        Ok(record)
    }

    async fn environment(
        &mut self,
        plane: &ControlPlane,
        account: AccountId,
        id: EnvironmentId,
    ) -> Result<Record<Environment>> {
        if let Some(known) = self.environments.get(&id) {
            return Ok(known.clone());
        }
        let record = plane.catalog().fetch::<Environment>(account, id).await?;
        if record.account != account {
            return Err(Error::not_found("environment", id));
        }
        self.environments.insert(id, record.clone());
        Ok(record)
    }
}
