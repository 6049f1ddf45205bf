//! `Runs`: reading. The rest of the port is in `enqueue.rs`, `queue.rs` (who executes) and `reports.rs`
//! (what happens to a run). Invariants: a run that has not ended has exactly one row in `run_queue`, with
//! the same state; a job has one run per instant (primary key of `run_instants`); the id of a run says its
//! month, and history is filed by it.

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, JobId, RunId, StepId};
use dbtcloud_core::ports::{
    Ack, Batch, Claimed, Enqueued, Fence, Owner, Renewed, RunChange, RunFilter, RunRequest, RunSort, RunState, Runs,
    Since,
};
use dbtcloud_core::run::{Admission, NewRun, QueueSnapshot, Run, RunStatus, RunStep, StepKind, StepState, StepStatus};
use dbtcloud_core::{Direction, Error, Page, Paged, Result, Timestamp};

use crate::engine::{self, Conditions, Row, Sql, args};
use crate::storage::SqlStorage;
use crate::{enqueue, logs, queue, reports, requests};

/// The columns of a run, each after a prefix (`""` or `"r."`).
macro_rules! run_columns {
    ($r:literal) => {
        concat!(
            $r,
            "id, ",
            $r,
            "account_id, ",
            $r,
            "project_id, ",
            $r,
            "environment_id, ",
            $r,
            "job_id, ",
            $r,
            "cause_body, ",
            $r,
            "spec_body, ",
            $r,
            "scheduled_for, ",
            $r,
            "exclusive, ",
            $r,
            "takes_slot, ",
            $r,
            "retry_of, ",
            $r,
            "due_at, ",
            $r,
            "status, ",
            $r,
            "attempt, ",
            $r,
            "created_at, ",
            $r,
            "updated_at, ",
            $r,
            "dequeued_at, ",
            $r,
            "started_at, ",
            $r,
            "finished_at, ",
            $r,
            "heartbeat_at, ",
            $r,
            "cancel_requested_at, ",
            $r,
            "git_branch, ",
            $r,
            "git_sha, ",
            $r,
            "dbt_version, ",
            $r,
            "message, ",
            $r,
            "artifacts_saved, ",
            $r,
            "has_docs, ",
            $r,
            "has_sources, ",
            $r,
            "logs_expired_at, ",
            $r,
            "artifacts_expired_at"
        )
    };
}
pub(crate) use run_columns;

/// Primary key.
const GET: Sql = Sql::both(concat!(
    "SELECT ",
    run_columns!(""),
    " FROM runs WHERE id = $1 AND account_id = $2"
));

/// Index `runs_by_job`, once per job: its last entry.
const NEWEST: Sql = Sql::each(
    concat!(
        "SELECT ",
        run_columns!("r."),
        " FROM (SELECT DISTINCT id FROM unnest($2) AS job (id)) AS job CROSS JOIN LATERAL \
            (SELECT * FROM runs n WHERE n.account_id = $1 AND n.job_id = job.id ORDER BY n.id DESC LIMIT 1) r \
         ORDER BY r.job_id"
    ),
    concat!(
        "SELECT ",
        run_columns!(""),
        " FROM runs WHERE id IN (SELECT (SELECT max(n.id) FROM runs n WHERE n.account_id = $1 \
            AND n.job_id = job.value) FROM json_each($2) AS job) ORDER BY job_id"
    ),
);

/// Primary key.
const STATES: Sql = Sql::each(
    "SELECT id, status, attempt FROM runs WHERE id = ANY($1) ORDER BY id",
    "SELECT id, status, attempt FROM runs WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id",
);

macro_rules! step_columns {
    () => {
        "s.id, s.run_id, s.step_index, s.name, s.kind, s.status, s.started_at, s.finished_at, s.exit_code, \
         s.message, s.backend, s.created_at, s.updated_at, s.log_bytes, s.log_first, \
         s.log_parts, s.log_object"
    };
}

/// Primary key of `runs`, unique key (`run_id`, `step_index`). A run without steps is one row of nulls.
const STEPS: Sql = Sql::both(concat!(
    "SELECT ",
    step_columns!(),
    " FROM runs r LEFT JOIN run_steps s ON s.run_id = r.id WHERE r.id = $1 AND r.account_id = $2 \
     ORDER BY s.step_index"
));

/// Primary keys.
const STEP: Sql = Sql::both(concat!(
    "SELECT ",
    step_columns!(),
    " FROM run_steps s JOIN runs r ON r.id = s.run_id WHERE s.id = $1 AND r.account_id = $2"
));

