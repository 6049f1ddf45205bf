//! What [`Schedules`](dbtcloud_core::ports::Schedules) means.

use std::collections::BTreeMap;

use dbtcloud_core::error::{ErrorKind, Result};
use dbtcloud_core::id::JobId;
use dbtcloud_core::page::Page;
use dbtcloud_core::ports::{FIRE_LIMIT, Fired, Firing, RunFilter, ScheduleEntry};
use dbtcloud_core::run::{NewRun, RunStatus};
use dbtcloud_core::time::Timestamp;

use super::Stores;
use super::samples::{ACCOUNT, JOB, STRANGER, at, enqueue, free_run, kind, together, told};

cases! { $ schedules_cases, schedules, Stores:
    a_hand_is_set_and_read,
    setting_twice_changes_nothing,
    a_newer_version_sets_the_hand,
    an_older_version_does_not,
    off_the_clock_is_never_due,
    an_older_version_does_not_bring_it_back,
    due_is_longest_due_first,
    the_next_is_the_earliest,
    firing_queues_and_moves,
    firing_without_a_run_only_moves,
    firing_for_the_last_time_takes_it_off,
    a_hand_that_moved_does_not_fire,
    another_version_does_not_fire,
    an_unknown_job_does_not_fire,
    an_instant_that_has_a_run_only_moves,
    a_run_that_cannot_be_queued_does_not_move_the_hand,
    many_fire_at_once_each_for_itself,
    of_many_none_fires_when_one_cannot,
    more_than_the_limit_or_a_job_twice_is_refused,
    four_firers_fire_every_job_once,
    a_hand_runs_through_its_instants,
}

fn entry(job: i64, version: u64, next_at: Option<Timestamp>) -> ScheduleEntry {
    ScheduleEntry {
        account: ACCOUNT,
        job: JobId::new(job),
        job_version: version,
        next_at,
    }
}

async fn put(stores: &Stores, entry: &ScheduleEntry) {
    stores.schedules.put(entry, at(0)).await.unwrap();
}

async fn of(stores: &Stores, job: i64) -> Vec<ScheduleEntry> {
    stores.schedules.of(&[JobId::new(job)]).await.unwrap()
}

/// The firing of a job at `seen`, with a run for that instant.
fn firing(job: i64, version: u64, seen: i64, next: Option<i64>) -> Firing {
    let new = free_run(ACCOUNT, JobId::new(job));
    Firing {
        job: JobId::new(job),
        seen: at(seen),
        job_version: version,
        next: next.map(at),
        run: Some(NewRun {
            scheduled_for: Some(at(seen)),
            due_at: at(seen),
            ..new
        }),
    }
}

async fn fire(stores: &Stores, firing: &Firing, now: Timestamp) -> Result<Fired> {
    let mut fired = stores.schedules.fire(std::slice::from_ref(firing), now).await?;
    assert_eq!(fired.len(), 1);
    Ok(fired.remove(0))
}

async fn runs_of(stores: &Stores, job: i64) -> usize {
    let filter = RunFilter {
        job: Some(JobId::new(job)),
        ..RunFilter::default()
    };
    stores
        .runs
        .list(ACCOUNT, &filter, Page::default())
        .await
        .unwrap()
        .items
        .len()
}

async fn a_hand_is_set_and_read(stores: Stores) {
    let (a, b) = (
        entry(1, 3, Some(at(60))),
        ScheduleEntry {
            account: STRANGER,
            ..entry(2, 1, Some(at(5)))
        },
    );
    put(&stores, &a).await;
    put(&stores, &b).await;
    assert_eq!(of(&stores, 1).await, std::slice::from_ref(&a));
    let mut both = stores
        .schedules
        .of(&[JobId::new(1), JobId::new(9), JobId::new(2)])
        .await
        .unwrap();
    both.sort_by_key(|entry| entry.job);
    assert_eq!(both, [a, b]);
    assert_eq!(stores.schedules.of(&[]).await.unwrap(), []);
}

