//! Removes volumes of projects and users that were deleted some time ago and have no open session.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::catalog::Kind;
use dbtcloud_core::id::SessionId;
use dbtcloud_core::ports::VolumeId;
use dbtcloud_core::session::SessionStatus;
use dbtcloud_core::{ErrorKind, Result};

use super::{Chore, Failures, PAGE, PAGES, Swept, Work};
use crate::ControlPlane;

/// How long ago the project or user must have been deleted: time to think better of it.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Removes volumes. They may be of one host, as directories are.
#[derive(Debug)]
pub(super) struct RemoveVolumes;

#[async_trait]
impl Chore for RemoveVolumes {
    fn name(&self) -> &'static str {
        "remove_volumes"
    }

    fn kind(&self) -> &'static str {
        "volume"
    }

    fn lease(&self) -> Option<&'static str> {
        None
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 120
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let Ok(volumes) = work.plane.volume() else {
            return Ok(());
        };
        let all = volumes.list().await?;
        swept.examined += all.len() as u64;
        let mut failures = Failures::default();
        let mut orphans = Vec::new();
        for id in all {
            let Some(orphan) = failures.note(is_orphan(work, id, swept).await)? else {
                continue;
            };
            if orphan && orphans.len() < PAGE as usize * PAGES {
                orphans.push(id);
            }
        }
        if orphans.is_empty() {
            return failures.end();
        }
        // Looked at last: nobody opens a session of a deleted project any more.
        let open = open_volumes(work.plane).await?;
        for id in orphans {
            if open.contains(&id) {
                swept.keep("with an open session");
                continue;
            }
            if work.acts() {
                if failures.note(volumes.remove(id).await)?.is_none() {
                    continue;
                }
                tracing::info!(volume = %id, "volume of a deleted project or user removed");
            }
            swept.done += 1;
        }
        failures.end()
    }
}

/// Whether the project or the user is gone. What the catalog never heard of may be another installation's.
async fn is_orphan(work: &Work<'_>, id: VolumeId, swept: &mut Swept) -> Result<bool> {
    let mut gone = false;
    for (kind, owner) in [(Kind::Project, id.project.get()), (Kind::User, id.user.get())] {
        match work.plane.catalog().get(kind, id.account, owner).await {
            Ok(row) if !row.deleted => {}
            Ok(row) if row.updated_at.plus(AGE) <= work.now => gone = true,
            Ok(_) => {
                swept.keep("deleted lately");
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                swept.keep("of an unknown project or user");
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// The volume of every session that has not ended.
async fn open_volumes(plane: &ControlPlane) -> Result<BTreeSet<VolumeId>> {
    let states: Vec<SessionStatus> = SessionStatus::ALL
        .into_iter()
        .filter(|state| !state.is_terminal())
        .collect();
    let (mut open, mut after) = (BTreeSet::new(), SessionId::new(0));
    loop {
        let page = plane.sessions().scan(&states, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(open) };
        after = last.id;
        open.extend(page.iter().map(|session| VolumeId {
            account: session.account,
            project: session.project,
            user: session.user,
        }));
    }
}
