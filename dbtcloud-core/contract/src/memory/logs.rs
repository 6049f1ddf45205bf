use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{LOG_READ_LIMIT_BYTES, LogPage, LogPart, Logs};

use super::MemoryStorage;
use super::state::{Mutation, StoredStep};

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
        let offset = offset.clamp(stored.step.log_first, length);
        let start = (offset - stored.step.log_first) as usize;
        let end = stored.log.len().min(start + limit.min(LOG_READ_LIMIT_BYTES) as usize);
        Ok(LogPage {
            offset,
            bytes: Bytes::copy_from_slice(&stored.log[start..end]),
            length,
        })
    }

    async fn moved(&self, account: AccountId, run: RunId, step: u32, part: LogPart) -> Result<()> {
        let mut state = self.lock();
        let careless = state.breaks(Mutation::DropLogs);
        state.run_of(account, run)?;
        let stored = state.runs.get_mut(&run).and_then(|stored| stored.steps.get_mut(&step));
        let StoredStep { step: known, log } = stored.ok_or_else(|| Error::not_found("step", step))?;
        if known.log_part(part.start) == Some(part) {
            return Ok(());
        }
        let fits = part.start == known.log_first && part.start < part.end && part.end <= known.log_bytes;
        if !fits && !careless {
            return Err(Error::conflict(format!(
                "log of step {step} of run {run} is in the database from {} to {}, not from {} to {}",
                known.log_first, known.log_bytes, part.start, part.end
            )));
        }
        let end = part.end.clamp(known.log_first, known.log_bytes);
        log.drain(..(end - known.log_first) as usize);
        known.log_first = end;
        known.log_parts.push(end);
        Ok(())
    }

    async fn unmoved(&self, after: RunId, live_bytes: u64, limit: u32) -> Result<Vec<(AccountId, RunId)>> {
        let state = self.lock();
        let unmoved = state.runs.values().filter(|stored| {
            let least = if stored.run.status.is_terminal() {
                1
            } else {
                live_bytes.max(1)
            };
            stored.run.id > after && stored.steps.values().any(|step| step.log.len() as u64 >= least)
        });
        Ok(unmoved
            .take(limit as usize)
            .map(|stored| (stored.run.new.account, stored.run.id))
            .collect())
    }
}
