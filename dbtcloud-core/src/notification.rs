//! Notifications: which people are to be told how runs ended, and by what way.

use serde::{Deserialize, Serialize};

use crate::catalog::{Entity, Kind};
use crate::id::{JobId, NotificationId, UserId};
use crate::run::Outcome;

/// By what way somebody is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Way {
    /// By mail, at the user's own address.
    User,
    /// By mail, at an address of somebody who is no user.
    Email {
        /// The address.
        address: String,
    },
    /// In a Slack channel. It is kept for clients; dbtcloud has no Slack application to post it with.
    Slack {
        /// Whether it is dbt Cloud's newer Slack application.
        newer: bool,
        /// Slack's id of the channel.
        channel_id: String,
        /// Its name.
        channel_name: String,
    },
}

/// Who is told how runs of some jobs ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// The user who is told, or who set it up for somebody else.
    pub user: UserId,
    /// By what way.
    pub way: Way,
    /// Jobs whose success is told.
    pub on_success: Vec<JobId>,
    /// Jobs whose success with warnings is told.
    pub on_warning: Vec<JobId>,
    /// Jobs whose failure is told.
    pub on_failure: Vec<JobId>,
    /// Jobs whose cancellation is told.
    pub on_cancel: Vec<JobId>,
}

impl Notification {
    /// Whether it tells of a run of this job that ended so. A run with warnings succeeded, too.
    pub fn wants(&self, outcome: Outcome, job: JobId) -> bool {
        match outcome {
            Outcome::Success => self.on_success.contains(&job),
            Outcome::Warned => self.on_warning.contains(&job) || self.on_success.contains(&job),
            Outcome::Error => self.on_failure.contains(&job),
            Outcome::Cancelled => self.on_cancel.contains(&job),
        }
    }
}

impl Entity for Notification {
    const KIND: Kind = Kind::Notification;
    type Id = NotificationId;
    fn name(&self) -> &str {
        match &self.way {
            Way::User => "",
            Way::Email { address } => address,
            Way::Slack { channel_name, .. } => channel_name,
        }
    }
    /// The user.
    fn parent(&self) -> Option<i64> {
        Some(self.user.get())
    }
}
