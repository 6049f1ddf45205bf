//! Forgets entries of the audit log that are older than their account keeps them.

use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::catalog::Kind;
use dbtcloud_core::retention::Kept;
use dbtcloud_core::{Page, Result};

use super::retention::policy;
use super::{Chore, Failures, PAGE, PAGES, Swept, Work};

/// Expires audit entries.
#[derive(Debug)]
pub(super) struct ExpireAudit;

#[async_trait]
impl Chore for ExpireAudit {
    fn name(&self) -> &'static str {
        "expire_audit"
    }

    fn kind(&self) -> &'static str {
        "audit_entry"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/expire_audit")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval * 120
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let (plane, policy) = (work.plane, policy(work.plane).await?);
        let (mut failures, mut after, mut pages) = (Failures::default(), 0, 0);
        loop {
            let accounts = plane.catalog().scan(Kind::Account, after, PAGE).await?;
            let Some(last) = accounts.last() else {
                return failures.end();
            };
            after = last.id;
            for account in accounts.into_iter().map(|row| row.account) {
                let Some(before) = policy.of(account).days(Kept::Audit).cutoff(work.now) else {
                    continue;
                };
                if !work.acts() {
                    let old = plane
                        .audit()
                        .entries(account, None, Some(before), Page::new(1, 0))
                        .await?;
                    swept.examined += old.total;
                    swept.done += old.total;
                    continue;
                }
                loop {
                    if pages == PAGES {
                        swept.more = true;
                        return failures.end();
                    }
                    pages += 1;
                    let gone = plane.audit().forget_entries(account, before, PAGE).await;
                    let gone = failures.note(gone)?.unwrap_or(0);
                    swept.examined += gone;
                    swept.done += gone;
                    if gone < u64::from(PAGE) {
                        break;
                    }
                }
            }
        }
    }
}
