//! Drops the log of what was sent to people and programs outside. What is still to be sent stays.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;

use super::{Chore, PAGE, Swept, Work};

/// How long it is kept that something was sent (dbt Cloud's rule).
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Purges the log of dispatches.
#[derive(Debug)]
pub(super) struct PurgeDispatches;

#[async_trait]
impl Chore for PurgeDispatches {
    fn name(&self) -> &'static str {
        "purge_dispatches"
    }

    fn kind(&self) -> &'static str {
        "dispatch"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/purge_dispatches")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 20
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let (dispatches, before) = (work.plane.dispatches(), work.now.minus(KEPT));
        let count = dispatches.old_dispatches(before);
        work.purge(swept, count, || dispatches.forget_dispatches(before, PAGE))
            .await
    }
}
