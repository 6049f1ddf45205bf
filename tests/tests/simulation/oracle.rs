//! Who watches the rules of a simulation: after every call that can break one, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dbtcloud_contract::memory::MemoryStorage;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{EventBody, ExecutionId, Journal, RunFilter, Runs};
use dbtcloud_core::run::{Month, Run, RunEvent, RunStatus, StepStatus};
use dbtcloud_core::{Page, Timestamp};
use dbtcloud_runtime::ControlPlane;
use futures::FutureExt as _;

use crate::agent::printed;
use crate::engine::Sim;
use crate::world::START;

/// Runs that a page of a list has.
const PAGE: u32 = 100;
/// Later than any simulation.
const NEVER: Timestamp = Timestamp::from_micros(i64::MAX / 2);

/// A run as it was when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ended {
    status: RunStatus,
    message: Option<String>,
    finished_at: Option<Timestamp>,
    steps: Vec<(u32, StepStatus, u64)>,
}

#[derive(Default)]
struct State {
    accounts: Vec<(AccountId, u32)>,
    /// Runs that are known to exist, and how those ended that did.
    runs: BTreeMap<RunId, Option<Ended>>,
    /// Runs whose queueing was acknowledged.
    promised: BTreeSet<(AccountId, RunId)>,
    /// Log bytes that an agent knows were taken in.
    heard: BTreeMap<(RunId, u32), u64>,
    /// Runs whose agent knows that its outcome was taken in.
    delivered: BTreeSet<RunId>,
    /// Agents that work, by execution and by which start of it.
    working: BTreeMap<ExecutionId, usize>,
    /// Executions for which some agent got the plan.
    worked: BTreeSet<ExecutionId>,
    /// In the order in which they were claimed.
    claims: Vec<(AccountId, RunId)>,
    live: BTreeSet<RunId>,
}

/// Watches.
pub struct Oracle {
    sim: Sim,
    storage: MemoryStorage,
    state: Mutex<State>,
}

/// What a store in memory answers: at once.
fn at_once<T>(answer: impl Future<Output = dbtcloud_core::Result<T>>) -> T {
    answer
        .now_or_never()
        .expect("memory answers at once")
        .expect("memory does not fail")
}

