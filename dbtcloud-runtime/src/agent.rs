//! The agent of a run: the same program in another role, in a process or a pod of its own.
//!
//! It trades its ticket for the plan, takes the steps, and tells the control plane everything in numbered batches that
//! may be sent twice. It outlives the control plane: what cannot be told now is kept and told later. It stops dbt when
//! it is told to, when the time is over, and at once when the run has become somebody else's.
//!
//! It must never print or keep a secret, hold a log in memory, or leave a process behind.

mod artifacts;
mod command;
mod console;
mod dbt;
mod git;
mod halt;
mod invoke;
mod nodes;
mod process;
mod profile;
mod redact;
mod reporter;
mod spool;
mod steps;
mod uplink;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use dbtcloud_core::ports::RunPatch;
use dbtcloud_core::run::RunEvent;
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind, Result};
use tokio::time::Instant;
use tracing::Instrument as _;

pub use artifacts::{CONCURRENCY, FILE_LIMIT, FULL_LIMIT, OUTAGE_LIMIT};
pub(crate) use command::EXECUTING;
pub use console::STEP_LOG_LIMIT_BYTES;
pub(crate) use console::plain;
pub use git::{GIT_LIMIT, LOCK_LIMIT};
pub use invoke::SESSIONS_LIMIT;
pub(crate) use nodes::INTERRUPTED;
pub use redact::{ARTIFACT_SECRET_MIN_CHARS, MASK, SECRET_MIN_CHARS};
pub use reporter::{COALESCE, HEARTBEAT, ITEM_LIMIT, MESSAGE_LIMIT_BYTES};
pub use spool::{DISK_LIMIT_BYTES, MEMORY_LIMIT_BYTES, SEGMENT_BYTES};
pub use uplink::{ANSWER_LIMIT, BACKOFF, REDEEM_LIMIT, Server, TRANSFER_LIMIT};

use artifacts::Uploads;
use dbt::FromEngine;
use halt::{Halt, Reason};
use redact::Redactor;
use reporter::{Ended, Reporter};
use steps::{Folders, Preparing, Work};
use uplink::Uplink;

use crate::protocol::RunPlan;

/// How long after the run's own time-out the control plane may stay away before the outcome is given up.
pub const DELIVERY_LIMIT: Duration = Duration::from_secs(3600);
/// Search path where none is given.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The folder below the work directory in which everything of an execution is. It is removed at the end.
const SCRATCH: &str = "scratch";
/// Variables that programs the agent starts need to reach the network, and the zone of the clock.
const NETWORK: [&str; 13] = [
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
];

/// What variables for dbt's own traces begin with.
const TRACING: &str = "OTEL_";

/// What an agent has to know before it may ask.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The one-use ticket.
    pub ticket: Secret,
    /// Where the control plane is.
    pub server: Server,
    /// Authorities that vouch for a control plane that speaks TLS, PEM; those of the machine when absent.
    pub server_ca: Option<PathBuf>,
    /// Scratch space of this execution; what the agent puts there is removed at the end.
    pub work_dir: PathBuf,
    /// Shared by the executions of the host: git mirrors, dbt environments, parse states, warm parents.
    pub cache_dir: PathBuf,
    /// dbt environments that came with the image; read only.
    pub dbt_envs: Option<PathBuf>,
    /// The `uv` that builds dbt environments. Not needed for those that are there.
    pub uv: Option<PathBuf>,
    /// Python of dbt environments, as `uv` understands it; the engine's default when absent.
    pub python: Option<String>,
    /// A dbt 2.x binary.
    pub native_dbt: Option<PathBuf>,
    /// Whether dbt may be forked from a warm parent.
    pub warm: bool,
    /// Search path of every program.
    pub path: String,
    /// Proxies, certificates, the time zone, and package indexes.
    pub passed_on: BTreeMap<String, String>,
}

