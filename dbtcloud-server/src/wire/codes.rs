//! Numbers and words that stand for states.

use dbtcloud_core::job::JobType;
use dbtcloud_core::run::{CauseCategory, Outcome, RunStatus, StepStatus};
use dbtcloud_runtime::NotRetryable;

/// `state` of what is in use.
pub(crate) const STATE_ACTIVE: i64 = 1;
/// `state` of what was deleted.
pub(crate) const STATE_DELETED: i64 = 2;

/// A status as a number and its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// 1, 2, 3, 10, 20 or 30.
    pub(crate) number: i64,
    /// dbt Cloud's `status_humanized`; clients compare it.
    pub(crate) word: &'static str,
}

const QUEUED: Code = Code {
    number: 1,
    word: "Queued",
};
const STARTING: Code = Code {
    number: 2,
    word: "Starting",
};
const RUNNING: Code = Code {
    number: 3,
    word: "Running",
};
const SUCCESS: Code = Code {
    number: 10,
    word: "Success",
};
const ERROR: Code = Code {
    number: 20,
    word: "Error",
};
const CANCELLED: Code = Code {
    number: 30,
    word: "Cancelled",
};

/// The code of a run. The wire knows no warning and no cancelling: they are 10 and 3.
pub(crate) const fn run(status: RunStatus) -> Code {
    match status {
        RunStatus::Queued => QUEUED,
        RunStatus::Starting => STARTING,
        RunStatus::Running | RunStatus::Cancelling => RUNNING,
        RunStatus::Success | RunStatus::Warned => SUCCESS,
        RunStatus::Error => ERROR,
        RunStatus::Cancelled => CANCELLED,
    }
}

/// The code of a step. One that was skipped is cancelled on the wire; its times stay null.
pub(crate) const fn step(status: StepStatus) -> Code {
    match status {
        StepStatus::Pending => QUEUED,
        StepStatus::Running => RUNNING,
        StepStatus::Success | StepStatus::Warned => SUCCESS,
        StepStatus::Error => ERROR,
        StepStatus::Skipped | StepStatus::Cancelled => CANCELLED,
    }
}

/// The statuses that a number stands for; none for a number that is not a status.
pub(crate) fn run_statuses(number: i64) -> Vec<RunStatus> {
    RunStatus::ALL
        .into_iter()
        .filter(|status| run(*status).number == number)
        .collect()
}

/// The outcomes that a number stands for in a job's completion trigger.
pub(crate) fn outcomes(number: i64) -> Option<&'static [Outcome]> {
    match number {
        10 => Some(&[Outcome::Success, Outcome::Warned]),
        20 => Some(&[Outcome::Error]),
        30 => Some(&[Outcome::Cancelled]),
        _ => None,
    }
}

/// The number of an outcome.
pub(crate) const fn outcome(outcome: Outcome) -> i64 {
    match outcome {
        Outcome::Success | Outcome::Warned => SUCCESS.number,
        Outcome::Error => ERROR.number,
        Outcome::Cancelled => CANCELLED.number,
    }
}

/// dbt Cloud's `cause_category`; one of them has a blank.
pub(crate) const fn cause(category: CauseCategory) -> &'static str {
    match category {
        CauseCategory::Api => "api",
        CauseCategory::Ci => "ci",
        CauseCategory::Scheduled => "scheduled",
        CauseCategory::Ui => "ui",
        CauseCategory::Rerun => "rerun",
        CauseCategory::JobCompletion => "job completion",
        CauseCategory::Merge => "merge",
    }
}

/// dbt Cloud's `job_type`.
pub(crate) const fn job_type(kind: JobType) -> &'static str {
    match kind {
        JobType::Ci => "ci",
        JobType::Scheduled => "scheduled",
        JobType::Other => "other",
        JobType::Merge => "merge",
        JobType::Adaptive => "adaptive",
    }
}

/// dbt Cloud's `retry_not_supported_reason`.
pub(crate) const fn not_retryable(reason: NotRetryable) -> &'static str {
    match reason {
        NotRetryable::UnsupportedCommand => "RETRY_UNSUPPORTED_CMD",
        NotRetryable::NotLatestRun => "RETRY_NOT_LATEST_RUN",
        NotRetryable::NotFailedRun => "RETRY_NOT_FAILED_RUN",
        NotRetryable::NoRunResults => "RETRY_NO_RUN_RESULTS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_six_codes_and_their_words() {
        let codes: Vec<_> = RunStatus::ALL
            .into_iter()
            .map(|status| (run(status).number, run(status).word))
            .collect();
        assert_eq!(
            codes,
            [
                (1, "Queued"),
                (2, "Starting"),
                (3, "Running"),
                (3, "Running"),
                (10, "Success"),
                (10, "Success"),
                (20, "Error"),
                (30, "Cancelled")
            ]
        );
        assert_eq!(run_statuses(3), [RunStatus::Running, RunStatus::Cancelling]);
        assert_eq!(run_statuses(4), []);
    }
}
