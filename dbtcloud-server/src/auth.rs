//! Who asks, and what they may do.
//!
//! The default [`TokenAuthenticator`] looks a token up by its SHA-256 digest; an embedder with identities of
//! its own brings another [`Authenticator`]. A token belongs to one account and sees nothing of any other.

use std::sync::Arc;

use async_trait::async_trait;
use dbtcloud_core::account::{Grant, Token, TokenOwner, User};
use dbtcloud_core::audit;
use dbtcloud_core::catalog::{CatalogExt, Kind, Record};
use dbtcloud_core::id::{AccountId, ProjectId, TokenId, UserId};
use dbtcloud_core::{ErrorKind, Result};
use dbtcloud_runtime::ControlPlane;
use sha2::{Digest, Sha256};

/// The longest token that is looked at, in bytes.
pub const TOKEN_LIMIT_BYTES: usize = 512;

/// What a request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// See things.
    Read,
    /// Run jobs, cancel and retry runs.
    Run,
    /// Change jobs.
    EditJobs,
    /// Change a project's environments, credentials, repositories and variables.
    EditProject,
    /// Change the account: projects, connections, users.
    EditAccount,
    /// See and change webhooks.
    Webhooks,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Run,
        Self::EditJobs,
        Self::EditProject,
        Self::EditAccount,
        Self::Webhooks,
    ];

    /// What the right is called in a refusal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "the right to read",
            Self::Run => "the right to run jobs",
            Self::EditJobs => "the right to change jobs",
            Self::EditProject => "the right to change the project",
            Self::EditAccount => "the right to change the account",
            Self::Webhooks => "the right to manage webhooks",
        }
    }
}

/// The rights of a permission set of dbt Cloud's. A set that is not known has none.
///
/// ```
/// use dbtcloud_server::auth::{Right, rights_of_set};
/// assert!(rights_of_set("job_runner").contains(&Right::Run));
/// assert!(!rights_of_set("readonly").contains(&Right::Run));
/// assert!(rights_of_set("no_such_set").is_empty());
/// ```
pub fn rights_of_set(set: &str) -> &'static [Right] {
    use Right::{EditAccount, EditJobs, EditProject, Read, Run, Webhooks};
    match set {
        "account_admin" | "owner" | "member" => &[Read, Run, EditJobs, EditProject, EditAccount, Webhooks],
        "project_creator" => &[Read, EditProject, EditAccount],
        "admin" | "team_admin" => &[Read, Run, EditJobs, EditProject, Webhooks],
        "database_admin" | "git_admin" => &[Read, EditProject],
        "job_admin" | "job_creator" => &[Read, Run, EditJobs],
        "developer" => &[Read, Run, Webhooks],
        "analyst" | "job_runner" => &[Read, Run],
        "webhooks_only" => &[Webhooks],
        "account_viewer" | "analyst_read" | "job_viewer" | "readonly" | "stakeholder" => &[Read],
        _ => &[],
    }
}

/// Rights in one project or in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Where; everywhere in the account when absent.
    pub project: Option<ProjectId>,
    /// What.
    pub rights: Vec<Right>,
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A person.
    User(UserId),
    /// A service token.
    Service(TokenId),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The account, and the only one.
    pub account: AccountId,
    /// Who acts.
    pub actor: Actor,
    /// What a person reads in a log.
    pub name: String,
    /// What they may do.
    pub grants: Vec<Granted>,
}

impl Identity {
    /// The same for the audit log.
    pub fn by(&self) -> audit::Actor {
        let name = self.name.clone();
        match self.actor {
            Actor::User(id) => audit::Actor::User { id, name },
            Actor::Service(id) => audit::Actor::Service { id, name },
        }
    }

    /// Whether they may do this: in `project`, or in the account as a whole. Reading what belongs to the
    /// account as a whole is open to everyone who may read any of it.
    pub fn may(&self, right: Right, project: Option<ProjectId>) -> bool {
        self.grants
            .iter()
            .filter(|granted| granted.rights.contains(&right))
            .any(|granted| match (granted.project, project) {
                (None, _) => true,
                (Some(own), Some(asked)) => own == asked,
                (Some(_), None) => right == Right::Read,
            })
    }

    /// The projects that may be read; `None` when all may.
    pub fn readable_projects(&self) -> Option<Vec<ProjectId>> {
        let readable = self
            .grants
            .iter()
            .filter(|granted| granted.rights.contains(&Right::Read));
        readable.map(|granted| granted.project).collect()
    }
}

