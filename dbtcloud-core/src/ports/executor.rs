use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::environment::Placement;
use crate::error::{Error, Result};
use crate::id::{AccountId, RunId, SessionId};
use crate::ports::Mount;
use crate::secret::Secret;
use crate::time::Timestamp;

/// What is executed, by name. The name is a pure function of the identity, so that reattaching after a
/// restart is nothing but observing.
///
/// ```
/// use dbtcloud_core::{id::RunId, ports::ExecutionId};
/// let id = ExecutionId::Run { run: RunId::new(42), attempt: 1 };
/// assert_eq!(id.to_string(), "run-42-1");
/// assert_eq!("run-42-1".parse::<ExecutionId>().unwrap(), id);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExecutionId {
    /// One attempt of a run.
    Run {
        /// The run.
        run: RunId,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// One start of a develop session's server.
    Session {
        /// The session.
        session: SessionId,
        /// The start, from 1.
        generation: u32,
    },
}

impl std::fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run { run, attempt } => write!(f, "run-{run}-{attempt}"),
            Self::Session { session, generation } => write!(f, "session-{session}-{generation}"),
        }
    }
}

impl std::str::FromStr for ExecutionId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("execution", format!("expected run-N-N or session-N-N, got '{text}'"));
        let mut parts = text.split('-');
        let (kind, id, count) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(id), Some(count), None) => (kind, id, count),
            _ => return Err(bad()),
        };
        let id: i64 = id.parse().map_err(|_| bad())?;
        let count: u32 = count.parse().map_err(|_| bad())?;
        match kind {
            "run" => Ok(Self::Run {
                run: RunId::new(id),
                attempt: count,
            }),
            "session" => Ok(Self::Session {
                session: SessionId::new(id),
                generation: count,
            }),
            _ => Err(bad()),
        }
    }
}

/// Whether it is to end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Runs to completion.
    Task,
    /// Serves until it is cancelled; [`Observation::Running`] tells its address once it answers. The
    /// process is told where to write that address by the environment variable `DBTCLOUD_ADDRESS_FILE`,
    /// or on which port to listen by `DBTCLOUD_PORT`, whichever the executor sets.
    Service,
}

/// What an execution may use. `None` leaves it to the executor's own default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WorkloadLimits {
    /// Memory in bytes; beyond it the execution ends with [`Exit::out_of_memory`] where the executor can tell.
    pub memory_bytes: Option<u64>,
    /// The longest it may live; a backstop behind the driver's own time-out.
    pub lifetime: Option<Duration>,
}

/// What is to be started.
#[derive(Clone, Debug)]
pub struct ExecutionSpec {
    /// Its name.
    pub id: ExecutionId,
    /// Whose it is.
    pub account: AccountId,
    /// Task or service.
    pub workload: Workload,
    /// The program and its arguments. No secret stands here.
    pub command: Vec<String>,
    /// The environment of the process. Nothing of the starter's is inherited; beneath it may be what an image
    /// or a container runtime sets (`PATH`, `HOME`, `HOSTNAME`).
    pub environment: BTreeMap<String, String>,
    /// A one-use ticket, handed over as `DBTCLOUD_TICKET`. The only secret that may pass here.
    pub ticket: Option<Secret>,
    /// Volumes to be mounted.
    pub mounts: Vec<Mount>,
    /// What it may use.
    pub limits: WorkloadLimits,
    /// Where it runs, as whom, and with how much. What an executor has no notion of it passes over, and its
    /// documentation says so.
    pub placement: Placement,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it was ended for using too much memory.
    pub out_of_memory: bool,
    /// When.
    pub at: Timestamp,
    /// What a person should know.
    pub message: String,
}

/// What is seen of an execution. "Not there" is an answer; "cannot tell" is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// It was never started, or it has been removed.
    Absent,
    /// It is being provisioned.
    Pending {
        /// What it waits for.
        reason: String,
    },
    /// It runs.
    Running {
        /// Where a service answers.
        address: Option<String>,
    },
    /// It ended, and is explained until it is removed.
    Exited(Exit),
}

/// One of ours, as [`Executor::list`] has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Its name.
    pub id: ExecutionId,
    /// When it was started.
    pub started_at: Timestamp,
}

/// Starts and observes processes, pods or whatever else can hold a workload. Six verbs, none optional.
///
/// Contract, beyond the methods' own texts:
/// - an execution outlives the process that started it;
/// - everything it starts belongs to it and ends with it;
/// - what it did is told by `observe` until `remove`, also to another instance of the same executor.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Starts what is so named. On `Ok` it exists, or has existed and ended. A second call with the same
    /// id does nothing, also concurrently and also from another process: at most one is ever started.
    ///
    /// Errors: `Invalid` when the spec can never be started (the message says why); `Unavailable` when it
    /// could not be now: observe, then call again.
    async fn start(&self, spec: &ExecutionSpec) -> Result<()>;

    /// What is seen of it now. Never waits for anything to happen.
    ///
    /// Errors: `Unavailable` when it cannot be told; nothing may be concluded from that.
    async fn observe(&self, id: ExecutionId) -> Result<Observation>;

    /// Asks for its end: an interrupt at once, and after `grace` the end of everything it started. Does not
    /// wait. On `Ok` it will end without further calls, even if the caller dies. A second call with a
    /// shorter grace shortens it. `Ok` too when it is absent or has ended.
    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()>;

    /// Forgets it and frees all it held. What still runs is ended first. `Ok` when it is absent.
    async fn remove(&self, id: ExecutionId) -> Result<()>;

    /// Everything of ours that is not [`Observation::Absent`].
    async fn list(&self) -> Result<Vec<Execution>>;
}
