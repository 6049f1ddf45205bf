//! Nouns for cases to work with, and the steps that many of them begin with.

use bytes::Bytes;
use dbtcloud_core::environment::Placement;
use dbtcloud_core::error::{ErrorKind, Result};
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::ports::{Batch, Claimed, EventBody, Fence, Holder, LogChunk, Owner, RunChange, RunPatch};
use dbtcloud_core::run::{
    Admission, CauseCategory, NewRun, NodeReport, Run, RunEvent, RunSpec, RunStatus, StepKind, StepState, StepStatus,
    Trigger,
};
use dbtcloud_core::time::Timestamp;

use super::Stores;

/// The account most cases work in, and another one.
pub(super) const ACCOUNT: AccountId = AccountId::new(1);
pub(super) const STRANGER: AccountId = AccountId::new(2);
pub(super) const JOB: JobId = JobId::new(7);

/// Text that a careless adapter breaks.
pub(super) const ODD_TEXT: &str = "Zoë 'said' \"50%\" \\ _ 日本 🦀\u{0301}\n\t; DROP TABLE runs; --";

/// So many seconds into the time of a case.
pub(super) const fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
}

/// Far in the future of every case.
pub(super) const LATE: Timestamp = at(1_000_000);

/// The kind of the error that must have come.
#[track_caller]
pub(super) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("expected an error").kind()
}

pub(super) fn owner(name: &str) -> Owner {
    Owner::new(name)
}

pub(super) fn new_run(account: AccountId, job: JobId) -> NewRun {
    NewRun {
        account,
        project: ProjectId::new(10),
        environment: EnvironmentId::new(20),
        job,
        trigger: Trigger::new(CauseCategory::Api, "a case"),
        spec: RunSpec {
            commands: vec!["dbt build".to_owned()],
            generate_docs: false,
            source_freshness: false,
            dbt_version: "1.10".to_owned(),
            threads: 4,
            target_name: "default".to_owned(),
            schema: None,
            timeout_seconds: 3600,
            git_branch: None,
            git_sha: None,
            job_type: dbtcloud_core::job::JobType::Other,
            placement: Placement {
                image: Some("registry.example/dbt:1.10".to_owned()),
                pod_overlay: Some(serde_json::json!({"spec": {"priorityClassName": "low"}})),
                ..Placement::default()
            },
        },
        scheduled_for: None,
        exclusive: true,
        takes_slot: true,
        retry_of: None,
        due_at: at(0),
    }
}

/// A run that neither takes a slot nor keeps others out, so that cases about something else are not about
/// admission.
pub(super) fn free_run(account: AccountId, job: JobId) -> NewRun {
    NewRun {
        exclusive: false,
        takes_slot: false,
        ..new_run(account, job)
    }
}

pub(super) async fn enqueue(stores: &Stores, new: &NewRun, now: Timestamp) -> Run {
    stores.runs.enqueue(new, now).await.expect("enqueue").into_run()
}

/// Queues a free run of the account.
pub(super) async fn queued(stores: &Stores) -> Run {
    enqueue(stores, &free_run(ACCOUNT, JOB), at(0)).await
}

/// Claims one run without a slot, by a lease until `until`.
pub(super) async fn claim_until(stores: &Stores, run: RunId, now: Timestamp, until: Timestamp) -> Claimed {
    let admission = [Admission { run, slot: None }];
    let mut claimed = stores
        .runs
        .claim(&owner("driver"), &admission, now, until)
        .await
        .expect("claim");
    assert_eq!(claimed.len(), 1, "run {run} should have been claimed");
    claimed.remove(0)
}

/// Queues and claims a run at second 1.
pub(super) async fn claimed(stores: &Stores) -> Claimed {
    let run = queued(stores).await;
    claim_until(stores, run.id, at(1), LATE).await
}

/// Queues, claims and starts a run at seconds 0, 1 and 2; report 1 is taken in.
pub(super) async fn running(stores: &Stores) -> Claimed {
    let mut claimed = claimed(stores).await;
    let begin = Batch {
        event: Some(RunEvent::Started),
        ..batch(1, at(2))
    };
    let ack = stores.runs.report(&agent(&claimed), &begin).await.expect("report");
    assert_eq!(ack.status, RunStatus::Running);
    claimed.run = stores
        .runs
        .get(claimed.run.new.account, claimed.run.id)
        .await
        .expect("get");
    claimed
}

/// The fence of the agent of this attempt.
pub(super) fn agent(claimed: &Claimed) -> Fence {
    Fence::issue(
        claimed.run.id,
        Holder::Agent {
            attempt: claimed.run.attempt,
        },
    )
}

pub(super) fn batch(number: u64, at: Timestamp) -> Batch {
    Batch {
        number,
        at,
        steps: Vec::new(),
        nodes: Vec::new(),
        logs: Vec::new(),
        event: None,
        patch: RunPatch::default(),
    }
}

pub(super) fn step(index: u32, status: StepStatus) -> StepState {
    StepState {
        index,
        name: format!("Invoke dbt with `dbt step {index}`"),
        kind: StepKind::Command,
        status,
        started_at: (status != StepStatus::Pending).then(|| at(3)),
        finished_at: status.is_terminal().then(|| at(4)),
        exit_code: status.is_terminal().then_some(0),
        message: None,
        backend: Some("cli".to_owned()),
    }
}

pub(super) fn node(step: u32, unique_id: &str) -> NodeReport {
    NodeReport {
        step,
        unique_id: unique_id.to_owned(),
        resource_type: "model".to_owned(),
        name: "orders".to_owned(),
        status: "success".to_owned(),
        message: Some("SELECT 1".to_owned()),
        execution_time: Some(0.25),
        index: Some(1),
        total: Some(3),
        at: at(3),
    }
}

pub(super) fn chunk(step: u32, offset: u64, bytes: impl Into<Bytes>) -> LogChunk {
    LogChunk {
        step,
        offset,
        bytes: bytes.into(),
    }
}

pub(super) fn change(from: RunStatus, event: RunEvent, at: Timestamp) -> RunChange {
    RunChange::new(from, event, RunPatch::default(), at).expect("a legal change")
}

/// The statuses that the journal tells of a run, in order.
pub(super) async fn told(stores: &Stores, run: &Run) -> Vec<RunStatus> {
    let events = stores
        .journal
        .of_run(run.new.account, run.id, 0, 10_000)
        .await
        .expect("journal");
    let statuses = events.into_iter().filter_map(|event| match event.body {
        EventBody::Run { status, .. } => Some(status),
        EventBody::Step { .. } | EventBody::Node { .. } => None,
    });
    statuses.collect()
}

/// Runs so many tasks at one time and gives back what each gave.
pub(super) async fn together<T, Fut>(count: usize, task: impl Fn(usize) -> Fut) -> Vec<T>
where
    T: Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|index| tokio::spawn(task(index))).collect();
    let mut results = Vec::new();
    for task in tasks {
        match task.await {
            Ok(result) => results.push(result),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    results
}
