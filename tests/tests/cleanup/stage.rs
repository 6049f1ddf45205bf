//! A control plane whose clock stands still, over stores whose calls are noted and can be made to fail.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_contract::faults::{Faults, FaultyArtifacts, FaultyExecutor, FaultyStorage, Moment, Rates, Scene};
use dbtcloud_contract::memory::{ManualClock, MemoryArtifacts, MemoryStorage, ScriptedExecutor, TemporaryVolume};
use dbtcloud_contract::suite::Stores;
use dbtcloud_core::Timestamp;
use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::job::JobType;
use dbtcloud_core::ports::{
    Area, ArtifactKey, Artifacts, Batch, Clock, Fence, Holder, LogChunk, Owner, RunPatch, Storage,
};
use dbtcloud_core::retention::{Days, OwnRetention, Retention};
use dbtcloud_core::run::{
    Admission, CauseCategory, NewRun, Run, RunEvent, RunSpec, StepKind, StepState, StepStatus, Trigger,
};
use dbtcloud_runtime::cleanup::{self, Mode, Report};
use dbtcloud_runtime::{AgentLaunch, Config, ControlPlane};
use futures::TryStreamExt;
use tokio::sync::Notify;

/// When a story begins.
pub const BEGIN: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
/// What the installation says: each kind goes at another time.
pub const RETENTION: Retention = Retention {
    runs: days(100),
    logs: days(50),
    artifacts: days(20),
    sessions: days(10),
    audit: days(200),
};
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Notes which calls are made, and lets the caller die in one of them.
#[derive(Default)]
pub struct Heard {
    calls: Mutex<Vec<&'static str>>,
    /// How many more calls are survived, and on which side of the one after them it dies.
    fate: Mutex<Option<(usize, Moment)>>,
    dead: Notify,
}

