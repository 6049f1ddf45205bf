//! Drops tickets and keys of agents whose run ended some time ago. An agent that comes later is nobody's.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;

use super::{Chore, PAGE, Swept, Work};

/// How long tickets of ended runs are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Purges tickets.
#[derive(Debug)]
pub(super) struct PurgeTickets;

#[async_trait]
impl Chore for PurgeTickets {
    fn name(&self) -> &'static str {
        "purge_tickets"
    }

    fn kind(&self) -> &'static str {
        "ticket"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/purge_tickets")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 10
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let (tickets, before) = (work.plane.tickets(), work.now.minus(KEPT));
        work.purge(swept, tickets.spent(before), || tickets.purge(before, PAGE))
            .await
    }
}
