//! Forgets the signs of schedulers that are gone: each has a lease of its own name, which nobody uses again.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;

use super::{Chore, PAGE, Swept, Work};
use crate::scheduler::PRESENCE;

/// How long the sign of a scheduler that is gone is kept.
const KEPT: Duration = Duration::from_secs(3600);

/// Purges leases.
#[derive(Debug)]
pub(super) struct PurgeLeases;

#[async_trait]
impl Chore for PurgeLeases {
    fn name(&self) -> &'static str {
        "purge_leases"
    }

    fn kind(&self) -> &'static str {
        "lease"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/purge_leases")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 20
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let (leases, before) = (work.plane.leases(), work.now.minus(KEPT));
        let count = leases.over(PRESENCE, before);
        work.purge(swept, count, || leases.purge(PRESENCE, before, PAGE)).await
    }
}
