//! One dbt step: its command, its output, its nodes, its end.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use dbtcloud_core::run::{NodeReport, StepKind, StepPlan, StepStatus};
use dbtcloud_core::secret::Secret;
use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::command::{self, Command, StateArgument};
use super::console::{Console, Source, plain};
use super::dbt::{Dbt, chain};
use super::halt::Reason;
use super::nodes::{self, Nodes};
use super::profile;
use super::steps::{End, Work, now};
use crate::engine::events::CommandEvent;
use crate::engine::invocation::{Canceller, EngineEvent, ExitStatus, Invocation, Stopped};
use crate::engine::parse_cache::{ParseCache, ParseInputs, ParseKey, Part, Restored};
use crate::engine::results::Outcome;
use crate::engine::{EngineError, Reply};
use crate::protocol::{Counted, StateUse};

/// Events between dbt's pipes and the log.
const CHANNEL: usize = 32;
/// How long the database may take to end a run's sessions.
pub const SESSIONS_LIMIT: Duration = Duration::from_secs(10);
/// The longest message of a step.
const MESSAGE_CHARS: usize = 1_000;

/// What is known of the parse state of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ParseState {
    /// Nothing yet.
    #[default]
    Unknown,
    /// An earlier run's is in place, last changed then.
    Restored(Option<SystemTime>),
    /// It is there for later runs.
    Kept,
}

/// What the events of a command said.
#[derive(Default)]
struct Heard {
    nodes: Nodes,
    error: Option<String>,
    version: Option<String>,
}

impl Work {
    pub(super) async fn run_dbt(&mut self, step: &StepPlan, command: &Command, console: &mut Console) -> End {
        let Some(project) = self.checkout.as_ref().map(|checkout| checkout.project.clone()) else {
            return End::error("There is no project.");
        };
        let ready = self.dbt.clone();
        let dbt = match ready.clone().now_or_never() {
            Some(ready) => ready,
            None => {
                let source = &self.plan;
                console
                    .line(&format!(
                        "Waiting for dbt {} with adapter {}",
                        source.dbt_version, source.profile.adapter
                    ))
                    .await;
                let halt = self.halt.clone();
                tokio::select! {
                    ready = ready => ready,
                    _ = halt.raised() => return End::cancelled("dbt was not begun"),
                }
            }
        };
        let dbt = match dbt {
            Ok(dbt) => dbt,
            Err(error) => {
                console.line(&error).await;
                return End::error(error);
            }
        };
        self.tell_version(dbt.version());
        let parses = step.kind != StepKind::Deps && self.parse_state == ParseState::Unknown;
        if parses {
            self.restore_parse_state(dbt.as_ref(), command, console).await;
        }

        let target = self.folders.of("target");
        let logs = self.folders.of("logs").join(step.index.to_string());
        let folder = self.state.as_ref().map(|folder| folder.to_string_lossy().into_owned());
        let state = match (command.takes_state(), self.plan.state) {
            (Some(StateArgument::Retry), Some(StateUse::Retry)) => Some(StateArgument::Retry),
            (Some(how), Some(StateUse::Defer)) if how != StateArgument::Retry => Some(how),
            _ => None,
        };
        let argv = command.arguments(&self.plan.profile.target_name, state.zip(folder.as_deref()));
        for folder in [&target, &logs] {
            if let Err(error) = std::fs::create_dir_all(folder) {
                return End::error(format!("{} cannot be created: {error}", folder.display()));
            }
        }
        console.line(&format!("$ {}", command::show(&argv))).await;
        let mut invocation = Invocation::new(argv, project, &target, &logs, self.folders.of(".dbt"));
        invocation.env = self.environment();
        if let Some(context) = self.traceparent(step.index) {
            invocation.env.insert("TRACEPARENT".to_owned(), Secret::new(context));
        }
        invocation.leash_grace = Duration::from_secs(self.plan.grace_seconds);

        let (reply, stopped, mut heard) = self.invoke(step.index, dbt.as_ref(), &invocation, console).await;
        console.settle().await;
        self.tell_version(heard.version.take());
        if parses {
            self.keep_parse_state(dbt.as_ref(), command).await;
        }
        let end = self.judge((step.index, command), reply, stopped, heard, console).await;
        if let Err(error) = self.uploads.take(step.index, &target, &logs).await {
            console.line(&format!("WARN: {error}")).await;
        }
        end
    }

