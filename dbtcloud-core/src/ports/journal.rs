use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::id::{AccountId, RunId};
use crate::run::{NodeReport, RunStatus, StepState};
use crate::time::Timestamp;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventBody {
    /// A run came to be or changed its status.
    Run {
        /// What it is now.
        status: RunStatus,
        /// What a person should know.
        message: Option<String>,
    },
    /// A step came to be or changed.
    Step {
        /// What it is now.
        step: StepState,
    },
    /// A node of the dbt graph began or ended.
    Node {
        /// What is known of it.
        node: NodeReport,
    },
}

/// One event of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its place. Grows; within a run the order is the order in which things happened.
    pub sequence: u64,
    /// Whose.
    pub account: AccountId,
    /// Of which run.
    pub run: RunId,
    /// When.
    pub at: Timestamp,
    /// What.
    pub body: EventBody,
}

/// What happened to runs, in order. Written in the same transaction as the change it tells of, by
/// [`crate::ports::Runs`] alone; read at least once by whoever wants to know.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Events of one run above `after`, in order, at most `limit`.
    ///
    /// Errors: `NotFound` when the run is not in the account.
    async fn of_run(&self, account: AccountId, run: RunId, after: u64, limit: u32) -> Result<Vec<Event>>;
}
