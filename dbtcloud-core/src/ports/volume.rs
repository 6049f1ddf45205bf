use std::path::PathBuf;

use async_trait::async_trait;

use crate::error::Result;
use crate::id::{AccountId, ProjectId, UserId};

/// Which volume: one per account, project and user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId {
    /// Whose account.
    pub account: AccountId,
    /// Of which project.
    pub project: ProjectId,
    /// Whose.
    pub user: UserId,
}

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "develop-{}-{}-{}", self.account, self.project, self.user)
    }
}

/// What an executor must attach. Understood by the executors that belong to the volume's backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The backend's name of the volume: a claim's name, a directory.
    pub source: String,
    /// Where the workload sees it.
    pub target: PathBuf,
}

/// Read-write-many storage for working copies.
///
/// Visibility: a file that an execution closed is readable through [`Volume::path`] once the executor says
/// that the execution has ended, and to another execution that opens it afterwards.
#[async_trait]
pub trait Volume: Send + Sync {
    /// Makes it exist. A second call changes nothing in it.
    async fn ensure(&self, id: VolumeId) -> Result<()>;

    /// What an executor must attach so that the workload sees it.
    ///
    /// Errors: `NotFound` when it was not ensured.
    async fn mount(&self, id: VolumeId) -> Result<Mount>;

    /// Where this process sees it.
    ///
    /// Errors: `NotFound` when it was not ensured; `Unavailable` when this process has no view of it.
    async fn path(&self, id: VolumeId) -> Result<PathBuf>;

    /// Destroys it and everything in it. `Ok` when it is not there.
    async fn remove(&self, id: VolumeId) -> Result<()>;

    /// All that exist.
    async fn list(&self) -> Result<Vec<VolumeId>>;
}
