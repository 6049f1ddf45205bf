//! The storage ports on PostgreSQL and SQLite.
//!
//! This room turns each port call into one transaction, and nothing else: it decides no policy, reads no
//! clock and calls no other port. Every statement is a named constant of the file of its port; where the
//! engines differ there are two texts side by side, never two bodies.
//!
//! ```no_run
//! # async fn open() -> dbtcloud_core::Result<()> {
//! use dbtcloud_sql::{Options, SqlStorage};
//! let storage = SqlStorage::connect("sqlite:///var/lib/dbtcloud/dbtcloud.db", Options::new()).await?;
//! storage.migrate().await?;
//! # Ok(())
//! # }
//! ```
//!
//! What a PostgreSQL URL leaves out (user, password, host, …) the driver takes from the `PG*` environment
//! variables, as every client of that server does.

#[cfg(not(any(feature = "postgres", feature = "sqlite")))]
compile_error!("dbtcloud-sql needs the feature `postgres` or `sqlite`");

mod audit;
mod catalog;
mod dispatches;
mod engine;
mod enqueue;
mod error;
mod gather;
mod history;
mod journal;
mod leases;
mod logs;
mod migrate;
mod outbox;
mod queue;
mod reports;
mod requests;
mod runs;
mod schedules;
mod sessions;
mod snapshot;
mod storage;
mod tickets;
mod transfer;
mod wakeups;

pub use engine::{Engine, Options};
pub use enqueue::Caller;
pub use snapshot::Walked;
pub use storage::SqlStorage;
pub use transfer::Copied;
