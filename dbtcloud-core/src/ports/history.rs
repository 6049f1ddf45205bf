use async_trait::async_trait;

use crate::error::Result;
use crate::id::{AccountId, RunId};
use crate::run::Month;
use crate::time::Timestamp;

/// How many months after the present one [`History::prepare`] makes room for.
pub const MONTHS_AHEAD: u32 = 3;

/// What is kept of runs that have ended, and its end: retention. History is divided by [`Month`], which the
/// id of a run says, so that a whole month can be forgotten at a stroke.
///
/// Nothing here touches a run that has not ended, and nothing here knows of artifacts: whoever forgets a run
/// removes its files first.
#[async_trait]
pub trait History: Send + Sync {
    /// Makes room for the runs of the month of `now` and [`MONTHS_AHEAD`] more. A second call changes
    /// nothing. A run whose month has no room is kept all the same, and moves when there is.
    ///
    /// Errors: `Unavailable` when a lock could not be had soon; nothing was changed, call again later.
    async fn prepare(&self, now: Timestamp) -> Result<()>;

    /// The months that hold runs, oldest first. Runs from before there were months are in none.
    async fn months(&self) -> Result<Vec<Month>>;

    /// Runs that have ended, with ids above `after` and below `before`, of one account or of all, by id; at
    /// most `limit`.
    async fn ended(
        &self,
        account: Option<AccountId>,
        after: RunId,
        before: RunId,
        limit: u32,
    ) -> Result<Vec<(AccountId, RunId)>>;

    /// Forgets these runs with all that hangs on them: steps, logs, journal, instants, tickets. Those that
    /// have not ended are left as they are. How many were forgotten; a second call is 0.
    async fn forget(&self, runs: &[RunId]) -> Result<u64>;

    /// Forgets a whole month, as [`History::forget`] does its runs. Costs the same however many they are
    /// where the database can drop a part of a table. `Ok` when there are none.
    ///
    /// Errors: `Conflict` while a run of the month has not ended: nothing was forgotten, wait for its end.
    /// `Unavailable` as for `prepare`.
    async fn drop_month(&self, month: Month) -> Result<()>;
}