impl AgentConfig {
    /// Reads an agent's configuration from variables; `None` when there is no `DBTCLOUD_TICKET` among them, which means
    /// that this process is no agent.
    ///
    /// | variable | |
    /// |---|---|
    /// | `DBTCLOUD_TICKET` | the ticket |
    /// | `DBTCLOUD_SERVER` | `unix:/path`, `http://host:port` or `https://host:port` |
    /// | `DBTCLOUD_SERVER_CA` | PEM file of the authorities that vouch for it |
    /// | `DBTCLOUD_WORK_DIR` | scratch space of this execution, absolute |
    /// | `DBTCLOUD_CACHE_DIR` | shared on the host, absolute |
    /// | `DBTCLOUD_DBT_ENVS` | dbt environments that came with the image, looked at before one is built |
    /// | `DBTCLOUD_UV` | `uv`; looked for on `PATH` when absent |
    /// | `DBTCLOUD_PYTHON` | Python of dbt environments |
    /// | `DBTCLOUD_DBT2` | a dbt 2.x binary |
    /// | `DBTCLOUD_WARM` | `false`: dbt is always started afresh |
    /// | `PATH`, proxies, certificates, `TZ`, `UV_…`, `PIP_…`, `OTEL_…` | passed on |
    ///
    /// # Errors
    /// `Invalid`, naming the variable.
    ///
    /// ```
    /// use dbtcloud_runtime::agent::AgentConfig;
    /// assert!(AgentConfig::from_environment(std::iter::empty()).unwrap().is_none());
    /// let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    /// let config = AgentConfig::from_environment([
    ///     set("DBTCLOUD_TICKET", "t"), set("DBTCLOUD_SERVER", "unix:/run/plane.sock"),
    ///     set("DBTCLOUD_WORK_DIR", "/scratch/run-1-1"), set("DBTCLOUD_CACHE_DIR", "/cache"),
    /// ].into_iter()).unwrap().unwrap();
    /// assert!(!format!("{config:?}").contains("\"t\""));
    /// ```
    pub fn from_environment(vars: impl Iterator<Item = (String, String)>) -> Result<Option<Self>> {
        let mut vars: BTreeMap<String, String> = vars.filter(|(_, value)| !value.is_empty()).collect();
        let Some(ticket) = vars.remove("DBTCLOUD_TICKET") else {
            return Ok(None);
        };
        let mut need = |name: &'static str| {
            vars.remove(name)
                .ok_or_else(|| Error::invalid(name, "expected a value"))
        };
        let server = need("DBTCLOUD_SERVER")?.parse()?;
        let (work_dir, cache_dir) = (need("DBTCLOUD_WORK_DIR")?, need("DBTCLOUD_CACHE_DIR")?);
        for (name, dir) in [("DBTCLOUD_WORK_DIR", &work_dir), ("DBTCLOUD_CACHE_DIR", &cache_dir)] {
            if !Path::new(dir).is_absolute() {
                return Err(Error::invalid(name, format!("expected an absolute path, got '{dir}'")));
            }
        }
        let path = vars.remove("PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let uv = vars.remove("DBTCLOUD_UV").map(PathBuf::from);
        let uv = uv.or_else(|| crate::engine::find_uv(path.split(':').map(|dir| Path::new(dir).join("uv"))));
        Ok(Some(Self {
            ticket: Secret::new(ticket),
            server,
            server_ca: vars.remove("DBTCLOUD_SERVER_CA").map(PathBuf::from),
            work_dir: work_dir.into(),
            cache_dir: cache_dir.into(),
            dbt_envs: vars.remove("DBTCLOUD_DBT_ENVS").map(PathBuf::from),
            uv,
            python: vars.remove("DBTCLOUD_PYTHON"),
            native_dbt: vars.remove("DBTCLOUD_DBT2").map(PathBuf::from),
            warm: vars.remove("DBTCLOUD_WARM").as_deref() != Some("false"),
            path,
            passed_on: vars
                .into_iter()
                .filter(|(name, _)| {
                    let prefixed = ["UV_", "PIP_", TRACING].iter().any(|prefix| name.starts_with(prefix));
                    NETWORK.contains(&name.as_str()) || prefixed
                })
                .collect(),
        }))
    }