async fn setting_twice_changes_nothing(stores: Stores) {
    let entry = entry(1, 3, Some(at(60)));
    put(&stores, &entry).await;
    put(&stores, &entry).await;
    assert_eq!(of(&stores, 1).await, [entry]);
}

async fn a_newer_version_sets_the_hand(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    put(&stores, &entry(1, 4, Some(at(30)))).await;
    assert_eq!(of(&stores, 1).await, [entry(1, 4, Some(at(30)))]);
    assert_eq!(stores.schedules.next().await.unwrap(), Some(at(30)));
}

async fn an_older_version_does_not(stores: Stores) {
    put(&stores, &entry(1, 4, Some(at(60)))).await;
    put(&stores, &entry(1, 3, Some(at(30)))).await;
    put(&stores, &entry(1, 3, None)).await;
    assert_eq!(of(&stores, 1).await, [entry(1, 4, Some(at(60)))]);
}

async fn off_the_clock_is_never_due(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    put(&stores, &entry(1, 4, None)).await;
    assert_eq!(stores.schedules.due(at(1_000), 10).await.unwrap(), []);
    assert_eq!(stores.schedules.next().await.unwrap(), None);
    assert!(of(&stores, 1).await.iter().all(|entry| entry.next_at.is_none()));
}

async fn an_older_version_does_not_bring_it_back(stores: Stores) {
    put(&stores, &entry(1, 4, None)).await;
    put(&stores, &entry(1, 3, Some(at(30)))).await;
    assert_eq!(stores.schedules.due(at(1_000), 10).await.unwrap(), []);
    put(&stores, &entry(1, 5, Some(at(40)))).await;
    assert_eq!(
        stores.schedules.due(at(1_000), 10).await.unwrap(),
        [entry(1, 5, Some(at(40)))]
    );
}

async fn due_is_longest_due_first(stores: Stores) {
    for (job, seconds) in [(1, 30), (2, 10), (3, 20), (4, 31)] {
        put(&stores, &entry(job, 1, Some(at(seconds)))).await;
    }
    put(&stores, &entry(5, 1, None)).await;
    let jobs = |due: Vec<ScheduleEntry>| due.into_iter().map(|entry| entry.job.get()).collect::<Vec<_>>();
    assert_eq!(
        jobs(stores.schedules.due(at(30), 10).await.unwrap()),
        [2, 3, 1],
        "due at the instant itself"
    );
    assert_eq!(jobs(stores.schedules.due(at(30), 2).await.unwrap()), [2, 3]);
    assert_eq!(jobs(stores.schedules.due(at(9), 10).await.unwrap()), [0; 0]);
}

async fn the_next_is_the_earliest(stores: Stores) {
    assert_eq!(stores.schedules.next().await.unwrap(), None);
    for (job, seconds) in [(1, 30), (2, 10), (3, 20)] {
        put(&stores, &entry(job, 1, Some(at(seconds)))).await;
    }
    assert_eq!(stores.schedules.next().await.unwrap(), Some(at(10)));
}

async fn firing_queues_and_moves(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    let firing = firing(1, 3, 60, Some(120));
    let Fired::Queued(run) = fire(&stores, &firing, at(61)).await.unwrap() else {
        panic!("expected a run")
    };
    assert_eq!(
        (&run.new, run.status, run.created_at),
        (firing.run.as_ref().unwrap(), RunStatus::Queued, at(61))
    );
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), *run);
    assert_eq!(of(&stores, 1).await, [entry(1, 3, Some(at(120)))]);
    assert_eq!(told(&stores, &run).await, [RunStatus::Queued]);
}

async fn firing_without_a_run_only_moves(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    let firing = Firing {
        run: None,
        ..firing(1, 3, 60, Some(120))
    };
    assert_eq!(fire(&stores, &firing, at(61)).await.unwrap(), Fired::Moved);
    assert_eq!(of(&stores, 1).await, [entry(1, 3, Some(at(120)))]);
    assert_eq!(runs_of(&stores, 1).await, 0);
}