impl Oracle {
    /// An oracle over what is really stored.
    pub fn new(sim: Sim, storage: MemoryStorage) -> Self {
        Self {
            sim,
            storage,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches an account with so many slots.
    pub fn watch(&self, account: AccountId, slots: u32) {
        self.lock().accounts.push((account, slots));
    }

    /// Somebody was told that a run is queued.
    pub fn promise(&self, run: &Run) {
        self.lock().promised.insert((run.new.account, run.id));
    }

    /// An agent was told that a step's log is taken in up to here.
    pub fn heard(&self, run: RunId, step: u32, length: u64) {
        self.lock().heard.insert((run, step), length);
    }

    /// An agent was told that its outcome is taken in.
    pub fn delivered(&self, run: RunId) {
        self.lock().delivered.insert(run);
    }

    /// An agent got its plan and begins to work.
    pub fn works(&self, id: ExecutionId, start: usize) {
        let mut state = self.lock();
        if !state.worked.insert(id) {
            self.sim.accuse(format_args!("a second agent works as {id}"));
        }
        let other = state.working.insert(id, start);
        if let Some(other) = other.filter(|other| *other != start) {
            self.sim
                .accuse(format_args!("two agents work as {id}: {other} and {start}"));
        }
    }

    /// An agent does not work any more.
    pub fn leaves(&self, id: ExecutionId, start: usize) {
        let mut state = self.lock();
        if state.working.get(&id) == Some(&start) {
            state.working.remove(&id);
        }
    }

    /// Which runs were claimed, in order.
    pub fn claims(&self) -> Vec<(AccountId, RunId)> {
        self.lock().claims.clone()
    }

    /// Looks after a call has happened.
    pub fn look(&self, call: &str) {
        match call {
            "runs.claim" => self.look_at_slots(),
            "runs.report" | "runs.change" | "runs.request_cancel" => self.look_at_ends(),
            _ => {}
        }
    }

    /// Slots are never exceeded, none is held twice, and no exclusive job executes twice.
    fn look_at_slots(&self) {
        let busy = at_once(self.storage.queue(NEVER, 1, None)).busy;
        let mut state = self.lock();
        for (account, slots) in &state.accounts {
            let held: Vec<u32> = busy
                .iter()
                .filter(|one| one.account == *account)
                .filter_map(|one| one.slot)
                .collect();
            let distinct: BTreeSet<&u32> = held.iter().collect();
            if distinct.len() < held.len() || held.iter().any(|slot| slot >= slots) {
                self.sim
                    .accuse(format_args!("account {account} has {slots} slots, held are {held:?}"));
            }
        }
        let mut jobs = BTreeSet::new();
        for one in busy.iter().filter(|one| one.exclusive) {
            if !jobs.insert(one.job) {
                self.sim.accuse(format_args!("job {} executes twice", one.job));
            }
        }
        let live: BTreeSet<RunId> = busy.iter().map(|one| one.run).collect();
        let new = busy.iter().filter(|one| !state.live.contains(&one.run));
        let new: Vec<_> = new.map(|one| (one.account, one.run)).collect();
        state.claims.extend(new);
        state.live = live;
    }

    /// Terminal is terminal: what a run was when it ended it stays.
    fn look_at_ends(&self) {
        let mut state = self.lock();
        let open = state.runs.iter().filter(|(_, ended)| ended.is_none());
        let mut ids: Vec<RunId> = open.map(|(run, _)| *run).collect();
        // Memory numbers runs without a gap, and no story leaves its month.
        let next = |known: usize| Month::of(START).run_id(known as u64 + 1);
        while let [one] = at_once(self.storage.states(&[next(state.runs.len())])).as_slice() {
            state.runs.insert(one.run, None);
            ids.push(one.run);
        }
        for one in at_once(self.storage.states(&ids)) {
            if one.status.is_terminal() {
                let ended = self.ended(&state, one.run);
                self.sim.tell(format_args!("run {} ended {:?}", one.run, one.status));
                state.runs.insert(one.run, ended);
            }
        }
    }

    fn ended(&self, state: &State, id: RunId) -> Option<Ended> {
        let found = state.accounts.iter().find_map(|(account, _)| {
            let run = self.storage.get(*account, id).now_or_never()?.ok()?;
            Some((run, at_once(self.storage.steps(*account, id))))
        });
        let (run, steps) = found?;
        Some(Ended {
            status: run.status,
            message: run.message,
            finished_at: run.finished_at,
            steps: steps
                .iter()
                .map(|step| (step.state.index, step.state.status, step.log_bytes))
                .collect(),
        })
    }

    fn all(&self, account: AccountId) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        loop {
            let offset = u32::try_from(runs.len()).unwrap_or(u32::MAX);
            let page = at_once(
                self.storage
                    .list(account, &RunFilter::default(), Page::new(PAGE, offset)),
            );
            runs.extend(page.items);
            if runs.len() as u64 >= page.total {
                return runs;
            }
        }
    }

    /// How many runs there are that have not ended, or whose logs have not been moved.
    pub fn unsettled(&self) -> usize {
        let accounts = self.lock().accounts.clone();
        let open = accounts.iter().flat_map(|(account, _)| self.all(*account));
        open.filter(|run| !run.status.is_terminal()).count()
    }

    /// Everything that must hold when the storm is over. How many runs there were.
    pub async fn settle(&self, eye: &ControlPlane) -> usize {
        self.look_at_ends();
        let accounts = self.lock().accounts.clone();
        let mut count = 0;
        for (account, _) in accounts {
            let runs = self.all(account);
            count += runs.len();
            let ids: BTreeSet<RunId> = runs.iter().map(|run| run.id).collect();
            let promised = self.lock().promised.clone();
            for (_, run) in promised.iter().filter(|(of, _)| *of == account) {
                if !ids.contains(run) {
                    self.sim.accuse(format_args!("run {run} was acknowledged and is lost"));
                }
            }
            let (mut instants, mut asked) = (BTreeSet::new(), BTreeSet::new());
            for run in &runs {
                let cause = &run.new.trigger.cause;
                if cause.starts_with("somebody at ") && !asked.insert((run.new.job, cause)) {
                    self.sim.accuse(format_args!(
                        "job {} has two runs for one request: {cause}",
                        run.new.job
                    ));
                }
                if let Some(at) = run.new.scheduled_for
                    && !instants.insert((run.new.job, at))
                {
                    self.sim
                        .accuse(format_args!("job {} has two runs for {at}", run.new.job));
                }
                self.settle_run(eye, run).await;
            }
        }
        count
    }

    async fn settle_run(&self, eye: &ControlPlane, run: &Run) {
        let (id, account) = (run.id, run.new.account);
        if !run.status.is_terminal() {
            self.sim.accuse(format_args!("run {id} is {:?} for good", run.status));
        }
        let (then, now, heard, delivered) = {
            let state = self.lock();
            let then = state.runs.get(&id).cloned().flatten();
            let delivered = state.delivered.contains(&id);
            (then, self.ended(&state, id), state.heard.clone(), delivered)
        };
        if then != now {
            self.sim
                .accuse(format_args!("run {id} ended as {then:?} and is {now:?}"));
        }
        self.settle_journal(run);
        for step in at_once(self.storage.steps(account, id)) {
            let (index, length) = (step.state.index, step.log_bytes);
            let said = heard.get(&(id, index)).copied().unwrap_or(0);
            if length < said || delivered && length != said {
                self.sim.accuse(format_args!(
                    "run {id} step {index}: {length} bytes, {said} were acknowledged"
                ));
            }
            let page = eye.step_log(account, &step, 0, u32::MAX).await;
            let right = page
                .as_ref()
                .is_ok_and(|page| page.bytes == printed(id.get(), index, 0, length));
            if !right {
                let got = page.map(|page| page.bytes.len());
                let what = format!("run {id} step {index}: expected {length} bytes as printed, read {got:?}");
                self.sim.accuse(what);
            }
        }
    }

    /// The journal tells the whole way of a run, in order, and each step of the way is legal.
    fn settle_journal(&self, run: &Run) {
        let events = at_once(self.storage.of_run(run.new.account, run.id, 0, u32::MAX));
        let (mut last, mut status) = (0, None::<RunStatus>);
        for event in events {
            if event.sequence <= last {
                self.sim
                    .accuse(format_args!("run {}: event {} after {last}", run.id, event.sequence));
            }
            last = event.sequence;
            let EventBody::Run { status: next, .. } = event.body else {
                continue;
            };
            let legal = match status {
                None => next == RunStatus::Queued,
                Some(from) => RunEvent::ALL.iter().any(|event| from.apply(*event).ok() == Some(next)),
            };
            if !legal {
                self.sim
                    .accuse(format_args!("run {} went from {status:?} to {next:?}", run.id));
            }
            status = Some(next);
        }
        if status != Some(run.status) {
            self.sim.accuse(format_args!(
                "run {} is {:?}, its journal says {status:?}",
                run.id, run.status
            ));
        }
    }
}
