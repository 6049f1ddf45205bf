use async_trait::async_trait;
use dbtcloud_core::audit::{Entry, Logged};
use dbtcloud_core::error::Result;
use dbtcloud_core::id::{AccountId, AuditId};
use dbtcloud_core::page::{Direction, Page, Paged};
use dbtcloud_core::ports::Audit;
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::catalog::cut;
use super::state::{Mutation, State, check_text};

impl State {
    /// Writes an entry.
    pub(super) fn audit(&mut self, entry: Entry) {
        if !self.breaks(Mutation::ForgetWho) {
            self.counters.audit += 1;
            let id = AuditId::new(self.counters.audit);
            self.audit.push(Logged { id, entry });
        }
    }
}

#[async_trait]
impl Audit for MemoryStorage {
    async fn note(&self, entry: &Entry) -> Result<()> {
        check_text("entry", &(&entry.name, &entry.by))?;
        self.lock().audit(entry.clone());
        Ok(())
    }

    async fn entries(
        &self,
        account: AccountId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        page: Page,
    ) -> Result<Paged<Logged>> {
        let state = self.lock();
        let mut found: Vec<Logged> = state
            .audit
            .iter()
            .filter(|logged| logged.entry.account == account || state.breaks(Mutation::ShowEntries))
            .filter(|logged| from.is_none_or(|from| logged.entry.at >= from))
            .filter(|logged| to.is_none_or(|to| logged.entry.at < to))
            .cloned()
            .collect();
        found.sort_by_key(|logged| (logged.entry.at, logged.id));
        Ok(cut(found, Direction::Descending, page))
    }

    async fn forget_entries(&self, account: AccountId, before: Timestamp, limit: u32) -> Result<u64> {
        let mut state = self.lock();
        let old = |logged: &&Logged| logged.entry.account == account && logged.entry.at < before;
        let mut old: Vec<(Timestamp, AuditId)> = state
            .audit
            .iter()
            .filter(old)
            .map(|logged| (logged.entry.at, logged.id))
            .collect();
        old.sort_unstable();
        old.truncate(limit as usize);
        state
            .audit
            .retain(|logged| !old.contains(&(logged.entry.at, logged.id)));
        Ok(old.len() as u64)
    }
}