impl Heard {
    /// What was heard since it was last asked.
    pub fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Scene for Heard {
    async fn pass(&self, call: &'static str, moment: Moment) {
        if moment == Moment::Before {
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        }
        let dies = {
            let mut fate = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *fate {
                Some((0, side)) if *side == moment => true,
                Some((left, side)) if *side == moment => {
                    *left -= 1;
                    false
                }
                _ => false,
            }
        };
        if dies {
            self.dead.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A world and the control plane in it.
pub struct Stage {
    pub stores: Stores,
    pub artifacts: MemoryArtifacts,
    pub executor: ScriptedExecutor,
    pub volumes: TemporaryVolume,
    pub clock: ManualClock,
    /// What goes wrong with the artifact store.
    pub outage: Arc<Faults>,
    pub heard: Arc<Heard>,
    pub plane: ControlPlane,
    eye: ControlPlane,
    pub work: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Self {
        Self::told(MemoryStorage::new(), |_| {})
    }

    /// The same with faults of the artifact store from a seed, once they are asked for.
    pub fn seeded(seed: u64) -> Self {
        Self::build(MemoryStorage::new(), seed, |_| {})
    }

    /// The same over a storage, with a configuration that is changed.
    pub fn told(storage: impl Storage, change: impl FnOnce(&mut Config)) -> Self {
        Self::build(storage, 1, change)
    }

    fn build(storage: impl Storage, seed: u64, change: impl FnOnce(&mut Config)) -> Self {
        let storage = Arc::new(storage);
        let (artifacts, clock) = (MemoryArtifacts::new(), ManualClock::at(BEGIN));
        let executor = ScriptedExecutor::new(clock.clone());
        let (work, volumes) = (tempfile::tempdir().unwrap(), TemporaryVolume::new());
        let heard = Arc::new(Heard::default());
        let faults = || Arc::new(Faults::new(seed, Rates::CALM).in_scene(heard.clone()));
        let outage = faults();
        let mut launch = AgentLaunch::local(vec!["agent".to_owned()], Path::new("/nowhere"), []);
        launch.work_dir = work.path().to_owned();
        let mut config = Config::new("stage", launch);
        config.retention = RETENTION;
        change(&mut config);
        let eye = ControlPlane::builder(
            FaultyStorage::new(storage.clone(), Arc::new(Faults::new(seed, Rates::CALM))),
            executor.clone(),
            config.clone(),
        )
        .artifacts(artifacts.clone())
        .clock(clock.clone())
        .build();
        let plane = ControlPlane::builder(
            FaultyStorage::new(storage.clone(), faults()),
            FaultyExecutor::new(Arc::new(executor.clone()), faults()),
            config,
        )
        .artifacts(FaultyArtifacts::new(Arc::new(artifacts.clone()), outage.clone()))
        .volume(volumes.clone())
        .clock(clock.clone())
        .build();
        Self {
            stores: Stores::of(storage),
            artifacts,
            executor,
            volumes,
            clock,
            outage,
            heard,
            eye,
            plane,
            work,
        }
    }

    /// All chores or some of them, until nothing is left.
    pub async fn sweep(&self, names: &[&str], mode: Mode) -> Vec<Report> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        cleanup::once(&self.plane, &names, mode).await.unwrap()
    }

    /// A run that ended now, with one step and this log.
    pub async fn ended(&self, account: i64, log: &[u8]) -> Run {
        let (run, mut batch) = self.working(account, log).await;
        batch.number += 1;
        batch.logs.clear();
        batch.steps = vec![step(StepStatus::Success, batch.at)];
        batch.event = Some(RunEvent::Succeeded);
        self.stores.runs.report(&fence(run.id), &batch).await.unwrap();
        self.stores.runs.get(run.new.account, run.id).await.unwrap()
    }

    /// Puts a file of a run into the store, past every fault.
    pub async fn keep(&self, account: i64, run: RunId, area: Area, path: &str) {
        let key = ArtifactKey {
            account: AccountId::new(account),
            run,
            area,
            path: path.parse().unwrap(),
        };
        let bytes = Bytes::from_static(b"12345");
        let stream = futures::stream::iter([Ok(bytes)]);
        self.artifacts.put(&key, Box::pin(stream)).await.unwrap();
    }

    /// The files of a run, by their paths.
    pub async fn files(&self, run: &Run) -> Vec<String> {
        let files = self.artifacts.list(run.new.account, run.id, None).await.unwrap();
        files.iter().map(|file| file.path.as_str().to_owned()).collect()
    }

    /// A run that ended now, with its log moved and files of every kind.
    pub async fn full(&self, account: i64) -> Run {
        let run = self.ended(account, b"a line\nanother\n").await;
        self.sweep(&["flush_logs"], Mode::Act).await;
        self.keep(account, run.id, Area::Step(1), "manifest.json").await;
        self.keep(account, run.id, Area::Step(2), "manifest.json").await;
        self.keep(account, run.id, Area::Logs, "step-1.debug.log").await;
        run
    }

    /// An account that says this.
    pub async fn account(&self, name: &str, own: OwnRetention) -> i64 {
        let body = Account {
            retention: own,
            ..Account::new(name)
        };
        let account = AccountId::new(0);
        let record = self.stores.catalog.create(account, &body, self.clock.now()).await;
        record.unwrap().id.get()
    }

    /// A run that executes, with one step and this log so far; and its last report.
    pub async fn working(&self, account: i64, log: &[u8]) -> (Run, Batch) {
        let now = self.clock.now();
        let run = self.stores.runs.enqueue(&new_run(account, now), now).await.unwrap();
        let run = run.into_run();
        let admission = [Admission {
            run: run.id,
            slot: None,
        }];
        let until = now.plus(DAY);
        let claimed = self
            .stores
            .runs
            .claim(&Owner::new("driver"), &admission, now, until)
            .await
            .unwrap();
        assert_eq!(claimed.len(), 1);
        let mut batch = Batch {
            number: 1,
            at: now,
            steps: vec![step(StepStatus::Running, now)],
            nodes: Vec::new(),
            logs: Vec::new(),
            event: Some(RunEvent::Started),
            patch: RunPatch::default(),
        };
        self.stores.runs.report(&fence(run.id), &batch).await.unwrap();
        batch.event = None;
        batch.steps.clear();
        let mut offset = 0;
        for bytes in log.chunks(1024 * 1024) {
            batch.number += 1;
            batch.logs = vec![LogChunk {
                step: 1,
                offset,
                bytes: Bytes::copy_from_slice(bytes),
            }];
            self.stores.runs.report(&fence(run.id), &batch).await.unwrap();
            offset += bytes.len() as u64;
        }
        (run, batch)
    }

    /// Another control plane, for which everything is as it is.
    pub fn eye(&self) -> ControlPlane {
        self.eye.clone()
    }

    /// Lets a process die on one side of its `number`th call from now; whether it got so far.
    pub async fn dies_at<T>(&self, number: usize, moment: Moment, process: impl Future<Output = T>) -> bool {
        let fate = |fate| *self.heard.fate.lock().unwrap_or_else(PoisonError::into_inner) = fate;
        fate(Some((number, moment)));
        let died = tokio::select! {
            () = self.heard.dead.notified() => true,
            _ = process => false,
        };
        fate(None);
        died
    }
}

/// The whole log of a run's step.
pub async fn whole_log(plane: &ControlPlane, stores: &Stores, run: &Run) -> dbtcloud_core::Result<Vec<u8>> {
    let account = run.new.account;
    let step = stores.runs.steps(account, run.id).await?.remove(0);
    let mut stream = plane.step_log_stream(account, step);
    let mut whole = Vec::new();
    while let Some(bytes) = stream.try_next().await? {
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// So many days.
pub const fn days(days: u32) -> Days {
    match Days::new(days) {
        Some(days) => days,
        None => panic!("too many days"),
    }
}

/// The fence of a run's first agent.
pub const fn fence(run: RunId) -> Fence {
    Fence::issue(run, Holder::Agent { attempt: 1 })
}

/// The state of a run's one step.
pub fn step(status: StepStatus, at: Timestamp) -> StepState {
    StepState {
        index: 1,
        name: "Invoke dbt with `dbt build`".to_owned(),
        kind: StepKind::Command,
        status,
        started_at: Some(at),
        finished_at: status.is_terminal().then_some(at),
        exit_code: None,
        message: None,
        backend: None,
    }
}

fn new_run(account: i64, now: Timestamp) -> NewRun {
    NewRun {
        account: AccountId::new(account),
        project: ProjectId::new(1),
        environment: EnvironmentId::new(1),
        job: JobId::new(7),
        trigger: Trigger::new(CauseCategory::Api, "a test"),
        spec: RunSpec {
            commands: vec!["dbt build".to_owned()],
            generate_docs: false,
            source_freshness: false,
            dbt_version: "latest".to_owned(),
            threads: 4,
            target_name: "default".to_owned(),
            schema: None,
            timeout_seconds: 3600,
            git_branch: None,
            git_sha: None,
            job_type: JobType::Other,
            placement: Default::default(),
        },
        scheduled_for: None,
        exclusive: false,
        takes_slot: false,
        retry_of: None,
        due_at: now,
    }
}
