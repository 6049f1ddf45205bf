//! The scheduler and the driver over the model adapters: time stands still unless a test moves it, and
//! executions do what the test says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use dbtcloud_contract::memory::{ManualClock, MemoryArtifacts, MemoryStorage, Script, ScriptedExecutor};
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt, Kind, Record};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::RunId;
use dbtcloud_core::job::{CompletionTrigger, Job};
use dbtcloud_core::ports::{Catalog, Clock, Consumer, Delivery, ExecutionId, Executor, RunFilter};
use dbtcloud_core::run::{CauseCategory, Outcome, Run, RunEvent, RunStatus, Trigger};
use dbtcloud_core::schedule::Schedule;
use dbtcloud_core::{ErrorKind, Page, Timestamp};
use dbtcloud_runtime::outbox::{self, Consume, Handled};
use dbtcloud_runtime::protocol::{Redeem, Report, ReportAck, RunPlan};
use dbtcloud_runtime::scheduler::Scheduler;
use dbtcloud_runtime::{AgentLaunch, Blueprint, Config, ControlPlane};
use tower::ServiceExt;

const START: Timestamp = Timestamp::from_micros(1_774_738_800_000_000);
const KEY: &str = "a-key-of-the-agent-that-is-long-enough-for-the-desk";

struct World {
    clock: ManualClock,
    storage: MemoryStorage,
    executor: ScriptedExecutor,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::at(START);
        let executor = ScriptedExecutor::new(clock.clone());
        Self {
            clock,
            storage: MemoryStorage::new(),
            executor,
        }
    }

    /// A process of the control plane over this world.
    fn plane(&self, instance: &str) -> ControlPlane {
        let launch = AgentLaunch::local(vec!["agent".to_owned()], Path::new("/nowhere"), []);
        ControlPlane::builder(
            self.storage.clone(),
            self.executor.clone(),
            Config::new(instance, launch),
        )
        .clock(self.clock.clone())
        .artifacts(MemoryArtifacts::new())
        .build()
    }

    async fn job(&self, plane: &ControlPlane) -> Record<Job> {
        let blueprint = Blueprint::new("shop", "file:///shop.git", "duckdb").connect("path", "/tmp/shop.duckdb");
        plane.install(&blueprint).await.unwrap()
    }

    fn ticket(&self, index: usize) -> String {
        self.executor.started()[index]
            .ticket
            .as_ref()
            .unwrap()
            .expose()
            .to_owned()
    }
}

fn name(run: &Run) -> ExecutionId {
    ExecutionId::Run {
        run: run.id,
        attempt: 1,
    }
}

async fn trigger(plane: &ControlPlane, job: &Record<Job>) -> Run {
    plane
        .trigger(job.account, job.id, Trigger::new(CauseCategory::Api, "test"))
        .await
        .unwrap()
}

async fn run_of(plane: &ControlPlane, run: &Run) -> Run {
    plane.runs().get(run.new.account, run.id).await.unwrap()
}

async fn post<T: serde::de::DeserializeOwned>(
    plane: &ControlPlane,
    path: &str,
    body: impl Into<Body>,
) -> Result<T, StatusCode> {
    let request = Request::post(path)
        .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap();
    let answer = plane.agent_router().oneshot(request).await.unwrap();
    let status = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    if status.is_success() {
        Ok(serde_json::from_slice(&bytes).unwrap())
    } else {
        Err(status)
    }
}

async fn redeem(plane: &ControlPlane, ticket: &str) -> Result<RunPlan, StatusCode> {
    let ask = Redeem {
        ticket: ticket.to_owned(),
        key: KEY.to_owned(),
    };
    post(plane, "/agent/v1/redeem", serde_json::to_vec(&ask).unwrap()).await
}

async fn report(plane: &ControlPlane, number: u64, event: RunEvent) -> Result<ReportAck, StatusCode> {
    let report = Report {
        number,
        event: Some(event),
        ..Report::default()
    };
    post(plane, "/agent/v1/report", report.encode().unwrap()).await
}

