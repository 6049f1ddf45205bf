//! `History`. On PostgreSQL the tables that hang on a run ([`DIVIDED`]) have a part per month, by the run's
//! id; a month is dropped with its parts. Invariants: a run has its rows in the part of its month or in
//! `_default`, never in both; nothing is forgotten while the run has a row in `run_queue`.
//!
//! What is put together here as text is made of constants and of the numbers of months, nothing else.

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Accounts, EndedFilter, History, MONTHS_AHEAD, RunPart};
use dbtcloud_core::run::Month;
use dbtcloud_core::{Error, Result, Timestamp};

use crate::engine::{Engine, Link, Sql, args};
use crate::storage::SqlStorage;

/// The tables that are divided, with the column that holds the run and what their parts are made with.
const DIVIDED: [(&str, &str, &str); 4] = [
    ("runs", "id", "WITH (fillfactor = 80)"),
    ("run_steps", "run_id", ""),
    (
        "log_chunks",
        "run_id",
        "WITH (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02)",
    ),
    ("journal", "run_id", ""),
];
/// What else hangs on a run, in tables that are short or narrow.
const BESIDE: [&str; 4] = ["run_instants", "tickets", "agent_keys", "outbox"];

/// Ids below are in the part of what is older than the rule, or of a clock that is decades behind.
const BEFORE: RunId = RunId::new(20_000_000_000_000);

/// A part is made or dropped under locks that everybody waits behind: better to come again than to wait. Well below
/// the server's `deadlock_timeout` (1 s): where a reader holds what this waits for, this gives way and not the reader.
const SOON: &str = "SELECT set_config('lock_timeout', '400ms', true)";

const PART_EXISTS: Sql = Sql::both("SELECT count(*) AS present FROM pg_class WHERE oid = to_regclass($1)");

/// Whoever makes or drops parts is alone; see also `migrate.rs`.
const ALONE: &str = "SELECT count(*) FROM (SELECT pg_advisory_xact_lock(7236849121)) AS held";

/// Primary key: the first run from an id on.
const FIRST_FROM: Sql = Sql::both("SELECT min(id) AS id FROM runs WHERE id >= $1");

/// What [`ENDED`] and [`ENDED_OF`] have in common.
macro_rules! ended {
    ($accounts:literal) => {
        concat!(
            "SELECT id, account_id FROM runs WHERE id > $1 AND id < $2 AND finished_at < $3 AND ",
            $accounts,
            " AND CASE $5 WHEN 'logs' THEN logs_expired_at IS NULL WHEN 'artifacts' THEN artifacts_expired_at IS NULL \
              ELSE $5 = '' END ORDER BY id LIMIT $6"
        )
    };
}

/// Primary key, in its order.
const ENDED: Sql = Sql::each(
    ended!("account_id <> ALL($4)"),
    ended!("account_id NOT IN (SELECT value FROM json_each($4))"),
);
/// Index `runs_by_account` in its order, or `runs_by_finished` when few ended before.
const ENDED_OF: Sql = Sql::both(ended!("account_id = $4"));

/// The row of a run is the lock of all that hangs on it.
const LOCK: Sql = Sql::each(
    "SELECT finished_at FROM runs WHERE id = $1 AND account_id = $2 FOR UPDATE",
    "SELECT finished_at FROM runs WHERE id = $1 AND account_id = $2",
);

/// Primary key.
const EXPIRE_LOGS: Sql = Sql::both("UPDATE runs SET logs_expired_at = coalesce(logs_expired_at, $2) WHERE id = $1");
/// Unique key (`run_id`, `step_index`).
const FORGET_PARTS: Sql =
    Sql::both("UPDATE run_steps SET log_first = log_bytes, log_parts = NULL, log_object = NULL WHERE run_id = $1");
/// Primary key.
const DROP_LOGS: Sql = Sql::both("DELETE FROM log_chunks WHERE run_id = $1");
/// Primary key.
const EXPIRE_ARTIFACTS: Sql = Sql::both(
    "UPDATE runs SET artifacts_expired_at = coalesce(artifacts_expired_at, $2), artifacts_saved = FALSE, \
        has_docs = FALSE, has_sources = FALSE WHERE id = $1",
);