async fn firing_for_the_last_time_takes_it_off(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    let fired = fire(&stores, &firing(1, 3, 60, None), at(61)).await.unwrap();
    assert!(matches!(fired, Fired::Queued(_)));
    assert_eq!(stores.schedules.next().await.unwrap(), None);
}

async fn a_hand_that_moved_does_not_fire(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    let firing = firing(1, 3, 60, Some(120));
    assert!(matches!(
        fire(&stores, &firing, at(61)).await.unwrap(),
        Fired::Queued(_)
    ));
    assert_eq!(fire(&stores, &firing, at(62)).await.unwrap(), Fired::Lost);
    assert_eq!(of(&stores, 1).await, [entry(1, 3, Some(at(120)))]);
    assert_eq!(runs_of(&stores, 1).await, 1);
}

async fn another_version_does_not_fire(stores: Stores) {
    put(&stores, &entry(1, 4, Some(at(60)))).await;
    for version in [3, 5] {
        let fired = fire(&stores, &firing(1, version, 60, Some(120)), at(61)).await.unwrap();
        assert_eq!(fired, Fired::Lost);
    }
    put(&stores, &entry(2, 4, None)).await;
    assert_eq!(
        fire(&stores, &firing(2, 4, 60, Some(120)), at(61)).await.unwrap(),
        Fired::Lost
    );
    assert_eq!((runs_of(&stores, 1).await, runs_of(&stores, 2).await), (0, 0));
    assert_eq!(of(&stores, 1).await, [entry(1, 4, Some(at(60)))]);
}

async fn an_unknown_job_does_not_fire(stores: Stores) {
    assert_eq!(
        fire(&stores, &firing(9, 1, 60, Some(120)), at(61)).await.unwrap(),
        Fired::Lost
    );
    assert_eq!((runs_of(&stores, 9).await, of(&stores, 9).await.len()), (0, 0));
}

async fn an_instant_that_has_a_run_only_moves(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    let firing = firing(1, 3, 60, Some(120));
    enqueue(&stores, firing.run.as_ref().unwrap(), at(50)).await;
    assert_eq!(fire(&stores, &firing, at(61)).await.unwrap(), Fired::Moved);
    assert_eq!(of(&stores, 1).await, [entry(1, 3, Some(at(120)))]);
    assert_eq!(runs_of(&stores, 1).await, 1);
}

async fn a_run_that_cannot_be_queued_does_not_move_the_hand(stores: Stores) {
    put(&stores, &entry(1, 3, Some(at(60)))).await;
    let mut firing = firing(1, 3, 60, Some(120));
    firing.run.as_mut().unwrap().trigger.cause = "a\0b".to_owned();
    assert_eq!(kind(fire(&stores, &firing, at(61)).await), ErrorKind::Invalid);
    assert_eq!(of(&stores, 1).await, [entry(1, 3, Some(at(60)))]);
}

async fn many_fire_at_once_each_for_itself(stores: Stores) {
    for job in 1..=5 {
        put(&stores, &entry(job, 1, Some(at(60)))).await;
    }
    let taken = firing(4, 1, 60, Some(120));
    enqueue(&stores, taken.run.as_ref().unwrap(), at(50)).await;
    let bare = Firing {
        run: None,
        ..firing(3, 1, 60, Some(120))
    };
    let firings = [
        firing(5, 1, 60, Some(120)),
        firing(2, 7, 60, Some(120)),
        bare,
        taken,
        firing(1, 1, 60, None),
        firing(9, 1, 60, None),
    ];
    let fired = stores.schedules.fire(&firings, at(61)).await.unwrap();
    let runs: Vec<Option<(JobId, Timestamp)>> = fired
        .iter()
        .map(|fired| match fired {
            Fired::Queued(run) => Some((run.new.job, run.created_at)),
            Fired::Moved | Fired::Lost => None,
        })
        .collect();
    let (first, last) = (Some((JobId::new(5), at(61))), Some((JobId::new(1), at(61))));
    assert_eq!(runs, [first, None, None, None, last, None]);
    assert_eq!(fired[1..4], [Fired::Lost, Fired::Moved, Fired::Moved]);
    assert_eq!(fired[5], Fired::Lost);
    for (job, next) in [(1, None), (2, Some(60)), (3, Some(120)), (4, Some(120)), (5, Some(120))] {
        assert_eq!(of(&stores, job).await, [entry(job, 1, next.map(at))]);
    }
    for fired in &fired {
        if let Fired::Queued(run) = fired {
            assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), **run);
            assert_eq!(told(&stores, run).await, [RunStatus::Queued]);
        }
    }
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 3);
    assert_eq!(stores.schedules.fire(&[], at(61)).await.unwrap(), []);
}