    /// Runs dbt and reads what it says, to its end. Stopping goes its way while the log may have to wait.
    async fn invoke(
        &self,
        step: u32,
        dbt: &dyn Dbt,
        invocation: &Invocation,
        console: &mut Console,
    ) -> (Result<Reply, EngineError>, Option<(Reason, String)>, Heard) {
        let (sink, mut events) = mpsc::channel(CHANNEL);
        let (canceller, over) = (Canceller::new(), CancellationToken::new());
        let run = async {
            let reply = dbt.invoke(invocation, &sink, &canceller).await;
            drop(sink);
            over.cancel();
            reply
        };
        let listen = async {
            let mut heard = Heard::default();
            while let Some(event) = events.recv().await {
                match event {
                    EngineEvent::Stdout(bytes) => console.write(Source::Out, &bytes).await,
                    EngineEvent::Stderr(bytes) => console.write(Source::Err, &bytes).await,
                    EngineEvent::Node(event) => {
                        if let Some(report) = heard.nodes.take(step, *event, now()) {
                            self.tell_node(report).await;
                        }
                    }
                    EngineEvent::Command(CommandEvent::Version { version, .. }) => heard.version = Some(version),
                    EngineEvent::Command(CommandEvent::Error { message }) => heard.error = Some(message),
                    EngineEvent::Command(CommandEvent::Completed { .. }) => {}
                }
            }
            heard
        };
        let stop = async {
            let reason = tokio::select! {
                reason = self.halt.raised() => reason,
                () = over.cancelled() => return None,
            };
            tracing::info!(?reason, "dbt is interrupted");
            Some((reason, self.stop(dbt, &canceller).await))
        };
        let (reply, stopped, heard) = tokio::join!(run, stop, listen);
        (reply, stopped, heard)
    }

    /// Interrupts dbt, ends its database sessions if it does not listen, kills it; what was confirmed.
    async fn stop(&self, dbt: &dyn Dbt, canceller: &Canceller) -> String {
        let grace = Duration::from_secs(self.plan.grace_seconds);
        let sessions = std::sync::Mutex::new(None);
        let hook = async {
            let (Ok(made), Some(python)) = (&self.profile, dbt.python()) else {
                return;
            };
            let environment = self.environment();
            let work = profile::end_sessions(&self.plan, made, &python, &environment);
            let ended = tokio::time::timeout(SESSIONS_LIMIT, work)
                .await
                .unwrap_or_else(|_| Some(Err("the database did not answer in time".to_owned())));
            if let Some(Ok(count)) = &ended {
                self.reporter.count([Counted::OrphanQueries { count: *count }]);
            }
            if let Ok(mut sessions) = sessions.lock() {
                *sessions = ended;
            }
        };
        let stopped = canceller.stop(grace, hook).await;
        let sessions = sessions.into_inner().ok().flatten();
        let mut text = match stopped {
            Stopped::Interrupted => return "dbt exited after the interrupt".to_owned(),
            Stopped::Killed => format!("dbt was killed after {} s", grace.as_secs()),
            Stopped::Unconfirmed => "the end of dbt was not seen".to_owned(),
        };
        match sessions {
            Some(Ok(1)) => text.push_str("; 1 database session terminated"),
            Some(Ok(count)) => text.push_str(&format!("; {count} database sessions terminated")),
            Some(Err(why)) => text.push_str(&format!("; its database sessions may go on: {why}")),
            None => text.push_str("; what it had sent to the database may go on"),
        }
        text
    }

