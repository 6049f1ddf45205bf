//! Reference adapters in memory. They are the model: what they do is what the ports' documentation says,
//! in the plainest code that does it. Nothing here is fast, durable or bounded.

mod artifacts;
mod audit;
mod catalog;
mod clock;
mod dispatches;
mod executor;
mod history;
mod leases;
mod logs;
mod outbox;
mod report;
mod runs;
mod schedules;
mod sessions;
mod state;
mod tickets;
mod vault;
mod volume;
mod wakeups;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use artifacts::MemoryArtifacts;
pub use clock::{ManualClock, WallClock};
pub use executor::{Script, ScriptedExecutor};
pub use state::Mutation;
pub use vault::TransparentVault;
pub use volume::TemporaryVolume;

use state::State;

/// All storage ports over one locked state. A clone is another handle on the same state, as another
/// process of the control plane would have on a shared database.
///
/// ```
/// # futures::executor::block_on(async {
/// use dbtcloud_contract::memory::MemoryStorage;
/// use dbtcloud_core::{Timestamp, account::Account, catalog::CatalogExt, id::AccountId};
/// let storage = MemoryStorage::new();
/// let account = storage.create(AccountId::new(0), &Account::new("Acme"), Timestamp::EPOCH).await.unwrap();
/// assert_eq!(account.version, 1);
/// # });
/// ```
#[derive(Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
    bells: wakeups::Bells,
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty storage that breaks one rule, to prove that the suite notices.
    #[doc(hidden)]
    pub fn with_mutation(mutation: Mutation) -> Self {
        let storage = Self::new();
        storage.lock().mutation = Some(mutation);
        storage
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
