use async_trait::async_trait;

use crate::error::Result;
use crate::ports::Owner;
use crate::time::Timestamp;

/// Named leases that spare work (two cleaners doing the same). Never needed for correctness.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Takes or keeps the lease until `until`, if it is free, expired at `now`, or already `owner`'s.
    /// `Some(term)` when it is held; the term grows by one whenever the holder changes. `None` is an answer.
    async fn acquire(&self, name: &str, owner: &Owner, now: Timestamp, until: Timestamp) -> Result<Option<u64>>;

    /// Gives it up, if it is `owner`'s.
    async fn release(&self, name: &str, owner: &Owner) -> Result<()>;

    /// Whether any lease whose name begins with `prefix` is held at `now`: whether somebody is there.
    async fn any_held(&self, prefix: &str, now: Timestamp) -> Result<bool>;

    /// Forgets leases whose name begins with `prefix` that were given up or expired before `before`, at most
    /// `limit`; how many. For names that are used by one owner only: the term of a name that is used again
    /// begins anew.
    async fn purge(&self, prefix: &str, before: Timestamp, limit: u32) -> Result<u64>;

    /// How many a purge without a limit would forget.
    async fn over(&self, prefix: &str, before: Timestamp) -> Result<u64>;
}
