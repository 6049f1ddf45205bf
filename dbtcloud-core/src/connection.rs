//! Connections (where a warehouse is) and credentials (who logs in).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Extras, Kind};
use crate::id::{ConnectionId, CredentialsId, ExtendedAttributesId, ProjectId};
use crate::secret::Sealed;

/// Where a warehouse is. Account-level, as dbt Cloud has had it since 2024.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Display name; the step "Create profile from connection …" shows it.
    pub name: String,
    /// dbt adapter: `duckdb`, `postgres`, `snowflake`, …
    pub adapter: String,
    /// dbt Cloud's `adapter_version` (`postgres_v0`, …) as the client sent it.
    pub adapter_version: String,
    /// Non-secret profile fields.
    pub config: Extras,
    /// Secret profile fields, sealed.
    #[serde(default)]
    pub secrets: BTreeMap<String, Sealed>,
    /// What clients send and read back and nothing here acts on.
    #[serde(default)]
    pub extras: Extras,
}

impl Entity for Connection {
    const KIND: Kind = Kind::Connection;
    type Id = ConnectionId;
    fn name(&self) -> &str {
        &self.name
    }
}

/// Who logs in to a warehouse, and where models are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credentials {
    /// The project they belong to.
    pub project: ProjectId,
    /// dbt adapter.
    pub adapter: String,
    /// dbt Cloud's `adapter_version` as the client sent it.
    pub adapter_version: String,
    /// Target schema (or dataset).
    pub schema: Option<String>,
    /// Threads when the job does not say.
    pub threads: Option<u32>,
    /// Target name when the job does not say.
    pub target_name: Option<String>,
    /// Non-secret profile fields.
    pub fields: Extras,
    /// Secret profile fields, sealed.
    #[serde(default)]
    pub secrets: BTreeMap<String, Sealed>,
    /// What clients send and read back and nothing here acts on.
    #[serde(default)]
    pub extras: Extras,
}

impl Entity for Credentials {
    const KIND: Kind = Kind::Credentials;
    type Id = CredentialsId;
    fn name(&self) -> &str {
        &self.adapter
    }
    fn project(&self) -> Option<ProjectId> {
        Some(self.project)
    }
}

/// Profile fields merged over the generated target, at top level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtendedAttributes {
    /// The project they belong to.
    pub project: ProjectId,
    /// The fields. Secrets are referred to by `{{ env_var('DBT_ENV_SECRET_…') }}`.
    pub fields: Extras,
}

impl Entity for ExtendedAttributes {
    const KIND: Kind = Kind::ExtendedAttributes;
    type Id = ExtendedAttributesId;
    fn name(&self) -> &str {
        "extended attributes"
    }
    fn project(&self) -> Option<ProjectId> {
        Some(self.project)
    }
}