#[tokio::test]
async fn a_run_is_started_once_and_ends_with_its_agents_report() {
    let world = World::new();
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let run = trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    assert_eq!(scheduler.tick().await.unwrap().claimed, 1);
    scheduler.tick().await.unwrap();
    assert_eq!(world.executor.starts(name(&run)), 1, "a second tick starts nothing");
    assert_eq!(run_of(&plane, &run).await.status, RunStatus::Starting);

    let plan = redeem(&plane, &world.ticket(0)).await.unwrap();
    assert_eq!(plan.run, run.id);
    assert_eq!(plan.variables["DBT_CLOUD_RUN_ID"], run.id.to_string());
    assert_eq!(
        plan.variables["DBT_ENV_CUSTOM_ENV_DBT_CLOUD_RUN_ID"],
        run.id.to_string()
    );
    redeem(&plane, &world.ticket(0))
        .await
        .expect("the same key may come again");

    assert_eq!(
        report(&plane, 1, RunEvent::Started).await.unwrap().status,
        RunStatus::Running
    );
    assert_eq!(
        report(&plane, 2, RunEvent::Succeeded).await.unwrap().status,
        RunStatus::Success
    );
    assert_eq!(
        report(&plane, 2, RunEvent::Succeeded).await.unwrap().status,
        RunStatus::Success
    );
    world.executor.finish(name(&run), 0);
    assert_eq!(scheduler.tick().await.unwrap().settled, 1);
    assert_eq!(world.executor.removed(), [name(&run)]);
    assert_eq!(run_of(&plane, &run).await.status, RunStatus::Success);
}

#[tokio::test]
async fn an_agent_that_dies_ends_its_run_with_a_message_that_says_so() {
    let world = World::new();
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let run = trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    scheduler.tick().await.unwrap();
    redeem(&plane, &world.ticket(0)).await.unwrap();
    report(&plane, 1, RunEvent::Started).await.unwrap();
    world.executor.finish(name(&run), 137);
    scheduler.tick().await.unwrap();
    let run = run_of(&plane, &run).await;
    assert_eq!(run.status, RunStatus::Error);
    assert!(
        run.message.as_deref().unwrap().contains("exit code 137"),
        "{:?}",
        run.message
    );
    assert_eq!(
        report(&plane, 2, RunEvent::Succeeded).await,
        Err(StatusCode::GONE),
        "overtaken agents are told"
    );
}

#[tokio::test]
async fn a_restart_takes_over_and_starts_nothing_a_second_time() {
    let world = World::new();
    let before = world.plane("before");
    let job = world.job(&before).await;
    let run = trigger(&before, &job).await;
    let mut scheduler = Scheduler::new(before.clone());
    scheduler.tick().await.unwrap();
    redeem(&before, &world.ticket(0)).await.unwrap();
    report(&before, 1, RunEvent::Started).await.unwrap();

    let after = world.plane("after");
    let mut heir = Scheduler::new(after.clone());
    assert_eq!(heir.tick().await.unwrap().reclaimed, 0, "the lease still holds");
    world.clock.advance(before.config().lease + Duration::from_secs(1));
    assert_eq!(heir.tick().await.unwrap().reclaimed, 1);
    scheduler.tick().await.unwrap();
    assert_eq!(world.executor.starts(name(&run)), 1);
    assert_eq!(
        report(&after, 2, RunEvent::Succeeded).await.unwrap().status,
        RunStatus::Success
    );
    world.executor.finish(name(&run), 0);
    assert_eq!(
        scheduler.tick().await.unwrap().settled,
        0,
        "the overtaken scheduler lets go"
    );
    assert_eq!(heir.tick().await.unwrap().settled, 1);
}

#[tokio::test]
async fn a_thousand_schedules_of_one_instant_fire_once_each_with_four_schedulers() {
    let world = World::new();
    let plane = world.plane("zero");
    let first = world.job(&plane).await;
    let mut job = first.body.clone();
    job.triggers.schedule = true;
    job.schedule = Some(Schedule::cron("0 * * * *", "UTC").unwrap());
    for _ in 0..1_000 {
        plane
            .create_job(&Actor::System, first.account, job.clone())
            .await
            .unwrap();
    }
    let mut schedulers: Vec<_> = (0..4).map(|n| Scheduler::new(world.plane(&format!("s{n}")))).collect();
    world.clock.advance(Duration::from_secs(3_600));
    for _ in 0..5 {
        let ticks = schedulers.iter_mut().map(Scheduler::tick);
        for tick in futures::future::join_all(ticks).await {
            tick.unwrap();
        }
    }
    let page = plane
        .runs()
        .list(first.account, &RunFilter::default(), Page::default())
        .await
        .unwrap();
    assert_eq!(page.total, 1_000);
}

#[tokio::test]
async fn instants_missed_while_the_platform_was_down_are_one_run() {
    let world = World::new();
    let plane = world.plane("one");
    let first = world.job(&plane).await;
    let mut job = first.body.clone();
    job.triggers.schedule = true;
    job.schedule = Some(Schedule::cron("*/5 * * * *", "UTC").unwrap());
    let job = plane.create_job(&Actor::System, first.account, job).await.unwrap();
    world.clock.advance(Duration::from_secs(3_600));
    let mut scheduler = Scheduler::new(plane.clone());
    assert_eq!(scheduler.tick().await.unwrap().fired, 1);
    assert_eq!(scheduler.tick().await.unwrap().fired, 0);
    world.clock.advance(Duration::from_secs(300));
    assert_eq!(scheduler.tick().await.unwrap().fired, 1);
    let hands = plane.schedules().of(&[job.id]).await.unwrap();
    assert!(hands[0].next_at.unwrap() > START.plus(Duration::from_secs(3_900)));
}

