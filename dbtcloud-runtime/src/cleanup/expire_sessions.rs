//! Forgets develop sessions that ended longer ago than their account keeps them.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;
use dbtcloud_core::id::SessionId;
use dbtcloud_core::retention::Kept;
use dbtcloud_core::session::SessionStatus;

use super::retention::policy;
use super::{Chore, Cursor, PAGE, PAGES, Swept, Work};

/// Expires sessions.
#[derive(Debug, Default)]
pub(super) struct ExpireSessions {
    after: Cursor,
}

#[async_trait]
impl Chore for ExpireSessions {
    fn name(&self) -> &'static str {
        "expire_sessions"
    }

    fn kind(&self) -> &'static str {
        "session"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/expire_sessions")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 120
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let sessions = work.plane.sessions();
        let policy = policy(work.plane).await?;
        let ended: Vec<SessionStatus> = SessionStatus::ALL.into_iter().filter(|one| one.is_terminal()).collect();
        for _ in 0..PAGES {
            let page = sessions.scan(&ended, SessionId::new(self.after.get()), PAGE).await?;
            let Some(last) = page.last().map(|session| session.id) else {
                self.after.set(0);
                return Ok(());
            };
            swept.examined += page.len() as u64;
            let over = page.iter().filter(|session| {
                let cutoff = policy.of(session.account).days(Kept::Sessions).cutoff(work.now);
                cutoff.is_some_and(|before| session.updated_at < before)
            });
            let over: Vec<SessionId> = over.map(|session| session.id).collect();
            swept.done += match work.acts() && !over.is_empty() {
                true => sessions.forget(&over).await?,
                false => over.len() as u64,
            };
            self.after.set(last.get());
        }
        swept.more = true;
        Ok(())
    }
}
