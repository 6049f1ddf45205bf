//! Accounts, users and tokens.

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Kind};
use crate::id::{AccountId, ProjectId, TokenId, UserId};
use crate::retention::OwnRetention;
use crate::time::Timestamp;

/// Run slots of an account that does not say otherwise. dbt Cloud's API default is 1; a self-hosted
/// installation starts with what two cores can do.
pub const DEFAULT_RUN_SLOTS: u32 = 4;
/// Queued runs an account may have (dbt Cloud's default is 50; ours is wider since nobody bills for it).
pub const DEFAULT_QUEUE_LIMIT: u32 = 10_000;
/// The longest a run may take, in seconds (24 h, dbt Cloud's hard limit).
pub const DEFAULT_RUN_DURATION_LIMIT_SECONDS: u64 = 86_400;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Display name.
    pub name: String,
    /// How many runs may execute at one time.
    pub run_slots: u32,
    /// How many runs may be queued at one time.
    pub queue_limit: u32,
    /// The longest a run may take, in seconds.
    pub run_duration_limit_seconds: u64,
    /// How long it keeps what is over, where it says something else than the installation.
    #[serde(default)]
    pub retention: OwnRetention,
}

impl Account {
    /// An account with the default limits.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            run_slots: DEFAULT_RUN_SLOTS,
            queue_limit: DEFAULT_QUEUE_LIMIT,
            run_duration_limit_seconds: DEFAULT_RUN_DURATION_LIMIT_SECONDS,
            retention: OwnRetention::default(),
        }
    }
}

impl Entity for Account {
    const KIND: Kind = Kind::Account;
    type Id = AccountId;
    fn name(&self) -> &str {
        &self.name
    }
}

/// A person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Login name and address.
    pub email: String,
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
    /// May do anything in the account.
    pub is_admin: bool,
}

impl Entity for User {
    const KIND: Kind = Kind::User;
    type Id = UserId;
    fn name(&self) -> &str {
        &self.email
    }
    fn lookup(&self) -> Option<&str> {
        Some(&self.email)
    }
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TokenOwner {
    /// A personal access token: acts as this user.
    User {
        /// The user.
        user: UserId,
    },
    /// A service token: belongs to the account, with explicit grants.
    Service {
        /// Names of permission sets, as dbt Cloud has them (`account_admin`, `job_runner`, …).
        permissions: Vec<Grant>,
    },
}

/// One permission set on one project or on all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The permission set's name.
    pub permission_set: String,
    /// The project, or all projects.
    pub project: Option<ProjectId>,
}

/// An API token. Only the SHA-256 digest of its text is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Display name.
    pub name: String,
    /// Whose it is.
    pub owner: TokenOwner,
    /// Lower-case hex SHA-256 of the token text.
    pub digest: String,
    /// After this instant it is refused.
    pub expires_at: Option<Timestamp>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl Entity for Token {
    const KIND: Kind = Kind::Token;
    type Id = TokenId;
    fn name(&self) -> &str {
        &self.name
    }
    fn lookup(&self) -> Option<&str> {
        Some(&self.digest)
    }
}
