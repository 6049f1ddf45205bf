//! Migrated storages, each with what must live as long, and runs to put into them.

use dbtcloud_core::Timestamp;
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::ports::{Batch, Claimed, Fence, Holder, Owner, RunPatch, Runs};
use dbtcloud_core::run::{Admission, CauseCategory, NewRun, RunSpec, StepKind, StepState, StepStatus, Trigger};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres;

/// A storage and its home.
pub struct On<T> {
    pub storage: SqlStorage,
    pub home: T,
}

pub async fn sqlite() -> On<tempfile::TempDir> {
    let home = tempfile::tempdir().expect("a directory");
    let storage = SqlStorage::connect(&sqlite_url(home.path()), Options::new())
        .await
        .expect("connects");
    storage.migrate().await.expect("migrates");
    On { storage, home }
}

pub fn sqlite_url(directory: &std::path::Path) -> String {
    format!("sqlite://{}/test.db", directory.display())
}

pub async fn postgres() -> On<postgres::Schema> {
    let home = tokio::task::spawn_blocking(postgres::schema).await.expect("a schema");
    let storage = SqlStorage::connect(&home.url(), Options::new())
        .await
        .expect("connects");
    storage.migrate().await.expect("migrates");
    On { storage, home }
}

pub const ACCOUNT: AccountId = AccountId::new(1);

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
}

pub fn owner(name: &str) -> Owner {
    Owner::new(name)
}

pub fn new_run(job: i64) -> NewRun {
    NewRun {
        account: ACCOUNT,
        project: ProjectId::new(1),
        environment: EnvironmentId::new(1),
        job: JobId::new(job),
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
            job_type: dbtcloud_core::job::JobType::Other,
            placement: Default::default(),
        },
        scheduled_for: None,
        exclusive: true,
        takes_slot: false,
        retry_of: None,
        due_at: at(0),
    }
}

pub async fn queue(storage: &SqlStorage, job: i64) -> RunId {
    storage
        .enqueue(&new_run(job), at(0))
        .await
        .expect("queues")
        .into_run()
        .id
}

pub async fn claim(storage: &SqlStorage, run: RunId) -> Claimed {
    let admissions = [Admission { run, slot: None }];
    let claimed = storage
        .claim(&owner("test"), &admissions, at(1), at(1_000))
        .await
        .expect("claims");
    claimed.into_iter().next().expect("is claimed")
}

pub fn agent(claimed: &Claimed) -> Fence {
    Fence::issue(
        claimed.run.id,
        Holder::Agent {
            attempt: claimed.run.attempt,
        },
    )
}

pub fn batch(number: u64) -> Batch {
    Batch {
        number,
        at: at(i64::try_from(number).expect("small")),
        steps: Vec::new(),
        nodes: Vec::new(),
        logs: Vec::new(),
        event: None,
        patch: RunPatch::default(),
    }
}

pub fn step(index: u32, status: StepStatus) -> StepState {
    StepState {
        index,
        name: format!("Step {index}"),
        kind: StepKind::Command,
        status,
        started_at: None,
        finished_at: None,
        exit_code: None,
        message: None,
        backend: None,
    }
}
