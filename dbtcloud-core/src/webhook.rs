//! Webhooks: which programs outside are told of runs, and of what.

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Kind};
use crate::id::{JobId, WebhookId};
use crate::run::RunStatus;
use crate::secret::Sealed;
use crate::time::Timestamp;

/// Deliveries in a row that may fail before a webhook is deactivated (dbt Cloud's rule).
pub const FAILURES_TO_DEACTIVATE: u32 = 5;

/// What a webhook can be told of (dbt Cloud's `event_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HookEvent {
    /// A run began.
    #[serde(rename = "job.run.started")]
    Started,
    /// A run failed. Of a failed run it comes before [`HookEvent::Completed`].
    #[serde(rename = "job.run.errored")]
    Errored,
    /// A run ended, however; its artifacts can be read.
    #[serde(rename = "job.run.completed")]
    Completed,
}

impl HookEvent {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Started, Self::Errored, Self::Completed];

    /// dbt Cloud's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "job.run.started",
            Self::Errored => "job.run.errored",
            Self::Completed => "job.run.completed",
        }
    }

    /// The event of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// What there is to tell when a run comes to this status, in order. One that failed is told twice.
    ///
    /// ```
    /// use dbtcloud_core::{run::RunStatus, webhook::HookEvent};
    /// assert_eq!(HookEvent::of(RunStatus::Error), [HookEvent::Errored, HookEvent::Completed]);
    /// assert!(HookEvent::of(RunStatus::Queued).is_empty());
    /// ```
    pub const fn of(status: RunStatus) -> &'static [Self] {
        match status {
            RunStatus::Running => &[Self::Started],
            RunStatus::Error => &[Self::Errored, Self::Completed],
            RunStatus::Success | RunStatus::Warned | RunStatus::Cancelled => &[Self::Completed],
            RunStatus::Queued | RunStatus::Starting | RunStatus::Cancelling => &[],
        }
    }
}

/// A subscription to what happens to runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Display name.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// What it is told of; never empty.
    pub events: Vec<HookEvent>,
    /// The jobs whose runs it is told of; those of every job when empty.
    #[serde(default)]
    pub jobs: Vec<JobId>,
    /// Where it is told, `http` or `https`.
    pub url: String,
    /// Whether it is told at all.
    pub active: bool,
    /// What the other side checks signatures with.
    pub secret: Sealed,
    /// Since when it has been active without a break. Failures before that are forgiven.
    pub active_since: Timestamp,
    /// Why it is not active, when it was not a person who stopped it.
    #[serde(default)]
    pub deactivated: Option<String>,
}

impl Webhook {
    /// Whether it is to be told of this event of a run of this job.
    pub fn wants(&self, event: HookEvent, job: JobId) -> bool {
        self.active && self.events.contains(&event) && (self.jobs.is_empty() || self.jobs.contains(&job))
    }
}

impl Entity for Webhook {
    const KIND: Kind = Kind::Webhook;
    type Id = WebhookId;
    fn name(&self) -> &str {
        &self.name
    }
}
