use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::ports::{Clock, Execution, ExecutionId, ExecutionSpec, Executor, Exit, Observation, Workload};
use dbtcloud_core::time::Timestamp;

/// SIGINT, as an [`Exit`] has it.
const INTERRUPT: i32 = 2;
/// SIGKILL, as an [`Exit`] has it.
const KILL: i32 = 9;

/// What an execution does once it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Stays pending until the test says otherwise.
    Pend,
    /// Runs; an interrupt ends it at once. A service has an address.
    Run,
    /// Runs; an interrupt does not impress it, so that it is killed when the grace is over.
    Ignore,
    /// Ends with this code once it has run for so long.
    Exit {
        /// How long it runs.
        after: Duration,
        /// Its exit code.
        code: i32,
    },
    /// Can never be started: `start` answers `Invalid`.
    Refuse,
}

impl Script {
    /// Ends at once with this code.
    pub const fn exits(code: i32) -> Self {
        Self::Exit {
            after: Duration::ZERO,
            code,
        }
    }
}

/// An executor in which what happens is written by the test. A clone is another instance over the same
/// world, as after a restart of the control plane.
///
/// ```
/// # futures::executor::block_on(async {
/// use dbtcloud_contract::memory::{ManualClock, Script, ScriptedExecutor};
/// use dbtcloud_contract::suite::executor::plain_spec;
/// use dbtcloud_core::{Timestamp, id::RunId};
/// use dbtcloud_core::ports::{ExecutionId, Executor, Observation};
/// let executor = ScriptedExecutor::new(ManualClock::at(Timestamp::EPOCH));
/// let id = ExecutionId::Run { run: RunId::new(1), attempt: 1 };
/// executor.script(id, Script::exits(3));
/// executor.start(&plain_spec(id)).await.unwrap();
/// let Observation::Exited(exit) = executor.observe(id).await.unwrap() else { unreachable!() };
/// assert_eq!(exit.code, Some(3));
/// assert_eq!(executor.started().len(), 1);
/// # });
/// ```
#[derive(Clone)]
pub struct ScriptedExecutor {
    clock: Arc<dyn Clock>,
    world: Arc<Mutex<World>>,
}

struct World {
    scripts: BTreeMap<ExecutionId, Script>,
    otherwise: Script,
    running: BTreeMap<ExecutionId, Running>,
    started: Vec<ExecutionSpec>,
    cancelled: Vec<(ExecutionId, Duration)>,
    removed: Vec<ExecutionId>,
    /// Whose calls cannot be answered.
    silent: BTreeMap<ExecutionId, ()>,
    outage: bool,
}

struct Running {
    script: Script,
    workload: Workload,
    at: Timestamp,
    /// When it was first interrupted, and when it is killed at the latest.
    cancel: Option<(Timestamp, Timestamp)>,
    exit: Option<Exit>,
}

impl Running {
    /// What has become of it by `now`.
    fn settle(&mut self, now: Timestamp) {
        if self.exit.is_some() {
            return;
        }
        let ended = |code: Option<i32>, signal: Option<i32>, at| {
            let message = String::from(if signal.is_some() { "cancelled" } else { "ended" });
            Exit {
                code,
                signal,
                out_of_memory: false,
                at,
                message,
            }
        };
        let by_itself = match self.script {
            Script::Exit { after, code } => Some(ended(Some(code), None, self.at.plus(after))),
            _ => None,
        };
        let by_cancel = self.cancel.map(|(asked, limit)| match self.script {
            Script::Ignore => ended(None, Some(KILL), limit),
            _ => ended(None, Some(INTERRUPT), asked),
        });
        let first = [by_itself, by_cancel].into_iter().flatten().min_by_key(|exit| exit.at);
        self.exit = first.filter(|exit| exit.at <= now);
    }

    fn observe(&self, id: ExecutionId) -> Observation {
        match (&self.exit, &self.script) {
            (Some(exit), _) => Observation::Exited(exit.clone()),
            (None, Script::Pend) => Observation::Pending {
                reason: "scripted to pend".to_owned(),
            },
            (None, _) => Observation::Running {
                address: (self.workload == Workload::Service).then(|| format!("http://{id}.invalid:8080")),
            },
        }
    }
}

impl ScriptedExecutor {
    /// An executor in which everything runs until it is cancelled, unless a script says otherwise.
    pub fn new(clock: impl Clock + 'static) -> Self {
        let world = World {
            scripts: BTreeMap::new(),
            otherwise: Script::Run,
            running: BTreeMap::new(),
            started: Vec::new(),
            cancelled: Vec::new(),
            removed: Vec::new(),
            silent: BTreeMap::new(),
            outage: false,
        };
        Self {
            clock: Arc::new(clock),
            world: Arc::new(Mutex::new(world)),
        }
    }