    async fn judge(
        &self,
        (step, command): (u32, &Command),
        reply: Result<Reply, EngineError>,
        stopped: Option<(Reason, String)>,
        mut heard: Heard,
        console: &mut Console,
    ) -> End {
        let reply = match (reply, &stopped) {
            (Ok(reply), _) => reply,
            (Err(EngineError::Cancelled), _) => return End::cancelled("dbt was not begun"),
            (Err(error), Some((_, how))) => {
                return End::cancelled(format!("{how} ({})", chain(&error)));
            }
            (Err(error), None) => {
                let message = chain(&error);
                console.line(&message).await;
                return End::error(message);
            }
        };
        let exit = reply.exit;
        let (target, invocation) = (self.folders.of("target"), exit.invocation_id.clone());
        let settled = tokio::task::spawn_blocking(move || {
            let (verdict, reports) = heard
                .nodes
                .settle(step, exit.status, invocation.as_deref(), &target, now());
            (verdict, reports, heard.error)
        });
        let Ok((verdict, reports, error)) = settled.await else {
            return End::error("the results of dbt cannot be read");
        };
        if command.executes() {
            self.reporter.count(nodes::counts(&verdict));
        }
        for report in reports {
            self.tell_node(report).await;
        }
        let exit_code = match exit.status {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal(_) => None,
        };
        let cpu = Duration::from_micros(exit.usage.user_us + exit.usage.system_us);
        let afresh = reply
            .fallback_reason
            .map_or(String::new(), |reason| format!(", no warm start: {reason}"));
        console
            .line(&format!(
                "[{}, CPU {:.1} s, peak memory {} MiB{afresh}]",
                said(exit.status),
                cpu.as_secs_f64(),
                exit.usage.max_rss_kib.div_ceil(1024)
            ))
            .await;
        let end = End {
            status: StepStatus::Success,
            exit_code,
            message: None,
            backend: Some(reply.backend.to_owned()),
        };
        let status = match (verdict.outcome, &stopped) {
            (Outcome::Success, _) => return end,
            (Outcome::Warn, _) => StepStatus::Warned,
            (Outcome::Error, Some(_)) => StepStatus::Cancelled,
            (Outcome::Error, None) => StepStatus::Error,
        };
        let message = match (status, stopped) {
            (StepStatus::Cancelled, Some((_, how))) => {
                Some(format!("{how} ({}); no process of it is left", said(exit.status)))
            }
            (StepStatus::Error, _) => Some(why(exit.status, &verdict, error, &console.tail())),
            _ => None,
        };
        End { status, message, ..end }
    }

    async fn tell_node(&self, mut report: NodeReport) {
        report.message = report.message.map(|message| self.redactor.text(&message));
        self.reporter.node(report).await;
    }

    fn tell_version(&mut self, version: Option<String>) {
        if let Some(version) = version.filter(|_| !self.told_version) {
            self.told_version = true;
            let patch = dbtcloud_core::ports::RunPatch {
                dbt_version: Some(version),
                ..Default::default()
            };
            self.reporter.run(None, patch);
        }
    }

    fn parse_cache(&self) -> (ParseCache, String) {
        let dir = self.config.cache_dir.join("parse").join(self.plan.account.to_string());
        (
            ParseCache::new(dir),
            format!("environment {} job {}", self.plan.environment, self.plan.job),
        )
    }

    fn parse_key(&self, dbt: &dyn Dbt, vars: &str) -> Option<ParseKey> {
        let (engine, adapter) = dbt.identity();
        Some(ParseKey::new(&ParseInputs {
            commit: &self.checkout.as_ref()?.sha,
            engine: &engine,
            adapter: &adapter,
            target: &self.profile.as_ref().ok()?.text,
            vars,
            env: &self.plan.variables,
        }))
    }

