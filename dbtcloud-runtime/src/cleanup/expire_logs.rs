//! Lets the logs of runs go that ended longer ago than their account keeps logs; the runs stay.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;
use dbtcloud_core::ports::RunPart;
use dbtcloud_core::retention::Kept;

use super::{Chore, Swept, Work, retention};

/// Expires logs.
#[derive(Debug)]
pub(super) struct ExpireLogs;

#[async_trait]
impl Chore for ExpireLogs {
    fn name(&self) -> &'static str {
        "expire_logs"
    }

    fn kind(&self) -> &'static str {
        "run_logs"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/expire_logs")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 120
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        retention::expire(work, Kept::Logs, RunPart::Logs, swept).await
    }
}
