//! What the storage holds, and the rules that more than one port needs.

use std::collections::BTreeMap;

use dbtcloud_core::audit::{Action, Entry, Logged, Subject};
use dbtcloud_core::catalog::{Kind, Row};
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, JobId, RunId, SessionId, StepId};
use dbtcloud_core::ports::{
    Consumer, Digest, DispatchId, Dispatched, Enqueued, Event, EventBody, Owner, RunPatch, RunRequest, ScheduleEntry,
    TicketIssue,
};
use dbtcloud_core::run::{Month, NewRun, Run, RunEvent, RunStatus, RunStep, StepState};
use dbtcloud_core::session::Session;
use dbtcloud_core::time::Timestamp;
use serde::Serialize;

/// A rule that is broken on purpose, to prove that the suite notices.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Epochs and attempts are not compared.
    IgnoreFence,
    /// A slot can be held twice.
    IgnoreSlots,
    /// Exclusive runs of one job run together.
    IgnoreExclusive,
    /// A job can have two runs for one instant.
    ForgetInstants,
    /// A report that was taken in is taken in again.
    AcceptTwice,
    /// A report that was taken in before is answered as if it were new.
    CountTwice,
    /// A report is taken in although one before it is missing.
    AcceptGaps,
    /// A refused report leaves its first half behind.
    KeepHalves,
    /// Log bytes go to the end wherever they begin.
    IgnoreOffsets,
    /// Runs are shown to other accounts.
    ShowOthers,
    /// A change of a run does not look at the status it was made for.
    IgnoreFrom,
    /// Catalog versions are not compared.
    IgnoreVersions,
    /// Lookups are not unique.
    IgnoreLookups,
    /// Changes of a run's status are not written to the journal.
    KeepSilent,
    /// A ticket binds to every key that comes.
    IgnoreKeys,
    /// Expired tickets are redeemed.
    IgnoreExpiry,
    /// A hand fires wherever it stands.
    IgnoreHands,
    /// A look at the queue begins at the beginning.
    IgnoreSince,
    /// Of schedules that fire together some fire though one cannot.
    FireHalf,
    /// A lease is given to whoever asks.
    ShareLeases,
    /// A second session is opened beside the first.
    OpenTwice,
    /// A move of a log does not look at what there is of it.
    DropLogs,
    /// A change of a run's status is written to the journal and to no consumer.
    ForgetConsumers,
    /// A delivery that was taken is offered to the next caller.
    OfferTwice,
    /// Deliveries of one run are offered side by side.
    IgnoreOrder,
    /// Every bell rings as the first one.
    MixBells,
    /// A new run takes nobody's place.
    IgnoreLines,
    /// Retention forgets runs that have not ended.
    ForgetLive,
    /// What hangs on a forgotten run outlives it.
    KeepTickets,
    /// Parts of runs that execute expire.
    ExpireLive,
    /// Retention does not look at when a run ended.
    IgnoreEnds,
    /// Sessions that have not ended are forgotten.
    ForgetOpen,
    /// A dispatch that was taken is offered to the next caller.
    SendTwice,
    /// Of one addressee any number is sent at one time.
    CrowdOut,
    /// What is on its way to others is shown.
    ShowDispatches,
    /// Changes are made and nobody knows by whom.
    ForgetWho,
    /// Entries of the audit log are shown to other accounts.
    ShowEntries,
    /// Where a run is to execute is forgotten when it is queued.
    ForgetPlacement,
    /// A request that is made again queues again.
    ForgetRequests,
    /// A key answers with its run whatever is asked for.
    IgnoreRequests,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 40] = [
        Self::IgnoreFence,
        Self::IgnoreSlots,
        Self::IgnoreExclusive,
        Self::ForgetInstants,
        Self::AcceptTwice,
        Self::CountTwice,
        Self::AcceptGaps,
        Self::KeepHalves,
        Self::IgnoreOffsets,
        Self::ShowOthers,
        Self::IgnoreFrom,
        Self::IgnoreVersions,
        Self::IgnoreLookups,
        Self::KeepSilent,
        Self::IgnoreKeys,
        Self::IgnoreExpiry,
        Self::IgnoreHands,
        Self::IgnoreSince,
        Self::FireHalf,
        Self::ShareLeases,
        Self::OpenTwice,
        Self::DropLogs,
        Self::ForgetConsumers,
        Self::OfferTwice,
        Self::IgnoreOrder,
        Self::MixBells,
        Self::IgnoreLines,
        Self::ForgetLive,
        Self::KeepTickets,
        Self::ExpireLive,
        Self::IgnoreEnds,
        Self::ForgetOpen,
        Self::SendTwice,
        Self::CrowdOut,
        Self::ShowDispatches,
        Self::ForgetWho,
        Self::ShowEntries,
        Self::ForgetPlacement,
        Self::ForgetRequests,
        Self::IgnoreRequests,
    ];
}

