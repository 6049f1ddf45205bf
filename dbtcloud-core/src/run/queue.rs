//! Admission: which queued runs may start now. A pure function of a snapshot; what makes its answer safe
//! with many schedulers is that a claim is refused when the slot or the job was taken meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::id::{AccountId, JobId, RunId};
use crate::time::Timestamp;

/// A run that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub run: RunId,
    /// Whose.
    pub account: AccountId,
    /// Of which job.
    pub job: JobId,
    /// Not before.
    pub due_at: Timestamp,
    /// Whether no other run of its job may execute beside it.
    pub exclusive: bool,
    /// Whether it takes a slot.
    pub takes_slot: bool,
}

/// A run that executes, as far as admission cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Which.
    pub run: RunId,
    /// Whose.
    pub account: AccountId,
    /// Of which job.
    pub job: JobId,
    /// Whether it keeps other runs of its job out.
    pub exclusive: bool,
    /// The slot it holds.
    pub slot: Option<u32>,
}

/// What the queue looks like at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct QueueSnapshot {
    /// Due runs, at most a bounded number per account, each account's in (`due_at`, `run`) order.
    pub waiting: Vec<Waiting>,
    /// All runs that execute.
    pub busy: Vec<Busy>,
}

/// What bounds admission.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// Slots of each account; an account that is not here has none.
    pub slots: BTreeMap<AccountId, u32>,
    /// How many runs may be admitted in this round (what this scheduler can start).
    pub capacity: usize,
}

/// A run that may start, with the slot it is to take. Slots are numbered from 0 below the account's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which run.
    pub run: RunId,
    /// Its slot, if it takes one.
    pub slot: Option<u32>,
}

/// Why a run waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// All slots of its account are taken.
    NoSlot,
    /// Another run of its job executes.
    JobBusy(RunId),
    /// The scheduler's capacity for this round is used up.
    NoCapacity,
}

/// What a round of admission decides.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Decision {
    /// In the order in which they are to be claimed.
    pub admitted: Vec<Admission>,
    /// The others, each with its reason.
    pub refused: Vec<(RunId, WaitReason)>,
}

