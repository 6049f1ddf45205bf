use async_trait::async_trait;

use crate::error::Result;
use crate::id::{AccountId, RunId};
use crate::ports::Fence;
use crate::time::Timestamp;

/// SHA-256 of a ticket or key: the plain text is never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// A ticket that is to be issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketIssue {
    /// Digest of the ticket.
    pub ticket: Digest,
    /// Whose run.
    pub account: AccountId,
    /// Which run.
    pub run: RunId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Not redeemable from this instant on.
    pub expires_at: Timestamp,
}

/// Who an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Whose run.
    pub account: AccountId,
    /// The fence of its attempt.
    pub fence: Fence,
}

/// One-use tickets by which an agent proves that it is the one that was started.
#[async_trait]
pub trait Tickets: Send + Sync {
    /// Makes a ticket redeemable. A second call with the same digest changes nothing. An earlier ticket of
    /// the same attempt that was not redeemed stays redeemable.
    async fn issue(&self, issue: &TicketIssue) -> Result<()>;

    /// Binds the attempt to the key of whoever comes first with a ticket of it. Coming again with the same
    /// ticket and key is `Ok` with the same identity (the first answer may have been lost).
    ///
    /// Errors: `Denied` when the ticket is unknown or expired, or when the attempt is bound to another key.
    async fn redeem(&self, ticket: Digest, key: Digest, now: Timestamp) -> Result<AgentIdentity>;

    /// Who has this key.
    ///
    /// Errors: `Denied` when nobody has.
    async fn authenticate(&self, key: Digest) -> Result<AgentIdentity>;

    /// Whether a ticket of this attempt was redeemed.
    async fn redeemed(&self, run: RunId, attempt: u32) -> Result<bool>;

    /// Drops tickets and keys of runs that ended before `before`, at most `limit`; how many were dropped.
    async fn purge(&self, before: Timestamp, limit: u32) -> Result<u64>;

    /// How many a purge without a limit would drop.
    async fn spent(&self, before: Timestamp) -> Result<u64>;
}
