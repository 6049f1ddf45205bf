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

/// Logs of run steps, while they are in the database. Written by [`crate::ports::Runs::report`].
#[async_trait]
pub trait Logs: Send + Sync {
    /// Bytes of one step's log from `offset`, at most `limit` and at most [`LOG_READ_LIMIT_BYTES`]. Bytes
    /// below what was discarded are not there any more: the page then begins at the first that is.
    ///
    /// Errors: `NotFound` when the run is not in the account or has no such step.
    async fn read(&self, account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> Result<LogPage>;

    /// Notes that the whole log of a step, `length` bytes, is in the artifact store as `object`, and drops
    /// it from the database. Nothing is dropped unless the stored length is `length`.
    ///
    /// Errors: `Conflict` when the length is another; `NotFound` as for `read`. A second call is `Ok`.
    async fn moved(&self, account: AccountId, run: RunId, step: u32, length: u64, object: &str) -> Result<()>;

    /// Finished runs, over all accounts, that still have log bytes in the database; by run id above
    /// `after`, at most `limit`.
    async fn unmoved(&self, after: RunId, limit: u32) -> Result<Vec<(AccountId, RunId)>>;
}
