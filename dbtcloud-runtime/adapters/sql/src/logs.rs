//! `Logs`: bytes in rows of at most [`CHUNK_BYTES`], without a hole from `log_first` to `log_bytes` of
//! their step; the first row may begin before it. Invariant: both ends, and the ends of the parts that are in
//! the artifact store, are moved in the transaction that adds or drops the rows.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{LOG_READ_LIMIT_BYTES, LogPage, LogPart, Logs};
use dbtcloud_core::{Error, Result};

use crate::engine::{Link, Row, Sql, args};
use crate::storage::{SqlStorage, signed, to_json};

/// The most one row holds: few rows for much log, and a short read stays short.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// Primary key; what is there is never written over.
const APPEND: Sql =
    Sql::both("INSERT INTO log_chunks (run_id, step_index, start_offset, length, bytes) VALUES ($1, $2, $3, $4, $5)");

/// Primary key of `runs`, unique key of `run_steps`.
const EXTENT: Sql = Sql::both(
    "SELECT s.log_first, s.log_bytes, s.log_parts FROM runs r LEFT JOIN run_steps s ON s.run_id = r.id AND s.step_index = $3 \
     WHERE r.id = $1 AND r.account_id = $2",
);

/// Primary key: from the row that holds the first byte on.
const READ: Sql = Sql::both(
    "SELECT start_offset, bytes FROM log_chunks WHERE run_id = $1 AND step_index = $2 AND start_offset < $4 \
     AND start_offset >= coalesce((SELECT max(start_offset) FROM log_chunks \
        WHERE run_id = $1 AND step_index = $2 AND start_offset <= $3), 0) \
     ORDER BY start_offset",
);

/// Unique key. The row of the run is locked, and the part was held against both ends.
const MOVED: Sql =
    Sql::both("UPDATE run_steps SET log_first = $3, log_parts = $4 WHERE run_id = $1 AND step_index = $2");

/// Primary key. The row in which the part ends stays: the rest of it is still to be read here.
const DROP: Sql = Sql::both(
    "DELETE FROM log_chunks WHERE run_id = $1 AND step_index = $2 AND start_offset < $3 \
     AND start_offset + length <= $3",
);

/// Index `run_steps_unmoved`: only steps that still have bytes are in it.
const UNMOVED: Sql = Sql::both(
    "SELECT DISTINCT s.run_id, r.account_id FROM run_steps s JOIN runs r ON r.id = s.run_id \
     WHERE s.log_bytes > s.log_first AND s.run_id > $1 \
     AND (r.finished_at IS NOT NULL OR s.log_bytes - s.log_first >= $2) ORDER BY s.run_id LIMIT $3",
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

/// Where the parts of a step end that are in the artifact store.
pub(crate) fn read_parts(row: &Row) -> Result<Vec<u64>> {
    let Some(text) = row.maybe_text("log_parts")? else {
        return Ok(Vec::new());
    };
    serde_json::from_str(&text).map_err(|e| Error::corrupt("database: log_parts is no list of numbers").because(e))
}

/// What of a step's log is where.
struct Extent {
    first: u64,
    length: u64,
    parts: Vec<u64>,
}

impl Extent {
    /// Whether this part is one of those in the artifact store.
    fn has(&self, part: LogPart) -> bool {
        let at = self.parts.iter().position(|end| *end == part.end);
        let before = |at: usize| at.checked_sub(1).and_then(|before| self.parts.get(before)).copied();
        at.is_some_and(|at| before(at).unwrap_or(0) == part.start)
    }
}

async fn extent(link: &mut Link<'_>, account: AccountId, run: RunId, step: u32) -> Result<Extent> {
    let row = link.first(&EXTENT, args![run, account, step]).await?;
    let row = row.ok_or_else(|| Error::not_found("run", run))?;
    if row.maybe_int("log_bytes")?.is_none() {
        return Err(Error::not_found("step", step));
    }
    Ok(Extent {
        first: row.count("log_first")?,
        length: row.count("log_bytes")?,
        parts: read_parts(&row)?,
    })
}

/// Bytes from `offset` up to `end`; `None` when the first of them is not there any more.
async fn bytes(link: &mut Link<'_>, run: RunId, step: u32, offset: u64, end: u64) -> Result<Option<Bytes>> {
    let mut bytes = BytesMut::with_capacity(usize::try_from(end - offset).unwrap_or(0));
    let span = args![run, step, signed("offset", offset)?, signed("offset", end)?];
    let mut next = offset;
    for row in link.all(&READ, span).await? {
        let start: u64 = row.count("start_offset")?;
        if start > next {
            return Ok(None);
        }
        let part = row.bytes("bytes")?;
        let clip = |at: u64| {
            usize::try_from(at.saturating_sub(start))
                .unwrap_or(usize::MAX)
                .min(part.len())
        };
        bytes.extend_from_slice(&part[clip(next)..clip(end)]);
        next = end.min(start + part.len() as u64);
    }
    Ok((next == end).then(|| bytes.freeze()))
}

#[async_trait]
impl Logs for SqlStorage {
    async fn read(&self, account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> Result<LogPage> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let asked = offset;
        let mut seen = extent(&mut link, account, run, step).await?;
        loop {
            let offset = asked.clamp(seen.first, seen.length);
            let end = seen.length.min(offset + u64::from(limit.min(LOG_READ_LIMIT_BYTES)));
            let found = if offset < end {
                bytes(&mut link, run, step, offset, end).await?
            } else {
                Some(Bytes::new())
            };
            if let Some(bytes) = found {
                let length = seen.length;
                return Ok(LogPage { offset, bytes, length });
            }
            // Moved between the two statements: the log begins further on now.
            let before = seen.first;
            seen = extent(&mut link, account, run, step).await?;
            if seen.first == before {
                let text = format!("database: the log of step {step} of run {run} has a hole after byte {offset}");
                return Err(Error::corrupt(text));
            }
        }
    }

    async fn moved(&self, account: AccountId, run: RunId, step: u32, part: LogPart) -> Result<()> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            link.first(&LOCK, args![run, account])
                .await?
                .ok_or_else(|| Error::not_found("run", run))?;
            let mut seen = extent(&mut link, account, run, step).await?;
            let LogPart { start, end } = part;
            if seen.has(part) {
                return Ok(());
            }
            if start != seen.first || start >= end || end > seen.length {
                return Err(Error::conflict(format!(
                    "log of step {step} of run {run} is in the database from {} to {}, not from {start} to {end}",
                    seen.first, seen.length
                )));
            }
            seen.parts.push(end);
            let (first, parts) = (signed("end", end)?, to_json("log_parts", &seen.parts)?);
            link.execute(&MOVED, args![run, step, first, parts]).await?;
            link.execute(&DROP, args![run, step, first]).await?;
            Ok(())
        }
        .await;
        work.end("logs.moved", done).await
    }

    async fn unmoved(&self, after: RunId, live_bytes: u64, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        let least = i64::try_from(live_bytes.max(1)).unwrap_or(i64::MAX);
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&UNMOVED, args![after, least, limit]).await?;
        rows.iter()
            .map(|row| Ok((row.id("account_id")?, row.id("run_id")?)))
            .collect()
    }
}
