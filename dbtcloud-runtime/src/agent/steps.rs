//! The steps of a run, one after the other: what decides, what is skipped, and how it all ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dbtcloud_core::Timestamp;
use dbtcloud_core::ports::{Clock as _, RunPatch};
use dbtcloud_core::run::{RunEvent, StepKind, StepPlan, StepState, StepStatus};
use dbtcloud_core::secret::Secret;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::artifacts::Uploads;
use super::command::Command;
use super::console::Console;
use super::dbt::{Dbt, Source};
use super::git::{self, Checkout, Places};
use super::halt::{Halt, Reason};
use super::invoke::ParseState;
use super::redact::Redactor;
use super::reporter::{MESSAGE_LIMIT_BYTES, Reporter, cut};
use super::uplink::{Backoff, Uplink};
use super::{AgentConfig, profile};
use crate::clock::SystemClock;
use crate::engine::profile::Profile;
use crate::protocol::{RunPlan, StateUse};
use crate::trace;

/// A dbt that is being made ready since the run began.
pub(super) type Preparing = Shared<BoxFuture<'static, Result<Arc<dyn Dbt>, String>>>;

/// Folders of an execution. All of them go when it ends.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub(super) root: PathBuf,
}

impl Folders {
    pub(super) fn of(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// Everything that the steps share.
pub(super) struct Work {
    pub(super) plan: Arc<RunPlan>,
    pub(super) config: AgentConfig,
    pub(super) folders: Folders,
    pub(super) reporter: Reporter,
    pub(super) halt: Halt,
    pub(super) redactor: Arc<Redactor>,
    pub(super) uplink: Uplink,
    pub(super) uploads: Uploads,
    pub(super) profile: Result<Profile, String>,
    pub(super) dbt: Preparing,
    pub(super) checkout: Option<Checkout>,
    pub(super) state: Option<PathBuf>,
    pub(super) told_version: bool,
    pub(super) parse_state: ParseState,
    /// When it is no longer tried to tell the control plane anything.
    pub(super) deadline: Instant,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) status: StepStatus,
    pub(super) exit_code: Option<i32>,
    pub(super) message: Option<String>,
    pub(super) backend: Option<String>,
}

impl End {
    pub(super) fn success() -> Self {
        Self {
            status: StepStatus::Success,
            exit_code: None,
            message: None,
            backend: None,
        }
    }

    pub(super) fn error(message: impl Into<String>) -> Self {
        Self {
            status: StepStatus::Error,
            message: Some(message.into()),
            ..Self::success()
        }
    }

    pub(super) fn cancelled(message: impl Into<String>) -> Self {
        Self {
            status: StepStatus::Cancelled,
            message: Some(message.into()),
            ..Self::success()
        }
    }
}

/// Begins to make dbt ready, beside whatever else goes on.
pub(super) fn prepare(source: Arc<dyn Source>, plan: Arc<RunPlan>) -> Preparing {
    let task = tokio::spawn(async move {
        let dbt = source.prepare(&plan).await?;
        let warming = dbt.clone();
        // Nobody waits for it: a command that comes before it is done finds the parent being started.
        tokio::spawn(async move { warming.warm_up().await });
        Ok(dbt)
    });
    async move {
        task.await
            .unwrap_or_else(|_| Err("dbt cannot be made ready".to_owned()))
    }
    .boxed()
    .shared()
}

pub(super) fn now() -> Timestamp {
    SystemClock.now()
}

fn pending(step: &StepPlan) -> StepState {
    StepState {
        index: step.index,
        name: step.name.clone(),
        kind: step.kind,
        status: StepStatus::Pending,
        started_at: None,
        finished_at: None,
        exit_code: None,
        message: None,
        backend: None,
    }
}

impl Work {
    /// Takes the steps and tells how the run ended, unless nobody wants to hear.
    pub(super) async fn through(mut self) {
        let plan = self.plan.clone();
        for step in &plan.steps {
            self.reporter.step(pending(step));
        }
        let (mut failed, mut warned, mut stopped) = (None::<String>, false, None::<String>);
        for step in &plan.steps {
            let mut state = pending(step);
            if failed.is_some() {
                state.status = StepStatus::Skipped;
                state.message = Some("Skipped because an earlier step failed.".to_owned());
                self.reporter.step(state);
                continue;
            }
            if let Some(reason) = self.halt.reason() {
                state.status = StepStatus::Cancelled;
                state.message = Some(format!("{}: not begun.", reason.text()));
                stopped.get_or_insert_with(|| "nothing was running".to_owned());
                self.reporter.step(state);
                continue;
            }
            state.status = StepStatus::Running;
            state.started_at = Some(now());
            self.reporter.step(state.clone());
            let mut console = Console::new(self.reporter.clone(), self.redactor.clone(), step.index);
            let end = self.take(step, &mut console).await;
            console.settle().await;
            state.status = end.status;
            state.exit_code = end.exit_code;
            state.backend = end.backend;
            state.message = end.message.map(|message| self.message(&message));
            state.finished_at = Some(now());
            let said = state.message.clone().unwrap_or_default();
            self.reporter.step(state);
            match end.status {
                StepStatus::Warned => warned |= step.kind.decides(),
                StepStatus::Cancelled => stopped = Some(said),
                StepStatus::Error if step.kind.decides() => {
                    failed = Some(format!("Step {} failed ({}): {said}", step.index, step.name));
                }
                _ => {}
            }
        }
        if self.halt.reason().is_some_and(|reason| reason.is_silent()) {
            return;
        }
        let mut patch = self.saved().await;
        let event = match (failed, stopped) {
            (Some(why), _) => {
                patch.message = Some(why);
                RunEvent::Failed
            }
            (None, Some(how)) => {
                patch.message = Some(match self.halt.reason().unwrap_or(Reason::Cancelled) {
                    // Who asked for it stands in the run's message already, and in front.
                    Reason::Cancelled => format!("Confirmed: {how}."),
                    reason => format!("{}. Confirmed: {how}.", reason.text()),
                });
                RunEvent::Stopped
            }
            (None, None) if warned => RunEvent::Warned,
            (None, None) => RunEvent::Succeeded,
        };
        self.reporter.run(Some(event), patch);
    }

