//! `Schedules`. Invariant: a hand moves together with the run of the instant it stood at, and only from
//! the instant and job version that were read; so one instant of one job fires once.

use async_trait::async_trait;
use dbtcloud_core::id::JobId;
use dbtcloud_core::ports::{Enqueued, Fired, Firing, ScheduleEntry, Schedules};
use dbtcloud_core::{Result, Timestamp};

use crate::engine::{Row, Sql, args};
use crate::runs;
use crate::storage::{SqlStorage, signed};

/// Primary key. A job off the clock keeps its row: an older version must not bring it back.
const PUT: Sql = Sql::both(
    "INSERT INTO schedules (job_id, account_id, job_version, next_at, updated_at) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (job_id) DO UPDATE SET account_id = excluded.account_id, job_version = excluded.job_version, \
        next_at = excluded.next_at, updated_at = excluded.updated_at \
     WHERE schedules.job_version <= excluded.job_version",
);

/// Index `schedules_due`, in its order.
const DUE: Sql = Sql::both(
    "SELECT account_id, job_id, job_version, next_at FROM schedules WHERE next_at <= $1 AND next_at IS NOT NULL \
     ORDER BY next_at, job_id LIMIT $2",
);

/// Index `schedules_due`: its first entry.
const NEXT: Sql = Sql::both("SELECT min(next_at) AS next_at FROM schedules WHERE next_at IS NOT NULL");

/// Primary key.
const OF: Sql = Sql::each(
    "SELECT account_id, job_id, job_version, next_at FROM schedules WHERE job_id = ANY($1) ORDER BY job_id",
    "SELECT account_id, job_id, job_version, next_at FROM schedules \
     WHERE job_id IN (SELECT value FROM json_each($1)) ORDER BY job_id",
);

/// Primary key; instant and version as they were read. On PostgreSQL the second of two waits for the first
/// and then finds the hand elsewhere.
const MOVE: Sql = Sql::both(
    "UPDATE schedules SET next_at = $4, updated_at = $5 WHERE job_id = $1 AND next_at = $2 AND job_version = $3",
);

fn read(row: &Row) -> Result<ScheduleEntry> {
    Ok(ScheduleEntry {
        account: row.id("account_id")?,
        job: row.id("job_id")?,
        job_version: row.count("job_version")?,
        next_at: row.maybe_at("next_at")?,
    })
}

#[async_trait]
impl Schedules for SqlStorage {
    async fn put(&self, entry: &ScheduleEntry, now: Timestamp) -> Result<()> {
        let version = signed("job_version", entry.job_version)?;
        let mut writer = self.database.write("schedules.put").await?;
        let values = args![entry.job, entry.account, version, entry.next_at, now];
        writer.link().execute(&PUT, values).await.map(drop)
    }

    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<ScheduleEntry>> {
        let mut reader = self.database.read().await?;
        reader
            .link()
            .all(&DUE, args![now, limit])
            .await?
            .iter()
            .map(read)
            .collect()
    }

    async fn next(&self) -> Result<Option<Timestamp>> {
        let mut reader = self.database.read().await?;
        reader.link().one(&NEXT, args![]).await?.maybe_at("next_at")
    }

    async fn of(&self, jobs: &[JobId]) -> Result<Vec<ScheduleEntry>> {
        let jobs: Vec<i64> = jobs.iter().map(|job| job.get()).collect();
        let mut reader = self.database.read().await?;
        reader.link().all(&OF, args![jobs]).await?.iter().map(read).collect()
    }

    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired> {
        let Ok(version) = i64::try_from(firing.job_version) else {
            return Ok(Fired::Lost);
        };
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let values = args![firing.job, firing.seen, version, firing.next, now];
            if link.execute(&MOVE, values).await? == 0 {
                return Ok(Fired::Lost);
            }
            let fired = match &firing.run {
                Some(new) => match runs::enqueue(&mut link, new, now).await? {
                    Enqueued::Created(run) => Fired::Queued(Box::new(run)),
                    Enqueued::Existing(_) => Fired::Moved,
                },
                None => Fired::Moved,
            };
            Ok(fired)
        }
        .await;
        work.end("schedules.fire", done).await
    }
}
