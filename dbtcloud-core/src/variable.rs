//! Environment variables and the rule that says which value a run sees.
//!
//! Precedence, low to high: project default < environment < job override (runs) or personal override
//! (develop sessions). Source: dbt Cloud's documentation, "Environment variables".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Kind, Record};
use crate::error::{Error, Result};
use crate::id::{EnvironmentId, JobId, ProjectId, UserId, VariableId};
use crate::secret::Sealed;

/// Every name starts so (dbt Cloud's rule).
pub const PREFIX: &str = "DBT_";
/// A name that starts so is secret (dbt's own rule).
pub const SECRET_PREFIX: &str = "DBT_ENV_SECRET";
/// A value that is longer than this is refused: it would not fit an operating system's environment.
pub const VALUE_LIMIT_BYTES: usize = 64 * 1024;
/// A name that is longer than this is refused.
pub const NAME_LIMIT_BYTES: usize = 256;

/// Where a value applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "scope", content = "of", rename_all = "snake_case")]
pub enum Scope {
    /// Everywhere in the project.
    Project,
    /// In one environment.
    Environment(EnvironmentId),
    /// In the runs of one job.
    Job(JobId),
    /// In one person's develop sessions.
    User(UserId),
}

/// A value: plain, or sealed when the name says secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// In the clear.
    Plain(String),
    /// Sealed by the vault.
    Sealed(Sealed),
}

/// One variable in one scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// The project.
    pub project: ProjectId,
    /// `DBT_…`
    pub name: String,
    /// Where it applies.
    #[serde(flatten)]
    pub scope: Scope,
    /// What it is.
    pub value: Value,
}

impl Entity for Variable {
    const KIND: Kind = Kind::Variable;
    type Id = VariableId;
    fn name(&self) -> &str {
        &self.name
    }
    fn project(&self) -> Option<ProjectId> {
        Some(self.project)
    }
    /// The environment, job or user of its scope; none for a project default.
    fn parent(&self) -> Option<i64> {
        match self.scope {
            Scope::Project => None,
            Scope::Environment(id) => Some(id.get()),
            Scope::Job(id) => Some(id.get()),
            Scope::User(id) => Some(id.get()),
        }
    }
}

/// Whether a variable of this name holds a secret.
///
/// ```
/// assert!(dbtcloud_core::variable::is_secret("DBT_ENV_SECRET_TOKEN"));
/// assert!(!dbtcloud_core::variable::is_secret("DBT_REGION"));
/// ```
pub fn is_secret(name: &str) -> bool {
    name.starts_with(SECRET_PREFIX)
}

/// Checks a name and value.
///
/// # Errors
/// `Invalid`, naming `name` or `value` and what was expected.
pub fn validate(name: &str, value: &str) -> Result<()> {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if rest.is_empty() || !rest.chars().all(plain) || name.len() > NAME_LIMIT_BYTES {
        return Err(Error::invalid(
            "name",
            format!("expected {PREFIX} followed by upper-case letters, digits or underscores, got '{name}'"),
        ));
    }
    if value.len() > VALUE_LIMIT_BYTES || value.contains('\0') {
        return Err(Error::invalid(
            "value",
            format!(
                "expected at most {VALUE_LIMIT_BYTES} bytes without a NUL, got {} bytes",
                value.len()
            ),
        ));
    }
    Ok(())
}

/// For whom values are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// A run of this job.
    Job(JobId),
    /// A develop session of this user.
    User(UserId),
}

/// The values in force in `environment` for `viewer`: for every name the one of highest precedence.
///
/// Variables of other environments, jobs and users are left out. The result does not depend on the order
/// of `variables` (two rows of one scope cannot exist; were there two, the newer id wins).
pub fn resolve<'a>(
    variables: impl IntoIterator<Item = &'a Record<Variable>>,
    environment: EnvironmentId,
    viewer: Viewer,
) -> BTreeMap<&'a str, &'a Value> {
    let mut best: BTreeMap<&str, ((u8, VariableId), &Value)> = BTreeMap::new();
    for record in variables {
        let rank = match (record.body.scope, viewer) {
            (Scope::Project, _) => 0,
            (Scope::Environment(id), _) if id == environment => 1,
            (Scope::Job(id), Viewer::Job(job)) if id == job => 2,
            (Scope::User(id), Viewer::User(user)) if id == user => 2,
            _ => continue,
        };
        let candidate = ((rank, record.id), &record.body.value);
        let slot = best.entry(record.body.name.as_str()).or_insert(candidate);
        if candidate.0 > slot.0 {
            *slot = candidate;
        }
    }
    best.into_iter().map(|(name, (_, value))| (name, value)).collect()
}
