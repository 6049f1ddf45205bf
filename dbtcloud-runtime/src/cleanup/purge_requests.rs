//! Drops keys of requests for runs that ran out: one that comes again by such a key is a new request.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;

use super::{Chore, PAGE, Swept, Work};

/// Purges keys.
#[derive(Debug)]
pub(super) struct PurgeRequests;

#[async_trait]
impl Chore for PurgeRequests {
    fn name(&self) -> &'static str {
        "purge_requests"
    }

    fn kind(&self) -> &'static str {
        "request"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/purge_requests")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 10
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let (runs, now) = (work.plane.runs(), work.now);
        work.purge(swept, runs.old_requests(now), || runs.purge_requests(now, PAGE))
            .await
    }
}
