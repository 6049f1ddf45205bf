//! Runs for the benches that queue and claim.

use std::time::Duration;

use dbtcloud_core::Timestamp;
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId};
use dbtcloud_core::ports::{Claimed, Owner, RunChange, RunPatch, Runs};
use dbtcloud_core::run::{Admission, CauseCategory, NewRun, RunEvent, RunSpec, Trigger};
use dbtcloud_sql::SqlStorage;

/// The time of day.
pub fn now() -> Timestamp {
    Timestamp::from_micros(chrono::Utc::now().timestamp_micros())
}

/// A run of this job, due now.
pub fn new_run(job: u64) -> NewRun {
    NewRun {
        account: AccountId::new(1),
        project: ProjectId::new(1),
        environment: EnvironmentId::new(1),
        job: JobId::new(i64::try_from(job).unwrap_or_default()),
        trigger: Trigger::new(CauseCategory::Api, "bench"),
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
        takes_slot: true,
        retry_of: None,
        due_at: now(),
    }
}

/// Ends a run that was claimed.
///
/// # Panics
/// When storage refuses.
pub async fn end(storage: &SqlStorage, claimed: &Claimed) {
    let end = RunChange::new(claimed.run.status, RunEvent::Failed, RunPatch::default(), now()).expect("may fail");
    storage.change(&claimed.fence, &end).await.expect("ends");
}

/// One run from the queue to its end: three port calls. Every worker has a job and a slot of its own.
///
/// # Panics
/// When storage refuses.
pub async fn cycle(storage: &SqlStorage, worker: u64) {
    let run = storage
        .enqueue(&new_run(worker), now())
        .await
        .expect("queues")
        .into_run();
    let slot = u32::try_from(worker).ok();
    let until = now().plus(Duration::from_secs(30));
    let admission = [Admission { run: run.id, slot }];
    let owner = Owner::new(format!("worker-{worker}"));
    let claimed = storage.claim(&owner, &admission, now(), until).await.expect("claims");
    end(storage, &claimed[0]).await;
}