    /// What git and dbt get of [`AgentConfig::passed_on`].
    fn network(&self) -> BTreeMap<String, String> {
        let wanted = self
            .passed_on
            .iter()
            .filter(|(name, _)| NETWORK.contains(&name.as_str()));
        wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// How an agent ended. Of the run's own outcome it says nothing: that has been delivered or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentExit {
    /// The run's outcome has been acknowledged.
    Delivered,
    /// The run is not this agent's any more. dbt was stopped, nothing more was said.
    Fenced,
    /// The control plane refused what the agent had to say. dbt was stopped.
    Refused(String),
    /// Nobody took the outcome in time.
    Undelivered,
}

impl AgentExit {
    /// The exit code that stands for it.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Delivered => 0,
            Self::Fenced => 3,
            Self::Refused(_) => 4,
            Self::Undelivered => 5,
        }
    }
}

impl std::fmt::Display for AgentExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delivered => f.write_str("the run's outcome was delivered"),
            Self::Fenced => f.write_str("the run is no longer this agent's"),
            Self::Refused(why) => write!(f, "the control plane refused the agent: {why}"),
            Self::Undelivered => f.write_str("the control plane did not take the run's outcome"),
        }
    }
}

/// Runs an agent to its end in this thread. For `main` of the program that is started as an agent.
///
/// It makes its own runtime of one thread, and takes SIGINT and SIGTERM as the wish to stop the run cleanly.
/// The exit code is that of [`AgentExit::code`]; 1 when the agent could not begin.
pub fn main(config: AgentConfig) -> ExitCode {
    use std::io::Write as _;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let end = match &runtime {
        Ok(runtime) => runtime.block_on(async {
            let told = signals()?;
            run_until(config, told).await
        }),
        Err(error) => Err(Error::unavailable(format!("no runtime: {error}"))),
    };
    let (code, text) = match end {
        Ok(AgentExit::Delivered) => return ExitCode::SUCCESS,
        Ok(exit) => (exit.code(), exit.to_string()),
        Err(error) => (1, error.chain()),
    };
    tracing::error!(%text, "agent ended");
    // For whoever looks at the end of the process's output.
    let _ = writeln!(std::io::stderr(), "dbtcloud agent: {text}");
    ExitCode::from(code)
}

