use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{LOG_READ_LIMIT_BYTES, LogPage, Logs};

use super::MemoryStorage;
use super::state::{Mutation, check_text};

#[async_trait]
impl Logs for MemoryStorage {
    async fn read(&self, account: AccountId, run: RunId, step: u32, offset: u64, limit: u32) -> Result<LogPage> {
        let state = self.lock();
        let stored = state
            .run_of(account, run)?
            .steps
            .get(&step)
            .ok_or_else(|| Error::not_found("step", step))?;
        let length = stored.step.log_bytes;
        let offset = offset.clamp(stored.discarded, length);
        let start = (offset - stored.discarded) as usize;
        let end = stored.log.len().min(start + limit.min(LOG_READ_LIMIT_BYTES) as usize);
        Ok(LogPage {
            offset,
            bytes: Bytes::copy_from_slice(&stored.log[start..end]),
            length,
        })
    }

    async fn moved(&self, account: AccountId, run: RunId, step: u32, length: u64, object: &str) -> Result<()> {
        check_text("object", &object)?;
        let mut state = self.lock();
        let careless = state.breaks(Mutation::DropLogs);
        state.run_of(account, run)?;
        let stored = state.runs.get_mut(&run).and_then(|stored| stored.steps.get_mut(&step));
        let stored = stored.ok_or_else(|| Error::not_found("step", step))?;
        if stored.step.log_bytes != length && !careless {
            return Err(Error::conflict(format!(
                "log of step {step} of run {run} has {} bytes, not {length}",
                stored.step.log_bytes
            )));
        }
        stored.step.log_object = Some(object.to_owned());
        stored.discarded = stored.step.log_bytes;
        stored.log.clear();
        Ok(())
    }

    async fn unmoved(&self, after: RunId, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        let state = self.lock();
        let unmoved = state.runs.values().filter(|stored| {
            stored.run.id > after
                && stored.run.status.is_terminal()
                && stored.steps.values().any(|step| !step.log.is_empty())
        });
        Ok(unmoved
            .take(limit as usize)
            .map(|stored| (stored.run.new.account, stored.run.id))
            .collect())
    }
}
