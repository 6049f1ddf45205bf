//! Projects and the git repositories they are cloned from.

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Extras, Kind};
use crate::id::{ConnectionId, JobId, ProjectId, RepositoryId};
use crate::secret::Sealed;

/// A dbt project: one repository, optionally a folder of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// Display name.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Where its code is.
    pub repository: Option<RepositoryId>,
    /// The project's default connection; an environment's own comes first.
    pub connection: Option<ConnectionId>,
    /// The folder of the repository that holds `dbt_project.yml`.
    pub subdirectory: Option<String>,
    /// The job whose documentation is shown.
    pub docs_job: Option<JobId>,
    /// The job whose source freshness is shown.
    pub freshness_job: Option<JobId>,
    /// What clients send and read back and nothing here acts on.
    #[serde(default)]
    pub extras: Extras,
}

impl Entity for Project {
    const KIND: Kind = Kind::Project;
    type Id = ProjectId;
    fn name(&self) -> &str {
        &self.name
    }
}

/// How a clone authenticates. Values are sealed; they never reach argv, a log or `.git/config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GitAccess {
    /// No authentication.
    #[default]
    Anonymous,
    /// User name and token over HTTPS.
    Token {
        /// The user name a host expects beside a token (`x-access-token`, `oauth2`, …).
        username: String,
        /// The token.
        token: Sealed,
    },
    /// An SSH deploy key.
    DeployKey {
        /// The public half, to be added at the host.
        public_key: String,
        /// The private half, in OpenSSH format.
        private_key: Sealed,
    },
}

/// A git repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repository {
    /// The project it was created for.
    pub project: ProjectId,
    /// URL to clone from: `https://…`, `ssh://…`, `git@host:path`, `file://…` or a path.
    pub remote_url: String,
    /// dbt Cloud's name for how it authenticates (`deploy_key`, `deploy_token`, `git_token`, …).
    pub git_clone_strategy: String,
    /// The branch cloned when nothing names one; the remote's own default when absent.
    pub default_branch: Option<String>,
    /// Credentials.
    #[serde(default)]
    pub access: GitAccess,
    /// What clients send and read back and nothing here acts on.
    #[serde(default)]
    pub extras: Extras,
}

impl Entity for Repository {
    const KIND: Kind = Kind::Repository;
    type Id = RepositoryId;
    fn name(&self) -> &str {
        &self.remote_url
    }
    fn project(&self) -> Option<ProjectId> {
        Some(self.project)
    }
}
