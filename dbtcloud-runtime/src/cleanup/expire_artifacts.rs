//! Lets the artifacts of runs go that ended longer ago than their account keeps artifacts; the runs stay.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;
use dbtcloud_core::ports::RunPart;
use dbtcloud_core::retention::Kept;

use super::{Chore, Swept, Work, retention};

/// Expires artifacts.
#[derive(Debug)]
pub(super) struct ExpireArtifacts;

#[async_trait]
impl Chore for ExpireArtifacts {
    fn name(&self) -> &'static str {
        "expire_artifacts"
    }

    fn kind(&self) -> &'static str {
        "run_artifacts"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/expire_artifacts")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 120
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        retention::expire(work, Kept::Artifacts, RunPart::Artifacts, swept).await
    }
}
