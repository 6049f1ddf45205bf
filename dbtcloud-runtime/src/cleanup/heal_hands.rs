//! Sets clock hands that a crash left behind their job: those of active jobs whose hand was worked out from
//! another version of the job, or is missing.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;
use dbtcloud_core::catalog::{Kind, Record};
use dbtcloud_core::job::Job;

use super::{Chore, Cursor, Failures, PAGE, PAGES, Swept, Work};

/// Heals hands.
#[derive(Debug, Default)]
pub(super) struct HealHands {
    after: Cursor,
}

#[async_trait]
impl Chore for HealHands {
    fn name(&self) -> &'static str {
        "heal_hands"
    }

    fn kind(&self) -> &'static str {
        "hand"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/heal_hands")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 2
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let mut failures = Failures::default();
        for _ in 0..PAGES {
            let rows = work.plane.catalog().scan(Kind::Job, self.after.get(), PAGE).await?;
            let Some(last) = rows.last().map(|row| row.id) else {
                self.after.set(0);
                return failures.end();
            };
            let mut jobs = Vec::with_capacity(rows.len());
            for row in rows {
                swept.examined += 1;
                jobs.extend(failures.note(Record::<Job>::try_from(row))?);
            }
            let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
            let hands = work.plane.schedules().of(&ids).await?;
            for job in jobs {
                let stale = match hands.iter().find(|hand| hand.job == job.id) {
                    Some(hand) => hand.job_version < job.version,
                    None => job.active_schedule().is_some(),
                };
                if !stale {
                    continue;
                }
                if work.acts() && failures.note(work.plane.set_hand(&job).await)?.is_none() {
                    continue;
                }
                swept.done += 1;
            }
            self.after.set(last);
        }
        swept.more = true;
        failures.end()
    }
}
