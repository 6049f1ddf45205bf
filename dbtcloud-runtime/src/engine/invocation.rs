//! The launcher protocol: what is asked of a backend, what comes back, and how it is stopped.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::secret::Secret;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::error::EngineError;
use super::events::{CommandEvent, NodeEvent};

/// How long dbt gets to end by itself after whoever asked for it has disappeared.
pub const LEASH_GRACE: Duration = Duration::from_secs(10);
/// Most bytes of arguments, and of environment, in one invocation.
pub const REQUEST_LIMIT: usize = 4 * 1024 * 1024;
/// Search path of an invocation whose environment names none.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// One dbt command to run.
///
/// The environment is complete: nothing is inherited. Keep it small; dbt scans all of it for secrets on every
/// internal exception. `Debug` shows names, never values.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Arguments without the leading `dbt`.
    pub argv: Vec<String>,
    /// Working directory: the project.
    pub cwd: PathBuf,
    /// Environment variables. Values may be secret, so all are treated as such.
    pub env: BTreeMap<String, Secret>,
    /// `target/`, one per invocation that may run beside another.
    pub target_path: PathBuf,
    /// Directory of dbt's debug log, `dbt.log`, in dbt's text format at debug level.
    pub log_path: PathBuf,
    /// Directory of `profiles.yml`.
    pub profiles_dir: PathBuf,
    /// Where dbt reads its parse state from, if not from the target path. Passed on only if the file exists: dbt
    /// refuses to start otherwise. dbt writes new state to the target path whatever this says.
    pub partial_parse_file: Option<PathBuf>,
    /// Whether node events are wanted.
    pub events: bool,
    /// Whether the console text may carry ANSI colours.
    pub colors: bool,
    /// From disappearance of the caller to SIGKILL.
    pub leash_grace: Duration,
}

impl Invocation {
    /// A command with an empty environment, events on, no colours.
    pub fn new(
        argv: impl IntoIterator<Item = impl Into<String>>,
        cwd: impl Into<PathBuf>,
        target_path: impl Into<PathBuf>,
        log_path: impl Into<PathBuf>,
        profiles_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            cwd: cwd.into(),
            env: BTreeMap::new(),
            target_path: target_path.into(),
            log_path: log_path.into(),
            profiles_dir: profiles_dir.into(),
            partial_parse_file: None,
            events: true,
            colors: false,
            leash_grace: LEASH_GRACE,
        }
    }

    /// Sets one variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: Secret) -> Self {
        self.env.insert(name.into(), value);
        self
    }

    /// The environment dbt gets: [`Invocation::env`] plus what follows from the other fields. The fields win over
    /// the map for paths; the map wins for colours and `PATH`. Telemetry is always off.
    pub fn environment(&self) -> BTreeMap<String, Secret> {
        let mut env = self.env.clone();
        let path = |path: &PathBuf| Secret::new(path.to_string_lossy());
        env.insert("DBT_TARGET_PATH".into(), path(&self.target_path));
        env.insert("DBT_LOG_PATH".into(), path(&self.log_path));
        env.insert("DBT_PROFILES_DIR".into(), path(&self.profiles_dir));
        if let Some(file) = self.partial_parse_file.as_ref().filter(|file| file.is_file()) {
            env.insert("DBT_PARTIAL_PARSE_FILE_PATH".into(), path(file));
        }
        env.insert("DBT_SEND_ANONYMOUS_USAGE_STATS".into(), Secret::new("false"));
        let mut default = |name: &str, value: &str| {
            env.entry(name.into()).or_insert_with(|| Secret::new(value));
        };
        default("DBT_USE_COLORS", if self.colors { "true" } else { "false" });
        default("DBT_USE_COLORS_FILE", "false");
        default("PATH", DEFAULT_PATH);
        default("LC_ALL", "C.UTF-8");
        env
    }

    /// Refuses what no backend could pass on.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        let invalid = |field, reason: String| Err(EngineError::Invalid { field, reason });
        if self.argv.iter().any(|arg| arg.contains('\0')) {
            return invalid("argv", "contains a zero byte".into());
        }
        if self.argv.iter().map(|arg| arg.len() + 1).sum::<usize>() > REQUEST_LIMIT {
            return invalid("argv", format!("is longer than {REQUEST_LIMIT} bytes"));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.expose().contains('\0') {
                return invalid("env", format!("variable {name:?} cannot be passed to a process"));
            }
        }
        if self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.expose().len() + 2)
            .sum::<usize>()
            > REQUEST_LIMIT
        {
            return invalid("env", format!("is larger than {REQUEST_LIMIT} bytes"));
        }
        Ok(())
    }
}

/// What an invocation sends while it runs.
///
/// The channel is bounded: a receiver that does not read slows dbt down; one that is dropped is no longer served,
/// and dbt's pipes are drained to nowhere.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// Console text, in pieces of any size.
    Stdout(Bytes),
    /// Console text on standard error.
    Stderr(Bytes),
    /// Something happened to a node.
    Node(Box<NodeEvent>),
    /// Something happened to the command.
    Command(CommandEvent),
}

/// Where events go.
pub type Sink = mpsc::Sender<EngineEvent>;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself: 0 success, 1 a node or test failed, 2 anything else.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// What a process cost, its waited-for children included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub system_us: u64,
    /// Largest resident set, KiB.
    pub max_rss_kib: u64,
}