/// Decides who may start: accounts take turns, the one with the fewest executing runs first; within an
/// account the longest due first; a run that may not start does not hold up the ones behind it.
///
/// Guarantees, for any snapshot: no account exceeds its slots, no slot is given twice, no two exclusive
/// runs of one job execute together, nothing is admitted beyond the capacity, and every waiting run is in
/// exactly one of the two lists.
pub fn admit(snapshot: &QueueSnapshot, limits: &Limits) -> Decision {
    let mut held: BTreeMap<AccountId, BTreeSet<u32>> = BTreeMap::new();
    let mut load: BTreeMap<AccountId, usize> = BTreeMap::new();
    let mut jobs: BTreeMap<JobId, RunId> = BTreeMap::new();
    for busy in &snapshot.busy {
        if let Some(slot) = busy.slot {
            held.entry(busy.account).or_default().insert(slot);
        }
        if busy.exclusive {
            jobs.insert(busy.job, busy.run);
        }
        *load.entry(busy.account).or_default() += 1;
    }

    let mut lines: BTreeMap<AccountId, VecDeque<&Waiting>> = BTreeMap::new();
    for waiting in &snapshot.waiting {
        lines.entry(waiting.account).or_default().push_back(waiting);
    }
    for line in lines.values_mut() {
        line.make_contiguous()
            .sort_by_key(|waiting| (waiting.due_at, waiting.run));
    }

    let mut decision = Decision::default();
    // One admission per account and turn; the least loaded account's turn is first.
    let mut turns: BTreeSet<(usize, Timestamp, AccountId)> = BTreeSet::new();
    for (account, line) in &lines {
        if let Some(first) = line.front() {
            turns.insert((load.get(account).copied().unwrap_or(0), first.due_at, *account));
        }
    }
    while let Some((weight, _, account)) = turns.pop_first() {
        let Some(line) = lines.get_mut(&account) else {
            continue;
        };
        let taken = held.entry(account).or_default();
        let slots = limits.slots.get(&account).copied().unwrap_or(0);
        let mut admitted = false;
        while let Some(waiting) = line.pop_front() {
            let slot = if waiting.takes_slot {
                (0..slots).find(|slot| !taken.contains(slot))
            } else {
                None
            };
            let reason = if let Some(run) = jobs.get(&waiting.job).filter(|_| waiting.exclusive) {
                Some(WaitReason::JobBusy(*run))
            } else if waiting.takes_slot && slot.is_none() {
                Some(WaitReason::NoSlot)
            } else if decision.admitted.len() >= limits.capacity {
                Some(WaitReason::NoCapacity)
            } else {
                None
            };
            if let Some(reason) = reason {
                decision.refused.push((waiting.run, reason));
                continue;
            }
            taken.extend(slot);
            if waiting.exclusive {
                jobs.insert(waiting.job, waiting.run);
            }
            decision.admitted.push(Admission { run: waiting.run, slot });
            admitted = true;
            break;
        }
        if let Some(next) = line.front().filter(|_| admitted) {
            turns.insert((weight + 1, next.due_at, account));
        }
    }
    decision
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshots() -> impl Strategy<Value = (QueueSnapshot, Limits)> {
        let waiting = proptest::collection::vec((0i64..4, 0i64..6, 0i64..50, any::<bool>(), any::<bool>()), 0..40);
        let slots = proptest::collection::vec(0u32..5, 4);
        let busy = proptest::collection::vec((0i64..4, 6i64..12, 0u32..5), 0..8);
        (waiting, slots, busy, 0usize..20).prop_map(|(waiting, slots, busy, capacity)| {
            let waiting = (0i64..)
                .zip(waiting)
                .map(|(run, (account, job, due, exclusive, takes_slot))| Waiting {
                    run: RunId::new(run),
                    account: AccountId::new(account),
                    job: JobId::new(account * 100 + job),
                    due_at: Timestamp::from_micros(due),
                    exclusive,
                    takes_slot,
                })
                .collect();
            let mut seen = BTreeSet::new();
            let busy = (1000i64..)
                .zip(busy)
                .filter(|(_, (account, _, slot))| seen.insert((*account, *slot)))
                .map(|(run, (account, job, slot))| Busy {
                    run: RunId::new(run),
                    account: AccountId::new(account),
                    job: JobId::new(account * 100 + job),
                    exclusive: true,
                    slot: Some(slot),
                })
                .collect();
            let slots = (0i64..).map(AccountId::new).zip(slots).collect();
            (QueueSnapshot { waiting, busy }, Limits { slots, capacity })
        })
    }

    proptest! {
        #[test]
        fn no_limit_is_exceeded_and_nothing_is_lost((snapshot, limits) in snapshots()) {
            let decision = admit(&snapshot, &limits);
            prop_assert!(decision.admitted.len() <= limits.capacity);
            let of: BTreeMap<RunId, &Waiting> = snapshot.waiting.iter().map(|w| (w.run, w)).collect();
            let mut all: Vec<RunId> = decision.admitted.iter().map(|a| a.run)
                .chain(decision.refused.iter().map(|(run, _)| *run)).collect();
            all.sort();
            prop_assert_eq!(all, of.keys().copied().collect::<Vec<_>>());
            let mut slots: BTreeSet<(AccountId, u32)> = snapshot.busy.iter()
                .filter_map(|b| b.slot.map(|s| (b.account, s))).collect();
            let mut jobs: BTreeSet<JobId> = snapshot.busy.iter().map(|b| b.job).collect();
            for admission in &decision.admitted {
                let waiting = of[&admission.run];
                prop_assert_eq!(waiting.takes_slot, admission.slot.is_some());
                if let Some(slot) = admission.slot {
                    prop_assert!(slot < limits.slots[&waiting.account]);
                    prop_assert!(slots.insert((waiting.account, slot)), "slot given twice");
                }
                if waiting.exclusive { prop_assert!(jobs.insert(waiting.job), "job given twice"); }
            }
        }

        #[test]
        fn whoever_is_refused_really_could_not_start((snapshot, limits) in snapshots()) {
            let decision = admit(&snapshot, &limits);
            let spare = decision.admitted.len() < limits.capacity;
            prop_assert!(!spare || decision.refused.iter().all(|(_, r)| *r != WaitReason::NoCapacity));
        }
    }

    #[test]
    fn ten_thousand_runs_of_one_tenant_do_not_hold_up_another() {
        let mut waiting: Vec<Waiting> = (0..10_000)
            .map(|n| Waiting {
                run: RunId::new(n),
                account: AccountId::new(1),
                job: JobId::new(n),
                due_at: Timestamp::from_micros(n),
                exclusive: true,
                takes_slot: true,
            })
            .collect();
        waiting.push(Waiting {
            run: RunId::new(99_999),
            account: AccountId::new(2),
            job: JobId::new(99_999),
            due_at: Timestamp::from_micros(99_999),
            exclusive: true,
            takes_slot: true,
        });
        let slots = BTreeMap::from([(AccountId::new(1), 1000), (AccountId::new(2), 10)]);
        let decision = admit(&QueueSnapshot { waiting, busy: vec![] }, &Limits { slots, capacity: 2 });
        let admitted: Vec<i64> = decision.admitted.iter().map(|a| a.run.get()).collect();
        assert_eq!(admitted, [0, 99_999]);
    }
}
