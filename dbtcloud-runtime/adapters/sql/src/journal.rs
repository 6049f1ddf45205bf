//! `Journal`. Invariant: the sequence of a run is counted in its row of `runs`, under that row's lock, in
//! the transaction of the change; so whoever reads "above n" never misses one that commits later.

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Event, EventBody, Journal};
use dbtcloud_core::{Error, Result, Timestamp};

use crate::engine::{Link, Sql, args};
use crate::storage::{SqlStorage, to_json};

/// Primary key (`run_id`, `sequence`). `$4` are the bodies, in order; `$2` is the sequence before them.
const APPEND: Sql = Sql::each(
    "INSERT INTO journal (run_id, sequence, account_id, at, body) \
     SELECT $1, $2 + event.place, $3, $4, event.body FROM unnest($5) WITH ORDINALITY AS event (body, place)",
    "INSERT INTO journal (run_id, sequence, account_id, at, body) \
     SELECT $1, $2 + 1 + event.key, $3, $4, event.value FROM json_each($5) AS event",
);

/// Primary key, in its order.
const OF_RUN: Sql = Sql::both(
    "SELECT sequence, at, body FROM journal WHERE run_id = $1 AND account_id = $2 AND sequence > $3 \
     ORDER BY sequence LIMIT $4",
);

/// Primary key of `runs`.
const RUN_EXISTS: Sql = Sql::both("SELECT id FROM runs WHERE id = $1 AND account_id = $2");

/// Appends events after `last`; the caller holds the lock of the run and stores the new last sequence.
pub(crate) async fn append(
    link: &mut Link<'_>,
    run: RunId,
    account: AccountId,
    last: i64,
    at: Timestamp,
    bodies: Vec<String>,
) -> Result<()> {
    if bodies.is_empty() {
        return Ok(());
    }
    link.execute(&APPEND, args![run, last, account, at, bodies])
        .await
        .map(drop)
}

/// An event as it is stored.
pub(crate) fn body(event: &EventBody) -> Result<String> {
    to_json("event", event)
}

#[async_trait]
impl Journal for SqlStorage {
    async fn of_run(&self, account: AccountId, run: RunId, after: u64, limit: u32) -> Result<Vec<Event>> {
        let above = i64::try_from(after).unwrap_or(i64::MAX);
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let rows = link.all(&OF_RUN, args![run, account, above, limit]).await?;
        if rows.is_empty() && link.first(&RUN_EXISTS, args![run, account]).await?.is_none() {
            return Err(Error::not_found("run", run));
        }
        rows.iter()
            .map(|row| {
                Ok(Event {
                    sequence: row.count("sequence")?,
                    account,
                    run,
                    at: row.at("at")?,
                    body: row.json("body")?,
                })
            })
            .collect()
    }
}
