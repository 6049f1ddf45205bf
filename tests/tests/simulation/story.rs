//! One simulation from beginning to end: a storm, the calm after it, and the account of it all.

use std::sync::Arc;
use std::time::Duration;

use dbtcloud_contract::memory::Mutation;
use dbtcloud_core::account::Account;
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt as _, Record};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::job::{CompletionTrigger, Job};
use dbtcloud_core::ports::{Consumer, Executor as _, Logs as _, Outbox as _, Runs as _, Schedules as _};
use dbtcloud_core::run::{CauseCategory, Outcome, Request, Trigger};
use dbtcloud_core::schedule::Schedule;
use dbtcloud_runtime::{Blueprint, ControlPlane};

use crate::engine::Sim;
use crate::world::{CAPACITY, START, Weather, World};

/// Schedulers of a world.
const SCHEDULERS: usize = 3;
/// How long there is more to do all the time.
const ASKING: Duration = Duration::from_secs(40);
/// How long a storm lasts: most of what is to be done is done in it.
const STORM: Duration = Duration::from_secs(75);
/// How long it may take afterwards until everything is settled: beyond the longest time-out of anything.
const SETTLE: Duration = Duration::from_secs(1_800);
/// Jobs of the large account in a crowd.
const CROWD: usize = 50;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// From which everything follows.
    pub seed: u64,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
    /// Whether what was moved is not read back.
    pub blind: bool,
    /// Whether the trace is printed.
    pub aloud: bool,
    /// A large account's many runs beside a small one's, in place of a storm.
    pub crowd: bool,
}

impl Setup {
    /// A storm in which every rule is kept.
    pub fn storm(seed: u64) -> Self {
        Self {
            seed,
            mutation: None,
            blind: false,
            aloud: false,
            crowd: false,
        }
    }