#[tokio::test]
async fn cancelling_a_run_that_ignores_it_ends_it_by_force_and_says_what_was_confirmed() {
    let world = World::new();
    world.executor.script_others(Script::Ignore);
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let run = trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    scheduler.tick().await.unwrap();
    redeem(&plane, &world.ticket(0)).await.unwrap();
    report(&plane, 1, RunEvent::Started).await.unwrap();
    assert_eq!(
        plane
            .cancel(&Actor::System, job.account, run.id, "user")
            .await
            .unwrap()
            .status,
        RunStatus::Cancelling
    );
    scheduler.tick().await.unwrap();
    assert!(
        world.executor.cancelled().is_empty(),
        "the agent is given its grace first"
    );
    world.clock.advance(Duration::from_secs(60));
    scheduler.tick().await.unwrap();
    assert_eq!(world.executor.cancelled().len(), 1);
    world.clock.advance(Duration::from_secs(60));
    scheduler.tick().await.unwrap();
    let run = run_of(&plane, &run).await;
    assert_eq!(run.status, RunStatus::Cancelled);
    let message = run.message.unwrap();
    assert!(
        message.starts_with("Cancelled by user.") && message.contains("signal 9"),
        "{message}"
    );
}

#[tokio::test]
async fn a_run_without_a_connection_fails_and_names_the_field() {
    let world = World::new();
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let mut environment: Record<Environment> = plane.catalog().fetch(job.account, job.environment).await.unwrap();
    environment.body.connection = None;
    plane.catalog().save(&environment, START).await.unwrap();
    let run = trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    scheduler.tick().await.unwrap();
    let run = run_of(&plane, &run).await;
    assert_eq!(run.status, RunStatus::Error);
    assert!(
        run.message.as_deref().unwrap().contains("connection_id"),
        "{:?}",
        run.message
    );
    assert!(world.executor.started().is_empty());
}

#[tokio::test]
async fn an_executor_that_cannot_be_asked_fails_no_run() {
    let world = World::new();
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let run = trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    world.executor.outage(true);
    scheduler.tick().await.unwrap();
    scheduler.tick().await.unwrap();
    assert_eq!(run_of(&plane, &run).await.status, RunStatus::Starting);
    world.executor.outage(false);
    scheduler.tick().await.unwrap();
    assert_eq!(world.executor.starts(name(&run)), 1);
}

#[tokio::test]
async fn a_run_that_never_begins_is_given_up_with_the_reason() {
    let world = World::new();
    world.executor.script_others(Script::Pend);
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let run = trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    scheduler.tick().await.unwrap();
    world
        .clock
        .advance(plane.config().provision_timeout + Duration::from_secs(1));
    let mut heir = Scheduler::new(plane.clone());
    heir.tick().await.unwrap();
    let run = run_of(&plane, &run).await;
    assert_eq!(run.status, RunStatus::Error);
    assert!(
        run.message.as_deref().unwrap().contains("scripted to pend"),
        "{:?}",
        run.message
    );
}

#[tokio::test]
async fn a_job_that_waits_for_another_starts_when_that_one_ends_as_it_should() {
    let world = World::new();
    world.executor.script_others(Script::exits(1));
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    for outcomes in [vec![Outcome::Error], vec![Outcome::Success]] {
        let mut next = job.body.clone();
        next.completion_trigger = Some(CompletionTrigger {
            job: job.id,
            project: job.project,
            outcomes,
        });
        plane.create_job(&Actor::System, job.account, next).await.unwrap();
    }
    trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    for _ in 0..4 {
        scheduler.tick().await.unwrap();
        // Often, and one time too many: a chained job starts once.
        outbox::round(&plane).await.unwrap();
    }
    let page = plane
        .runs()
        .list(job.account, &RunFilter::default(), Page::default())
        .await
        .unwrap();
    let causes: Vec<_> = page.items.iter().map(|run| run.new.trigger.category).collect();
    assert_eq!(causes, [CauseCategory::Api, CauseCategory::JobCompletion]);
}

