use std::cmp::Ordering;

use async_trait::async_trait;
use dbtcloud_core::error::{Error, ErrorKind, Result};
use dbtcloud_core::id::{AccountId, JobId, RunId, StepId};
use dbtcloud_core::page::{Page, Paged};
use dbtcloud_core::ports::{
    Ack, Batch, Claimed, Enqueued, Event, Fence, Holder, Journal, Owner, Renewed, RunChange, RunFilter, RunPatch,
    RunRequest, RunSort, RunState, Runs, Since,
};
use dbtcloud_core::run::{Admission, Busy, NewRun, QueueSnapshot, Run, RunEvent, RunStatus, RunStep, Waiting};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::catalog::cut;
use super::state::{Mutation, State, StoredRun, check_text};

impl State {
    /// Whether the fence is the present driver's.
    fn holds(&self, stored: &StoredRun, fence: &Fence) -> bool {
        match fence.holder() {
            Holder::Driver { epoch } => epoch == stored.epoch || self.breaks(Mutation::IgnoreFence),
            Holder::Agent { .. } => false,
        }
    }

    /// What executes and is so.
    fn busy(&self, which: impl Fn(&Run) -> bool) -> Vec<Busy> {
        let live = self.runs.values().filter(|stored| stored.run.status.is_live());
        live.filter(|stored| which(&stored.run))
            .map(|stored| Busy {
                run: stored.run.id,
                account: stored.run.new.account,
                job: stored.run.new.job,
                exclusive: stored.run.new.exclusive,
                slot: stored.slot,
            })
            .collect()
    }

    fn of_request(&self, account: AccountId, request: &RunRequest, now: Timestamp) -> Result<Option<Run>> {
        let known = self.requests.get(&(account, request.key));
        let known = known.filter(|(known, _)| known.until > now && !self.breaks(Mutation::ForgetRequests));
        let Some((known, run)) = known.and_then(|(known, run)| Some((known, self.runs.get(run)?))) else {
            return Ok(None);
        };
        if known.asked != request.asked && !self.breaks(Mutation::IgnoreRequests) {
            return Err(used_otherwise(run.run.id));
        }
        Ok(Some(run.run.clone()))
    }

    fn may_start(&self, stored: &StoredRun, slot: Option<u32>) -> bool {
        let run = &stored.run.new;
        let mut live = self.runs.values().filter(|other| other.run.status.is_live());
        stored.run.status == RunStatus::Queued
            && !live.any(|other| {
                let new = &other.run.new;
                let same_slot = slot.is_some() && other.slot == slot && new.account == run.account;
                let same_job = run.exclusive && new.exclusive && new.job == run.job;
                same_slot && !self.breaks(Mutation::IgnoreSlots) || same_job && !self.breaks(Mutation::IgnoreExclusive)
            })
    }
}

fn used_otherwise(run: RunId) -> Error {
    let text = format!("the key was used for another request, which queued run {run}");
    Error::new(ErrorKind::AlreadyExists, text)
}

fn waiting(run: &Run) -> Waiting {
    Waiting {
        run: run.id,
        account: run.new.account,
        job: run.new.job,
        due_at: run.new.due_at,
        exclusive: run.new.exclusive,
        takes_slot: run.new.takes_slot,
    }
}

fn driver(stored: &StoredRun) -> Claimed {
    Claimed {
        run: stored.run.clone(),
        fence: Fence::issue(stored.run.id, Holder::Driver { epoch: stored.epoch }),
    }
}

fn matches(filter: &RunFilter, run: &Run) -> bool {
    let within = |span: (Timestamp, Timestamp), at: Timestamp| span.0 <= at && at <= span.1;
    filter
        .projects
        .as_ref()
        .is_none_or(|list| list.contains(&run.new.project))
        && filter.environment.is_none_or(|id| run.new.environment == id)
        && filter.job.is_none_or(|id| run.new.job == id)
        && filter.statuses.as_ref().is_none_or(|list| list.contains(&run.status))
        && filter.ids.as_ref().is_none_or(|list| list.contains(&run.id))
        && filter.id_above.is_none_or(|id| run.id > id)
        && filter.created_within.is_none_or(|span| within(span, run.created_at))
        && filter
            .finished_within
            .is_none_or(|span| run.finished_at.is_some_and(|at| within(span, at)))
        && filter.has_docs.is_none_or(|has| run.has_docs == has)
        && filter.has_sources.is_none_or(|has| run.has_sources == has)
}

fn order(sort: RunSort, a: &Run, b: &Run) -> Ordering {
    let by_key = match sort {
        RunSort::Id => Ordering::Equal,
        RunSort::CreatedAt => a.created_at.cmp(&b.created_at),
        // `None` last: it compares as less, so its absence is compared first.
        RunSort::FinishedAt => (a.finished_at.is_none(), a.finished_at).cmp(&(b.finished_at.is_none(), b.finished_at)),
    };
    by_key.then(a.id.cmp(&b.id))
}

#[async_trait]
impl Runs for MemoryStorage {
    async fn enqueue(&self, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
        self.lock().enqueue(new, now)
    }