/// Tells who has a token.
///
/// Contract: `Ok(None)` for a token that is unknown, expired or revoked; an error only when that cannot be
/// told. It is asked once per request.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// Who has this token.
    async fn authenticate(&self, token: &str) -> Result<Option<Identity>>;
}

/// Tokens and users as they are in the catalog.
#[derive(Clone, Debug)]
pub struct TokenAuthenticator {
    plane: ControlPlane,
}

impl TokenAuthenticator {
    /// One that asks this control plane's catalog.
    pub fn new(plane: ControlPlane) -> Self {
        Self { plane }
    }
}

/// The digest by which a token is kept: lower-case hex SHA-256.
///
/// ```
/// assert_eq!(dbtcloud_server::auth::digest("t").len(), 64);
/// ```
pub fn digest(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// Compares without telling by its duration where the first difference is.
fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

fn granted(grants: &[Grant]) -> Vec<Granted> {
    grants
        .iter()
        .map(|grant| Granted {
            project: grant.project,
            rights: rights_of_set(&grant.permission_set).to_vec(),
        })
        .collect()
}

#[async_trait]
impl Authenticator for TokenAuthenticator {
    async fn authenticate(&self, token: &str) -> Result<Option<Identity>> {
        if token.is_empty() || token.len() > TOKEN_LIMIT_BYTES {
            return Ok(None);
        }
        let digest = digest(token);
        // The lookup is by digest: its duration tells nothing of the token.
        let Some(row) = self.plane.catalog().find(Kind::Token, &digest).await? else {
            return Ok(None);
        };
        let record: Record<Token> = row.try_into()?;
        let expired = record.expires_at.is_some_and(|at| at <= self.plane.clock().now());
        if record.deleted || expired || !same(&record.digest, &digest) {
            return Ok(None);
        }
        let account = record.account;
        Ok(match &record.owner {
            TokenOwner::Service { permissions } => Some(Identity {
                account,
                actor: Actor::Service(record.id),
                name: record.name.clone(),
                grants: granted(permissions),
            }),
            TokenOwner::User { user } => match self.plane.catalog().fetch::<User>(account, *user).await {
                Ok(user) => Some(Identity {
                    account,
                    actor: Actor::User(user.id),
                    name: user.email.clone(),
                    grants: vec![Granted {
                        project: None,
                        rights: rights_of_set(if user.is_admin { "account_admin" } else { "developer" }).to_vec(),
                    }],
                }),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
        })
    }
}

/// The token in an `Authorization` header: `Token …` and `Bearer …` mean the same, and a bare token is none.
pub(crate) fn token_in(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer");
    Some(token.trim()).filter(|token| known && !token.is_empty())
}

/// Shared by all requests.
pub(crate) type SharedAuthenticator = Arc<dyn Authenticator>;

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(grants: &[(&str, Option<i64>)]) -> Identity {
        let grants: Vec<Grant> = grants
            .iter()
            .map(|(set, project)| Grant {
                permission_set: (*set).to_owned(),
                project: project.map(ProjectId::new),
            })
            .collect();
        Identity {
            account: AccountId::new(1),
            actor: Actor::Service(TokenId::new(1)),
            name: "t".to_owned(),
            grants: granted(&grants),
        }
    }

    #[test]
    fn a_grant_in_one_project_says_nothing_of_another() {
        let who = identity(&[("job_admin", Some(1)), ("readonly", Some(2))]);
        let (one, two, three) = (ProjectId::new(1), ProjectId::new(2), ProjectId::new(3));
        assert!(who.may(Right::EditJobs, Some(one)));
        assert!(!who.may(Right::EditJobs, Some(two)));
        assert!(who.may(Right::Read, Some(two)));
        assert!(!who.may(Right::Read, Some(three)));
        assert!(who.may(Right::Read, None));
        assert!(!who.may(Right::EditAccount, None));
        assert_eq!(who.readable_projects(), Some(vec![one, two]));
        assert_eq!(identity(&[("account_admin", None)]).readable_projects(), None);
        assert_eq!(identity(&[]).readable_projects(), Some(vec![]));
    }

    #[test]
    fn both_schemes_and_no_bare_token() {
        assert_eq!(token_in("Token abc"), Some("abc"));
        assert_eq!(token_in("bearer  abc "), Some("abc"));
        for bad in ["abc", "Token ", "Basic abc", "", "Tokenabc"] {
            assert_eq!(token_in(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_comparison_is_right() {
        assert!(same("abc", "abc"));
        assert!(!same("abc", "abd"));
        assert!(!same("abc", "ab"));
    }
}
