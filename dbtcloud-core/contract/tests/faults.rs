//! What the ports promise survives the faults: who tries again gets there, and once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly, its fixture too")]

use std::sync::Arc;
use std::time::Duration;

use dbtcloud_contract::faults::{Faults, FaultyExecutor, FaultyStorage, Rates};
use dbtcloud_contract::memory::{ManualClock, MemoryStorage, Script, ScriptedExecutor};
use dbtcloud_contract::suite::executor::plain_spec;
use dbtcloud_core::error::{ErrorKind, Result};
use dbtcloud_core::id::{AccountId, JobId, RunId};
use dbtcloud_core::page::Page;
use dbtcloud_core::ports::{
    Clock, ExecutionId, Executor, Fired, Firing, Observation, RunFilter, Runs, ScheduleEntry, Schedules,
};
use dbtcloud_core::run::{CauseCategory, NewRun, RunSpec, Trigger};
use dbtcloud_core::time::Timestamp;

/// Tries again as long as it is told to.
async fn insist<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> T {
    for _ in 0..100 {
        match call().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            other => return other.unwrap(),
        }
    }
    panic!("still unavailable after 100 tries");
}

#[tokio::test]
async fn a_restless_caller_starts_everything_once() {
    for seed in 0..20 {
        let world = ScriptedExecutor::new(ManualClock::at(Timestamp::EPOCH));
        world.script_others(Script::exits(3));
        let faults = Arc::new(Faults::new(
            seed,
            Rates {
                before: 30,
                after: 30,
                twice: 30,
            },
        ));
        let executor = FaultyExecutor::new(Arc::new(world.clone()), faults);
        for attempt in 1..=20 {
            let id = ExecutionId::Run {
                run: RunId::new(1),
                attempt,
            };
            let spec = plain_spec(id);
            insist(|| executor.start(&spec)).await;
            let seen = insist(|| executor.observe(id)).await;
            assert!(
                matches!(seen, Observation::Exited(exit) if exit.code == Some(3)),
                "seed {seed}"
            );
            assert_eq!(world.starts(id), 1, "seed {seed}");
        }
    }
}

fn new_run(scheduled_for: Timestamp) -> NewRun {
    let spec = RunSpec {
        commands: vec!["dbt build".to_owned()],
        generate_docs: false,
        source_freshness: false,
        dbt_version: "1.10".to_owned(),
        threads: 4,
        target_name: "default".to_owned(),
        schema: None,
        timeout_seconds: 60,
        git_branch: None,
        git_sha: None,
        job_type: dbtcloud_core::job::JobType::Other,
        placement: Default::default(),
    };
    NewRun {
        account: AccountId::new(1),
        project: 1.into(),
        environment: 1.into(),
        job: JobId::new(1),
        trigger: Trigger::new(CauseCategory::Scheduled, "scheduled"),
        spec,
        scheduled_for: Some(scheduled_for),
        exclusive: true,
        takes_slot: true,
        retry_of: None,
        due_at: scheduled_for,
    }
}

#[tokio::test]
async fn every_instant_fires_once_through_all_faults() {
    for seed in 0..20 {
        let faults = Arc::new(Faults::new(
            seed,
            Rates {
                before: 20,
                after: 20,
                twice: 20,
            },
        ));
        let storage = FaultyStorage::new(Arc::new(MemoryStorage::new()), faults.clone());
        let second = |n: u64| Timestamp::EPOCH.plus(Duration::from_secs(n));
        let entry = ScheduleEntry {
            account: AccountId::new(1),
            job: JobId::new(1),
            job_version: 1,
            next_at: Some(second(0)),
        };
        insist(|| storage.put(&entry, second(0))).await;
        loop {
            let due = insist(|| storage.due(second(1_000), 1)).await;
            let Some(seen) = due.first().and_then(|due| due.next_at) else {
                break;
            };
            let next = (seen < second(29)).then(|| seen.plus(Duration::from_secs(1)));
            let firing = Firing {
                job: JobId::new(1),
                seen,
                job_version: 1,
                next,
                run: Some(new_run(seen)),
            };
            // Whatever the answer: what is due now says what is left to do.
            let _: Result<Vec<Fired>> = storage.fire(&[firing], seen).await;
        }
        faults.set(Rates::CALM);
        let all = storage
            .list(AccountId::new(1), &RunFilter::default(), Page::default())
            .await;
        assert_eq!(all.unwrap().total, 30, "seed {seed}");
        let queued = storage.queued(AccountId::new(1)).await.unwrap();
        assert_eq!(queued, 1, "seed {seed}: each took the place of the one before");
        assert!(!faults.struck().is_empty());
    }
}

#[tokio::test]
async fn a_manual_clock_wakes_who_is_due() {
    let clock = ManualClock::at(Timestamp::EPOCH);
    let sleep = |seconds| {
        let clock = clock.clone();
        tokio::spawn(async move { clock.sleep(Duration::from_secs(seconds)).await })
    };
    let (short, long) = (sleep(10), sleep(20));
    while clock.sleepers() < 2 {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(9));
    clock.advance(Duration::from_secs(1));
    short.await.unwrap();
    assert!(!long.is_finished());
    clock.set(Timestamp::EPOCH.plus(Duration::from_secs(60)));
    long.await.unwrap();
    clock.sleep(Duration::ZERO).await;
}

#[tokio::test]
async fn a_scripted_grace_is_the_clocks() {
    let clock = ManualClock::at(Timestamp::EPOCH);
    let executor = ScriptedExecutor::new(clock.clone());
    let id = ExecutionId::Run {
        run: RunId::new(1),
        attempt: 1,
    };
    executor.script(id, Script::Ignore);
    executor.start(&plain_spec(id)).await.unwrap();
    executor.cancel(id, Duration::from_secs(10)).await.unwrap();
    clock.advance(Duration::from_secs(9));
    assert!(matches!(
        executor.observe(id).await.unwrap(),
        Observation::Running { .. }
    ));
    clock.advance(Duration::from_secs(1));
    assert!(matches!(executor.observe(id).await.unwrap(), Observation::Exited(exit) if exit.signal == Some(9)));
    executor.outage(true);
    assert_eq!(executor.observe(id).await.unwrap_err().kind(), ErrorKind::Unavailable);
}