    /// A message as it may be told.
    fn message(&self, text: &str) -> String {
        let mut text = self.redactor.text(text);
        cut(&mut text, MESSAGE_LIMIT_BYTES);
        text
    }

    /// Waits for the files on their way, and what the run should say of them.
    async fn saved(&mut self) -> RunPatch {
        let saved = self.uploads.finish(&self.reporter, self.deadline).await;
        let mut patch = RunPatch {
            artifacts_saved: Some(!saved.arrived.is_empty()),
            has_docs: Some(saved.has("catalog.json")),
            has_sources: Some(saved.has("sources.json")),
            ..RunPatch::default()
        };
        if let Some((_, path, why)) = saved.failed.first() {
            let count = saved.failed.len();
            patch.message = Some(self.message(&format!("{count} artifacts could not be saved; {path}: {why}")));
        }
        for (step, path, why) in &saved.failed {
            let step = if *step == 0 {
                self.plan.steps.last().map_or(1, |step| step.index)
            } else {
                *step
            };
            let line = format!("WARN: artifact {path} could not be saved: {why}\n");
            self.reporter.log(step, self.redactor.text(&line).as_bytes()).await;
        }
        patch
    }

    async fn take(&mut self, step: &StepPlan, console: &mut Console) -> End {
        match (step.kind, &step.command) {
            (StepKind::Clone, _) => self.clone_repository(console).await,
            (StepKind::Profile, _) => self.write_profile(console).await,
            (StepKind::Deps, _) if !self.has_packages() => {
                console
                    .line("No packages.yml or dependencies.yml: nothing to install.")
                    .await;
                End::success()
            }
            (_, Some(command)) => match Command::parse(command) {
                Ok(command) => self.run_dbt(step, &command, console).await,
                Err(error) => {
                    console.line(&error).await;
                    End::error(error)
                }
            },
            (_, None) => End::error("The step has no command."),
        }
    }

    fn has_packages(&self) -> bool {
        let project = self.checkout.as_ref().map(|checkout| &checkout.project);
        project.is_none_or(|project| {
            ["packages.yml", "dependencies.yml"]
                .iter()
                .any(|file| project.join(file).exists())
        })
    }

    async fn clone_repository(&mut self, console: &mut Console) -> End {
        let plan = self.plan.clone();
        let (scratch, code) = (self.folders.of("login"), self.folders.of("code"));
        let places = Places {
            cache: &self.config.cache_dir,
            scratch: &scratch,
            checkout: &code,
            path: &self.config.path,
        };
        let passed_on = self.config.network();
        let halt = self.halt.clone();
        let work = git::check_out(&plan.git, plan.account, places, &passed_on, console);
        // Dropped early, git and what it started are killed.
        let done = tokio::select! {
            done = work => Some(done),
            _ = halt.raised() => None,
        };
        let _ = std::fs::remove_dir_all(&scratch);
        match done {
            None => End::cancelled("git was ended"),
            Some(Err(error)) => {
                console.line(&error).await;
                End::error(error)
            }
            Some(Ok(checkout)) => {
                self.reporter.run(
                    None,
                    RunPatch {
                        git_sha: Some(checkout.sha.clone()),
                        git_branch: checkout.branch.clone(),
                        ..RunPatch::default()
                    },
                );
                self.checkout = Some(checkout);
                End::success()
            }
        }
    }