    async fn enqueue_for(&self, new: &NewRun, request: &RunRequest, now: Timestamp) -> Result<Enqueued> {
        let mut state = self.lock();
        if let Some(run) = state.of_request(new.account, request, now)? {
            return Ok(Enqueued::Existing(run));
        }
        let queued = state.enqueue(new, now)?;
        let run = queued.clone().into_run().id;
        state.requests.insert((new.account, request.key), (*request, run));
        Ok(queued)
    }

    async fn of_request(&self, account: AccountId, request: &RunRequest, now: Timestamp) -> Result<Option<Run>> {
        self.lock().of_request(account, request, now)
    }

    async fn purge_requests(&self, before: Timestamp, limit: u32) -> Result<u64> {
        let mut left = limit;
        self.lock().requests.retain(|_, (request, _)| {
            let goes = left > 0 && request.until < before;
            left -= u32::from(goes);
            !goes
        });
        Ok(u64::from(limit - left))
    }

    async fn old_requests(&self, before: Timestamp) -> Result<u64> {
        let state = self.lock();
        let old = state.requests.values().filter(|(request, _)| request.until < before);
        Ok(old.count() as u64)
    }

    async fn get(&self, account: AccountId, id: RunId) -> Result<Run> {
        Ok(self.lock().run_of(account, id)?.run.clone())
    }

    async fn list(&self, account: AccountId, filter: &RunFilter, page: Page) -> Result<Paged<Run>> {
        let state = self.lock();
        let own = state
            .runs
            .values()
            .map(|stored| &stored.run)
            .filter(|run| run.new.account == account || state.breaks(Mutation::ShowOthers));
        let mut runs: Vec<Run> = own.filter(|run| matches(filter, run)).cloned().collect();
        runs.sort_by(|a, b| order(filter.sort, a, b));
        Ok(cut(runs, filter.direction, page))
    }

    async fn newest(&self, account: AccountId, jobs: &[JobId]) -> Result<Vec<Run>> {
        let state = self.lock();
        let mut newest = std::collections::BTreeMap::new();
        for stored in state.runs.values() {
            if stored.run.new.account == account && jobs.contains(&stored.run.new.job) {
                newest.insert(stored.run.new.job, stored.run.clone());
            }
        }
        Ok(newest.into_values().collect())
    }

    async fn states(&self, ids: &[RunId]) -> Result<Vec<RunState>> {
        let state = self.lock();
        let known = ids.iter().filter_map(|id| state.runs.get(id)).map(|stored| &stored.run);
        Ok(known
            .map(|run| RunState {
                run: run.id,
                status: run.status,
                attempt: run.attempt,
            })
            .collect())
    }

    async fn steps(&self, account: AccountId, run: RunId) -> Result<Vec<RunStep>> {
        Ok(self
            .lock()
            .run_of(account, run)?
            .steps
            .values()
            .map(|stored| stored.step.clone())
            .collect())
    }

    async fn step(&self, account: AccountId, step: StepId) -> Result<RunStep> {
        let state = self.lock();
        let own = state.runs.values().filter(|stored| stored.run.new.account == account);
        let found = own
            .flat_map(|stored| stored.steps.values())
            .find(|stored| stored.step.id == step);
        found
            .map(|stored| stored.step.clone())
            .ok_or_else(|| Error::not_found("step", step))
    }

    async fn queue(&self, now: Timestamp, per_account: u32, since: Option<Since>) -> Result<QueueSnapshot> {
        let state = self.lock();
        let since = since.filter(|_| !state.breaks(Mutation::IgnoreSince));
        let mut due: Vec<&Run> = state
            .runs
            .values()
            .map(|stored| &stored.run)
            .filter(|run| run.status == RunStatus::Queued && run.new.due_at <= now)
            .collect();
        due.sort_by_key(|run| (run.new.due_at, run.id));
        let busy_job = |run: &Run| {
            let mut live = state.runs.values().filter(|other| other.run.status.is_live());
            run.new.exclusive && live.any(|other| other.run.new.exclusive && other.run.new.job == run.new.job)
        };
        due.retain(|run| !busy_job(run) && since.is_none_or(|since| run.new.due_at >= since.due_at));
        let mut counts = std::collections::BTreeMap::<(AccountId, bool), u32>::new();
        due.retain(|run| {
            let count = counts.entry((run.new.account, run.new.takes_slot)).or_default();
            *count += 1;
            *count <= per_account
        });
        Ok(QueueSnapshot {
            waiting: due.into_iter().map(waiting).collect(),
            busy: state.busy(|run| since.is_none_or(|since| run.id >= since.run)),
        })
    }

    async fn queue_of(&self, account: AccountId, limit: u32) -> Result<QueueSnapshot> {
        let state = self.lock();
        let runs = state.runs.values().map(|stored| &stored.run);
        let mut queued: Vec<&Run> = runs
            .filter(|run| run.new.account == account && run.status == RunStatus::Queued)
            .collect();
        queued.sort_by_key(|run| (run.new.due_at, run.id));
        queued.truncate(limit as usize);
        Ok(QueueSnapshot {
            waiting: queued.into_iter().map(waiting).collect(),
            busy: state.busy(|run| run.new.account == account),
        })
    }

