//! The world of a simulation: processes of a control plane that die, stall and come back with a wrong clock, over
//! stores and an executor that fail, and a network between agents and them that loses and repeats.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use dbtcloud_contract::faults::{Faults, FaultyArtifacts, FaultyExecutor, FaultyStorage, Moment, Rates, Scene};
use dbtcloud_contract::memory::{MemoryArtifacts, MemoryStorage, Mutation, Script, ScriptedExecutor};
use dbtcloud_core::Timestamp;
use dbtcloud_core::ports::{Clock, Execution, ExecutionId, ExecutionSpec, Executor, Observation};
use dbtcloud_core::{Error, Result};
use dbtcloud_runtime::{AgentLaunch, Config, ControlPlane, cleanup, outbox};
use futures::future::{Either, select};

use crate::agent;
use crate::engine::Sim;
use crate::oracle::Oracle;

/// Ten seconds before a full minute of a day without anything special.
pub const START: Timestamp = Timestamp::from_micros(1_774_742_450_000_000);
/// Runs that one scheduler drives at one time.
pub const CAPACITY: usize = 3;
/// How often a bell rings.
const BELL_MICROS: u64 = 2_000_000;
/// The furthest a process's clock is off.
const SKEW_SECONDS: u64 = 20;

/// How bad things are: in a thousand of all calls, unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Calls that fail or are repeated, in percent.
    pub rates: Rates,
    /// Calls before or after which the process dies.
    pub crash: u64,
    /// Calls that take seconds.
    pub slow: u64,
    /// Calls before which the process stops for longer than a lease.
    pub stall: u64,
    /// Messages that are lost, on either way.
    pub lost: u64,
    /// Messages that arrive a second time, later.
    pub repeated: u64,
    /// Words of an agent before which it dies, or loses its host.
    pub agent_dies: u64,
    /// Seconds that go by between two looks of a process, at most.
    pub lazy: u64,
}

impl Weather {
    /// Everything at once.
    pub const STORM: Self = Self {
        rates: Rates {
            before: 3,
            after: 3,
            twice: 4,
        },
        crash: 6,
        slow: 20,
        stall: 4,
        lost: 60,
        repeated: 80,
        agent_dies: 15,
        lazy: 3,
    };
    /// Nothing.
    pub const CALM: Self = Self {
        rates: Rates::CALM,
        crash: 0,
        slow: 0,
        stall: 0,
        lost: 0,
        repeated: 0,
        agent_dies: 0,
        lazy: 15,
    };
}

/// A clock of one process.
#[derive(Clone)]
pub struct SimClock {
    sim: Sim,
    /// Microseconds that it is off.
    skew: i64,
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let now = START.plus(self.sim.now());
        Timestamp::from_micros(now.as_micros() + self.skew)
    }

    async fn sleep(&self, span: Duration) {
        self.sim.sleep(span).await;
    }
}

/// The life of one process.
#[derive(Default)]
pub struct Life {
    state: Mutex<(bool, Vec<Waker>)>,
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, (bool, Vec<Waker>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it.
    pub fn end(&self) {
        let mut state = self.lock();
        state.0 = true;
        for waker in std::mem::take(&mut state.1) {
            waker.wake();
        }
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.lock().0
    }

    /// What a process does, until it dies: `None`.
    pub async fn during<T>(&self, work: impl Future<Output = T> + Send) -> Option<T> {
        let over = std::future::poll_fn(|context| {
            let mut state = self.lock();
            if state.0 {
                return Poll::Ready(());
            }
            state.1.push(context.waker().clone());
            Poll::Pending
        });
        match select(over, Box::pin(work)).await {
            Either::Left(_) => None,
            Either::Right((done, _)) => Some(done),
        }
    }
}

/// What surrounds every port call of one process.
struct Stage {
    world: Arc<World>,
    life: Arc<Life>,
    name: String,
}

impl Stage {
    async fn die(&self, call: &str, moment: Moment) {
        self.world
            .sim
            .tell(format_args!("{} dies {moment:?} {call}", self.name));
        self.life.end();
        std::future::pending::<()>().await;
    }
}

#[async_trait]
impl Scene for Stage {
    async fn pass(&self, call: &'static str, moment: Moment) {
        let sim = &self.world.sim;
        let weather = self.world.weather();
        if moment == Moment::Before {
            sim.tell(format_args!("{} {call}", self.name));
            // What is decided before a stall and written after it is what the fences and keys are for.
            let decided = matches!(call, "runs.claim" | "runs.change" | "schedules.fire");
            let stall = weather.stall * if decided { 25 } else { 1 };
            let span = match () {
                () if sim.happens(stall) => sim.span(5_000, 45_000),
                () if sim.happens(weather.slow) => sim.span(100, 3_000),
                () => sim.span(0, 4),
            };
            sim.sleep(span).await;
        } else {
            self.world.oracle.look(call);
        }
        if self.life.is_over() {
            std::future::pending::<()>().await;
        }
        if sim.happens(weather.crash) {
            self.die(call, moment).await;
        }
    }
}

/// Starts agents where the scripted executor starts an execution for the first time.
#[derive(Clone)]
struct Hosts {
    world: Arc<World>,
}

#[async_trait]
impl Executor for Hosts {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        let scripted = &self.world.executor;
        let before = scripted.starts(spec.id);
        scripted.start(spec).await?;
        if scripted.starts(spec.id) > before {
            self.world.sim.spawn(agent::live(self.world.clone(), spec.clone()));
        }
        Ok(())
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        self.world.executor.observe(id).await
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        self.world.executor.cancel(id, grace).await
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        self.world.executor.remove(id).await
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        self.world.executor.list().await
    }
}