    /// A crowd in which every rule is kept.
    pub fn crowd(seed: u64) -> Self {
        Self {
            crowd: true,
            ..Self::storm(seed)
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Story {
    /// The seed.
    pub seed: u64,
    /// Rules that were broken.
    pub violations: Vec<String>,
    /// Hash of the trace.
    pub hash: u64,
    /// Its lines.
    pub told: u64,
    /// How many runs there were.
    pub runs: usize,
}

/// Simulates.
pub fn play(setup: &Setup) -> Story {
    // One chore looks at the file system, which tokio does.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let sim = Sim::new(setup.seed, setup.aloud);
    let world = World::new(sim.clone(), setup.mutation, setup.blind);
    let counted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (director, count, crowd) = (world.clone(), counted.clone(), setup.crowd);
    sim.spawn(async move {
        let runs = if crowd {
            direct_crowd(&director).await
        } else {
            direct_storm(&director).await
        };
        count.store(runs, std::sync::atomic::Ordering::SeqCst);
        director.finish();
    });
    sim.run(|| world.is_over());
    let (hash, told) = sim.trace();
    Story {
        seed: setup.seed,
        violations: sim.violations(),
        hash,
        told,
        runs: counted.load(std::sync::atomic::Ordering::SeqCst),
    }
}

async fn install(eye: &ControlPlane, world: &World, name: &str, slots: u32) -> Record<Job> {
    let blueprint = Blueprint::new(name, "file:///shop.git", "duckdb").connect("path", "/tmp/shop.duckdb");
    let job = eye.install(&blueprint).await.unwrap();
    let mut account = eye.catalog().fetch::<Account>(job.account, job.account).await.unwrap();
    account.body.run_slots = slots;
    eye.catalog().save(&account, START).await.unwrap();
    world.oracle.watch(job.account, slots);
    job
}

async fn add_job(
    eye: &ControlPlane,
    sample: &Record<Job>,
    cron: Option<&str>,
    after: Option<&Record<Job>>,
) -> Record<Job> {
    let mut job = sample.body.clone();
    job.triggers.schedule = cron.is_some();
    job.schedule = cron.map(|cron| Schedule::cron(cron, "UTC").unwrap());
    job.completion_trigger = after.map(|after| CompletionTrigger {
        job: after.id,
        project: after.body.project,
        outcomes: vec![Outcome::Success, Outcome::Error, Outcome::Cancelled],
    });
    eye.create_job(&Actor::System, sample.account, job).await.unwrap()
}

fn populate(world: &Arc<World>) {
    for number in 0..SCHEDULERS {
        world.add_scheduler(number);
    }
    for number in 0..2 {
        world.add_app(number);
        world.add_cleanup(number);
    }
}

/// Somebody who sets runs off and stops some of them.
async fn people(world: Arc<World>, account: AccountId, jobs: Vec<Record<Job>>) {
    let sim = world.sim.clone();
    while sim.now() < ASKING {
        sim.sleep(sim.span(200, 14_000)).await;
        let job = jobs[usize::try_from(sim.draw(jobs.len() as u64)).unwrap_or(0)].id;
        // Who gets no answer asks once more by the same key.
        let key = format!("somebody at {:?}", sim.now());
        let trigger = Trigger::new(CauseCategory::Api, &key);
        let mut asked = Err(dbtcloud_core::Error::unavailable("nobody was asked"));
        for _ in 0..2 {
            let (trigger, key) = (trigger.clone(), key.clone());
            asked = world
                .ask(|plane| async move { plane.trigger_once(account, job, trigger, &key).await })
                .await;
            if asked.is_ok() {
                break;
            }
        }
        let Ok(run) = asked else { continue };
        sim.tell(format_args!("run {} was promised", run.id));
        world.oracle.promise(&run);
        if sim.happens(200) {
            sim.sleep(sim.span(0, 10_000)).await;
            let stopped = world
                .ask(|plane| async move { plane.cancel(&Actor::System, account, run.id, "somebody").await })
                .await;
            sim.tell(format_args!("run {} was asked to stop: {}", run.id, stopped.is_ok()));
        }
    }
}

/// Somebody who queues runs of one job in pairs, the second of which is due before the first: so a scheduler may have
/// chosen the one when another takes the other. They need no slot, or its key alone would keep them apart.
async fn pairs(world: Arc<World>, eye: ControlPlane, job: Record<Job>) {
    let sim = world.sim.clone();
    let account = eye.catalog().fetch::<Account>(job.account, job.account).await.unwrap();
    let environment = eye.catalog().fetch(job.account, job.body.environment).await.unwrap();
    let trigger = Trigger::new(CauseCategory::Api, "somebody");
    let mut due_at = START;
    while sim.now() < ASKING {
        sim.sleep(sim.span(4_000, 20_000)).await;
        for _ in 0..2 {
            due_at = due_at.minus(Duration::from_secs(1));
            let request = Request {
                account: &account,
                job: &job,
                environment: &environment,
                trigger: &trigger,
                scheduled_for: None,
                retry_of: None,
                due_at,
            };
            let mut new = request.compose().unwrap();
            new.takes_slot = false;
            world.storage.enqueue(&new, crate::agent::now(&world)).await.unwrap();
            sim.sleep(sim.span(0, 600)).await;
        }
    }
}

async fn direct_storm(world: &Arc<World>) -> usize {
    let (sim, eye) = (world.sim.clone(), world.eye());
    let large = install(&eye, world, "large", 2).await;
    let small = install(&eye, world, "small", 1).await;
    let minutely = add_job(&eye, &large, Some("* * * * *"), None).await;
    let chained = add_job(&eye, &large, None, Some(&minutely)).await;
    let scheduled = [
        minutely.clone(),
        add_job(&eye, &large, Some("*/2 * * * *"), None).await,
        add_job(&eye, &small, Some("* * * * *"), None).await,
    ];
    let paired = add_job(&eye, &large, None, None).await;
    world.set_weather(Weather::STORM);
    populate(world);
    sim.spawn(pairs(world.clone(), eye.clone(), paired));
    let own = vec![large.clone(), minutely.clone(), minutely, chained];
    sim.spawn(people(world.clone(), large.account, own));
    sim.spawn(people(world.clone(), small.account, vec![small.clone()]));
    sim.sleep(ASKING).await;
    for job in scheduled {
        let mut job = eye.catalog().fetch::<Job>(job.account, job.id).await.unwrap();
        job.body.triggers.schedule = false;
        eye.save_job(&Actor::System, &job).await.unwrap();
    }
    sim.sleep(STORM - ASKING).await;
    sim.tell("the storm is over");
    world.set_weather(Weather::CALM);
    settle(world, &eye).await
}

/// Waits until nothing is left to do, and looks at what was done.
async fn settle(world: &Arc<World>, eye: &ControlPlane) -> usize {
    let sim = &world.sim;
    let began = sim.now();
    loop {
        sim.sleep(Duration::from_secs(5)).await;
        let due = world.storage.due(crate::agent::now(world), 1).await.unwrap();
        let unmoved = world.storage.unmoved(0.into(), 1, 1).await.unwrap();
        let executions = world.executor.list().await.unwrap();
        let mut undelivered = 0;
        for consumer in Consumer::ALL {
            undelivered += world.storage.depth(consumer).await.unwrap();
        }
        let unsettled = world.oracle.unsettled();
        if due.is_empty() && unmoved.is_empty() && executions.is_empty() && unsettled == 0 && undelivered == 0 {
            break;
        }
        if sim.now() > began + SETTLE {
            sim.accuse(format_args!(
                "not settled: due {due:?}, unmoved {unmoved:?}, executions {executions:?}, runs {unsettled}, \
                 deliveries {undelivered}"
            ));
            break;
        }
    }
    // What is still on its way arrives, and changes nothing.
    sim.sleep(Duration::from_secs(20)).await;
    world.oracle.settle(eye).await
}

async fn direct_crowd(world: &Arc<World>) -> usize {
    let (sim, eye) = (world.sim.clone(), world.eye());
    let large = install(&eye, world, "large", 1_000).await;
    let small = install(&eye, world, "small", 1).await;
    let trigger = || Trigger::new(CauseCategory::Api, "somebody");
    for _ in 0..CROWD {
        let job = add_job(&eye, &large, None, None).await;
        eye.trigger(large.account, job.id, trigger()).await.unwrap();
    }
    populate(world);
    // The large account has taken all there is.
    sim.sleep(sim.span(5_000, 40_000)).await;
    let before = world.oracle.claims().len();
    let one = eye.trigger(small.account, small.id, trigger()).await.unwrap();
    let runs = settle(world, &eye).await;
    let claims = world.oracle.claims();
    let overtaken_by = claims[before..].iter().take_while(|(_, run)| *run != one.id).count();
    // Each scheduler may have made up its mind just before the run came, and one claim is not told apart in itself.
    if overtaken_by > (SCHEDULERS + 1) * CAPACITY {
        sim.accuse(format_args!(
            "run {} waited for {overtaken_by} of another account",
            one.id
        ));
    }
    runs
}