/// Primary key; a run that has not ended has a row in the queue.
const FORGET: Sql = Sql::each(
    "DELETE FROM runs WHERE id = ANY($1) AND finished_at IS NOT NULL \
        AND NOT EXISTS (SELECT 1 FROM run_queue q WHERE q.run_id = runs.id) RETURNING id",
    "DELETE FROM runs WHERE id IN (SELECT value FROM json_each($1)) AND finished_at IS NOT NULL \
        AND NOT EXISTS (SELECT 1 FROM run_queue q WHERE q.run_id = runs.id) RETURNING id",
);

/// Primary key of the queue, its first entry of the month.
const LIVE: Sql = Sql::both("SELECT min(run_id) AS id FROM run_queue WHERE run_id >= $1 AND run_id < $2");

/// A part of `runs`, read through: once in a month's life, and before anybody has to wait for it.
const LATE: Sql = Sql::both("SELECT min(id) AS id FROM runs WHERE id >= $1 AND id < $2 AND finished_at >= $3");

fn part(table: &str, month: Month) -> String {
    format!("{table}_{}", month.number())
}

/// The tables of [`DIVIDED`] but for `runs`, then [`BESIDE`].
fn hanging() -> impl Iterator<Item = &'static str> {
    DIVIDED[1..].iter().map(|(table, ..)| *table).chain(BESIDE)
}

/// Makes the parts of a month, inside the caller's transaction. What `_default` caught of it moves over.
async fn divide(link: &mut Link<'_>, month: Month) -> Result<()> {
    let (from, to) = (month.first_id(), month.next().first_id());
    if from < BEFORE {
        return Ok(());
    }
    for (table, run, with) in DIVIDED {
        let part = part(table, month);
        if link.one(&PART_EXISTS, args![part.as_str()]).await?.int("present")? > 0 {
            continue;
        }
        link.script_of(format!(
            "CREATE TABLE {part} (LIKE {table} INCLUDING ALL) {with}; \
             WITH moved AS (DELETE FROM {table}_default WHERE {run} >= {from} AND {run} < {to} RETURNING *) \
                INSERT INTO {part} SELECT * FROM moved; \
             ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES FROM ({from}) TO ({to})"
        ))
        .await?;
    }
    Ok(())
}

/// The present month and the ones to come.
pub(crate) async fn prepare(link: &mut Link<'_>, now: Timestamp) -> Result<()> {
    if link.engine() == Engine::Sqlite {
        return Ok(());
    }
    link.all_of(SOON.to_owned(), args![]).await?;
    link.all_of(ALONE.to_owned(), args![]).await?;
    let mut month = Month::of(now);
    for _ in 0..=MONTHS_AHEAD {
        divide(link, month).await?;
        month = month.next();
    }
    Ok(())
}

impl SqlStorage {
    /// Makes the parts of a month of the past, where what is copied there belongs.
    pub(crate) async fn make_room(&self, month: Month) -> Result<()> {
        if self.engine() == Engine::Sqlite {
            return Ok(());
        }
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done = async {
            link.all_of(SOON.to_owned(), args![]).await?;
            link.all_of(ALONE.to_owned(), args![]).await?;
            divide(&mut link, month).await
        }
        .await;
        work.end("make_room", done).await
    }
}

async fn no_live(link: &mut Link<'_>, month: Month) -> Result<()> {
    let ids = args![month.first_id(), month.next().first_id()];
    match link.one(&LIVE, ids).await?.maybe_id::<RunId>("id")? {
        Some(live) => Err(Error::conflict(format!("run {live} of {month} has not ended"))),
        None => Ok(()),
    }
}

