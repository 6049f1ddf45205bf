use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{AccountId, SessionId};
use dbtcloud_core::ports::{NewSession, SessionChange, Sessions};
use dbtcloud_core::session::{Session, SessionStatus};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, check_text};

#[async_trait]
impl Sessions for MemoryStorage {
    async fn open(&self, new: NewSession, now: Timestamp) -> Result<Session> {
        let mut state = self.lock();
        let open = state.sessions.values().find(|session| {
            !session.status.is_terminal()
                && (session.account, session.project, session.user) == (new.account, new.project, new.user)
        });
        if let Some(session) = open.filter(|_| !state.breaks(Mutation::OpenTwice)) {
            return Ok(session.clone());
        }
        let session = Session {
            id: state.counters.session(),
            account: new.account,
            project: new.project,
            user: new.user,
            status: SessionStatus::Starting,
            generation: 1,
            address: None,
            created_at: now,
            updated_at: now,
            active_at: now,
        };
        state.sessions.insert(session.id, session.clone());
        Ok(session)
    }

    async fn get(&self, account: AccountId, id: SessionId) -> Result<Session> {
        let state = self.lock();
        let found = state.sessions.get(&id).filter(|session| session.account == account);
        found.cloned().ok_or_else(|| Error::not_found("session", id))
    }

    async fn scan(&self, states: &[SessionStatus], after: SessionId, limit: u32) -> Result<Vec<Session>> {
        let state = self.lock();
        let found = state
            .sessions
            .values()
            .filter(|session| session.id > after && states.contains(&session.status));
        Ok(found.take(limit as usize).cloned().collect())
    }

    async fn change(
        &self,
        account: AccountId,
        id: SessionId,
        change: &SessionChange,
        now: Timestamp,
    ) -> Result<Session> {
        check_text("address", &change.address)?;
        let mut state = self.lock();
        let session = state.sessions.get_mut(&id).filter(|session| session.account == account);
        let session = session.ok_or_else(|| Error::not_found("session", id))?;
        if session.status != change.from || session.generation != change.generation {
            return Err(Error::conflict(format!(
                "session {id} is {} in generation {}",
                session.status.name(),
                session.generation
            )));
        }
        let to = session.status.apply(change.event)?;
        if session.status == SessionStatus::Suspended && to == SessionStatus::Starting {
            session.generation += 1;
        }
        session.address = match to {
            SessionStatus::Running => change.address.clone().or(session.address.take()),
            _ => None,
        };
        session.status = to;
        session.updated_at = now;
        if change.active {
            session.active_at = now;
        }
        Ok(session.clone())
    }

    async fn forget(&self, sessions: &[SessionId]) -> Result<u64> {
        let mut state = self.lock();
        let careless = state.breaks(Mutation::ForgetOpen);
        let before = state.sessions.len();
        state
            .sessions
            .retain(|id, session| !sessions.contains(id) || !session.status.is_terminal() && !careless);
        Ok((before - state.sessions.len()) as u64)
    }
}
