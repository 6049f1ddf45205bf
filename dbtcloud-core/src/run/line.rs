//! Lines: which older runs of a job a new one takes the place of. dbt Cloud's rules, from its documentation
//! ("Job scheduler", "Continuous integration", "Merge jobs"); one rule says all of them.

use std::fmt;

use super::{CauseCategory, RunStatus, Trigger};
use crate::id::RunId;

/// What the runs of a job have in common of which only the newest counts.
///
/// | line | a new run cancels | why |
/// |---|---|---|
/// | `Scheduled` | the queued one | over-scheduling: a job keeps at most one queued scheduled run |
/// | `Merge` | the queued one | of merges only the newest is worth building |
/// | `PullRequest` | the queued one and the one that executes | a new commit makes the older run pointless |
///
/// A run that was set off by hand, by API, by another job or as a retry is in no line: none cancels it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// Of the schedule.
    Scheduled,
    /// Of merges.
    Merge,
    /// Of one pull request.
    PullRequest(Host, i64),
}

/// Whose numbers of pull requests they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// GitHub.
    Github,
    /// GitLab.
    Gitlab,
    /// Azure DevOps.
    Azure,
    /// Another one, reached by the API.
    Other,
}

impl Trigger {
    /// The line of a run that this sets off, if it is in one.
    ///
    /// ```
    /// use dbtcloud_core::run::{CauseCategory, Host, Line, Trigger};
    /// let mut trigger = Trigger::new(CauseCategory::Api, "a commit");
    /// assert_eq!(trigger.line(), None);
    /// trigger.github_pull_request_id = Some(12);
    /// assert_eq!(trigger.line(), Some(Line::PullRequest(Host::Github, 12)));
    /// assert_eq!(Trigger::new(CauseCategory::Scheduled, "").line(), Some(Line::Scheduled));
    /// ```
    pub fn line(&self) -> Option<Line> {
        let of_host = [
            (Host::Github, self.github_pull_request_id),
            (Host::Gitlab, self.gitlab_merge_request_id),
            (Host::Azure, self.azure_pull_request_id),
            (Host::Other, self.non_native_pull_request_id),
        ];
        let number = |(host, id): (Host, Option<i64>)| id.map(|id| Line::PullRequest(host, id));
        of_host.into_iter().find_map(number).or(match self.category {
            CauseCategory::Scheduled => Some(Line::Scheduled),
            CauseCategory::Merge => Some(Line::Merge),
            _ => None,
        })
    }
}

impl Line {
    /// The text it is stored by; unique within a job.
    pub fn key(&self) -> String {
        match self {
            Self::Scheduled => "scheduled".to_owned(),
            Self::Merge => "merge".to_owned(),
            Self::PullRequest(host, id) => format!("{host}/{id}"),
        }
    }

    /// Whether a new run of the line cancels one that is in this status.
    pub const fn supersedes(&self, status: RunStatus) -> bool {
        match (self, status) {
            (_, RunStatus::Queued) | (Self::PullRequest(..), RunStatus::Starting | RunStatus::Running) => true,
            (
                _,
                RunStatus::Starting
                | RunStatus::Running
                | RunStatus::Cancelling
                | RunStatus::Success
                | RunStatus::Warned
                | RunStatus::Error
                | RunStatus::Cancelled,
            ) => false,
        }
    }

    /// What a run says that was cancelled because of `newer`.
    pub fn message(&self, newer: RunId) -> String {
        match self {
            Self::Scheduled => {
                format!("Superseded by run {newer}: a newer scheduled run of the job was queued before this one began.")
            }
            Self::Merge => {
                format!("Superseded by run {newer}: a newer merge run of the job was queued before this one began.")
            }
            Self::PullRequest(_, id) => {
                format!("Superseded by run {newer}: a newer run of the job was queued for pull request {id}.")
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Azure => "azure",
            Self::Other => "other",
        })
    }
}