    async fn write_profile(&mut self, console: &mut Console) -> End {
        let end = match &self.profile {
            Ok(made) => {
                for field in &made.ignored {
                    console
                        .line(&format!(
                            "WARN: field '{field}' of the connection or its credentials is not known and left out"
                        ))
                        .await;
                }
                match profile::write(made, &self.folders.of(".dbt")) {
                    Ok(()) => {
                        let source = &self.plan.profile;
                        let schema = source.schema.as_deref().unwrap_or("as configured");
                        console
                            .line(&format!(
                                "Target {}: {} (schema {schema}, {} threads)",
                                source.target_name, source.adapter, source.threads
                            ))
                            .await;
                        End::success()
                    }
                    Err(error) => End::error(format!("profiles.yml cannot be written: {error}")),
                }
            }
            Err(error) => End::error(format!("The profile cannot be made: {error}")),
        };
        if let Some(message) = &end.message {
            console.line(message).await;
            return end;
        }
        if let Err(error) = self.fetch_state(console).await {
            console.line(&error).await;
            return End::error(error);
        }
        end
    }

    /// Fetches the artifacts of the run that is deferred to or retried.
    async fn fetch_state(&mut self, console: &mut Console) -> Result<(), String> {
        let Some(how) = self.plan.state else { return Ok(()) };
        let folder = self.folders.of("state");
        std::fs::create_dir_all(&folder).map_err(|e| format!("{} cannot be created: {e}", folder.display()))?;
        let files: &[&str] = match how {
            StateUse::Defer => &["manifest.json"],
            StateUse::Retry => &["manifest.json", "run_results.json"],
        };
        for file in files {
            let mut backoff = Backoff::default();
            let place = folder.join(file);
            let error = loop {
                let got = tokio::select! {
                    got = self.uplink.get_state(file, &place) => got,
                    _ = self.halt.raised() => return Ok(()),
                };
                match got {
                    Ok(()) => break None,
                    Err(error) if error.retryable() && Instant::now() < self.deadline => backoff.pause().await,
                    Err(error) => break Some(error),
                }
            };
            match (error, how) {
                (None, _) => {}
                (Some(error), StateUse::Defer) => {
                    console
                        .line(&format!("WARN: nothing to defer to: {}", error.chain()))
                        .await;
                    return Ok(());
                }
                (Some(error), StateUse::Retry) => {
                    return Err(format!(
                        "{file} of the run that is retried cannot be had: {}",
                        error.chain()
                    ));
                }
            }
        }
        let what = if how == StateUse::Defer {
            "deferred to"
        } else {
            "retried"
        };
        console
            .line(&format!("State of the run that is {what}: {}", files.join(", ")))
            .await;
        self.state = Some(folder);
        Ok(())
    }

    /// The context that dbt's own spans of a step are to be below.
    pub(super) fn traceparent(&self, step: u32) -> Option<String> {
        let run = trace::Context::parse(self.plan.traceparent.as_deref()?)?;
        Some(trace::of_step(run, self.plan.attempt, step).to_string())
    }

    /// The environment of every dbt command.
    pub(super) fn environment(&self) -> BTreeMap<String, Secret> {
        let mut env: BTreeMap<String, Secret> = BTreeMap::new();
        let mut set = |name: &str, value: &str| env.insert(name.to_owned(), Secret::new(value));
        for (name, value) in self.config.network() {
            set(&name, &value);
        }
        for (name, value) in &self.config.passed_on {
            if name.starts_with(super::TRACING) {
                set(name, value);
            }
        }
        for (name, value) in &self.plan.variables {
            set(name, value);
        }
        let home = self.config.cache_dir.join("home").join(self.plan.account.to_string());
        let temporary = self.folders.of("tmp");
        for folder in [&home, &temporary] {
            let _ = std::fs::create_dir_all(folder);
        }
        set("PATH", &self.config.path);
        set("HOME", &home.to_string_lossy());
        set("TMPDIR", &temporary.to_string_lossy());
        set("LANG", "C.UTF-8");
        // No `PYTHON…` here: the engine makes Python speak UTF-8, and a warm parent could not follow.
        set("GIT_TERMINAL_PROMPT", "0");
        if let Ok(made) = &self.profile {
            env.extend(made.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        env
    }
}