/// A process that dies between the end of a run and what follows from it loses neither.
#[tokio::test]
async fn what_follows_from_an_end_is_done_by_another_process() {
    let world = World::new();
    world.executor.script_others(Script::exits(1));
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let mut next = job.body.clone();
    next.completion_trigger = Some(CompletionTrigger {
        job: job.id,
        project: job.project,
        outcomes: vec![Outcome::Error],
    });
    let next = plane.create_job(&Actor::System, job.account, next).await.unwrap();
    trigger(&plane, &job).await;
    let mut scheduler = Scheduler::new(plane.clone());
    while scheduler.tick().await.unwrap().settled == 0 {}
    drop((scheduler, plane));

    let heir = world.plane("two");
    // Its answer is lost: the delivery comes again, and what follows from it is not done again.
    let now = world.clock.now();
    let taken = heir.outbox().take(Consumer::Follow, now, now, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    for _ in 0..2 {
        outbox::round(&heir).await.unwrap();
    }
    assert_eq!(heir.outbox().depth(Consumer::Follow).await.unwrap(), 0);
    assert_eq!(
        heir.outbox().depth(Consumer::Lineage).await.unwrap(),
        0,
        "nobody is to be told"
    );
    let filter = RunFilter {
        job: Some(next.id),
        ..RunFilter::default()
    };
    let page = heir.runs().list(job.account, &filter, Page::default()).await.unwrap();
    assert_eq!(page.total, 1);
}

struct Refuses(ErrorKind);

#[async_trait::async_trait]
impl Consume for Refuses {
    async fn consume(&self, _: &ControlPlane, _: &Delivery) -> dbtcloud_core::Result<Handled> {
        Err(dbtcloud_core::Error::new(self.0, "scripted"))
    }
}

/// A delivery that fails is put off, longer and longer; only one that can never succeed is given up.
#[tokio::test]
async fn a_delivery_that_fails_comes_again() {
    for (kind, left) in [(ErrorKind::Unavailable, 1), (ErrorKind::Corrupt, 0)] {
        let world = World::new();
        let launch = AgentLaunch::local(vec!["agent".to_owned()], Path::new("/nowhere"), []);
        let plane = ControlPlane::builder(
            world.storage.clone(),
            world.executor.clone(),
            Config::new("one", launch),
        )
        .clock(world.clock.clone())
        .consumer(Consumer::Notify, Refuses(kind))
        .build();
        let job = world.job(&plane).await;
        let run = trigger(&plane, &job).await;
        plane.cancel(&Actor::System, job.account, run.id, "user").await.unwrap();
        for _ in 0..20 {
            outbox::round(&plane).await.unwrap();
            assert_eq!(outbox::round(&plane).await.unwrap(), 0, "not before its pause is over");
            world.clock.advance(Duration::from_secs(300));
        }
        assert_eq!(plane.outbox().depth(Consumer::Notify).await.unwrap(), left, "{kind:?}");
        let failed = plane.metrics().deliveries_failed.get();
        assert_eq!(failed, if left == 1 { 20 } else { 11 });
        assert_eq!(
            plane.outbox().depth(Consumer::Follow).await.unwrap(),
            0,
            "nobody waits for it"
        );
    }
}

#[tokio::test]
async fn slots_bound_what_executes_and_one_job_runs_once_at_a_time() {
    let world = World::new();
    let plane = world.plane("one");
    let job = world.job(&plane).await;
    let other = plane
        .create_job(&Actor::System, job.account, job.body.clone())
        .await
        .unwrap();
    let mut first = Vec::new();
    for round in 0..3 {
        for job in [&job, &other] {
            let run = trigger(&plane, job).await;
            first.extend((round == 0).then_some(run.id));
        }
    }
    let mut scheduler = Scheduler::new(plane.clone());
    for _ in 0..3 {
        scheduler.tick().await.unwrap();
    }
    let started: Vec<RunId> = world
        .executor
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|one| match one.id {
            ExecutionId::Run { run, .. } => run,
            ExecutionId::Session { .. } => unreachable!(),
        })
        .collect();
    assert_eq!(started, first, "one of each job");
}

#[tokio::test]
async fn a_deleted_job_is_taken_off_the_clock() {
    let world = World::new();
    let plane = world.plane("one");
    let first = world.job(&plane).await;
    let mut job = first.body.clone();
    job.triggers.schedule = true;
    job.schedule = Some(Schedule::cron("0 * * * *", "UTC").unwrap());
    let mut job = plane.create_job(&Actor::System, first.account, job).await.unwrap();
    // A crash between the record and its hand: the record says deleted, the hand still stands.
    job.deleted = true;
    plane.catalog().save(&job, START).await.unwrap();
    assert!(
        world
            .storage
            .get(Kind::Job, job.account, job.id.get())
            .await
            .unwrap()
            .deleted
    );
    world.clock.advance(Duration::from_secs(3_600));
    let mut scheduler = Scheduler::new(plane.clone());
    assert_eq!(scheduler.tick().await.unwrap().fired, 0);
    assert_eq!(plane.schedules().next().await.unwrap(), None);
}
