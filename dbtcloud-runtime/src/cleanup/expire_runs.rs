//! Lets runs go that ended longer ago than their account keeps runs, with all that hangs on them: their files first. A
//! month that nobody keeps a run of goes at a stroke.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::EndedFilter;
use dbtcloud_core::retention::{Kept, Rule};
use dbtcloud_core::run::Month;
use dbtcloud_core::{ErrorKind, Result, Timestamp};

use super::retention::{Span, is_full, policy, remove_files, spans};
use super::{Chore, Failures, PAGE, Swept, Work};

/// Expires runs.
#[derive(Debug, Default)]
pub(super) struct ExpireRuns {
    /// How far the files of a month that goes at a stroke are removed. Lost with the process: it begins again.
    place: Mutex<Option<Place>>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    month: Month,
    after: RunId,
    runs: u64,
}

/// What became of a month that nobody keeps a run of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
    Gone,
    /// The sweep is over before all of its files are removed.
    Unfinished,
    /// A run of it executes or ended late, or files cannot be removed: its runs go one by one.
    Held,
}

#[async_trait]
impl Chore for ExpireRuns {
    fn name(&self) -> &'static str {
        "expire_runs"
    }

    fn kind(&self) -> &'static str {
        "run"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/expire_runs")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 120
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let policy = policy(work.plane).await?;
        let rules = policy.rules(Kept::Runs, work.now);
        let Some(latest) = rules.iter().map(|rule| rule.before).max() else {
            return Ok(());
        };
        let nobodys = policy.kept_by_nobody(Kept::Runs, work.now);
        let mut failures = Failures::default();
        for span in spans(work.plane, latest).await? {
            if let (Some(month), Some(before)) = (span.month, nobodys)
                && work.acts()
                && month.next().start() <= before
            {
                match self
                    .drop_month(work, month, &span, before, swept, &mut failures)
                    .await?
                {
                    Became::Gone => continue,
                    Became::Unfinished => return failures.end(),
                    Became::Held => {}
                }
            }
            for rule in &rules {
                one_by_one(work, &span, rule, swept, &mut failures).await?;
                if swept.more {
                    return failures.end();
                }
            }
        }
        failures.end()
    }
}

impl ExpireRuns {
    fn place(&self, month: Month, span: &Span) -> Place {
        let place = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.filter(|place| place.month == month).unwrap_or_else(|| Place {
            month,
            after: span.filter(EndedFilter::ALL).after,
            runs: 0,
        })
    }

    fn set_place(&self, place: Option<Place>) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    async fn drop_month(
        &self,
        work: &Work<'_>,
        month: Month,
        span: &Span,
        before: Timestamp,
        swept: &mut Swept,
        failures: &mut Failures,
    ) -> Result<Became> {
        let history = work.plane.history();
        let mut filter = span.filter(EndedFilter {
            before,
            ..EndedFilter::ALL
        });
        let mut place = self.place(month, span);
        loop {
            if is_full(work, swept) {
                return Ok(Became::Unfinished);
            }
            filter.after = place.after;
            let runs = history.ended(&filter, PAGE).await?;
            let Some((_, last)) = runs.last().copied() else { break };
            let count = runs.len();
            swept.examined += count as u64;
            let gone = remove_files(work, runs, None, failures).await?;
            swept.bytes += gone.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
            if gone.len() < count {
                self.set_place(None);
                return Ok(Became::Held);
            }
            place.after = last;
            place.runs += count as u64;
            self.set_place(Some(place));
        }
        self.set_place(None);
        match history.drop_month(month, before).await {
            Ok(()) => {
                swept.done += place.runs;
                tracing::info!(%month, runs = place.runs, "a month of history was dropped");
                Ok(Became::Gone)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(Became::Held),
            Err(error) => Err(error),
        }
    }
}

async fn one_by_one(
    work: &Work<'_>,
    span: &Span,
    rule: &Rule,
    swept: &mut Swept,
    failures: &mut Failures,
) -> Result<()> {
    let history = work.plane.history();
    let mut filter = span.filter(EndedFilter {
        accounts: rule.accounts.clone(),
        before: rule.before,
        ..EndedFilter::ALL
    });
    while !is_full(work, swept) {
        let runs = history.ended(&filter, PAGE).await?;
        let Some((_, last)) = runs.last() else { return Ok(()) };
        filter.after = *last;
        swept.examined += runs.len() as u64;
        let gone = remove_files(work, runs, None, failures).await?;
        swept.bytes += gone.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        let runs: Vec<RunId> = gone.iter().map(|(_, run, _)| *run).collect();
        swept.done += match work.acts() {
            true => history.forget(&runs).await?,
            false => runs.len() as u64,
        };
    }
    Ok(())
}