#[derive(Default)]
pub(super) struct State {
    pub(super) mutation: Option<Mutation>,
    pub(super) catalog: BTreeMap<(Kind, i64), Row>,
    pub(super) catalog_ids: BTreeMap<Kind, i64>,
    pub(super) runs: BTreeMap<RunId, StoredRun>,
    pub(super) counters: Counters,
    pub(super) schedules: BTreeMap<JobId, ScheduleEntry>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) leases: BTreeMap<String, StoredLease>,
    pub(super) tickets: BTreeMap<Digest, TicketIssue>,
    /// Which attempt a key stands for. An attempt has at most one.
    pub(super) keys: BTreeMap<Digest, (RunId, u32)>,
    /// Requests by account and key, and what each queued.
    pub(super) requests: BTreeMap<(AccountId, Digest), (RunRequest, RunId)>,
    /// Who changed what, in the order of the changes.
    pub(super) audit: Vec<Logged>,
    /// What is to be sent and what was, and when each is due.
    pub(super) dispatches: BTreeMap<DispatchId, (Dispatched, Timestamp)>,
}

/// The last number given out of each series.
#[derive(Default)]
pub(super) struct Counters {
    run: u64,
    step: i64,
    session: i64,
    sequence: u64,
    pub(super) audit: i64,
}

impl Counters {
    pub(super) fn step(&mut self) -> StepId {
        self.step += 1;
        StepId::new(self.step)
    }

    pub(super) fn session(&mut self) -> SessionId {
        self.session += 1;
        SessionId::new(self.session)
    }
}

#[derive(Clone)]
pub(super) struct StoredDelivery {
    pub(super) due_at: Timestamp,
    pub(super) tries: u32,
}

pub(super) struct StoredLease {
    /// Who has it, or had it last.
    pub(super) owner: Owner,
    /// `None` once it was given up.
    pub(super) until: Option<Timestamp>,
    pub(super) term: u64,
}

#[derive(Clone)]
pub(super) struct StoredRun {
    pub(super) run: Run,
    pub(super) epoch: u64,
    /// Present while the run is live.
    pub(super) lease_until: Option<Timestamp>,
    pub(super) slot: Option<u32>,
    /// The highest report of this attempt that was taken in.
    pub(super) taken: u64,
    /// Whether the report of its agent ended it.
    pub(super) ended_by_agent: bool,
    pub(super) steps: BTreeMap<u32, StoredStep>,
    pub(super) journal: Vec<Event>,
    /// Which events of the journal a consumer has still to be told.
    pub(super) deliveries: BTreeMap<(Consumer, u64), StoredDelivery>,
}

#[derive(Clone)]
pub(super) struct StoredStep {
    pub(super) step: RunStep,
    /// The bytes from `log_first` on.
    pub(super) log: Vec<u8>,
}