    /// Puts parse state of an earlier run of the job in place.
    async fn restore_parse_state(&mut self, dbt: &dyn Dbt, command: &Command, console: &mut Console) {
        let Some(key) = self.parse_key(dbt, command.vars()) else {
            return;
        };
        let (cache, scope) = self.parse_cache();
        let place = self.parse_file();
        let restored = tokio::task::spawn_blocking(move || cache.restore(&scope, &key, &place)).await;
        if let Ok(Ok(restored)) = &restored {
            self.reporter.count([parse_state(restored)]);
        }
        match restored {
            Ok(Ok(Restored::Differs(parts))) => {
                let parts: Vec<String> = parts.iter().copied().map(part_name).collect();
                console
                    .line(&format!(
                        "Parsing in full: {} changed since the last run of this job",
                        parts.join(", ")
                    ))
                    .await;
            }
            Ok(Ok(Restored::Exact | Restored::OtherCommit)) => {
                self.parse_state = ParseState::Restored(self.parse_mark())
            }
            Ok(Ok(Restored::Nothing)) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "parse state cannot be used"),
            Err(_) => tracing::warn!("parse state cannot be used"),
        }
    }

    /// Keeps what the first command parsed for the next run of the job; later ones may have other `--vars`.
    async fn keep_parse_state(&mut self, dbt: &dyn Dbt, command: &Command) {
        let mark = self.parse_mark();
        let before = std::mem::take(&mut self.parse_state);
        if mark.is_none() {
            return;
        }
        self.parse_state = ParseState::Kept;
        if before == ParseState::Restored(mark) {
            return;
        }
        let Some(key) = self.parse_key(dbt, command.vars()) else {
            return;
        };
        let (cache, scope) = self.parse_cache();
        let place = self.parse_file();
        let kept = tokio::task::spawn_blocking(move || cache.store(&scope, &key, &place)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(error = %chain(&error), "parse state cannot be kept");
        }
    }

    fn parse_file(&self) -> PathBuf {
        self.folders.of("target").join("partial_parse.msgpack")
    }

    fn parse_mark(&self) -> Option<SystemTime> {
        self.parse_file().metadata().and_then(|meta| meta.modified()).ok()
    }
}

fn part_name(part: Part) -> String {
    format!("{part:?}").to_lowercase()
}

/// What came of looking for a parse state, to be counted.
fn parse_state(restored: &Restored) -> Counted {
    let (result, reason) = match restored {
        Restored::Exact => ("hit", String::new()),
        Restored::OtherCommit => ("partial", String::new()),
        Restored::Nothing => ("miss", "absent".to_owned()),
        Restored::Differs(parts) => match parts.as_slice() {
            [part] => ("miss", part_name(*part)),
            _ => ("miss", "several".to_owned()),
        },
    };
    Counted::ParseState {
        result: result.to_owned(),
        reason,
    }
}

fn said(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(9) => "killed by signal 9, often for want of memory".to_owned(),
        ExitStatus::Signal(signal) => format!("ended by signal {signal}"),
    }
}

/// Why a command failed: its nodes, else dbt's own word, else the end of what it printed.
fn why(status: ExitStatus, verdict: &crate::engine::results::Verdict, error: Option<String>, tail: &str) -> String {
    if status == ExitStatus::Code(1)
        && let Some(text) = nodes::failures(verdict)
    {
        return text;
    }
    let text = match (status, error) {
        (ExitStatus::Code(_), Some(error)) => plain(&error).trim().to_owned(),
        _ => String::new(),
    };
    let text = if text.is_empty() { last_error(tail) } else { text };
    let text: String = text.chars().take(MESSAGE_CHARS).collect();
    match (status, text.is_empty()) {
        (_, true) => format!("dbt ended: {}", said(status)),
        (ExitStatus::Code(_), false) => text,
        (ExitStatus::Signal(_), false) => format!("dbt was {}; it last said: {text}", said(status)),
    }
}

/// The last line that speaks of an error, or the last line at all, without dbt's clock in front.
fn last_error(tail: &str) -> String {
    let lines: Vec<&str> = tail.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let found = lines.iter().rev().find(|line| line.contains("Error")).or(lines.last());
    let line = found.copied().unwrap_or_default();
    match line.split_once("  ") {
        Some((clock, rest)) if clock.len() == 8 && clock.bytes().all(|b| b.is_ascii_digit() || b == b':') => {
            rest.trim().to_owned()
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found() {
        assert_eq!(
            last_error("12:00:01  Running\n12:00:02  Runtime Error: no profile\n12:00:03  see docs\n"),
            "Runtime Error: no profile"
        );
        assert_eq!(last_error("Usage: dbt\n\nno such option\n"), "no such option");
        assert_eq!(last_error(""), "");
    }
}
