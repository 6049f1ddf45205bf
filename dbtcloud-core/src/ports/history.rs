use async_trait::async_trait;

use crate::error::Result;
use crate::id::{AccountId, RunId};
use crate::run::Month;
use crate::time::Timestamp;

/// How many months after the present one [`History::prepare`] makes room for.
pub const MONTHS_AHEAD: u32 = 3;

/// Whose things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accounts {
    /// This account's.
    Only(AccountId),
    /// Everybody's but theirs.
    AllBut(Vec<AccountId>),
}

impl Accounts {
    /// Everybody's.
    pub const ALL: Self = Self::AllBut(Vec::new());

    /// Whether this account's are among them.
    pub fn has(&self, account: AccountId) -> bool {
        match self {
            Self::Only(only) => *only == account,
            Self::AllBut(others) => !others.contains(&account),
        }
    }
}

/// What of a run can go before the run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunPart {
    /// The logs of its steps.
    Logs,
    /// Its files, but for logs.
    Artifacts,
}

/// Which runs that have ended [`History::ended`] tells. Every condition must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedFilter {
    /// Whose.
    pub accounts: Accounts,
    /// With an id above this.
    pub after: RunId,
    /// With an id below this.
    pub below: RunId,
    /// That ended before this instant.
    pub before: Timestamp,
    /// That still have this.
    pub with: Option<RunPart>,
}

impl EndedFilter {
    /// Every run that has ended.
    pub const ALL: Self = Self {
        accounts: Accounts::ALL,
        after: RunId::new(0),
        below: RunId::new(i64::MAX),
        before: Timestamp::from_micros(i64::MAX),
        with: None,
    };
}

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

    /// Runs that have ended and match, by id; at most `limit`.
    async fn ended(&self, filter: &EndedFilter, limit: u32) -> Result<Vec<(AccountId, RunId)>>;

    /// Notes that a part of a run that has ended is gone: the run says since when. With its logs the bytes go
    /// that are in the database, and no part in the artifact store is told any more: a read then begins at the
    /// end of the log, whose length stays. A second call changes nothing.
    ///
    /// Errors: `Conflict` when the run has not ended; `NotFound` when it is not in the account.
    async fn expire(&self, account: AccountId, run: RunId, part: RunPart, now: Timestamp) -> Result<()>;

    /// Forgets these runs with all that hangs on them: steps, logs, journal, instants, tickets. Those that
    /// have not ended are left as they are. How many were forgotten; a second call is 0.
    async fn forget(&self, runs: &[RunId]) -> Result<u64>;

    /// Forgets a whole month, as [`History::forget`] does its runs. Costs the same however many they are
    /// where the database can drop a part of a table. `Ok` when there are none.
    ///
    /// Errors: `Conflict` while a run of the month has not ended, or ended at `before` or later: nothing was
    /// forgotten. `Unavailable` as for `prepare`.
    async fn drop_month(&self, month: Month, before: Timestamp) -> Result<()>;
}