    /// What this execution does, from now on: also when it has been started already.
    pub fn script(&self, id: ExecutionId, script: Script) {
        let mut world = self.lock();
        if let Some(running) = world.running.get_mut(&id) {
            running.script = script.clone();
        }
        world.scripts.insert(id, script);
    }

    /// What executions without a script of their own do.
    pub fn script_others(&self, script: Script) {
        self.lock().otherwise = script;
    }

    /// Ends an execution that was started.
    pub fn finish(&self, id: ExecutionId, code: i32) {
        let at = self.clock.now();
        if let Some(running) = self.lock().running.get_mut(&id) {
            let message = "ended".to_owned();
            running.exit.get_or_insert(Exit {
                code: Some(code),
                signal: None,
                out_of_memory: false,
                at,
                message,
            });
        }
    }

    /// Ends an execution for using too much memory.
    pub fn starve(&self, id: ExecutionId) {
        let at = self.clock.now();
        if let Some(running) = self.lock().running.get_mut(&id) {
            let message = "out of memory".to_owned();
            running.exit.get_or_insert(Exit {
                code: None,
                signal: Some(KILL),
                out_of_memory: true,
                at,
                message,
            });
        }
    }

    /// Makes an execution disappear although nobody removed it: a lost node.
    pub fn vanish(&self, id: ExecutionId) {
        self.lock().running.remove(&id);
    }

    /// Whether questions about this execution go unanswered (`Unavailable`).
    pub fn silence(&self, id: ExecutionId, silent: bool) {
        let mut world = self.lock();
        if silent {
            world.silent.insert(id, ());
        } else {
            world.silent.remove(&id);
        }
    }

    /// Whether every call goes unanswered (`Unavailable`).
    pub fn outage(&self, outage: bool) {
        self.lock().outage = outage;
    }

    /// Everything that was ever really started, in order. An id that stands here twice was started twice.
    pub fn started(&self) -> Vec<ExecutionSpec> {
        self.lock().started.clone()
    }

    /// How often this execution was really started.
    pub fn starts(&self, id: ExecutionId) -> usize {
        self.lock().started.iter().filter(|spec| spec.id == id).count()
    }

    /// Every call of `cancel` that was answered.
    pub fn cancelled(&self) -> Vec<(ExecutionId, Duration)> {
        self.lock().cancelled.clone()
    }

    /// Every call of `remove` that was answered.
    pub fn removed(&self) -> Vec<ExecutionId> {
        self.lock().removed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world, if it answers, with everything settled.
    fn ask(&self, about: Option<ExecutionId>) -> Result<MutexGuard<'_, World>> {
        let now = self.clock.now();
        let mut world = self.lock();
        if world.outage || about.is_some_and(|id| world.silent.contains_key(&id)) {
            return Err(Error::unavailable("scripted not to answer"));
        }
        for running in world.running.values_mut() {
            running.settle(now);
        }
        Ok(world)
    }
}

#[async_trait]
impl Executor for ScriptedExecutor {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        let at = self.clock.now();
        let mut world = self.ask(Some(spec.id))?;
        if world.running.contains_key(&spec.id) {
            return Ok(());
        }
        let script = world.scripts.get(&spec.id).unwrap_or(&world.otherwise).clone();
        if script == Script::Refuse || spec.command.is_empty() {
            return Err(Error::invalid("command", "expected one that can be started"));
        }
        world.started.push(spec.clone());
        let running = Running {
            script,
            workload: spec.workload,
            at,
            cancel: None,
            exit: None,
        };
        world.running.insert(spec.id, running);
        Ok(())
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        let world = self.ask(Some(id))?;
        Ok(world
            .running
            .get(&id)
            .map_or(Observation::Absent, |running| running.observe(id)))
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        let now = self.clock.now();
        let mut world = self.ask(Some(id))?;
        world.cancelled.push((id, grace));
        if let Some(running) = world.running.get_mut(&id) {
            let limit = now.plus(grace);
            running.cancel = match running.cancel {
                Some((asked, earlier)) => Some((asked, earlier.min(limit))),
                None => Some((now, limit)),
            };
        }
        Ok(())
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        let mut world = self.ask(Some(id))?;
        world.running.remove(&id);
        world.removed.push(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        let world = self.ask(None)?;
        Ok(world
            .running
            .iter()
            .map(|(id, running)| Execution {
                id: *id,
                started_at: running.at,
            })
            .collect())
    }
}
