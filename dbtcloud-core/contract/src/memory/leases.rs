use async_trait::async_trait;
use dbtcloud_core::error::Result;
use dbtcloud_core::ports::{Leases, Owner};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, StoredLease, check_text};

#[async_trait]
impl Leases for MemoryStorage {
    async fn acquire(&self, name: &str, owner: &Owner, now: Timestamp, until: Timestamp) -> Result<Option<u64>> {
        check_text("name", &name)?;
        check_text("owner", owner)?;
        let mut state = self.lock();
        let careless = state.breaks(Mutation::ShareLeases);
        let Some(lease) = state.leases.get_mut(name) else {
            let lease = StoredLease {
                owner: owner.clone(),
                until: Some(until),
                term: 1,
            };
            state.leases.insert(name.to_owned(), lease);
            return Ok(Some(1));
        };
        if lease.owner != *owner {
            if lease.until.is_some_and(|held| held > now) && !careless {
                return Ok(None);
            }
            lease.owner = owner.clone();
            lease.term += 1;
        }
        lease.until = Some(until);
        Ok(Some(lease.term))
    }

    async fn release(&self, name: &str, owner: &Owner) -> Result<()> {
        let mut state = self.lock();
        // The entry stays, so that the term goes on growing.
        if let Some(lease) = state.leases.get_mut(name).filter(|lease| lease.owner == *owner) {
            lease.until = None;
        }
        Ok(())
    }

    async fn any_held(&self, prefix: &str, now: Timestamp) -> Result<bool> {
        let state = self.lock();
        let held = |(name, lease): (&String, &StoredLease)| {
            name.starts_with(prefix) && lease.until.is_some_and(|until| until > now)
        };
        Ok(state.leases.iter().any(held))
    }

    async fn purge(&self, prefix: &str, before: Timestamp, limit: u32) -> Result<u64> {
        let mut state = self.lock();
        let over = |(name, lease): &(&String, &StoredLease)| {
            name.starts_with(prefix) && lease.until.is_none_or(|until| until < before)
        };
        let names: Vec<String> = state.leases.iter().filter(over).map(|(name, _)| name.clone()).collect();
        let gone = names.into_iter().take(limit as usize);
        Ok(gone.filter(|name| state.leases.remove(name).is_some()).count() as u64)
    }

    async fn over(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let state = self.lock();
        let over = |(name, lease): &(&String, &StoredLease)| {
            name.starts_with(prefix) && lease.until.is_none_or(|until| until < before)
        };
        Ok(state.leases.iter().filter(over).count() as u64)
    }
}