/// The end of an invocation. It exists only once the process has been waited for and its group killed.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// How.
    pub status: ExitStatus,
    /// At what cost.
    pub usage: Usage,
    /// Event lines that could not be read.
    pub bad_events: u64,
    /// dbt's invocation id, when it said so.
    pub invocation_id: Option<String>,
    /// Whether a stop was asked for before the end.
    pub stopped: bool,
}

/// Something that runs dbt.
#[async_trait]
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Its name: `cli`, `warm`, `native`.
    fn name(&self) -> &'static str;

    /// Runs one command to its end.
    ///
    /// On `Ok` the process is dead and reaped, what was left of its process group is killed, and every event was
    /// offered to `sink`. Dropping the future interrupts dbt, and kills it after [`Invocation::leash_grace`].
    ///
    /// # Errors
    /// [`EngineError::NotStarted`]: nothing ran; another backend may be tried. [`EngineError::Lost`]: it ran, and how
    /// it ended is unknown; do not run it again without looking.
    async fn invoke(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Exit, EngineError>;
}

/// How far stopping has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not asked for.
    #[default]
    No,
    /// SIGINT: dbt cancels its queries and writes what it has.
    Interrupt,
    /// SIGKILL: queries may go on in the warehouse.
    Kill,
}

/// Stops an invocation from outside. Cheap to clone; each invocation needs its own.
#[derive(Clone, Debug)]
pub struct Canceller(Arc<Channels>);

#[derive(Debug)]
struct Channels {
    stop: watch::Sender<Stop>,
    done: watch::Sender<bool>,
}

/// What a stop led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// dbt ended after SIGINT: queries cancelled, partial results written.
    Interrupted,
    /// dbt ended after SIGKILL: what the warehouse still does is unknown unless the hook ended it.
    Killed,
    /// The end was not seen within the limit.
    Unconfirmed,
}

/// How long the end is awaited after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Default for Canceller {
    fn default() -> Self {
        Self::new()
    }
}

impl Canceller {
    /// For one invocation.
    pub fn new() -> Self {
        Self(Arc::new(Channels {
            stop: watch::Sender::new(Stop::No),
            done: watch::Sender::new(false),
        }))
    }

    /// Sends SIGINT, once however often it is called (a second SIGINT would cut dbt's clean-up short).
    ///
    /// dbt cancels the queries that run at that moment. With duckdb a query that starts a moment later is not
    /// cancelled, and dbt waits for it: hence the second stage of [`Canceller::stop`].
    pub fn cancel(&self) {
        self.raise(Stop::Interrupt);
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.raise(Stop::Kill);
    }

    fn raise(&self, to: Stop) {
        self.0
            .stop
            .send_if_modified(|stop| std::mem::replace(stop, to.max(*stop)) < to);
    }

    /// How far it has gone.
    pub fn stage(&self) -> Stop {
        *self.0.stop.borrow()
    }

    /// Waits until the invocation has been confirmed dead.
    pub async fn ended(&self) {
        let mut done = self.0.done.subscribe();
        // The sender lives in self, so the only way out is `true`.
        let _ = done.wait_for(|done| *done).await;
    }

    /// SIGINT; wait `grace`; if that was not enough run `hook` (end the backends in the warehouse by run id); SIGKILL.
    ///
    /// Returns what was confirmed. Cancelling the future stops the escalation, not what was already sent.
    pub async fn stop(&self, grace: Duration, hook: impl Future<Output = ()>) -> Stopped {
        self.cancel();
        if tokio::time::timeout(grace, self.ended()).await.is_ok() {
            return Stopped::Interrupted;
        }
        hook.await;
        self.kill();
        match tokio::time::timeout(KILL_LIMIT, self.ended()).await {
            Ok(()) => Stopped::Killed,
            Err(_) => Stopped::Unconfirmed,
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Stop> {
        self.0.stop.subscribe()
    }

    pub(super) fn finish(&self) {
        self.0.done.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_never_reach_debug() {
        let invocation =
            Invocation::new(["run"], "/p", "/t", "/l", "/c").with_env("DBT_ENV_SECRET_X", Secret::new("hunter2"));
        let text = format!("{invocation:?}");
        assert!(text.contains("DBT_ENV_SECRET_X") && !text.contains("hunter2"));
    }

    #[test]
    fn paths_win_and_telemetry_is_off() {
        let invocation = Invocation::new(["run"], "/p", "/t", "/l", "/c")
            .with_env("DBT_TARGET_PATH", Secret::new("/elsewhere"))
            .with_env("DBT_SEND_ANONYMOUS_USAGE_STATS", Secret::new("true"));
        let env = invocation.environment();
        assert_eq!(env["DBT_TARGET_PATH"].expose(), "/t");
        assert_eq!(env["DBT_SEND_ANONYMOUS_USAGE_STATS"].expose(), "false");
    }

    #[test]
    fn what_cannot_be_passed_is_refused() {
        let base = Invocation::new(["run"], "/p", "/t", "/l", "/c");
        assert!(base.check().is_ok());
        assert!(base.clone().with_env("A=B", Secret::new("")).check().is_err());
        assert!(base.clone().with_env("A", Secret::new("\0")).check().is_err());
        assert!(
            Invocation {
                argv: vec!["a\0".into()],
                ..base
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn stopping_only_goes_forward() {
        let canceller = Canceller::new();
        canceller.kill();
        canceller.cancel();
        assert_eq!(canceller.stage(), Stop::Kill);
    }
}