impl State {
    pub(super) fn breaks(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The run, if it is in the account.
    pub(super) fn run_of(&self, account: AccountId, id: RunId) -> Result<&StoredRun> {
        self.runs
            .get(&id)
            .filter(|stored| stored.run.new.account == account || self.breaks(Mutation::ShowOthers))
            .ok_or_else(|| Error::not_found("run", id))
    }

    /// What [`Runs::enqueue`](dbtcloud_core::ports::Runs::enqueue) and the firing of a schedule share.
    pub(super) fn enqueue(&mut self, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
        check_new(new)?;
        let same = |stored: &&StoredRun| {
            new.scheduled_for.is_some()
                && stored.run.new.job == new.job
                && stored.run.new.scheduled_for == new.scheduled_for
        };
        if let Some(existing) = self
            .runs
            .values()
            .find(same)
            .filter(|_| !self.breaks(Mutation::ForgetInstants))
        {
            return Ok(Enqueued::Existing(existing.run.clone()));
        }
        self.counters.run += 1;
        let mut run = Run::queued(Month::of(now).run_id(self.counters.run), new.clone(), now);
        if self.breaks(Mutation::ForgetPlacement) {
            run.new.spec.placement = Default::default();
        }
        let mut stored = StoredRun {
            run: run.clone(),
            epoch: 0,
            lease_until: None,
            slot: None,
            taken: 0,
            ended_by_agent: false,
            steps: BTreeMap::new(),
            journal: Vec::new(),
            deliveries: BTreeMap::new(),
        };
        self.tell(
            &mut stored,
            now,
            EventBody::Run {
                status: RunStatus::Queued,
                message: None,
            },
        );
        if !new.trigger.by.is_system() {
            self.audit(Entry {
                account: new.account,
                at: now,
                by: new.trigger.by.clone(),
                action: Action::Triggered,
                subject: Subject::Run,
                id: run.id.get(),
                name: new.trigger.cause.clone(),
                project: Some(new.project),
            });
        }
        self.supersede(&run, now);
        self.runs.insert(run.id, stored);
        Ok(Enqueued::Created(run))
    }

    /// Cancels the runs whose place a new one takes.
    fn supersede(&mut self, newer: &Run, now: Timestamp) {
        let Some(line) = newer.new.trigger.line().filter(|_| !self.breaks(Mutation::IgnoreLines)) else {
            return;
        };
        let older = |stored: &&StoredRun| {
            let run = &stored.run;
            let same = run.new.job == newer.new.job && run.new.trigger.line() == Some(line);
            same && line.supersedes(run.status)
        };
        for mut stored in self.runs.values().filter(older).cloned().collect::<Vec<_>>() {
            let Ok(to) = stored.run.status.apply(RunEvent::CancelRequested) else {
                continue;
            };
            let patch = RunPatch::message(line.message(newer.id));
            self.advance(&mut stored, to, RunEvent::CancelRequested, &patch, now);
            self.runs.insert(stored.run.id, stored);
        }
    }

    /// Writes the journal.
    pub(super) fn tell(&mut self, stored: &mut StoredRun, at: Timestamp, body: EventBody) {
        if self.breaks(Mutation::KeepSilent) {
            return;
        }
        self.counters.sequence += 1;
        let event = Event {
            sequence: self.counters.sequence,
            account: stored.run.new.account,
            run: stored.run.id,
            at,
            body,
        };
        self.post(stored, &event);
        stored.journal.push(event);
    }

    /// Moves a run to `to` because of `event`, with all that follows from it. The journal is told when the
    /// status is another one afterwards.
    pub(super) fn advance(
        &mut self,
        stored: &mut StoredRun,
        to: RunStatus,
        event: RunEvent,
        patch: &RunPatch,
        at: Timestamp,
    ) {
        patch.apply(&mut stored.run);
        if !stored.run.advance(to, event, at) {
            return;
        }
        if !to.is_live() {
            stored.slot = None;
            stored.lease_until = None;
        }
        self.tell(
            stored,
            at,
            EventBody::Run {
                status: to,
                message: patch.message.clone(),
            },
        );
    }
}

/// What a step is now, for the journal.
pub(super) fn step_event(step: &StepState) -> EventBody {
    EventBody::Step { step: step.clone() }
}

/// Refuses a run that no adapter could store.
pub(super) fn check_new(new: &NewRun) -> Result<()> {
    check_text("trigger", &new.trigger)?;
    check_text("spec", &new.spec)
}

/// `Invalid` when any text in `value` has a NUL: PostgreSQL cannot keep one, so no adapter may.
pub(super) fn check_text(field: &'static str, value: &impl Serialize) -> Result<()> {
    fn has_nul(value: &serde_json::Value) -> bool {
        match value {
            serde_json::Value::String(text) => text.contains('\0'),
            serde_json::Value::Array(items) => items.iter().any(has_nul),
            serde_json::Value::Object(fields) => fields.iter().any(|(name, item)| name.contains('\0') || has_nul(item)),
            _ => false,
        }
    }
    if has_nul(&serde_json::to_value(value).expect("the nouns of core are JSON")) {
        return Err(Error::invalid(field, "expected text without a NUL"));
    }
    Ok(())
}
