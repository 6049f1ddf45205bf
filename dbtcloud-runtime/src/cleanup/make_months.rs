//! Makes room in the history for the present month and the ones to come.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;
use dbtcloud_core::ports::MONTHS_AHEAD;

use super::{Chore, Swept, Work};

/// Makes months.
#[derive(Debug)]
pub(super) struct MakeMonths;

#[async_trait]
impl Chore for MakeMonths {
    fn name(&self) -> &'static str {
        "make_months"
    }

    fn kind(&self) -> &'static str {
        "month"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/make_months")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 20
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        swept.examined += u64::from(MONTHS_AHEAD) + 1;
        if work.acts() {
            work.plane.history().prepare(work.now).await?;
        }
        Ok(())
    }
}
