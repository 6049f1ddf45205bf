//! Wake-ups between processes on PostgreSQL: two control planes, each with connections of its own, and a poll
//! interval so long that nothing but a bell explains what happens. And the same without any bell.

use std::path::Path;
use std::time::Duration;

use dbtcloud_contract::faults::FaultyStorage;
use dbtcloud_contract::memory::{ScriptedExecutor, WallClock};
use dbtcloud_contract::wait::until;
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::Record;
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{EventBody, Storage};
use dbtcloud_core::run::{CauseCategory, Run, RunStatus, Trigger};
use dbtcloud_runtime::plane::{LiveCursor, LiveEvent, Roles, Running};
use dbtcloud_runtime::{AgentLaunch, Blueprint, Config, ControlPlane};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::{self, Cluster};
use futures::StreamExt;

/// Longer than any of these tests may take.
const NEVER: Duration = Duration::from_secs(3_600);
/// What a bell may take on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(20);

struct Process {
    plane: ControlPlane,
    running: Running,
}

async fn process(
    storage: impl Storage,
    executor: &ScriptedExecutor,
    name: &str,
    poll: Duration,
    scheduler: bool,
) -> Process {
    let launch = AgentLaunch {
        server: "http://127.0.0.1:1".to_owned(),
        ..AgentLaunch::local(vec!["agent".to_owned()], Path::new("/nowhere"), [])
    };
    let mut config = Config::new(name, launch);
    (config.poll, config.lease) = (poll, NEVER);
    let plane = ControlPlane::builder(storage, executor.clone(), config).build();
    let roles = Roles {
        scheduler,
        ..Roles::NONE
    };
    let running = plane.start(roles).await.unwrap();
    Process { plane, running }
}

async fn connect(url: &str) -> SqlStorage {
    let options = Options::new().with_acquire_timeout(Duration::from_secs(2));
    let storage = SqlStorage::connect(url, options).await.unwrap();
    storage.migrate().await.unwrap();
    storage
}

async fn listening(process: &Process, yes: bool) {
    let metrics = process.plane.metrics();
    until(LIMIT, || async {
        let (gauge, fault) = (metrics.wakeups_listening.get(), process.plane.wakeups_fault());
        let as_asked = (gauge == 1) == yes && fault.is_none() == yes;
        as_asked.then_some(()).ok_or((gauge, fault))
    })
    .await;
}

async fn install(plane: &ControlPlane) -> dbtcloud_core::Result<Record<Job>> {
    let blueprint = Blueprint::new("shop", "file:///shop.git", "duckdb").connect("path", "/tmp/shop.duckdb");
    plane.install(&blueprint).await
}

/// Triggers a run and waits until a scheduler has started it.
async fn starts(plane: &ControlPlane, executor: &ScriptedExecutor, job: &Record<Job>) -> Run {
    let trigger = || plane.trigger(job.account, job.id, Trigger::new(CauseCategory::Api, "test"));
    // A pool may hand out connections that a restart of the server has cut.
    let run = until(LIMIT, || async { trigger().await.map_err(|error| error.to_string()) }).await;
    until(LIMIT, || async {
        let seen = plane.runs().get(job.account, run.id).await;
        let claimed = seen.as_ref().is_ok_and(|run| run.status == RunStatus::Starting);
        claimed.then_some(()).ok_or(seen)
    })
    .await;
    until(LIMIT, || async {
        let started = executor.started().len();
        let has = executor
            .started()
            .iter()
            .any(|spec| spec.id.to_string().contains(&run.id.to_string()));
        has.then_some(()).ok_or(started)
    })
    .await;
    run
}

/// Whatever one process does, the other one looks at once.
async fn each_wakes_the_other(app: &Process, scheduler: &Process, executor: &ScriptedExecutor, job: &Record<Job>) {
    let run = starts(&app.plane, executor, job).await;

    // A second run of the job waits for the first; the app waits for its end, and follows the first.
    let trigger = Trigger::new(CauseCategory::Api, "second");
    let second = app.plane.trigger(job.account, job.id, trigger).await.unwrap();
    let waiting = tokio::spawn({
        let plane = app.plane.clone();
        async move { plane.wait(second.new.account, second.id).await.unwrap() }
    });
    let following = tokio::spawn({
        let live = app.plane.live(job.account, run.id, LiveCursor::default());
        async move {
            let mut live = Box::pin(live);
            loop {
                if let LiveEvent::Journal(_, event) = live.next().await.unwrap().unwrap()
                    && let EventBody::Run { status, .. } = event.body
                    && status == RunStatus::Cancelling
                {
                    return;
                }
            }
        }
    });
    scheduler
        .plane
        .cancel(&Actor::System, job.account, second.id, "a test")
        .await
        .unwrap();
    let ended = tokio::time::timeout(LIMIT, waiting).await.expect("woken").unwrap();
    assert_eq!(ended.status, RunStatus::Cancelled);

    // A cancellation in the app reaches the process that drives the run.
    app.plane
        .cancel(&Actor::System, job.account, run.id, "a test")
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, following).await.expect("woken").unwrap();
    until(LIMIT, || async {
        let cancelled = executor.cancelled();
        let has = cancelled
            .iter()
            .any(|(id, _)| id.to_string().contains(&run.id.to_string()));
        has.then_some(()).ok_or(cancelled)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_and_a_cancellation_wake_the_other_process_also_after_the_database_restarted() {
    let (mut cluster, database) = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::start();
        let database = cluster.database();
        (cluster, database)
    })
    .await
    .unwrap();
    let executor = ScriptedExecutor::new(WallClock);
    let app = process(connect(&database.url()).await, &executor, "app", NEVER, false).await;
    let scheduler = process(connect(&database.url()).await, &executor, "scheduler", NEVER, true).await;
    listening(&app, true).await;
    listening(&scheduler, true).await;
    let job = install(&app.plane).await.unwrap();
    each_wakes_the_other(&app, &scheduler, &executor, &job).await;

    let lost = scheduler.plane.metrics().wakeups_lost.get();
    cluster.kill();
    listening(&app, false).await;
    listening(&scheduler, false).await;
    assert!(scheduler.plane.metrics().wakeups_lost.get() > lost);
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.resume();
        cluster
    });
    let _up = cluster.await.unwrap();
    listening(&app, true).await;
    listening(&scheduler, true).await;
    let job = until(LIMIT, || install(&app.plane)).await;
    each_wakes_the_other(&app, &scheduler, &executor, &job).await;
    app.running.stop().await.unwrap();
    scheduler.running.stop().await.unwrap();
}

/// No bell is ever heard: the same happens, a poll later.
#[tokio::test(flavor = "multi_thread")]
async fn polling_alone_is_correct() {
    let home = tokio::task::spawn_blocking(postgres::schema).await.unwrap();
    let executor = ScriptedExecutor::new(WallClock);
    let poll = Duration::from_millis(50);
    let deaf = async || FaultyStorage::deaf(std::sync::Arc::new(connect(&home.url()).await));
    let app = process(deaf().await, &executor, "app", poll, false).await;
    let scheduler = process(deaf().await, &executor, "scheduler", poll, true).await;
    let job = install(&app.plane).await.unwrap();
    each_wakes_the_other(&app, &scheduler, &executor, &job).await;
    app.running.stop().await.unwrap();
    scheduler.running.stop().await.unwrap();
}