/// A process that answers agents and people.
#[derive(Clone)]
pub struct App {
    /// Its control plane, faults and all.
    pub plane: ControlPlane,
    /// The agents' door.
    pub router: Router,
    /// Its life.
    pub life: Arc<Life>,
}

/// Everything there is.
pub struct World {
    /// Time and turns.
    pub sim: Sim,
    /// What really is stored.
    pub storage: MemoryStorage,
    /// What really is kept of files.
    pub artifacts: MemoryArtifacts,
    /// What really runs.
    pub executor: ScriptedExecutor,
    /// Who watches the rules.
    pub oracle: Oracle,
    /// The artifact store as cleanup sees it.
    kept: FaultyArtifacts,
    weather: Mutex<Weather>,
    /// The faults of every process that ever was.
    faults: Mutex<Vec<Arc<Faults>>>,
    apps: Mutex<Vec<Option<App>>>,
    over: AtomicBool,
}

impl World {
    /// A world without processes. A `blind` one has an artifact store whose tears nobody can see by reading back.
    pub fn new(sim: Sim, mutation: Option<Mutation>, blind: bool) -> Arc<Self> {
        let storage = mutation.map_or_else(MemoryStorage::new, MemoryStorage::with_mutation);
        let artifacts = MemoryArtifacts::new();
        let executor = ScriptedExecutor::new(SimClock {
            sim: sim.clone(),
            skew: 0,
        });
        executor.script_others(Script::Ignore);
        let calm = Arc::new(Faults::new(0, Rates::CALM));
        let kept = FaultyArtifacts::new(Arc::new(artifacts.clone()), calm);
        Arc::new(Self {
            oracle: Oracle::new(sim.clone(), storage.clone()),
            sim,
            storage,
            artifacts,
            executor,
            kept: if blind { kept.blind() } else { kept },
            weather: Mutex::new(Weather::CALM),
            faults: Mutex::default(),
            apps: Mutex::new(vec![None; 2]),
            over: AtomicBool::new(false),
        })
    }

