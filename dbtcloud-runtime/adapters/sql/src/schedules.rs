//! `Schedules`. Invariant: a hand moves together with the run of the instant it stood at, and only from
//! the instant and job version that were read; so one instant of one job fires once.

use std::collections::BTreeSet;

use async_trait::async_trait;
use dbtcloud_core::id::JobId;
use dbtcloud_core::ports::{Enqueued, Fired, Firing, ScheduleEntry, Schedules};
use dbtcloud_core::run::NewRun;
use dbtcloud_core::{Result, Timestamp};
use serde_json::json;

use crate::engine::{Row, Sql, args};
use crate::enqueue;
use crate::storage::{SqlStorage, signed, to_json};

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

/// Primary key; instant and version as they were read. A hand that another firer holds is left to it.
const MOVE: Sql = Sql::each(
    "UPDATE schedules AS s SET next_at = given.next, updated_at = $3 FROM (SELECT f.job, f.next FROM \
        json_to_recordset($1::json) AS f (job bigint, seen bigint, version bigint, next bigint) \
        JOIN schedules w ON w.job_id = f.job AND w.next_at = f.seen AND w.job_version = f.version \
        WHERE w.job_id = ANY($2) ORDER BY w.job_id FOR UPDATE OF w SKIP LOCKED) AS given \
     WHERE s.job_id = given.job RETURNING s.job_id",
    "UPDATE schedules AS s SET next_at = f.value->>'next', updated_at = $3 FROM json_each($1) AS f \
     WHERE s.job_id = f.value->>'job' AND s.next_at = f.value->>'seen' AND s.job_version = f.value->>'version' \
     RETURNING job_id",
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

    async fn fire(&self, firings: &[Firing], now: Timestamp) -> Result<Vec<Fired>> {
        Firing::check(firings)?;
        if firings.is_empty() {
            return Ok(Vec::new());
        }
        let hand = |firing: &Firing| {
            // A version beyond the range is nobody's.
            let version = i64::try_from(firing.job_version).ok()?;
            let next = firing.next.map(Timestamp::as_micros);
            let (job, seen) = (firing.job.get(), firing.seen.as_micros());
            Some(json!({ "job": job, "seen": seen, "version": version, "next": next }))
        };
        let hands = to_json("firings", &firings.iter().filter_map(hand).collect::<Vec<_>>())?;
        let jobs: Vec<i64> = firings.iter().map(|firing| firing.job.get()).collect();
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let mut moved = BTreeSet::new();
            for row in link.all(&MOVE, args![hands, jobs, now]).await? {
                moved.insert(row.id::<JobId>("job_id")?);
            }
            let stood = |firing: &&Firing| moved.contains(&firing.job);
            let news: Vec<&NewRun> = firings.iter().filter(stood).filter_map(|f| f.run.as_ref()).collect();
            let mut queued = enqueue::all(&mut link, &news, now).await?.into_iter();
            let fired = firings
                .iter()
                .map(|firing| match (moved.contains(&firing.job), &firing.run) {
                    (false, _) => Fired::Lost,
                    (true, None) => Fired::Moved,
                    (true, Some(_)) => match queued.next() {
                        Some(Enqueued::Created(run)) => Fired::Queued(Box::new(run)),
                        Some(Enqueued::Existing(_)) | None => Fired::Moved,
                    },
                });
            Ok(fired.collect())
        }
        .await;
        work.end("schedules.fire", done).await
    }
}
