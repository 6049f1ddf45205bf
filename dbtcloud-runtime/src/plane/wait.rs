//! "Why is it waiting?"

use std::collections::BTreeMap;

use dbtcloud_core::Result;
use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::run::{RunStatus, Wait, WaitCause, explain};

use super::ControlPlane;
use crate::scheduler::PRESENCE;

/// Queued runs of an account that are looked at; of those behind them it is known that they are behind so many.
const LINE_LIMIT: u32 = 1_000;

impl ControlPlane {
    /// Why each of the first queued runs of an account waits.
    ///
    /// # Errors
    /// `NotFound` for the account.
    pub async fn waits(&self, account: AccountId) -> Result<BTreeMap<RunId, Wait>> {
        let now = self.clock().now();
        let (line, record, schedulers) = tokio::try_join!(
            self.runs().queue_of(account, LINE_LIMIT),
            self.catalog().fetch::<Account>(account, account),
            self.leases().any_held(PRESENCE, now),
        )?;
        Ok(explain(account, &line, record.run_slots, now, schedulers))
    }

    /// Why a run waits; `None` when it does not.
    ///
    /// # Errors
    /// `NotFound`, also when it belongs to another account.
    pub async fn why_waiting(&self, account: AccountId, run: RunId) -> Result<Option<Wait>> {
        let mut waits = self.waits(account).await?;
        // Read after the line: what left it meanwhile waits no more.
        let run = self.runs().get(account, run).await?;
        if run.status != RunStatus::Queued {
            return Ok(None);
        }
        Ok(Some(waits.remove(&run.id).unwrap_or(Wait {
            cause: WaitCause::Behind(u32::try_from(waits.len()).unwrap_or(LINE_LIMIT)),
            position: None,
            blocked_by: Vec::new(),
        })))
    }
}