    /// How bad things are now.
    pub fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it.
    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
        for faults in self.faults.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            faults.set(weather.rates);
        }
    }

    /// Ends the story.
    pub fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether the story has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn config(name: &str) -> Config {
        let launch = AgentLaunch::local(vec!["agent".to_owned()], Path::new("/nowhere"), []);
        let mut config = Config::new(name, launch);
        config.run_capacity = CAPACITY;
        config.provision_timeout = Duration::from_secs(60);
        config.heartbeat_timeout = Duration::from_secs(60);
        config.grace = Duration::from_secs(5);
        config
    }

    /// A control plane that sees everything as it is.
    pub fn eye(self: &Arc<Self>) -> ControlPlane {
        ControlPlane::builder(self.storage.clone(), self.executor.clone(), Self::config("eye"))
            .artifacts(self.artifacts.clone())
            .clock(SimClock {
                sim: self.sim.clone(),
                skew: 0,
            })
            .build()
    }

    /// The control plane of a process, through all faults.
    fn plane(self: &Arc<Self>, name: &str, life: &Arc<Life>) -> ControlPlane {
        let (sim, weather) = (&self.sim, self.weather());
        let stage = Arc::new(Stage {
            world: self.clone(),
            life: life.clone(),
            name: name.to_owned(),
        });
        let faults = |rates: Rates| {
            let faults = Arc::new(Faults::new(sim.draw(u64::MAX), rates).in_scene(stage.clone()));
            let mut all = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(faults.clone());
            faults
        };
        let storage = FaultyStorage::new(Arc::new(self.storage.clone()), faults(weather.rates));
        let executor = FaultyExecutor::new(Arc::new(Hosts { world: self.clone() }), faults(weather.rates));
        let skew = i64::try_from(sim.draw(2 * SKEW_SECONDS * 1_000_000)).unwrap_or(0);
        // Tears are for the one that reads back; agents' files are nobody's business here.
        let torn = Rates {
            twice: if name.starts_with("cleanup") {
                weather.rates.twice * 5
            } else {
                0
            },
            ..weather.rates
        };
        ControlPlane::builder(storage, executor, Self::config(name))
            .artifacts(self.kept.seen_with(faults(torn)))
            .clock(SimClock {
                sim: sim.clone(),
                skew: skew - 1_000_000 * i64::try_from(SKEW_SECONDS).unwrap_or(0),
            })
            .build()
    }

    /// A process that lives, dies, and is started again under another name, until the story ends.
    async fn process<F, W>(self: Arc<Self>, role: &'static str, number: usize, work: F)
    where
        F: Fn(ControlPlane, Arc<Life>) -> W + Send,
        W: Future<Output = ()> + Send,
    {
        for generation in 1.. {
            let name = format!("{role}-{number}.{generation}");
            let life = Arc::new(Life::default());
            let plane = self.plane(&name, &life);
            self.sim.tell(format_args!("{name} begins"));
            let left = life.during(work(plane, life.clone())).await;
            life.end();
            let how = if left.is_some() { "leaves" } else { "is dead" };
            self.sim.tell(format_args!("{name} {how}"));
            self.sim.sleep(self.sim.span(50, 8_000)).await;
            if self.is_over() {
                return;
            }
        }
    }

    /// How long a scheduler waits: for a time of its own, or, as often, until a bell that all of them hear.
    fn until_woken(&self) -> Duration {
        let sim = &self.sim;
        if sim.happens(500) {
            let into = u64::try_from(sim.now().as_micros()).unwrap_or(0) % BELL_MICROS;
            return Duration::from_micros(BELL_MICROS - into);
        }
        sim.span(300, 1_000 * self.weather().lazy)
    }

    /// Adds a scheduler.
    pub fn add_scheduler(self: &Arc<Self>, number: usize) {
        let world = self.clone();
        let work = move |plane: ControlPlane, _| {
            let sim = world.sim.clone();
            let world = world.clone();
            async move {
                let mut scheduler = dbtcloud_runtime::scheduler::Scheduler::new(plane);
                loop {
                    // What fails is tried again by the next tick.
                    let _ = scheduler.tick().await;
                    sim.sleep(world.until_woken()).await;
                    if world.weather().crash > 0 && sim.happens(10) {
                        scheduler.retire().await;
                        return;
                    }
                }
            }
        };
        self.sim.spawn(self.clone().process("scheduler", number, work));
    }

    /// Adds a cleanup.
    pub fn add_cleanup(self: &Arc<Self>, number: usize) {
        let sim = self.sim.clone();
        let work = move |plane: ControlPlane, _| {
            let sim = sim.clone();
            async move {
                loop {
                    let _ = cleanup::round(&plane).await;
                    for _ in 0..sim.draw(5) {
                        let _ = outbox::round(&plane).await;
                        sim.sleep(sim.span(500, 5_000)).await;
                    }
                    sim.sleep(sim.span(1_000, 5_000)).await;
                }
            }
        };
        self.sim.spawn(self.clone().process("cleanup", number, work));
    }

    /// Adds an app.
    pub fn add_app(self: &Arc<Self>, number: usize) {
        let world = self.clone();
        let work = move |plane: ControlPlane, life: Arc<Life>| {
            let world = world.clone();
            async move {
                let app = App {
                    router: plane.agent_router(),
                    plane,
                    life,
                };
                world.apps.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(app);
                loop {
                    world.sim.sleep(world.sim.span(500, 5_000)).await;
                }
            }
        };
        self.sim.spawn(self.clone().process("app", number, work));
    }

    /// An app that answers, if the balancer finds one.
    pub fn app(&self) -> Option<App> {
        let at = usize::try_from(self.sim.draw(2)).unwrap_or(0);
        let apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps[at].clone().filter(|app| !app.life.is_over())
    }

    /// What a person asks of an app.
    ///
    /// # Errors
    /// That of the app; `Unavailable` when it died.
    pub async fn ask<T, W>(&self, ask: impl FnOnce(ControlPlane) -> W) -> Result<T>
    where
        W: Future<Output = Result<T>> + Send,
    {
        let nobody = || Error::unavailable("nobody answered");
        let app = self.app().ok_or_else(nobody)?;
        app.life.during(ask(app.plane)).await.unwrap_or_else(|| Err(nobody()))
    }
}
