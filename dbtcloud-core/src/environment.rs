//! Environments: where a project runs, with which dbt.

pub mod overlay;
mod placement;

pub use placement::{Placement, Resources, Toleration, image_reference, name as object_name};
use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Extras, Kind};
use crate::id::{ConnectionId, CredentialsId, EnvironmentId, ExtendedAttributesId, ProjectId};

/// What an environment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentKind {
    /// People's own work. Exactly one per project.
    Development,
    /// Jobs.
    Deployment,
}

/// The rank of a deployment environment. A project has at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentType {
    /// What the business reads.
    Production,
    /// What comes before production.
    Staging,
}

/// An environment of a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The project.
    pub project: ProjectId,
    /// Display name, unique in the project.
    pub name: String,
    /// Development or deployment.
    pub kind: EnvironmentKind,
    /// Production, staging or neither.
    pub deployment_type: Option<DeploymentType>,
    /// Which dbt: `latest`, a minor (`1.11`) or an exact version.
    pub dbt_version: String,
    /// Where its warehouse is; the project's default when absent.
    pub connection: Option<ConnectionId>,
    /// Who logs in (deployment environments).
    pub credentials: Option<CredentialsId>,
    /// Profile fields merged over the generated target.
    pub extended_attributes: Option<ExtendedAttributesId>,
    /// The branch to check out instead of the repository's default.
    pub custom_branch: Option<String>,
    /// Whether `custom_branch` is in force.
    pub use_custom_branch: bool,
    /// Where and with how much its runs execute.
    #[serde(default, skip_serializing_if = "Placement::is_default")]
    pub execution: Placement,
    /// What clients send and read back and nothing here acts on.
    #[serde(default)]
    pub extras: Extras,
}

impl Environment {
    /// The branch this environment checks out, if it names one.
    pub fn branch(&self) -> Option<&str> {
        self.custom_branch.as_deref().filter(|_| self.use_custom_branch)
    }
}

impl Entity for Environment {
    const KIND: Kind = Kind::Environment;
    type Id = EnvironmentId;
    fn name(&self) -> &str {
        &self.name
    }
    fn project(&self) -> Option<ProjectId> {
        Some(self.project)
    }
}
