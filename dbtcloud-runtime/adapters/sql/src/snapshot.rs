//! A database as it is at one instant, copied while servers work on it: what a backup is made of. And what makes
//! such a copy, which has leases of servers that are gone, fit to be begun with anew.

use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::{Error, Result, Timestamp};
use sha2::{Digest, Sha256};

use crate::engine::{Sql, args};
use crate::storage::SqlStorage;
use crate::transfer::{Cell, Copied, LAST_RUN, SET_LAST_RUN, Table};

/// Primary key, in its order.
const RUNS: Sql = Sql::both("SELECT id, account_id, finished_at FROM runs WHERE id > $1 ORDER BY id LIMIT $2");

/// All of them: few rows.
const LET_GO: Sql = Sql::both("UPDATE leases SET held_until = NULL WHERE held_until IS NOT NULL");
/// All that have not ended: few rows. Whoever looks first takes them over.
const LET_GO_RUNS: Sql = Sql::both("UPDATE run_queue SET lease_until = 0 WHERE lease_until IS NOT NULL");
const LIVE: Sql = Sql::both("SELECT count(*) AS live FROM run_queue WHERE state <> 'queued'");

/// A run, as a walk over all of them sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Whose.
    pub account: AccountId,
    /// Which.
    pub run: RunId,
    /// When it ended, if it has.
    pub finished_at: Option<Timestamp>,
}

impl SqlStorage {
    /// Copies everything, as it is at one instant, into `target`, a database without a schema; servers may work on
    /// this one meanwhile. Nothing is changed here. What was copied is told per table, and is in `target`: it was
    /// read back. `seen` is shown every text.
    ///
    /// The instant is held as long as this takes: on PostgreSQL dead rows stay and no month is dropped, on SQLite the
    /// write-ahead log grows.
    ///
    /// Errors: `Invalid` when the schema is not this binary's own, `Unavailable` when it changes meanwhile, `Corrupt`
    /// when the copy differs. `target` is then worth nothing.
    pub async fn snapshot_to(&self, target: &Self, mut seen: impl FnMut(&str)) -> Result<Vec<Copied>> {
        let version = self.schema_version().await?;
        if version != Self::SCHEMA_VERSION {
            return Err(Error::invalid(
                "schema_version",
                format!(
                    "the database has schema {version}, this binary is of schema {}; use the dbtcloud of its servers",
                    Self::SCHEMA_VERSION
                ),
            ));
        }
        self.check().await?;
        target.migrate().await?;
        let theirs = Table::all(&mut target.database.read().await?.link()).await?;
        let known = Table::all(&mut self.database.read().await?.link()).await?;
        let names: Vec<String> = known.iter().map(Table::quoted).collect();
        let mut frozen = self.database.freeze(&names.join(", ")).await?;
        let mut from = frozen.link();
        let tables = Table::all(&mut from).await?;
        if !Table::alike(&tables, &theirs) || !Table::alike(&tables, &known) {
            return Err(Error::unavailable(
                "database: its tables are not those of this version, or change just now; try again",
            ));
        }
        let mut all = Vec::with_capacity(tables.len());
        for (ours, theirs) in tables.iter().zip(&theirs) {
            let (mut rows, mut digest, mut after) = (0, Sha256::new(), None);
            loop {
                let page = ours.page(&mut from, after.as_deref()).await?;
                for cell in page.iter().flatten() {
                    cell.hash(&mut digest);
                    if let Cell::Text(text) = cell {
                        seen(text);
                    }
                }
                rows += page.len() as u64;
                let Some(last) = page.last() else { break };
                let mut work = target.database.begin().await?;
                let done = theirs.insert(&mut work.link(), &page).await;
                work.end("snapshot_page", done).await?;
                after = Some(last.clone());
            }
            all.push(Copied::new(ours.name.clone(), rows, digest));
        }
        // A counter is of no instant: what is read now is not behind the rows.
        let last_run = from.one(&LAST_RUN, args![]).await?.int("last")?;
        drop(frozen);
        target.set_last_run(last_run).await?;
        if target.digests().await? != all {
            return Err(Error::corrupt(
                "database: the copy that was made differs from what was read; look at the disk it is on",
            ));
        }
        Ok(all)
    }

    async fn set_last_run(&self, last: i64) -> Result<()> {
        let mut work = self.database.begin().await?;
        let done = work.link().all(&SET_LAST_RUN, args![last]).await.map(drop);
        work.end("set_last_run", done).await
    }

    /// Runs of all accounts, ended or not, with ids above `after`, by id; at most `limit`.
    pub async fn walk_runs(&self, after: RunId, limit: u32) -> Result<Vec<Walked>> {
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&RUNS, args![after, limit]).await?;
        let walked = rows.iter().map(|row| {
            Ok(Walked {
                account: row.id("account_id")?,
                run: row.id("id")?,
                finished_at: row.maybe_at("finished_at")?,
            })
        });
        walked.collect()
    }

    /// Makes a copy whose servers are gone fit to be begun with: nobody holds anything, and runs that executed are
    /// taken over by the first scheduler. So many numbers of runs are left out, for runs that were queued after the
    /// copy was made: their executions and files may still be somewhere. How many runs executed.
    ///
    /// To be called once, while no server works with it.
    pub async fn settle(&self, left_out: u32) -> Result<u64> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done = async {
            link.execute(&LET_GO, args![]).await?;
            link.execute(&LET_GO_RUNS, args![]).await?;
            let last = link.one(&LAST_RUN, args![]).await?.int("last")?;
            link.all(&SET_LAST_RUN, args![last + i64::from(left_out)]).await?;
            link.one(&LIVE, args![]).await?.count("live")
        }
        .await;
        work.end("settle", done).await
    }
}
