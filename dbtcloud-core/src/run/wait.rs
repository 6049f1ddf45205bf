//! "Why is it waiting?", answered for every queued run of an account by the rules that admit it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Limits, QueueSnapshot, WaitReason, admit};
use crate::id::{AccountId, RunId};
use crate::time::Timestamp;

/// Why a run waits, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Why.
    pub cause: WaitCause,
    /// Its place among the due runs of its account, from 1; none before it is due.
    pub position: Option<u32>,
    /// Executing runs whose end it waits for.
    pub blocked_by: Vec<RunId>,
}

/// Why a run waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCause {
    /// It is not due before this instant.
    NotDue(Timestamp),
    /// Every run slot of its account is held, there are so many.
    NoSlot(u32),
    /// Another run of its job executes.
    JobBusy(RunId),
    /// Queued runs that take the free slots, or the job, before it: so many are ahead.
    Behind(u32),
    /// It may start; no scheduler has taken it up yet.
    NoCapacity,
    /// It may start, and no scheduler is at work.
    NoScheduler,
}

impl WaitCause {
    /// A word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotDue(_) => "not_due",
            Self::NoSlot(_) => "no_slot",
            Self::JobBusy(_) => "job_busy",
            Self::Behind(_) => "queued_behind",
            Self::NoCapacity => "no_capacity",
            Self::NoScheduler => "no_scheduler",
        }
    }
}

impl fmt::Display for WaitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDue(at) => write!(f, "It is not due before {at}."),
            Self::NoSlot(0) => f.write_str("The account has no run slots."),
            Self::NoSlot(1) => f.write_str("The one run slot of the account is in use."),
            Self::NoSlot(slots) => write!(f, "All {slots} run slots of the account are in use."),
            Self::JobBusy(run) => write!(f, "Run {run} of the same job is executing."),
            Self::Behind(1) => f.write_str("One queued run of the account goes before it."),
            Self::Behind(ahead) => write!(f, "{ahead} queued runs of the account go before it."),
            Self::NoCapacity => f.write_str("It may start and waits for a scheduler that has room."),
            Self::NoScheduler => f.write_str("It may start, but no scheduler is at work."),
        }
    }
}