async fn of_many_none_fires_when_one_cannot(stores: Stores) {
    put(&stores, &entry(1, 1, Some(at(60)))).await;
    put(&stores, &entry(2, 1, Some(at(60)))).await;
    let mut bad = firing(2, 1, 60, Some(120));
    bad.run.as_mut().unwrap().trigger.cause = "a\0b".to_owned();
    let firings = [firing(1, 1, 60, Some(120)), bad];
    assert_eq!(kind(stores.schedules.fire(&firings, at(61)).await), ErrorKind::Invalid);
    assert_eq!(of(&stores, 1).await, [entry(1, 1, Some(at(60)))]);
    assert_eq!((runs_of(&stores, 1).await, runs_of(&stores, 2).await), (0, 0));
}

async fn more_than_the_limit_or_a_job_twice_is_refused(stores: Stores) {
    put(&stores, &entry(1, 1, Some(at(60)))).await;
    let twice = [firing(1, 1, 60, Some(120)), firing(1, 1, 60, Some(120))];
    assert_eq!(kind(stores.schedules.fire(&twice, at(61)).await), ErrorKind::Invalid);
    let last = i64::try_from(FIRE_LIMIT).unwrap() + 1;
    let many: Vec<Firing> = (1..=last).map(|job| firing(job, 1, 60, Some(120))).collect();
    assert_eq!(kind(stores.schedules.fire(&many, at(61)).await), ErrorKind::Invalid);
    assert_eq!(of(&stores, 1).await, [entry(1, 1, Some(at(60)))]);
    let fired = stores.schedules.fire(&many[..FIRE_LIMIT], at(61)).await.unwrap();
    assert!(matches!(fired[0], Fired::Queued(_)), "{:?}", fired[0]);
    assert!(fired[1..].iter().all(|fired| *fired == Fired::Lost));
}

async fn four_firers_fire_every_job_once(stores: Stores) {
    for job in 1..=50 {
        put(&stores, &entry(job, 1, Some(at(60)))).await;
    }
    let fired = together(4, |_| {
        let schedules = stores.schedules.clone();
        async move {
            let mut fired = Vec::new();
            for due in schedules.due(at(61), 100).await.unwrap() {
                let firing = firing(due.job.get(), due.job_version, 60, Some(120));
                if let Fired::Queued(run) = schedules.fire(&[firing], at(61)).await.unwrap().remove(0) {
                    fired.push(run.new.job);
                }
            }
            fired
        }
    });
    let mut counts = BTreeMap::<JobId, u32>::new();
    for job in fired.await.into_iter().flatten() {
        *counts.entry(job).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    assert_eq!(counts.len(), 50);
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 50);
    assert_eq!(stores.schedules.due(at(61), 100).await.unwrap(), []);
}

async fn a_hand_runs_through_its_instants(stores: Stores) {
    put(&stores, &entry(JOB.get(), 1, Some(at(0)))).await;
    together(4, |_| {
        let schedules = stores.schedules.clone();
        async move {
            loop {
                let due = schedules.due(at(1_000_000), 1).await.unwrap();
                let Some(seen) = due.first().and_then(|due| due.next_at) else {
                    return;
                };
                let second = (seen.as_micros() - at(0).as_micros()) / 1_000_000;
                let next = (second < 29).then_some(second + 1);
                schedules
                    .fire(&[firing(JOB.get(), 1, second, next)], at(second))
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    assert_eq!(runs_of(&stores, JOB.get()).await, 30);
}
