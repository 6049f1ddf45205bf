//! What the chores of retention have in common: whose rules there are, where in the history they look, and how the
//! files of runs go.

use std::collections::BTreeSet;

use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::{Kind, Record};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, EndedFilter, RunPart};
use dbtcloud_core::retention::{Kept, Policy};
use dbtcloud_core::run::Month;
use dbtcloud_core::{ErrorKind, Result, Timestamp};
use futures::StreamExt;

use super::{Failures, PAGE, PAGES, Swept, Work};
use crate::ControlPlane;

/// Runs whose files are removed side by side.
const WIDTH: usize = 8;
/// Runs that one sweep takes at most. A dry run, which makes nothing go, has to see all of them.
const LIMIT: u64 = PAGE as u64 * PAGES as u64;

/// What the installation and its accounts say.
pub(super) async fn policy(plane: &ControlPlane) -> Result<Policy> {
    let (mut accounts, mut after) = (Vec::new(), 0);
    loop {
        let rows = plane.catalog().scan(Kind::Account, after, PAGE).await?;
        let Some(last) = rows.last() else {
            return Ok(Policy::new(plane.config().retention, accounts));
        };
        after = last.id;
        for row in rows {
            let account = Record::<Account>::try_from(row)?;
            accounts.push((account.id, account.retention));
        }
    }
}

/// A part of the history: a month, or what is older than months are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) month: Option<Month>,
    after: RunId,
    below: RunId,
}

impl Span {
    fn of(month: Month) -> Self {
        Self {
            month: Some(month),
            after: RunId::new(month.first_id().get() - 1),
            below: month.next().first_id(),
        }
    }

    /// This span of a filter.
    pub(super) fn filter(&self, filter: EndedFilter) -> EndedFilter {
        EndedFilter {
            after: self.after,
            below: self.below,
            ..filter
        }
    }
}

/// Where in the history there can be runs that ended before an instant, oldest first.
pub(super) async fn spans(plane: &ControlPlane, before: Timestamp) -> Result<Vec<Span>> {
    let older = Span {
        month: None,
        after: RunId::new(0),
        below: Month::FIRST.first_id(),
    };
    let months = plane.history().months().await?;
    let months = months.into_iter().filter(|month| month.start() < before);
    Ok(std::iter::once(older).chain(months.map(Span::of)).collect())
}

/// Whether the sweep has taken what it may.
pub(super) fn is_full(work: &Work<'_>, swept: &mut Swept) -> bool {
    swept.more = work.acts() && swept.examined >= LIMIT;
    swept.more
}

/// Lets a part of runs go of which the rules say so: from the artifact store first.
pub(super) async fn expire(work: &Work<'_>, kept: Kept, part: RunPart, swept: &mut Swept) -> Result<()> {
    let plane = work.plane;
    let mut failures = Failures::default();
    for rule in policy(plane).await?.rules(kept, work.now) {
        let wanted = EndedFilter {
            accounts: rule.accounts,
            before: rule.before,
            with: Some(part),
            ..EndedFilter::ALL
        };
        for span in spans(plane, rule.before).await? {
            let mut filter = span.filter(wanted.clone());
            while !is_full(work, swept) {
                let runs = plane.history().ended(&filter, PAGE).await?;
                let Some((_, last)) = runs.last() else { break };
                filter.after = *last;
                swept.examined += runs.len() as u64;
                for (account, run, bytes) in remove_files(work, runs, Some(part), &mut failures).await? {
                    if work.acts() {
                        let noted = match plane.history().expire(account, run, part, work.now).await {
                            // Gone with the run.
                            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                            noted => noted,
                        };
                        if failures.note(noted)?.is_none() {
                            continue;
                        }
                    }
                    swept.done += 1;
                    swept.bytes += bytes;
                }
            }
            if swept.more {
                return failures.end();
            }
        }
    }
    failures.end()
}

/// Removes the files of runs, or of a part of them; those that have none any more, and how many bytes they had.
pub(super) async fn remove_files(
    work: &Work<'_>,
    runs: Vec<(AccountId, RunId)>,
    part: Option<RunPart>,
    failures: &mut Failures,
) -> Result<Vec<(AccountId, RunId, u64)>> {
    let removed = futures::stream::iter(runs).map(|(account, run)| async move {
        let bytes = remove_of(work, account, run, part).await?;
        Ok((account, run, bytes))
    });
    let removed: Vec<Result<_>> = removed.buffer_unordered(WIDTH).collect().await;
    let mut gone = Vec::with_capacity(removed.len());
    let mut away = None;
    for one in removed {
        match failures.note(one) {
            Ok(one) => gone.extend(one),
            Err(error) => away = Some(error),
        }
    }
    // What is gone is to be written down, also when the rest is not tried any more.
    match away {
        Some(error) if gone.is_empty() => Err(error),
        Some(error) => {
            failures.first = Some(error);
            Ok(gone)
        }
        None => Ok(gone),
    }
}

async fn remove_of(work: &Work<'_>, account: AccountId, run: RunId, part: Option<RunPart>) -> Result<u64> {
    // Without a store there are no files.
    let Ok(store) = work.plane.artifacts() else {
        return Ok(0);
    };
    let area = (part == Some(RunPart::Logs)).then_some(Area::Logs);
    let mut files = store.list(account, run, area).await?;
    if part == Some(RunPart::Artifacts) {
        files.retain(|file| file.area != Area::Logs);
    }
    if work.acts() {
        if part == Some(RunPart::Artifacts) {
            let areas: BTreeSet<Area> = files.iter().map(|file| file.area).collect();
            for area in areas {
                store.remove(account, run, Some(area)).await?;
            }
        } else {
            store.remove(account, run, area).await?;
        }
    }
    Ok(files.iter().map(|file| file.bytes).sum())
}
