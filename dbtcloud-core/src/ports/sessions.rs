use async_trait::async_trait;

use crate::error::Result;
use crate::id::{AccountId, ProjectId, SessionId, UserId};
use crate::session::{Session, SessionEvent, SessionStatus};
use crate::time::Timestamp;

/// A session that is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// Whose account.
    pub account: AccountId,
    /// Which project.
    pub project: ProjectId,
    /// Whose.
    pub user: UserId,
}

/// A change of a session's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionChange {
    /// What it was when read.
    pub from: SessionStatus,
    /// What happens.
    pub event: SessionEvent,
    /// The generation it was when read; a start counts it up.
    pub generation: u32,
    /// Where its server answers now.
    pub address: Option<String>,
    /// Whether its user was active just now.
    pub active: bool,
}

/// Develop sessions.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// The session of this user and project that has not ended; a new one (`Starting`, generation 1) if
    /// there is none. With any number of callers there is at most one.
    async fn open(&self, new: NewSession, now: Timestamp) -> Result<Session>;

    /// The session.
    ///
    /// Errors: `NotFound`, also when it belongs to another account.
    async fn get(&self, account: AccountId, id: SessionId) -> Result<Session>;

    /// Sessions of all accounts in one of these states, by id above `after`, at most `limit`.
    async fn scan(&self, states: &[SessionStatus], after: SessionId, limit: u32) -> Result<Vec<Session>>;

    /// Applies an event. Becoming `Starting` out of `Suspended` counts the generation up.
    ///
    /// Errors: `Conflict` when status or generation are not what was read, or the event is illegal there.
    async fn change(
        &self,
        account: AccountId,
        id: SessionId,
        change: &SessionChange,
        now: Timestamp,
    ) -> Result<Session>;

    /// Forgets these sessions. Those that have not ended are left as they are. How many were forgotten; a
    /// second call is 0.
    async fn forget(&self, sessions: &[SessionId]) -> Result<u64>;
}
