//! The top of the hour: a thousand jobs due at one instant, four schedulers, real databases.

use std::path::Path;
use std::time::Duration;

use dbtcloud_contract::memory::{ManualClock, ScriptedExecutor};
use dbtcloud_core::audit::Actor;
use dbtcloud_core::ports::{RunFilter, Storage};
use dbtcloud_core::schedule::Schedule;
use dbtcloud_core::{Page, Timestamp};
use dbtcloud_runtime::scheduler::Scheduler;
use dbtcloud_runtime::{AgentLaunch, Blueprint, Config, ControlPlane};
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::postgres;

const JOBS: usize = 1_000;
const SCHEDULERS: usize = 4;
const START: Timestamp = Timestamp::from_micros(1_774_738_800_000_000);

fn plane(storage: impl Storage, clock: &ManualClock, executor: &ScriptedExecutor, instance: &str) -> ControlPlane {
    let launch = AgentLaunch::local(vec!["agent".to_owned()], Path::new("/nowhere"), []);
    ControlPlane::builder(storage, executor.clone(), Config::new(instance, launch))
        .clock(clock.clone())
        .build()
}

async fn herd(url: &str) {
    let clock = ManualClock::at(START);
    let executor = ScriptedExecutor::new(clock.clone());
    let storage = SqlStorage::connect(url, Default::default()).await.unwrap();
    storage.migrate().await.unwrap();
    let first = plane(storage, &clock, &executor, "first");
    let blueprint = Blueprint::new("shop", "file:///shop.git", "duckdb").connect("path", "/tmp/shop.duckdb");
    let sample = first.install(&blueprint).await.unwrap();
    let mut job = sample.body.clone();
    job.triggers.schedule = true;
    job.schedule = Some(Schedule::cron("0 * * * *", "UTC").unwrap());
    for _ in 0..JOBS {
        first
            .create_job(&Actor::System, sample.account, job.clone())
            .await
            .unwrap();
    }

    // Each scheduler has connections of its own, as in a process of its own.
    let mut tasks = Vec::new();
    clock.advance(Duration::from_secs(3_600));
    for n in 0..SCHEDULERS {
        let storage = SqlStorage::connect(url, Default::default()).await.unwrap();
        let plane = plane(storage, &clock, &executor, &format!("scheduler-{n}"));
        tasks.push(tokio::spawn(async move {
            let mut scheduler = Scheduler::new(plane);
            let mut fired = 0;
            // Until two looks in a row find nothing due.
            let mut quiet = 0;
            while quiet < 2 {
                let tick = scheduler.tick().await.unwrap();
                fired += tick.fired;
                quiet = if tick.fired == 0 { quiet + 1 } else { 0 };
            }
            fired
        }));
    }
    let mut fired = 0;
    for task in tasks {
        fired += task.await.unwrap();
    }
    let runs = first;
    let page = runs
        .runs()
        .list(sample.account, &RunFilter::default(), Page::default())
        .await
        .unwrap();
    assert_eq!(fired, JOBS, "what the schedulers say they fired");
    assert_eq!(page.total, JOBS as u64, "what is stored");
    let hands = runs
        .schedules()
        .due(Timestamp::from_micros(clock_now(&clock)), 10)
        .await
        .unwrap();
    assert!(hands.is_empty(), "{hands:?}");
}

fn clock_now(clock: &ManualClock) -> i64 {
    use dbtcloud_core::ports::Clock;
    clock.now().as_micros()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_of_one_instant_fire_once_each_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    herd(&format!("sqlite://{}", folder.path().join("plane.db").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_of_one_instant_fire_once_each_on_postgres() {
    herd(&postgres::database().url()).await;
}
