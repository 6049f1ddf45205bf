//! `Outbox`. Invariant: a change of a run's status and the deliveries it calls for are written by one
//! transaction, under the run's lock; so within a run and consumer a row never appears before one that is
//! there. Rows are deleted on delivery: the table is as long as what is on its way.

use std::collections::BTreeMap;

use async_trait::async_trait;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Consumer, Delivery, Event, Outbox};
use dbtcloud_core::{Result, Timestamp};

use crate::engine::{Sql, args};
use crate::storage::{SqlStorage, signed};

/// Due, and the earliest of its run. Index `outbox_due`, in its order; the earlier one is looked for by the
/// primary key.
macro_rules! offered {
    () => {
        "SELECT w.run_id, w.sequence FROM outbox w WHERE w.consumer = $1 AND w.due_at <= $2 \
           AND NOT EXISTS (SELECT 1 FROM outbox e WHERE e.consumer = w.consumer AND e.run_id = w.run_id \
             AND e.sequence < w.sequence) \
         ORDER BY w.due_at, w.run_id, w.sequence LIMIT $4"
    };
}

/// Primary key, from [`offered!`]. That it is still due is a condition of the outer `WHERE` too, so that each
/// is taken once; `SKIP LOCKED` only spares waiting.
const TAKE: Sql = Sql::each(
    concat!(
        "WITH offered AS MATERIALIZED (",
        offered!(),
        " FOR UPDATE OF w SKIP LOCKED) UPDATE outbox AS o SET due_at = $3, tries = o.tries + 1 FROM offered \
         WHERE o.consumer = $1 AND o.run_id = offered.run_id AND o.sequence = offered.sequence AND o.due_at <= $2 \
         RETURNING o.run_id, o.sequence, o.tries"
    ),
    concat!(
        "UPDATE outbox SET due_at = $3, tries = tries + 1 \
         WHERE consumer = $1 AND due_at <= $2 AND (run_id, sequence) IN (",
        offered!(),
        ") RETURNING run_id, sequence, tries"
    ),
);

/// Primary key of `journal`. `$1` are pairs of run and sequence.
const EVENTS: Sql = Sql::each(
    "SELECT j.run_id, j.sequence, j.account_id, j.at, j.body FROM (SELECT (p.value->>0)::bigint AS run_id, \
        (p.value->>1)::bigint AS sequence FROM jsonb_array_elements($1::jsonb) AS p (value)) AS pair \
     JOIN journal j ON j.run_id = pair.run_id AND j.sequence = pair.sequence",
    "SELECT j.run_id, j.sequence, j.account_id, j.at, j.body FROM (SELECT p.value->>0 AS run_id, \
        p.value->>1 AS sequence FROM json_each($1) AS p) AS pair \
     JOIN journal j ON j.run_id = pair.run_id AND j.sequence = pair.sequence",
);

/// Primary key.
const DELIVERED: Sql = Sql::both("DELETE FROM outbox WHERE consumer = $1 AND run_id = $2 AND sequence = $3");

/// Primary key.
const POSTPONE: Sql = Sql::both("UPDATE outbox SET due_at = $4 WHERE consumer = $1 AND run_id = $2 AND sequence = $3");

/// Primary key, without touching the table.
const DEPTH: Sql = Sql::both("SELECT count(*) AS depth FROM outbox WHERE consumer = $1");

#[async_trait]
impl Outbox for SqlStorage {
    async fn take(&self, consumer: Consumer, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Delivery>> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let mut tries: BTreeMap<(RunId, i64), u32> = BTreeMap::new();
            for row in link.all(&TAKE, args![consumer.name(), now, until, limit]).await? {
                tries.insert((row.id("run_id")?, row.int("sequence")?), row.count("tries")?);
            }
            if tries.is_empty() {
                return Ok(Vec::new());
            }
            let pairs: Vec<(i64, Option<i64>)> = tries.keys().map(|(run, at)| (run.get(), Some(*at))).collect();
            let mut taken = Vec::with_capacity(tries.len());
            for row in link.all(&EVENTS, args![pairs]).await? {
                let (run, sequence) = (row.id("run_id")?, row.int("sequence")?);
                let Some(tries) = tries.remove(&(run, sequence)) else {
                    continue;
                };
                let event = Event {
                    sequence: row.count("sequence")?,
                    account: row.id("account_id")?,
                    run,
                    at: row.at("at")?,
                    body: row.json("body")?,
                };
                taken.push(Delivery { event, tries });
            }
            // Their events went with their runs.
            for (run, sequence) in tries.into_keys() {
                link.execute(&DELIVERED, args![consumer.name(), run, sequence]).await?;
            }
            taken.sort_by_key(|delivery| (delivery.event.run, delivery.event.sequence));
            Ok(taken)
        }
        .await;
        work.end("outbox.take", done).await
    }

    async fn delivered(&self, consumer: Consumer, run: RunId, sequence: u64) -> Result<()> {
        let sequence = signed("sequence", sequence)?;
        let mut writer = self.database.write("outbox.delivered").await?;
        let values = args![consumer.name(), run, sequence];
        writer.link().execute(&DELIVERED, values).await.map(drop)
    }

    async fn postpone(&self, consumer: Consumer, run: RunId, sequence: u64, until: Timestamp) -> Result<()> {
        let sequence = signed("sequence", sequence)?;
        let mut writer = self.database.write("outbox.postpone").await?;
        let values = args![consumer.name(), run, sequence, until];
        writer.link().execute(&POSTPONE, values).await.map(drop)
    }

    async fn depth(&self, consumer: Consumer) -> Result<u64> {
        let mut reader = self.database.read().await?;
        let row = reader.link().one(&DEPTH, args![consumer.name()]).await?;
        row.count("depth")
    }
}
