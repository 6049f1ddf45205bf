use async_trait::async_trait;

use crate::error::Result;
use crate::id::RunId;
use crate::ports::Event;
use crate::run::RunStatus;
use crate::time::Timestamp;

/// Who is told when a run's status changes. Fixed, so that the change itself writes down who is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Consumer {
    /// Starts jobs that wait for another, and stops jobs that fail again and again.
    Follow,
    /// Tells people and their programs.
    Notify,
    /// Tells a catalog of lineage.
    Lineage,
}

impl Consumer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Follow, Self::Notify, Self::Lineage];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Notify => "notify",
            Self::Lineage => "lineage",
        }
    }

    /// The consumer of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|consumer| consumer.name() == name)
    }

    /// Whether it is to be told that a run is in this status now.
    ///
    /// ```
    /// use dbtcloud_core::{ports::Consumer, run::RunStatus};
    /// assert!(Consumer::Notify.wants(RunStatus::Running));
    /// assert!(!Consumer::Follow.wants(RunStatus::Running));
    /// assert!(Consumer::ALL.iter().all(|consumer| consumer.wants(RunStatus::Error)));
    /// ```
    pub const fn wants(self, status: RunStatus) -> bool {
        match self {
            Self::Follow => status.is_terminal(),
            Self::Notify | Self::Lineage => status.is_terminal() || matches!(status, RunStatus::Running),
        }
    }

    /// All that are to be told of this status.
    pub fn of(status: RunStatus) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |consumer| consumer.wants(status))
    }
}

/// An event on its way to a consumer.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// What it is told.
    pub event: Event,
    /// How often it was taken, this time included.
    pub tries: u32,
}

/// What consumers have still to be told. The transaction that changes a run's status and writes the journal
/// also writes one delivery for every consumer that [wants](Consumer::wants) it; so no change is lost, and
/// what follows from one must be idempotent, for it may be delivered more than once.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Deliveries of a consumer, those that are due the longest, at most `limit`, by run. Until `until` none of them is offered
    /// to another caller, and after that they are again unless they were [`delivered`](Outbox::delivered).
    /// Of one run only the earliest is offered: the next one when that was delivered. With any number of
    /// callers one delivery is taken by one at a time.
    ///
    /// A delivery whose event is gone with its run is dropped.
    async fn take(&self, consumer: Consumer, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Delivery>>;

    /// Forgets a delivery: the consumer has done what follows from it. A second call changes nothing, nor
    /// does one for a delivery that never was.
    async fn delivered(&self, consumer: Consumer, run: RunId, sequence: u64) -> Result<()>;

    /// Offers a delivery again from `until` on, neither before nor later. Of one that was delivered nothing
    /// comes.
    async fn postpone(&self, consumer: Consumer, run: RunId, sequence: u64, until: Timestamp) -> Result<()>;

    /// How many deliveries a consumer has still to be given, those that were taken or postponed included.
    async fn depth(&self, consumer: Consumer) -> Result<u64>;
}
