use async_trait::async_trait;

use crate::catalog::{Draft, Kind, Query, Row};
use crate::error::Result;
use crate::id::AccountId;
use crate::page::{Page, Paged};

/// Everything that people edit, as versioned records. [`crate::catalog::CatalogExt`] is its typed view. Every change
/// that is taken is written to the audit log by its own transaction, with the draft's `by`; see [`crate::ports::Audit`].
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Stores a new record and gives it an id and version 1.
    ///
    /// On `Ok` it is durable. Ids of a kind grow and are never used twice. An account's `account` is its
    /// own id. A second call makes a second record.
    ///
    /// Errors: `AlreadyExists` when a record of the kind that is not deleted has the same `lookup`.
    async fn insert(&self, draft: Draft) -> Result<Row>;

    /// The record, deleted or not.
    ///
    /// Errors: `NotFound`, also when it belongs to another account.
    async fn get(&self, kind: Kind, account: AccountId, id: i64) -> Result<Row>;

    /// The record of any account that is not deleted and has this `lookup`; `None` is an answer.
    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Row>>;

    /// One page of the records that match, with the total, read at one instant.
    async fn list(&self, query: &Query, page: Page) -> Result<Paged<Row>>;

    /// Writes over a record, if its version is still `version`, and counts the version up. `created_at`
    /// stays. The draft's kind and account say which record is meant; its account never changes.
    ///
    /// Errors: `NotFound` as for `get`; `Conflict` when the version is another (reread and decide again);
    /// `AlreadyExists` as for `insert`.
    async fn update(&self, id: i64, version: u64, draft: Draft) -> Result<Row>;

    /// The next records of a kind that are not deleted, over all accounts, by id, above `after`; at most
    /// `limit`. For loops that must see everything.
    async fn scan(&self, kind: Kind, after: i64, limit: u32) -> Result<Vec<Row>>;
}