// Conditions of a list: by account first (`runs_by_account`), or the index of the narrower condition.
const OF_ACCOUNT: Sql = Sql::both("account_id = $$");
const IN_PROJECTS: Sql = Sql::each(
    "project_id = ANY($$)",
    "project_id IN (SELECT value FROM json_each($$))",
);
/// Index `runs_by_environment`.
const IN_ENVIRONMENT: Sql = Sql::both("environment_id = $$");
/// Index `runs_by_job`.
const OF_JOB: Sql = Sql::both("job_id = $$");
const IN_STATUSES: Sql = Sql::each("status = ANY($$)", "status IN (SELECT value FROM json_each($$))");
/// Primary key.
const WITH_IDS: Sql = Sql::each("id = ANY($$)", "id IN (SELECT value FROM json_each($$))");
const ID_ABOVE: Sql = Sql::both("id > $$");
/// Index `runs_by_created`.
const CREATED_FROM: Sql = Sql::both("created_at >= $$");
const CREATED_TO: Sql = Sql::both("created_at <= $$");
/// Index `runs_by_finished`.
const FINISHED_FROM: Sql = Sql::both("finished_at >= $$");
const FINISHED_TO: Sql = Sql::both("finished_at <= $$");
const HAS_DOCS: Sql = Sql::both("has_docs = $$");
const HAS_SOURCES: Sql = Sql::both("has_sources = $$");

const fn order(sort: RunSort, direction: Direction) -> &'static str {
    match (sort, direction) {
        (RunSort::Id, Direction::Ascending) => "id",
        (RunSort::Id, Direction::Descending) => "id DESC",
        (RunSort::CreatedAt, Direction::Ascending) => "created_at, id",
        (RunSort::CreatedAt, Direction::Descending) => "created_at DESC, id DESC",
        (RunSort::FinishedAt, Direction::Ascending) => "finished_at ASC NULLS LAST, id",
        (RunSort::FinishedAt, Direction::Descending) => "finished_at DESC NULLS FIRST, id DESC",
    }
}

/// A run out of a row that has its columns.
pub(crate) fn read(row: &Row) -> Result<Run> {
    Ok(Run {
        id: row.id("id")?,
        new: NewRun {
            account: row.id("account_id")?,
            project: row.id("project_id")?,
            environment: row.id("environment_id")?,
            job: row.id("job_id")?,
            trigger: row.json("cause_body")?,
            spec: row.json("spec_body")?,
            scheduled_for: row.maybe_at("scheduled_for")?,
            exclusive: row.bool("exclusive")?,
            takes_slot: row.bool("takes_slot")?,
            retry_of: row.maybe_id("retry_of")?,
            due_at: row.at("due_at")?,
        },
        status: row.named("status", RunStatus::from_name)?,
        attempt: row.count("attempt")?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
        dequeued_at: row.maybe_at("dequeued_at")?,
        started_at: row.maybe_at("started_at")?,
        finished_at: row.maybe_at("finished_at")?,
        heartbeat_at: row.maybe_at("heartbeat_at")?,
        cancel_requested_at: row.maybe_at("cancel_requested_at")?,
        git_branch: row.maybe_text("git_branch")?,
        git_sha: row.maybe_text("git_sha")?,
        dbt_version: row.maybe_text("dbt_version")?,
        message: row.maybe_text("message")?,
        artifacts_saved: row.bool("artifacts_saved")?,
        has_docs: row.bool("has_docs")?,
        has_sources: row.bool("has_sources")?,
        logs_expired_at: row.maybe_at("logs_expired_at")?,
        artifacts_expired_at: row.maybe_at("artifacts_expired_at")?,
    })
}

/// What a step is, out of a row that has its columns.
pub(crate) fn read_step_state(row: &Row) -> Result<StepState> {
    let code = row.maybe_int("exit_code")?.map(i32::try_from).transpose();
    Ok(StepState {
        index: row.count("step_index")?,
        name: row.text("name")?,
        kind: row.named("kind", StepKind::from_name)?,
        status: row.named("status", StepStatus::from_name)?,
        started_at: row.maybe_at("started_at")?,
        finished_at: row.maybe_at("finished_at")?,
        exit_code: code.map_err(|_| Error::corrupt("database: exit_code is out of its range"))?,
        message: row.maybe_text("message")?,
        backend: row.maybe_text("backend")?,
    })
}

fn read_step(row: &Row) -> Result<RunStep> {
    Ok(RunStep {
        id: row.id("id")?,
        run: row.id("run_id")?,
        state: read_step_state(row)?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
        log_bytes: row.count("log_bytes")?,
        log_first: row.count("log_first")?,
        log_parts: logs::read_parts(row)?,
        log_object: row.maybe_text("log_object")?,
    })
}

fn conditions(engine: engine::Engine, account: AccountId, filter: &RunFilter) -> Conditions {
    let mut all = Conditions::new(engine);
    all.and(&OF_ACCOUNT, account);
    if let Some(projects) = &filter.projects {
        all.and(&IN_PROJECTS, projects.iter().map(|id| id.get()).collect::<Vec<_>>());
    }
    if let Some(environment) = filter.environment {
        all.and(&IN_ENVIRONMENT, environment);
    }
    if let Some(job) = filter.job {
        all.and(&OF_JOB, job);
    }
    if let Some(statuses) = &filter.statuses {
        all.and(
            &IN_STATUSES,
            statuses
                .iter()
                .map(|status| status.name().to_owned())
                .collect::<Vec<_>>(),
        );
    }
    if let Some(ids) = &filter.ids {
        all.and(&WITH_IDS, ids.iter().map(|id| id.get()).collect::<Vec<_>>());
    }
    if let Some(above) = filter.id_above {
        all.and(&ID_ABOVE, above);
    }
    if let Some((from, to)) = filter.created_within {
        all.and(&CREATED_FROM, from);
        all.and(&CREATED_TO, to);
    }
    if let Some((from, to)) = filter.finished_within {
        all.and(&FINISHED_FROM, from);
        all.and(&FINISHED_TO, to);
    }
    if let Some(has_docs) = filter.has_docs {
        all.and(&HAS_DOCS, has_docs);
    }
    if let Some(has_sources) = filter.has_sources {
        all.and(&HAS_SOURCES, has_sources);
    }
    all
}

