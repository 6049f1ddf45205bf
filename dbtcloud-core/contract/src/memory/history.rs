use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::History;
use dbtcloud_core::run::Month;
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, State};

impl State {
    fn forget(&mut self, runs: &[RunId]) -> u64 {
        let careless = self.breaks(Mutation::ForgetLive);
        let mut forgotten = 0;
        for run in runs {
            let ended = self.runs.get(run).is_some_and(|stored| stored.run.status.is_terminal());
            if (ended || careless) && self.runs.remove(run).is_some() {
                forgotten += 1;
                if !self.breaks(Mutation::KeepTickets) {
                    self.tickets.retain(|_, issue| issue.run != *run);
                    self.keys.retain(|_, (of, _)| of != run);
                }
            }
        }
        forgotten
    }
}

#[async_trait]
impl History for MemoryStorage {
    async fn prepare(&self, _now: Timestamp) -> Result<()> {
        Ok(())
    }

    async fn months(&self) -> Result<Vec<Month>> {
        let state = self.lock();
        let mut months: Vec<Month> = state.runs.keys().filter_map(|run| Month::of_run(*run)).collect();
        months.dedup();
        Ok(months)
    }

    async fn ended(
        &self,
        account: Option<AccountId>,
        after: RunId,
        before: RunId,
        limit: u32,
    ) -> Result<Vec<(AccountId, RunId)>> {
        let state = self.lock();
        let found = state
            .runs
            .values()
            .filter(|stored| stored.run.status.is_terminal())
            .map(|stored| (stored.run.new.account, stored.run.id))
            .filter(|(of, run)| account.is_none_or(|wanted| *of == wanted) && *run > after && *run < before);
        Ok(found.take(limit as usize).collect())
    }

    async fn forget(&self, runs: &[RunId]) -> Result<u64> {
        Ok(self.lock().forget(runs))
    }

    async fn drop_month(&self, month: Month) -> Result<()> {
        let mut state = self.lock();
        let mut runs = Vec::new();
        for (id, stored) in state.runs.iter().filter(|(id, _)| Month::of_run(**id) == Some(month)) {
            if !stored.run.status.is_terminal() && !state.breaks(Mutation::ForgetLive) {
                return Err(Error::conflict(format!("run {id} of {month} has not ended")));
            }
            runs.push(*id);
        }
        state.forget(&runs);
        Ok(())
    }
}
