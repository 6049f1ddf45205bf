//! The plain backend: a fresh interpreter per command. Always available; what the others are measured against.
//!
//! dbt's own entry point runs unchanged, so console text, log file, artifacts and exit code are those of `dbt`. Node
//! events come from a callback attached to it (`py/dbt_child.py`) over a socket that is the child's descriptor 0, not
//! from a JSON log: that would cost 20 KB a node and change what the console or `dbt.log` say. The same socket is the
//! leash: when this process is gone, the child interrupts itself and later kills its group.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Command;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::error::EngineError;
use super::invocation::{Backend, Canceller, EngineEvent, Exit, Invocation, Sink, Stop};
use super::pipes;
use super::process::Group;

/// File mode mask of dbt's files: as a login has it.
pub(super) const UMASK: u32 = 0o022;

/// Runs dbt in a fresh interpreter of one environment.
#[derive(Clone, Debug)]
pub struct CliBackend {
    python: PathBuf,
    script: PathBuf,
}

impl CliBackend {
    pub(super) fn new(python: PathBuf, script: PathBuf) -> Self {
        Self { python, script }
    }
}

#[async_trait]
impl Backend for CliBackend {
    fn name(&self) -> &'static str {
        "cli"
    }

    async fn invoke(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Exit, EngineError> {
        let failed = |error: std::io::Error| EngineError::not_started(format!("{}: {error}", self.python.display()));
        let (stdout, stdout_write) = pipes::pipe().map_err(failed)?;
        let (stderr, stderr_write) = pipes::pipe().map_err(failed)?;
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;

        let mut command = Command::new(&self.python);
        command
            .args(["-I", "-X", "utf8"])
            .arg(&self.script)
            .arg(invocation.leash_grace.as_secs_f64().to_string())
            .arg(if invocation.events { "events" } else { "quiet" })
            .arg(format!("{UMASK:o}"))
            .args(&invocation.argv)
            .env_clear()
            .envs(
                invocation
                    .environment()
                    .iter()
                    .map(|(name, value)| (name, value.expose())),
            )
            .current_dir(&invocation.cwd)
            .stdin(OwnedFd::from(theirs))
            .stdout(stdout_write)
            .stderr(stderr_write);
        let (events, leash) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        let mut group = Group::spawn(command).map_err(failed)?;

        let (over, watch) = watch::channel(false);
        let stdout = pipes::forward(stdout, sink.clone(), EngineEvent::Stdout, watch.clone());
        let stderr = pipes::forward(stderr, sink.clone(), EngineEvent::Stderr, watch.clone());
        let events = pipes::forward_events(events, sink.clone(), watch);
        let (status, usage) = group.wait(canceller).await.map_err(|error| EngineError::Lost {
            reason: error.to_string(),
        })?;
        drop(leash);
        over.send_replace(true);
        let _ = tokio::join!(stdout, stderr);
        let totals = events.await.unwrap_or_default();
        Ok(Exit {
            status,
            usage,
            bad_events: totals.bad,
            invocation_id: totals.invocation_id,
            stopped: canceller.stage() > Stop::No,
        })
    }
}
