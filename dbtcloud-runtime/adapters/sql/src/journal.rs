//! `Journal`. Invariant: the sequence of a run is counted in its row of `runs`, under that row's lock, in
//! the transaction of the change; so whoever reads "above n" never misses one that commits later.

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Event, EventBody, Journal};
use dbtcloud_core::{Error, Result};

use crate::engine::{Sql, args};
use crate::storage::{SqlStorage, to_json};

/// Appends events to the journal of a run; the caller holds its lock and stores the new last sequence. Primary
/// key (`run_id`, `sequence`). The arguments: run, sequence before them, account, instant, bodies in order.
macro_rules! append {
    (postgres, $run:literal, $last:literal, $account:literal, $at:literal, $bodies:literal) => {
        concat!(
            "INSERT INTO journal (run_id, sequence, account_id, at, body) SELECT ",
            $run,
            ", ",
            $last,
            " + event.place, ",
            $account,
            ", ",
            $at,
            ", event.body FROM unnest(",
            $bodies,
            ") WITH ORDINALITY AS event (body, place)"
        )
    };
    (sqlite, $run:literal, $last:literal, $account:literal, $at:literal, $bodies:literal) => {
        concat!(
            "INSERT INTO journal (run_id, sequence, account_id, at, body) SELECT ",
            $run,
            ", ",
            $last,
            " + 1 + event.key, ",
            $account,
            ", ",
            $at,
            ", event.value FROM json_each(",
            $bodies,
            ") AS event"
        )
    };
}
pub(crate) use append;

/// Primary key, in its order.
const OF_RUN: Sql = Sql::both(
    "SELECT sequence, at, body FROM journal WHERE run_id = $1 AND account_id = $2 AND sequence > $3 \
     ORDER BY sequence LIMIT $4",
);

/// Primary key of `runs`.
const RUN_EXISTS: Sql = Sql::both("SELECT id FROM runs WHERE id = $1 AND account_id = $2");

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