/// Says of each waiting run of an account why it waits. The snapshot has runs of this account alone, those
/// that are not due too; `schedulers` says whether any is at work.
///
/// Whatever [`admit`] would refuse with room for everything is explained by what it refused it for; what it
/// would admit waits for a scheduler.
pub fn explain(
    account: AccountId,
    snapshot: &QueueSnapshot,
    slots: u32,
    now: Timestamp,
    schedulers: bool,
) -> BTreeMap<RunId, Wait> {
    let mut due = snapshot.clone();
    due.waiting.retain(|waiting| waiting.due_at <= now);
    due.waiting.sort_by_key(|waiting| (waiting.due_at, waiting.run));
    let limits = Limits {
        slots: BTreeMap::from([(account, slots)]),
        capacity: usize::MAX,
        ..Limits::default()
    };
    let refused: BTreeMap<RunId, WaitReason> = admit(&due, &limits).refused.into_iter().collect();
    let live: BTreeSet<RunId> = snapshot.busy.iter().map(|busy| busy.run).collect();
    let holders: Vec<RunId> = snapshot
        .busy
        .iter()
        .filter(|busy| busy.slot.is_some())
        .map(|busy| busy.run)
        .collect();
    let free = holders.len() < slots as usize;

    let mut waits = BTreeMap::new();
    for (ahead, waiting) in (0_u32..).zip(&due.waiting) {
        let (cause, blocked_by) = match refused.get(&waiting.run) {
            Some(WaitReason::JobBusy(run)) if live.contains(run) => (WaitCause::JobBusy(*run), vec![*run]),
            Some(WaitReason::NoSlot) if !free => (WaitCause::NoSlot(slots), holders.clone()),
            Some(WaitReason::JobBusy(_) | WaitReason::NoSlot) if schedulers => (WaitCause::Behind(ahead), Vec::new()),
            _ if schedulers => (WaitCause::NoCapacity, Vec::new()),
            _ => (WaitCause::NoScheduler, Vec::new()),
        };
        let position = Some(ahead + 1);
        waits.insert(
            waiting.run,
            Wait {
                cause,
                position,
                blocked_by,
            },
        );
    }
    for waiting in snapshot.waiting.iter().filter(|waiting| waiting.due_at > now) {
        let wait = Wait {
            cause: WaitCause::NotDue(waiting.due_at),
            position: None,
            blocked_by: Vec::new(),
        };
        waits.insert(waiting.run, wait);
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::JobId;
    use crate::run::{Busy, Waiting};

    const ACCOUNT: AccountId = AccountId::new(1);

    fn waiting(run: i64, job: i64, due: i64) -> Waiting {
        Waiting {
            run: RunId::new(run),
            account: ACCOUNT,
            job: JobId::new(job),
            due_at: Timestamp::from_micros(due),
            exclusive: true,
            takes_slot: true,
        }
    }

    fn busy(run: i64, job: i64, slot: u32) -> Busy {
        Busy {
            run: RunId::new(run),
            account: ACCOUNT,
            job: JobId::new(job),
            exclusive: true,
            slot: Some(slot),
        }
    }

    fn causes(snapshot: &QueueSnapshot, slots: u32, schedulers: bool) -> Vec<(i64, WaitCause)> {
        let waits = explain(ACCOUNT, snapshot, slots, Timestamp::from_micros(10), schedulers);
        waits.into_iter().map(|(run, wait)| (run.get(), wait.cause)).collect()
    }

    #[test]
    fn every_waiting_run_has_its_reason() {
        let snapshot = QueueSnapshot {
            waiting: vec![
                waiting(1, 50, 1),
                waiting(2, 51, 2),
                waiting(3, 52, 3),
                waiting(4, 51, 4),
                waiting(5, 53, 11),
            ],
            busy: vec![busy(9, 50, 0)],
        };
        let expected = [
            (1, WaitCause::JobBusy(RunId::new(9))),
            (2, WaitCause::NoCapacity),
            (3, WaitCause::Behind(2)),
            (4, WaitCause::Behind(3)),
            (5, WaitCause::NotDue(Timestamp::from_micros(11))),
        ];
        assert_eq!(causes(&snapshot, 2, true), expected);
        let expected = [
            (1, WaitCause::JobBusy(RunId::new(9))),
            (2, WaitCause::NoSlot(1)),
            (3, WaitCause::NoSlot(1)),
            (4, WaitCause::NoSlot(1)),
            (5, WaitCause::NotDue(Timestamp::from_micros(11))),
        ];
        assert_eq!(causes(&snapshot, 1, true), expected);
        let stalled = causes(&snapshot, 2, false);
        assert_eq!(stalled[0], (1, WaitCause::JobBusy(RunId::new(9))));
        assert_eq!(
            stalled[1..4].iter().map(|(_, cause)| *cause).collect::<Vec<_>>(),
            [WaitCause::NoScheduler; 3]
        );
    }

    #[test]
    fn what_blocks_is_named_and_places_are_counted() {
        let snapshot = QueueSnapshot {
            waiting: vec![waiting(2, 51, 2), waiting(1, 52, 1)],
            busy: vec![busy(8, 60, 0), busy(9, 61, 1)],
        };
        let waits = explain(ACCOUNT, &snapshot, 2, Timestamp::from_micros(10), true);
        let wait = &waits[&RunId::new(2)];
        assert_eq!(
            (wait.position, &wait.blocked_by),
            (Some(2), &vec![RunId::new(8), RunId::new(9)])
        );
        assert_eq!(wait.cause.to_string(), "All 2 run slots of the account are in use.");
        assert_eq!(waits[&RunId::new(1)].position, Some(1));
    }
}
