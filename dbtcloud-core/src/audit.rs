//! The audit log: who changed what. An entry says that something was changed and never what it says now, so that no
//! secret stands in one.

use serde::{Deserialize, Serialize};

use crate::catalog::{Draft, Kind};
use crate::id::{AccountId, AuditId, ProjectId, TokenId, UserId};
use crate::time::Timestamp;

/// On whose behalf something is done. The name is the one they had then.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Actor {
    /// The platform itself.
    #[default]
    System,
    /// Somebody at the command line of the server.
    Operator,
    /// A person.
    User {
        /// Who.
        id: UserId,
        /// Their login.
        name: String,
    },
    /// A service token.
    Service {
        /// Which.
        id: TokenId,
        /// What it is called.
        name: String,
    },
}

impl Actor {
    /// The names that kinds of actors are stored by.
    pub const KINDS: [&'static str; 4] = ["system", "operator", "user", "service"];

    /// The name that its kind is stored by.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Operator => "operator",
            Self::User { .. } => "user",
            Self::Service { .. } => "service",
        }
    }

    /// Its id, where it has one.
    pub fn id(&self) -> Option<i64> {
        match self {
            Self::System | Self::Operator => None,
            Self::User { id, .. } => Some(id.get()),
            Self::Service { id, .. } => Some(id.get()),
        }
    }

    /// Its name; empty where it has none.
    pub fn name(&self) -> &str {
        match self {
            Self::System | Self::Operator => "",
            Self::User { name, .. } | Self::Service { name, .. } => name,
        }
    }

    /// The actor of these parts, if it is one.
    ///
    /// ```
    /// use dbtcloud_core::{audit::Actor, id::UserId};
    /// let ada = Actor::User { id: UserId::new(3), name: "ada@acme.example".to_owned() };
    /// assert_eq!(Actor::of(ada.kind(), ada.id(), ada.name()), Some(ada));
    /// ```
    pub fn of(kind: &str, id: Option<i64>, name: &str) -> Option<Self> {
        let name = name.to_owned();
        match (kind, id) {
            ("system", None) => Some(Self::System),
            ("operator", None) => Some(Self::Operator),
            ("user", Some(id)) => Some(Self::User {
                id: UserId::new(id),
                name,
            }),
            ("service", Some(id)) => Some(Self::Service {
                id: TokenId::new(id),
                name,
            }),
            _ => None,
        }
    }

    /// Whether it is the platform itself.
    pub fn is_system(&self) -> bool {
        *self == Self::System
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Something was made.
    Added,
    /// Something was written over.
    Changed,
    /// Something was deleted.
    Removed,
    /// A run was set off.
    Triggered,
    /// The end of a run was asked for.
    Cancelled,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Added,
        Self::Changed,
        Self::Removed,
        Self::Triggered,
        Self::Cancelled,
    ];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Triggered => "triggered",
            Self::Cancelled => "cancelled",
        }
    }

    /// The action of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// What kind of thing it was done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A record of the catalog.
    Record(Kind),
    /// A run.
    Run,
}

impl Subject {
    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Record(kind) => kind.noun(),
            Self::Run => "run",
        }
    }

    /// The subject of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let kinds = Kind::ALL.into_iter().map(Self::Record);
        kinds.chain([Self::Run]).find(|subject| subject.name() == name)
    }
}

/// Who did what to which thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// In which account.
    pub account: AccountId,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: Actor,
    /// What was done.
    pub action: Action,
    /// To what kind of thing.
    pub subject: Subject,
    /// The id of the thing.
    pub id: i64,
    /// What it was called then.
    pub name: String,
    /// The project it is of, if any.
    pub project: Option<ProjectId>,
}

impl Entry {
    /// The entry of a change of the catalog: of the record of this id and account, for which a draft was taken.
    pub fn of_draft(draft: &Draft, account: AccountId, id: i64, action: Action) -> Self {
        Self {
            account,
            at: draft.at,
            by: draft.by.clone(),
            action: if draft.deleted { Action::Removed } else { action },
            subject: Subject::Record(draft.kind),
            id,
            name: draft.name.clone(),
            project: draft.project,
        }
    }
}

/// An entry as it is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its id; later ones are greater.
    pub id: AuditId,
    /// What it says.
    pub entry: Entry,
}