/// Resolves at the first SIGINT or SIGTERM.
fn signals() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|e| Error::unavailable("no signals can be heard").because(e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Runs an agent to its end.
///
/// On `Ok` no process of the run is left and its scratch space is removed. Dropping the future interrupts dbt and
/// leaves the scratch space behind.
///
/// # Errors
/// `Denied`, `Invalid` or `Unavailable` when the ticket could not be redeemed; `Corrupt` when the scratch space cannot
/// be set up.
pub async fn run(config: AgentConfig) -> Result<AgentExit> {
    run_until(config, std::future::pending()).await
}

/// [`run`], with the wish to stop the run as a future: as soon as it resolves, dbt is interrupted, what was confirmed
/// is reported, and the agent ends.
///
/// # Errors
/// As [`run`].
pub async fn run_until(config: AgentConfig, told: impl Future<Output = ()>) -> Result<AgentExit> {
    let source = Arc::new(FromEngine::new(config.clone()));
    run_with(config, source, told, DISK_LIMIT_BYTES).await
}

async fn run_with(
    config: AgentConfig,
    source: Arc<dyn dbt::Source>,
    told: impl Future<Output = ()>,
    disk_limit: u64,
) -> Result<AgentExit> {
    let uplink = Uplink::new(&config.server, config.server_ca.as_deref())?;
    let plan = match uplink.redeem(&config.ticket).await {
        Ok(plan) => Arc::new(plan),
        Err(error) if error.kind() == ErrorKind::Fenced => return Ok(AgentExit::Fenced),
        Err(error) => return Err(error),
    };
    let span = tracing::error_span!(
        "run",
        account_id = plan.account.get(),
        job_id = plan.job.get(),
        run_id = plan.run.get()
    );
    execute(config, plan, uplink, source, told, disk_limit)
        .instrument(span)
        .await
}

async fn execute(
    config: AgentConfig,
    plan: Arc<RunPlan>,
    uplink: Uplink,
    source: Arc<dyn dbt::Source>,
    told: impl Future<Output = ()>,
    disk_limit: u64,
) -> Result<AgentExit> {
    tracing::info!(attempt = plan.attempt, "agent begins");
    let scratch = config.work_dir.join(SCRATCH);
    let folders = Folders {
        root: set_up(&scratch, &config.cache_dir)?,
    };
    let limit = Duration::from_secs(plan.timeout_seconds.max(1));
    let (now, halt) = (Instant::now(), Halt::default());
    let deadline = now + limit + DELIVERY_LIMIT;
    let reporter = Reporter::new(folders.of("spool"), disk_limit);
    reporter.run(Some(RunEvent::Started), RunPatch::default());

    let dbt = steps::prepare(source, plan.clone());
    let work = work(
        &plan,
        config.clone(),
        folders,
        &reporter,
        &halt,
        &uplink,
        (dbt, deadline),
    )?;
    let watch = async {
        tokio::pin!(told);
        tokio::select! {
            () = tokio::time::sleep(limit) => halt.raise(Reason::TimedOut { seconds: limit.as_secs() }),
            () = &mut told => halt.raise(Reason::Told),
        }
        std::future::pending::<()>().await;
    };
    let both = async { tokio::join!(reporter.deliver(&uplink, &halt, deadline), work.through()) };
    let (ended, ()) = tokio::select! {
        both = both => both,
        () = watch => (Ended::Undelivered, ()),
    };
    clean_up(scratch, config.work_dir).await;
    Ok(match ended {
        Ended::Delivered => AgentExit::Delivered,
        Ended::Fenced => AgentExit::Fenced,
        Ended::Refused(why) => AgentExit::Refused(why),
        Ended::Undelivered => AgentExit::Undelivered,
    })
}

fn work(
    plan: &Arc<RunPlan>,
    config: AgentConfig,
    folders: Folders,
    reporter: &Reporter,
    halt: &Halt,
    uplink: &Uplink,
    (dbt, deadline): (Preparing, Instant),
) -> Result<Work> {
    let made = profile::make(plan);
    let mut secrets: Vec<&str> = plan.secrets.iter().map(String::as_str).collect();
    if let Ok(made) = &made {
        let hidden = made
            .env
            .iter()
            .filter(|(name, _)| name.starts_with(crate::engine::profile::SECRET_PREFIX));
        secrets.extend(hidden.map(|(_, value)| value.expose()));
    }
    let source = &plan.profile;
    let mut public = vec![source.adapter.as_str(), source.target_name.as_str(), command::PROFILE];
    public.extend(source.schema.as_deref());
    let redactor = Arc::new(Redactor::new(secrets.iter().copied())?);
    let for_artifacts = Arc::new(Redactor::for_artifacts(secrets.iter().copied(), &public)?);
    Ok(Work {
        plan: plan.clone(),
        uploads: Uploads::new(uplink.clone(), halt.clone(), for_artifacts, folders.of("outbox")),
        config,
        folders,
        reporter: reporter.clone(),
        halt: halt.clone(),
        redactor,
        uplink: uplink.clone(),
        profile: made,
        dbt,
        checkout: None,
        state: None,
        told_version: false,
        parse_state: Default::default(),
        deadline,
    })
}

/// Makes the scratch space, empty and for its owner only.
fn set_up(scratch: &Path, cache: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let cannot = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| Error::corrupt(format!("{path} cannot be set up")).because(e)
    };
    match std::fs::remove_dir_all(scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(cannot(scratch)(error)),
        _ => {}
    }
    for path in [cache, scratch, &scratch.join("spool")] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(cannot(path))?;
    }
    scratch.canonicalize().map_err(cannot(scratch))
}

async fn clean_up(scratch: PathBuf, work_dir: PathBuf) {
    let cleaned = tokio::task::spawn_blocking(move || {
        if let Err(error) = std::fs::remove_dir_all(&scratch) {
            tracing::warn!(%error, "scratch space is left behind");
        }
        // Somebody else's if it is not empty.
        let _ = std::fs::remove_dir(work_dir);
    });
    let _ = cleaned.await;
}

#[cfg(test)]
#[path = "../tests/agent_support/plane.rs"]
mod plane;
