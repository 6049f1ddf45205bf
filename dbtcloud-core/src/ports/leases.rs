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
}