async fn drop_month(link: &mut Link<'_>, month: Month, before: Timestamp) -> Result<()> {
    let (from, to) = (month.first_id(), month.next().first_id());
    // In this order: what has not ended now is seen by the second look at the latest, and what has is late or not.
    no_live(link, month).await?;
    let late = link.one(&LATE, args![from, to, before]).await?;
    if let Some(late) = late.maybe_id::<RunId>("id")? {
        return Err(Error::conflict(format!("run {late} of {month} is still kept")));
    }
    if link.engine() == Engine::Postgres {
        link.all_of(SOON.to_owned(), args![]).await?;
        link.all_of(ALONE.to_owned(), args![]).await?;
        // Nobody can queue a run of the month from here on; everybody takes the locks in this order.
        let tables: Vec<&str> = DIVIDED.iter().map(|(table, ..)| *table).collect();
        link.script_of(format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", ")))
            .await?;
    }
    no_live(link, month).await?;
    let mut script = String::new();
    if link.engine() == Engine::Postgres {
        for (table, ..) in DIVIDED {
            script.push_str(&format!("DROP TABLE IF EXISTS {}; ", part(table, month)));
        }
    }
    // What the month had no part for.
    script.push_str(&format!("DELETE FROM runs WHERE id >= {from} AND id < {to}"));
    for table in hanging() {
        script.push_str(&format!(
            "; DELETE FROM {table} WHERE run_id >= {from} AND run_id < {to}"
        ));
    }
    link.script_of(script).await
}

#[async_trait]
impl History for SqlStorage {
    async fn prepare(&self, now: Timestamp) -> Result<()> {
        let mut work = self.database.begin().await?;
        let done = prepare(&mut work.link(), now).await;
        work.end("history.prepare", done).await
    }

    async fn months(&self) -> Result<Vec<Month>> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let (mut months, mut from) = (Vec::new(), Month::FIRST.first_id());
        while let Some(run) = link.one(&FIRST_FROM, args![from]).await?.maybe_id::<RunId>("id")? {
            let Some(month) = Month::of_run(run) else { break };
            months.push(month);
            from = month.next().first_id();
        }
        Ok(months)
    }

    async fn ended(&self, filter: &EndedFilter, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let EndedFilter {
            after, below, before, ..
        } = *filter;
        let with = match filter.with {
            None => "",
            Some(RunPart::Logs) => "logs",
            Some(RunPart::Artifacts) => "artifacts",
        };
        let rows = match &filter.accounts {
            Accounts::Only(account) => {
                let values = args![after, below, before, *account, with, limit];
                link.all(&ENDED_OF, values).await?
            }
            Accounts::AllBut(others) => {
                let others: Vec<i64> = others.iter().map(|account| account.get()).collect();
                link.all(&ENDED, args![after, below, before, others, with, limit])
                    .await?
            }
        };
        rows.iter()
            .map(|row| Ok((row.id("account_id")?, row.id("id")?)))
            .collect()
    }

    async fn expire(&self, account: AccountId, run: RunId, part: RunPart, now: Timestamp) -> Result<()> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let row = link.first(&LOCK, args![run, account]).await?;
            let row = row.ok_or_else(|| Error::not_found("run", run))?;
            if row.maybe_at("finished_at")?.is_none() {
                return Err(Error::conflict(format!("run {run} has not ended")));
            }
            match part {
                RunPart::Artifacts => link.execute(&EXPIRE_ARTIFACTS, args![run, now]).await?,
                RunPart::Logs => {
                    link.execute(&EXPIRE_LOGS, args![run, now]).await?;
                    link.execute(&FORGET_PARTS, args![run]).await?;
                    link.execute(&DROP_LOGS, args![run]).await?
                }
            };
            Ok(())
        }
        .await;
        work.end("history.expire", done).await
    }

    async fn forget(&self, runs: &[RunId]) -> Result<u64> {
        if runs.is_empty() {
            return Ok(0);
        }
        let wanted: Vec<i64> = runs.iter().map(|run| run.get()).collect();
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let rows = link.all(&FORGET, args![wanted]).await?;
            let gone: Vec<i64> = rows.iter().map(|row| row.int("id")).collect::<Result<_>>()?;
            let of_these = match link.engine() {
                Engine::Postgres => "run_id = ANY($1)",
                Engine::Sqlite => "run_id IN (SELECT value FROM json_each($1))",
            };
            for table in hanging() {
                let text = format!("DELETE FROM {table} WHERE {of_these}");
                link.all_of(text, args![gone.clone()]).await?;
            }
            Ok(gone.len() as u64)
        }
        .await;
        work.end("history.forget", done).await
    }

    async fn drop_month(&self, month: Month, before: Timestamp) -> Result<()> {
        let mut work = self.database.begin().await?;
        let done = drop_month(&mut work.link(), month, before).await;
        work.end("history.drop_month", done).await
    }
}
