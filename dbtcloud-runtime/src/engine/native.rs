//! dbt 2.x, a native binary. **Experimental**: written to the measured command line and log of 2.0.0a4, tested here
//! against a stand-in binary only.
//!
//! v2 has no callbacks, so it runs with `--log-format json` on the console and the text is taken out of the events.
//! There is no leash: if the agent is killed, a v2 process is not interrupted.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::error::EngineError;
use super::events::parse_line;
use super::invocation::{Backend, Canceller, EngineEvent, Exit, Invocation, Sink, Stop};
use super::pipes::{self, EventTotals, Lines};
use super::process::Group;

/// Runs a dbt 2.x binary.
#[derive(Clone, Debug)]
pub struct NativeBackend {
    binary: PathBuf,
}

impl NativeBackend {
    /// With the binary at this path.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into() }
    }
}

/// v2's command line. Flags follow the sub-command; v2 re-parses everything without `--partial-parse`.
fn arguments(invocation: &Invocation) -> Vec<String> {
    let mut argv = invocation.argv.clone();
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    for (flag, value) in [
        ("--log-format", "json".to_owned()),
        ("--target-path", path(&invocation.target_path)),
        ("--log-path", path(&invocation.log_path)),
        ("--profiles-dir", path(&invocation.profiles_dir)),
    ] {
        if !argv
            .iter()
            .any(|arg| arg == flag || arg.starts_with(&format!("{flag}=")))
        {
            argv.extend([flag.to_owned(), value]);
        }
    }
    argv
}

/// The console text of a log line: its message, unless it is for debugging.
fn console(line: &[u8]) -> Option<Bytes> {
    let text = match serde_json::from_slice::<Value>(line) {
        Ok(value) if value.get("info").is_some() => {
            if value["info"]["level"] == "debug" {
                return None;
            }
            value["info"]["msg"].as_str()?.as_bytes().to_vec()
        }
        _ => line.to_vec(),
    };
    Some([text.as_slice(), b"\n"].concat().into())
}

/// Kills the group if the future that waits for it is dropped.
struct Guard(Group, bool);

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.1 {
            self.0.signal(Signal::SIGKILL);
        }
    }
}

#[async_trait]
impl Backend for NativeBackend {
    fn name(&self) -> &'static str {
        "native"
    }

    async fn invoke(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Exit, EngineError> {
        let failed = |error: std::io::Error| EngineError::not_started(format!("{}: {error}", self.binary.display()));
        let (mut stdout, stdout_write) = pipes::pipe().map_err(failed)?;
        let (stderr, stderr_write) = pipes::pipe().map_err(failed)?;
        let mut command = Command::new(&self.binary);
        command
            .args(arguments(invocation))
            .env_clear()
            .envs(
                invocation
                    .environment()
                    .iter()
                    .map(|(name, value)| (name, value.expose())),
            )
            .current_dir(&invocation.cwd)
            .stdin(Stdio::null())
            .stdout(stdout_write)
            .stderr(stderr_write);
        let mut group = Guard(Group::spawn(command).map_err(failed)?, false);
        let (over, watch) = watch::channel(false);
        let stderr = pipes::forward(stderr, sink.clone(), EngineEvent::Stderr, watch);
        let (sender, wanted) = (sink.clone(), invocation.events);
        let stdout = tokio::spawn(async move {
            let (mut lines, mut totals, mut buffer) = (Lines::default(), EventTotals::default(), BytesMut::new());
            while stdout.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
                for line in lines.feed_raw(&buffer.split()) {
                    let Some(line) = line else {
                        totals.bad += 1;
                        continue;
                    };
                    if let Some(text) = console(&line) {
                        let _ = sender.send(EngineEvent::Stdout(text)).await;
                    }
                    // A line of text is console output of its own, not a bad event.
                    if line.first() == Some(&b'{')
                        && let Some(event) = totals.take(parse_line(&line))
                        && wanted
                    {
                        let _ = sender.send(event).await;
                    }
                }
            }
            totals
        });
        let ended = group.0.wait(canceller).await;
        group.1 = true;
        let (status, usage) = ended.map_err(|error| EngineError::Lost {
            reason: error.to_string(),
        })?;
        over.send_replace(true);
        let (totals, _) = tokio::join!(stdout, stderr);
        let totals = totals.unwrap_or_default();
        Ok(Exit {
            status,
            usage,
            bad_events: totals.bad,
            invocation_id: totals.invocation_id,
            stopped: canceller.stage() > Stop::No,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::invocation::ExitStatus;
    use super::*;

    #[test]
    fn flags_follow_the_command_and_yield_to_the_users() {
        let invocation = Invocation::new(["run", "--target-path=x"], "/p", "/t", "/l", "/c");
        let text = arguments(&invocation).join(" ");
        assert_eq!(
            text,
            "run --target-path=x --log-format json --log-path /l --profiles-dir /c"
        );
    }

    #[tokio::test]
    async fn a_stand_in_is_run_and_its_log_understood() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("dbt");
        let script = "#!/bin/sh\n\
            echo '{\"info\":{\"name\":\"MainReportVersion\",\"level\":\"info\",\"msg\":\"Running\",\"invocation_id\":\"i\"},\"data\":{\"version\":\"2.0.0\"}}'\n\
            echo '{\"info\":{\"name\":\"NodeFinished\",\"level\":\"debug\",\"msg\":\"x\"},\"data\":{\"node_info\":{\"unique_id\":\"model.a.b\",\"node_status\":\"success\"}}}'\n\
            echo plain\nexit 1\n";
        std::fs::write(&binary, script).unwrap();
        std::fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (sink, mut events) = tokio::sync::mpsc::channel(64);
        let invocation = Invocation::new(["run"], dir.path(), "/t", "/l", "/c");
        let exit = NativeBackend::new(&binary)
            .invoke(&invocation, &sink, &Canceller::new())
            .await
            .unwrap();
        drop(sink);
        assert_eq!(
            (exit.status, exit.invocation_id.as_deref(), exit.bad_events),
            (ExitStatus::Code(1), Some("i"), 0)
        );
        let (mut text, mut nodes) = (Vec::new(), 0);
        while let Some(event) = events.recv().await {
            match event {
                EngineEvent::Stdout(bytes) => text.extend_from_slice(&bytes),
                EngineEvent::Node(_) => nodes += 1,
                _ => {}
            }
        }
        assert_eq!(
            (String::from_utf8(text).unwrap().as_str(), nodes),
            ("Running\nplain\n", 1)
        );
    }
}