#[async_trait]
impl Runs for SqlStorage {
    async fn enqueue(&self, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
        enqueue::one(&self.database, new, now).await
    }

    async fn enqueue_for(&self, new: &NewRun, request: &RunRequest, now: Timestamp) -> Result<Enqueued> {
        requests::enqueue(&self.database, new, request, now).await
    }

    async fn of_request(&self, account: AccountId, request: &RunRequest, now: Timestamp) -> Result<Option<Run>> {
        requests::run_of(&self.database, account, request, now).await
    }

    async fn purge_requests(&self, before: Timestamp, limit: u32) -> Result<u64> {
        requests::purge(&self.database, before, limit).await
    }

    async fn old_requests(&self, before: Timestamp) -> Result<u64> {
        requests::old(&self.database, before).await
    }

    async fn get(&self, account: AccountId, id: RunId) -> Result<Run> {
        let mut reader = self.database.read().await?;
        let row = reader.link().first(&GET, args![id, account]).await?;
        read(&row.ok_or_else(|| Error::not_found("run", id))?)
    }

    async fn list(&self, account: AccountId, filter: &RunFilter, page: Page) -> Result<Paged<Run>> {
        let mut reader = self.database.read().await?;
        let (rows, total) = engine::page(
            &mut reader.link(),
            "runs",
            run_columns!(""),
            conditions(self.database.engine(), account, filter),
            order(filter.sort, filter.direction),
            page,
        )
        .await?;
        Ok(Paged {
            items: rows.iter().map(read).collect::<Result<_>>()?,
            total,
        })
    }

    async fn newest(&self, account: AccountId, jobs: &[JobId]) -> Result<Vec<Run>> {
        let jobs: Vec<i64> = jobs.iter().map(|job| job.get()).collect();
        let mut reader = self.database.read().await?;
        reader
            .link()
            .all(&NEWEST, args![account, jobs])
            .await?
            .iter()
            .map(read)
            .collect()
    }

    async fn states(&self, ids: &[RunId]) -> Result<Vec<RunState>> {
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&STATES, args![ids]).await?;
        rows.iter()
            .map(|row| {
                Ok(RunState {
                    run: row.id("id")?,
                    status: row.named("status", RunStatus::from_name)?,
                    attempt: row.count("attempt")?,
                })
            })
            .collect()
    }

    async fn steps(&self, account: AccountId, run: RunId) -> Result<Vec<RunStep>> {
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&STEPS, args![run, account]).await?;
        let Some(first) = rows.first() else {
            return Err(Error::not_found("run", run));
        };
        if first.maybe_int("id")?.is_none() {
            return Ok(Vec::new());
        }
        rows.iter().map(read_step).collect()
    }

    async fn step(&self, account: AccountId, step: StepId) -> Result<RunStep> {
        let mut reader = self.database.read().await?;
        let row = reader.link().first(&STEP, args![step, account]).await?;
        read_step(&row.ok_or_else(|| Error::not_found("step", step))?)
    }

    async fn queue(&self, now: Timestamp, per_account: u32, since: Option<Since>) -> Result<QueueSnapshot> {
        queue::snapshot(&self.database, now, per_account, since).await
    }

    async fn queue_of(&self, account: AccountId, limit: u32) -> Result<QueueSnapshot> {
        queue::snapshot_of(&self.database, account, limit).await
    }

    async fn queued(&self, account: AccountId) -> Result<u64> {
        queue::count(&self.database, account).await
    }

    async fn claim(
        &self,
        owner: &Owner,
        admissions: &[Admission],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>> {
        queue::claim(&self.database, owner, admissions, now, until).await
    }

    async fn reclaim(&self, owner: &Owner, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Claimed>> {
        queue::reclaim(&self.database, owner, now, until, limit).await
    }

    async fn renew(&self, fences: &[Fence], until: Timestamp) -> Result<Vec<Renewed>> {
        queue::renew(&self.database, fences, until).await
    }

    async fn release(&self, fences: &[Fence], now: Timestamp) -> Result<()> {
        queue::release(&self.database, fences, now).await
    }

    async fn change(&self, fence: &Fence, change: &RunChange) -> Result<Run> {
        reports::change(&self.database, fence, change).await
    }

    async fn request_cancel(&self, account: AccountId, id: RunId, message: &str, now: Timestamp) -> Result<Run> {
        reports::request_cancel(&self.database, account, id, message, now).await
    }

    async fn report(&self, fence: &Fence, batch: &Batch) -> Result<Ack> {
        self.gathering.report(&self.database, fence, batch).await
    }
}
