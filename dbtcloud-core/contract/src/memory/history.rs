use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{EndedFilter, History, RunPart};
use dbtcloud_core::run::Month;
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, State, StoredStep};

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

    async fn ended(&self, filter: &EndedFilter, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        let state = self.lock();
        let careless = state.breaks(Mutation::IgnoreEnds);
        let found = state.runs.values().map(|stored| &stored.run).filter(|run| {
            let there = match filter.with {
                None => true,
                Some(RunPart::Logs) => run.logs_expired_at.is_none(),
                Some(RunPart::Artifacts) => run.artifacts_expired_at.is_none(),
            };
            run.finished_at.is_some_and(|at| at < filter.before || careless)
                && there
                && filter.accounts.has(run.new.account)
                && run.id > filter.after
                && run.id < filter.below
        });
        let found = found.map(|run| (run.new.account, run.id));
        Ok(found.take(limit as usize).collect())
    }

    async fn expire(&self, account: AccountId, run: RunId, part: RunPart, now: Timestamp) -> Result<()> {
        let mut state = self.lock();
        let careless = state.breaks(Mutation::ExpireLive);
        let ended = state.run_of(account, run)?.run.status.is_terminal();
        if !ended && !careless {
            return Err(Error::conflict(format!("run {run} has not ended")));
        }
        let Some(stored) = state.runs.get_mut(&run) else {
            return Err(Error::not_found("run", run));
        };
        if part == RunPart::Artifacts {
            let run = &mut stored.run;
            run.artifacts_expired_at.get_or_insert(now);
            (run.artifacts_saved, run.has_docs, run.has_sources) = (false, false, false);
            return Ok(());
        }
        stored.run.logs_expired_at.get_or_insert(now);
        for StoredStep { step, log } in stored.steps.values_mut() {
            log.clear();
            step.log_first = step.log_bytes;
            step.log_parts.clear();
            step.log_object = None;
        }
        Ok(())
    }

    async fn forget(&self, runs: &[RunId]) -> Result<u64> {
        Ok(self.lock().forget(runs))
    }

    async fn drop_month(&self, month: Month, before: Timestamp) -> Result<()> {
        let mut state = self.lock();
        let mut runs = Vec::new();
        for (id, stored) in state.runs.iter().filter(|(id, _)| Month::of_run(**id) == Some(month)) {
            if !stored.run.status.is_terminal() && !state.breaks(Mutation::ForgetLive) {
                return Err(Error::conflict(format!("run {id} of {month} has not ended")));
            }
            let late = stored.run.finished_at.is_some_and(|at| at >= before);
            if late && !state.breaks(Mutation::IgnoreEnds) {
                return Err(Error::conflict(format!("run {id} of {month} is still kept")));
            }
            runs.push(*id);
        }
        state.forget(&runs);
        Ok(())
    }
}
