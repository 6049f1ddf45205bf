use async_trait::async_trait;

use crate::audit::{Entry, Logged};
use crate::error::Result;
use crate::id::AccountId;
use crate::page::{Page, Paged};
use crate::time::Timestamp;

/// The audit log. Entries are written by the ports that change things, in the transaction of the change:
/// [`Catalog`](crate::ports::Catalog) writes one for every change that it takes, and
/// [`Runs`](crate::ports::Runs) one for every run that somebody set off. So no change is without its entry, and no
/// entry without its change.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Writes down what no other port does: that somebody asks for something. A second call makes a second entry.
    ///
    /// Errors: `Invalid` for a text with a NUL.
    async fn note(&self, entry: &Entry) -> Result<()>;

    /// An account's entries from `from` on and before `to`, newest first, with the total.
    async fn entries(
        &self,
        account: AccountId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        page: Page,
    ) -> Result<Paged<Logged>>;

    /// Forgets an account's entries before an instant, the oldest first, at most `limit`; how many. For retention.
    async fn forget_entries(&self, account: AccountId, before: Timestamp, limit: u32) -> Result<u64>;
}
