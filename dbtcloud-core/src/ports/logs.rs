use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::id::{AccountId, RunId};

/// The most one read returns, in bytes.
pub const LOG_READ_LIMIT_BYTES: u32 = 1024 * 1024;

/// A part of a step's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// The offset of the first byte.
    pub offset: u64,
    /// The bytes. Empty at the end of what there is.
    pub bytes: Bytes,
    /// The length of the log now.
    pub length: u64,
}

/// A part of a step's log, by its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogPart {
    /// The first byte.
    pub start: u64,
    /// The first byte that is not in it any more.
    pub end: u64,
}

/// Logs of run steps, while they are in the database. Written by [`crate::ports::Runs::report`].
#[async_trait]
pub trait Logs: Send + Sync {
    /// Bytes of one step's log from `offset`, at most `limit` and at most [`LOG_READ_LIMIT_BYTES`]. Bytes
    /// below what was moved or has expired are not there any more: the page then begins at the first that is.
    ///
    /// Errors: `NotFound` when the run is not in the account or has no such step.
    async fn read(&self, account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> Result<LogPage>;

    /// Notes that a part of a step's log is whole in the artifact store, and drops it from the database. Parts
    /// are moved in order and without a hole: a part begins where the bytes in the database do.
    ///
    /// Errors: `Conflict` when it begins elsewhere, is empty or ends beyond the log (reread); `NotFound` as
    /// for `read`. A part that was moved already is `Ok`.
    async fn moved(&self, account: AccountId, run: RunId, step: u32, part: LogPart) -> Result<()>;

    /// Runs, over all accounts, whose logs are to be moved: ended ones with any bytes in the database, others
    /// with at least `live_bytes` of one step; by run id above `after`, at most `limit`.
    async fn unmoved(&self, after: RunId, live_bytes: u64, limit: u32) -> Result<Vec<(AccountId, RunId)>>;
}
