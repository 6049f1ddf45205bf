use async_trait::async_trait;
use dbtcloud_core::error::{Error, ErrorKind, Result};
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{AgentIdentity, Digest, Fence, Holder, TicketIssue, Tickets};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, State};

fn denied(why: &'static str) -> Error {
    Error::new(ErrorKind::Denied, why)
}

impl State {
    fn identity(&self, (run, attempt): (RunId, u32)) -> Result<AgentIdentity> {
        let stored = self.runs.get(&run).ok_or_else(|| denied("the ticket's run is gone"))?;
        Ok(AgentIdentity {
            account: stored.run.new.account,
            fence: Fence::issue(run, Holder::Agent { attempt }),
        })
    }
}

#[async_trait]
impl Tickets for MemoryStorage {
    async fn issue(&self, issue: &TicketIssue) -> Result<()> {
        self.lock().tickets.entry(issue.ticket).or_insert_with(|| issue.clone());
        Ok(())
    }

    async fn redeem(&self, ticket: Digest, key: Digest, now: Timestamp) -> Result<AgentIdentity> {
        let mut state = self.lock();
        let issue = state
            .tickets
            .get(&ticket)
            .cloned()
            .ok_or_else(|| denied("unknown ticket"))?;
        let attempt = (issue.run, issue.attempt);
        if state.keys.get(&key) == Some(&attempt) {
            return state.identity(attempt);
        }
        if issue.expires_at <= now && !state.breaks(Mutation::IgnoreExpiry) {
            return Err(denied("expired ticket"));
        }
        let taken = state.keys.values().any(|bound| *bound == attempt) || state.keys.contains_key(&key);
        if taken && !state.breaks(Mutation::IgnoreKeys) {
            return Err(denied("the attempt is bound to another key"));
        }
        state.keys.insert(key, attempt);
        state.identity(attempt)
    }

    async fn authenticate(&self, key: Digest) -> Result<AgentIdentity> {
        let state = self.lock();
        state.identity(*state.keys.get(&key).ok_or_else(|| denied("unknown key"))?)
    }

    async fn redeemed(&self, run: RunId, attempt: u32) -> Result<bool> {
        Ok(self.lock().keys.values().any(|bound| *bound == (run, attempt)))
    }

    async fn purge(&self, before: Timestamp, limit: u32) -> Result<u64> {
        let mut state = self.lock();
        let State {
            runs, tickets, keys, ..
        } = &mut *state;
        let ended = |run: &RunId| {
            runs.get(run)
                .is_none_or(|stored| stored.run.finished_at.is_some_and(|at| at < before))
        };
        let mut left = limit;
        let mut drop_one = |run: &RunId| {
            let dropped = left > 0 && ended(run);
            left -= u32::from(dropped);
            !dropped
        };
        keys.retain(|_, (run, _)| drop_one(run));
        tickets.retain(|_, issue| drop_one(&issue.run));
        Ok(u64::from(limit - left))
    }

    async fn spent(&self, before: Timestamp) -> Result<u64> {
        let state = self.lock();
        let ended = |run: &RunId| {
            let stored = state.runs.get(run);
            stored.is_none_or(|stored| stored.run.finished_at.is_some_and(|at| at < before))
        };
        let runs = state.keys.values().map(|(run, _)| run);
        let spent = runs.chain(state.tickets.values().map(|issue| &issue.run));
        Ok(spent.filter(|run| ended(run)).count() as u64)
    }
}
