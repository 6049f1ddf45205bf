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
    /// Whose turn was when: a number for each account of which this scheduler admitted a run, the higher the
    /// later. An account that is not here goes before all that are.
    pub served: BTreeMap<AccountId, u64>,
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

/// Decides who may start: accounts take turns, the one served longest ago first and of those never served the
/// one with the fewest executing runs; within an account the longest due first; a run that may not start does
/// not hold up the ones behind it.
///
/// Guarantees, for any snapshot: no account exceeds its slots, no slot is given twice, no two exclusive
/// runs of one job execute together, nothing is admitted beyond the capacity, and every waiting run is in
/// exactly one of the two lists. Where the caller keeps `served` from round to round, an account that has a
/// run which may start gets one admitted before any other account gets two: with `k` accounts waiting it
/// starts within `k` admissions, however long the others' lines are and however fast their runs end.
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
    // One admission per account and turn.
    let mut turns: BTreeSet<(u64, usize, Timestamp, AccountId)> = BTreeSet::new();
    for (account, line) in &lines {
        if let Some(first) = line.front() {
            let turn = limits.served.get(account).copied().unwrap_or(0);
            turns.insert((turn, load.get(account).copied().unwrap_or(0), first.due_at, *account));
        }
    }
    let mut last = limits.served.values().copied().max().unwrap_or(0);
    while let Some((_, _, _, account)) = turns.pop_first() {
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
            last += 1;
            turns.insert((last, 0, next.due_at, account));
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
            (
                QueueSnapshot { waiting, busy },
                Limits {
                    slots,
                    capacity,
                    ..Limits::default()
                },
            )
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

        /// Whatever waits: an account with a run that may start gets one admitted before another gets two.
        #[test]
        fn nobody_is_served_twice_before_everybody_once((snapshot, limits) in snapshots()) {
            let all = admit(&snapshot, &Limits { capacity: usize::MAX, ..limits.clone() });
            let whose: BTreeMap<RunId, AccountId> = snapshot.waiting.iter().map(|w| (w.run, w.account)).collect();
            let able: BTreeSet<AccountId> = all.admitted.iter().map(|a| whose[&a.run]).collect();
            let first: Vec<AccountId> = all.admitted.iter().take(able.len()).map(|a| whose[&a.run]).collect();
            prop_assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), able, "{:?}", first);
        }

        /// The same over many rounds of one admission each, with runs that end at once and lines that never
        /// do: every account that waits and has a free slot starts a run within as many admissions as there
        /// are accounts.
        #[test]
        fn an_account_waits_for_one_turn_of_each_other(
            backlogs in proptest::collection::vec((1usize..40, 0i64..1_000, 0usize..3), 2..8),
            lasting in any::<bool>(),
        ) {
            let mut limits = Limits { capacity: 1, ..Limits::default() };
            let mut snapshot = QueueSnapshot::default();
            for (account, (length, since, executing)) in (1i64..).zip(&backlogs) {
                limits.slots.insert(AccountId::new(account), 100);
                for n in 0..*length {
                    let run = account * 1_000 + i64::try_from(n).unwrap();
                    snapshot.waiting.push(Waiting {
                        run: RunId::new(run),
                        account: AccountId::new(account),
                        job: JobId::new(run),
                        due_at: Timestamp::from_micros(*since),
                        exclusive: true,
                        takes_slot: true,
                    });
                }
                for n in 0..*executing {
                    let run = account * 1_000 + 500 + i64::try_from(n).unwrap();
                    snapshot.busy.push(Busy {
                        run: RunId::new(run),
                        account: AccountId::new(account),
                        job: JobId::new(run),
                        exclusive: true,
                        slot: Some(u32::try_from(n).unwrap()),
                    });
                }
            }
            let mut waits: BTreeMap<AccountId, usize> = limits.slots.keys().map(|account| (*account, 0)).collect();
            for turn in 1.. {
                let Some(admitted) = admit(&snapshot, &limits).admitted.first().copied() else { break };
                let place = snapshot.waiting.iter().position(|w| w.run == admitted.run).unwrap();
                let run = snapshot.waiting.remove(place);
                waits.retain(|account, _| snapshot.waiting.iter().any(|w| w.account == *account));
                for (account, waited) in &mut waits {
                    *waited = if *account == run.account { 0 } else { *waited + 1 };
                    prop_assert!(*waited < backlogs.len(), "account {} waited {} turns", account, waited);
                }
                limits.served.insert(run.account, turn);
                if lasting {
                    let slot = admitted.slot;
                    let Waiting { run, account, job, exclusive, .. } = run;
                    snapshot.busy.push(Busy { run, account, job, exclusive, slot });
                }
            }
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
        let decision = admit(
            &QueueSnapshot { waiting, busy: vec![] },
            &Limits {
                slots,
                capacity: 2,
                ..Limits::default()
            },
        );
        let admitted: Vec<i64> = decision.admitted.iter().map(|a| a.run.get()).collect();
        assert_eq!(admitted, [0, 99_999]);
    }
}