    async fn queued(&self, account: AccountId) -> Result<u64> {
        let state = self.lock();
        let runs = state.runs.values().map(|stored| &stored.run);
        Ok(runs
            .filter(|run| run.new.account == account && run.status == RunStatus::Queued)
            .count() as u64)
    }

    async fn claim(
        &self,
        _owner: &Owner,
        admissions: &[Admission],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>> {
        let mut state = self.lock();
        let mut claimed = Vec::new();
        for admission in admissions {
            let Some(mut stored) = state.runs.get(&admission.run).cloned() else {
                continue;
            };
            if !state.may_start(&stored, admission.slot) {
                continue;
            }
            stored.epoch += 1;
            stored.run.attempt += 1;
            stored.run.dequeued_at = Some(now);
            stored.taken = 0;
            stored.slot = admission.slot;
            stored.lease_until = Some(until);
            state.advance(
                &mut stored,
                RunStatus::Starting,
                RunEvent::Admitted,
                &RunPatch::default(),
                now,
            );
            claimed.push(driver(&stored));
            state.runs.insert(admission.run, stored);
        }
        Ok(claimed)
    }

    async fn reclaim(&self, _owner: &Owner, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Claimed>> {
        let mut state = self.lock();
        let expired = |stored: &&mut StoredRun| {
            stored.run.status.is_live() && stored.lease_until.is_some_and(|lease| lease <= now)
        };
        let mut overtaken: Vec<&mut StoredRun> = state.runs.values_mut().filter(expired).collect();
        overtaken.sort_by_key(|stored| (stored.lease_until, stored.run.id));
        overtaken.truncate(limit as usize);
        let take = |stored: &mut StoredRun| {
            stored.epoch += 1;
            stored.lease_until = Some(until);
            driver(stored)
        };
        Ok(overtaken.into_iter().map(take).collect())
    }

    async fn renew(&self, fences: &[Fence], until: Timestamp) -> Result<Vec<Renewed>> {
        let mut state = self.lock();
        let mut renewed = Vec::new();
        for fence in fences {
            let Some(mut stored) = state.runs.get(&fence.run()).cloned() else {
                continue;
            };
            if !state.holds(&stored, fence) || stored.run.status == RunStatus::Queued {
                continue;
            }
            if stored.run.status.is_live() {
                stored.lease_until = Some(until);
            }
            renewed.push(Renewed {
                run: stored.run.clone(),
            });
            state.runs.insert(fence.run(), stored);
        }
        Ok(renewed)
    }

    async fn release(&self, fences: &[Fence], now: Timestamp) -> Result<()> {
        let mut state = self.lock();
        for fence in fences {
            let Some(mut stored) = state.runs.get(&fence.run()).cloned() else {
                continue;
            };
            if state.holds(&stored, fence) && stored.run.status.is_live() {
                stored.lease_until = Some(now);
                state.runs.insert(fence.run(), stored);
            }
        }
        Ok(())
    }

    async fn change(&self, fence: &Fence, change: &RunChange) -> Result<Run> {
        check_text("patch", &change.patch)?;
        let mut state = self.lock();
        let mut stored = state
            .runs
            .get(&fence.run())
            .cloned()
            .ok_or_else(|| Error::not_found("run", fence.run()))?;
        if !state.holds(&stored, fence) {
            return Err(Error::fenced(format!("run {} has another driver", fence.run())));
        }
        let status = stored.run.status;
        if status != change.from() && !state.breaks(Mutation::IgnoreFrom) {
            if status.is_terminal() && status == change.to() {
                return Ok(stored.run);
            }
            return Err(Error::conflict(format!(
                "run {} is {}, not {}",
                fence.run(),
                status.name(),
                change.from().name()
            )));
        }
        state.advance(&mut stored, change.to(), change.event(), &change.patch, change.at);
        let run = stored.run.clone();
        state.runs.insert(run.id, stored);
        Ok(run)
    }

    async fn request_cancel(&self, account: AccountId, id: RunId, message: &str, now: Timestamp) -> Result<Run> {
        check_text("message", &message)?;
        let mut state = self.lock();
        let mut stored = state.run_of(account, id)?.clone();
        let to = stored.run.status.apply(RunEvent::CancelRequested)?;
        if to != stored.run.status {
            state.advance(
                &mut stored,
                to,
                RunEvent::CancelRequested,
                &RunPatch::message(message),
                now,
            );
            state.runs.insert(id, stored.clone());
        }
        Ok(stored.run)
    }

    async fn report(&self, fence: &Fence, batch: &Batch) -> Result<Ack> {
        self.lock().report(fence, batch)
    }
}

#[async_trait]
impl Journal for MemoryStorage {
    async fn of_run(&self, account: AccountId, run: RunId, after: u64, limit: u32) -> Result<Vec<Event>> {
        let state = self.lock();
        let events = state.run_of(account, run)?.journal.iter();
        Ok(events
            .filter(|event| event.sequence > after)
            .take(limit as usize)
            .cloned()
            .collect())
    }
}
