//! Develop sessions: one IDE server for one user of one project.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, ProjectId, SessionId, UserId};
use crate::run::Illegal;
use crate::time::Timestamp;

/// Where a session stands.
///
/// | from \ event | Started | Suspend | Suspended | Resume | Close | Failed |
/// |---|---|---|---|---|---|---|
/// | Starting | Running | Suspending | illegal | Starting | Closed | Failed |
/// | Running | Running | Suspending | illegal | Running | Closed | Failed |
/// | Suspending | Suspending | Suspending | Suspended | illegal | Closed | Failed |
/// | Suspended | illegal | Suspended | Suspended | Starting | Closed | Failed |
/// | Closed, Failed | absorbs | absorbs | absorbs | absorbs | absorbs | absorbs |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// Its server is being started.
    Starting,
    /// Its server answers.
    Running,
    /// Its server is being stopped; the volume stays.
    Suspending,
    /// No server; the volume waits.
    Suspended,
    /// Ended by its user.
    Closed,
    /// Ended by a fault.
    Failed,
}

/// What happens to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionEvent {
    /// The server answered.
    Started,
    /// It was idle, or its user asked.
    Suspend,
    /// The server is confirmed gone.
    Suspended,
    /// Its user came back.
    Resume,
    /// Its user ended it.
    Close,
    /// The server cannot be had.
    Failed,
}

impl SessionEvent {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Started,
        Self::Suspend,
        Self::Suspended,
        Self::Resume,
        Self::Close,
        Self::Failed,
    ];
}

impl SessionStatus {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Closed,
        Self::Failed,
    ];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }

    /// The status of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing can happen any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Closed | Self::Failed)
    }

    /// What follows from an event.
    ///
    /// # Errors
    /// [`Illegal`] where the table says so.
    pub fn apply(self, event: SessionEvent) -> Result<Self, Illegal> {
        use SessionEvent as E;
        match (self, event) {
            (Self::Closed | Self::Failed, _) => Ok(self),
            (_, E::Close) => Ok(Self::Closed),
            (_, E::Failed) => Ok(Self::Failed),
            (Self::Starting | Self::Running, E::Started) => Ok(Self::Running),
            (Self::Suspending, E::Started | E::Suspend) => Ok(Self::Suspending),
            (Self::Starting | Self::Running, E::Suspend) => Ok(Self::Suspending),
            (Self::Suspended, E::Suspend | E::Suspended) => Ok(Self::Suspended),
            (Self::Suspending, E::Suspended) => Ok(Self::Suspended),
            (Self::Starting, E::Resume) => Ok(Self::Starting),
            (Self::Running, E::Resume) => Ok(Self::Running),
            (Self::Suspended, E::Resume) => Ok(Self::Starting),
            (Self::Starting | Self::Running, E::Suspended)
            | (Self::Suspending, E::Resume)
            | (Self::Suspended, E::Started) => Err(Illegal::new("session", self.name(), &format!("{event:?}"))),
        }
    }
}

/// A develop session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Whose account.
    pub account: AccountId,
    /// Which project.
    pub project: ProjectId,
    /// Whose.
    pub user: UserId,
    /// Where it stands.
    pub status: SessionStatus,
    /// Counts starts; names the execution together with the id.
    pub generation: u32,
    /// Where its server answers, while it runs.
    pub address: Option<String>,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When its user was last active.
    pub active_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_decided_and_terminal_states_absorb() {
        for status in SessionStatus::ALL {
            assert_eq!(SessionStatus::from_name(status.name()), Some(status));
            for event in SessionEvent::ALL {
                let next = status.apply(event);
                if status.is_terminal() {
                    assert_eq!(next, Ok(status));
                }
            }
        }
    }
}
