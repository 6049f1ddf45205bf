//! `Logs`: bytes in rows of at most [`CHUNK_BYTES`], without a hole from `log_first` to `log_bytes` of
//! their step. Invariant: both ends are moved in the transaction that adds or drops the rows.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{LOG_READ_LIMIT_BYTES, LogPage, Logs};
use dbtcloud_core::{Error, Result};

use crate::engine::{Link, Sql, args};
use crate::storage::{SqlStorage, no_nul, signed};

/// The most one row holds: few rows for much log, and a short read stays short.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// Primary key; what is there is never written over.
const APPEND: Sql =
    Sql::both("INSERT INTO log_chunks (run_id, step_index, start_offset, length, bytes) VALUES ($1, $2, $3, $4, $5)");

/// Primary key of `runs`, unique key of `run_steps`.
const EXTENT: Sql = Sql::both(
    "SELECT s.log_first, s.log_bytes FROM runs r LEFT JOIN run_steps s ON s.run_id = r.id AND s.step_index = $3 \
     WHERE r.id = $1 AND r.account_id = $2",
);

/// Primary key: from the row that holds the first byte on.
const READ: Sql = Sql::both(
    "SELECT start_offset, bytes FROM log_chunks WHERE run_id = $1 AND step_index = $2 AND start_offset < $4 \
     AND start_offset >= coalesce((SELECT max(start_offset) FROM log_chunks \
        WHERE run_id = $1 AND step_index = $2 AND start_offset <= $3), 0) \
     ORDER BY start_offset",
);

/// Unique key; nothing is dropped unless the length is what was moved.
const MOVED: Sql = Sql::both(
    "UPDATE run_steps SET log_object = $4, log_first = log_bytes \
     WHERE run_id = $1 AND step_index = $2 AND log_bytes = $3",
);

/// Primary key.
const DROP: Sql = Sql::both("DELETE FROM log_chunks WHERE run_id = $1 AND step_index = $2 AND start_offset < $3");

/// Index `run_steps_unmoved`: only steps that still have bytes are in it.
const UNMOVED: Sql = Sql::both(
    "SELECT r.id, r.account_id FROM runs r WHERE r.finished_at IS NOT NULL AND r.id IN \
        (SELECT run_id FROM run_steps WHERE log_bytes > log_first AND run_id > $1) \
     ORDER BY r.id LIMIT $2",
);

/// The row of a run is the lock of all that hangs on it.
const LOCK: Sql = Sql::each(
    "SELECT id FROM runs WHERE id = $1 AND account_id = $2 FOR UPDATE",
    "SELECT id FROM runs WHERE id = $1 AND account_id = $2",
);

/// Adds bytes that begin at `offset`; the caller has checked that the log ends there.
pub(crate) async fn append(link: &mut Link<'_>, run: RunId, step: u32, mut offset: u64, bytes: &Bytes) -> Result<()> {
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(CHUNK_BYTES));
        let length = part.len() as u64;
        let values = args![run, step, signed("logs", offset)?, signed("logs", length)?, part];
        link.execute(&APPEND, values).await?;
        offset += length;
    }
    Ok(())
}

async fn extent(link: &mut Link<'_>, account: AccountId, run: RunId, step: u32) -> Result<(u64, u64)> {
    let row = link.first(&EXTENT, args![run, account, step]).await?;
    let row = row.ok_or_else(|| Error::not_found("run", run))?;
    if row.maybe_int("log_bytes")?.is_none() {
        return Err(Error::not_found("step", step));
    }
    Ok((row.count("log_first")?, row.count("log_bytes")?))
}

#[async_trait]
impl Logs for SqlStorage {
    async fn read(&self, account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> Result<LogPage> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let (first, length) = extent(&mut link, account, run, step).await?;
        let offset = offset.clamp(first, length);
        let end = length.min(offset + u64::from(limit.min(LOG_READ_LIMIT_BYTES)));
        let mut bytes = BytesMut::with_capacity(usize::try_from(end - offset).unwrap_or(0));
        if offset < end {
            let span = args![run, step, signed("offset", offset)?, signed("offset", end)?];
            for row in link.all(&READ, span).await? {
                let start: u64 = row.count("start_offset")?;
                let part = row.bytes("bytes")?;
                let clip = |at: u64| {
                    usize::try_from(at.saturating_sub(start))
                        .unwrap_or(usize::MAX)
                        .min(part.len())
                };
                bytes.extend_from_slice(&part[clip(offset)..clip(end)]);
            }
        }
        // Moved between the two statements: nothing is here any more.
        let offset = if bytes.is_empty() && offset < end {
            length
        } else {
            offset
        };
        Ok(LogPage {
            offset,
            bytes: bytes.freeze(),
            length,
        })
    }

    async fn moved(&self, account: AccountId, run: RunId, step: u32, length: u64, object: &str) -> Result<()> {
        no_nul("object", object)?;
        let expected = i64::try_from(length).unwrap_or(-1);
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            link.first(&LOCK, args![run, account])
                .await?
                .ok_or_else(|| Error::not_found("run", run))?;
            if link.execute(&MOVED, args![run, step, expected, object]).await? == 0 {
                let (_, stored) = extent(&mut link, account, run, step).await?;
                return Err(Error::conflict(format!(
                    "log of step {step} of run {run} has {stored} bytes, not {length}"
                )));
            }
            link.execute(&DROP, args![run, step, expected]).await?;
            Ok(())
        }
        .await;
        work.end("logs.moved", done).await
    }

    async fn unmoved(&self, after: RunId, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&UNMOVED, args![after, limit]).await?;
        rows.iter()
            .map(|row| Ok((row.id("account_id")?, row.id("id")?)))
            .collect()
    }
}
