//! Where a run and a step stand, and what follows from what happens to them.

use serde::{Deserialize, Serialize};

use super::Outcome;

/// An event that cannot happen in a state. The caller's picture is old: reread and decide again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{noun} that is {state} cannot take {event}")]
pub struct Illegal {
    noun: &'static str,
    state: &'static str,
    event: String,
}

impl Illegal {
    pub(crate) fn new(noun: &'static str, state: &'static str, event: &str) -> Self {
        Self {
            noun,
            state,
            event: event.to_owned(),
        }
    }
}

impl From<Illegal> for crate::Error {
    fn from(illegal: Illegal) -> Self {
        Self::conflict(illegal.to_string())
    }
}

/// Where a run stands.
///
/// | from \ event | Admitted | Requeued | Started | CancelRequested | Succeeded | Warned | Failed | Stopped |
/// |---|---|---|---|---|---|---|---|---|
/// | Queued | Starting | Queued | illegal | Cancelled | illegal | illegal | Error | Cancelled |
/// | Starting | illegal | Queued | Running | Cancelling | illegal | illegal | Error | Cancelled |
/// | Running | illegal | illegal | Running | Cancelling | Success | Warned | Error | Cancelled |
/// | Cancelling | illegal | illegal | Cancelling | Cancelling | Success | Warned | Cancelled | Cancelled |
/// | terminal | absorbs | absorbs | absorbs | absorbs | absorbs | absorbs | absorbs | absorbs |
///
/// A run that finished while its cancellation was on the way keeps its result; one that failed then was
/// cancelled. A queued run fails when it cannot be started at all (its job is gone, for example).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Waits for a slot.
    Queued,
    /// Its execution is being provisioned.
    Starting,
    /// Its agent works.
    Running,
    /// Somebody asked for its end; what is still running is not yet confirmed stopped.
    Cancelling,
    /// Everything passed.
    Success,
    /// Everything passed or warned.
    Warned,
    /// Something failed.
    Error,
    /// Stopped.
    Cancelled,
}

/// What happens to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEvent {
    /// A scheduler claimed it.
    Admitted,
    /// Its execution was lost before the agent began; it goes back to the queue.
    Requeued,
    /// The agent began.
    Started,
    /// Somebody, or a time-out, asked for its end.
    CancelRequested,
    /// All steps passed.
    Succeeded,
    /// All steps passed or warned.
    Warned,
    /// A step failed, or the platform did.
    Failed,
    /// Nothing of it runs any more, by request.
    Stopped,
}

impl RunEvent {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Admitted,
        Self::Requeued,
        Self::Started,
        Self::CancelRequested,
        Self::Succeeded,
        Self::Warned,
        Self::Failed,
        Self::Stopped,
    ];
}

impl RunStatus {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Cancelling,
        Self::Success,
        Self::Warned,
        Self::Error,
        Self::Cancelled,
    ];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Success => "success",
            Self::Warned => "warned",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// How it ended, if it did.
    pub const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Success => Some(Outcome::Success),
            Self::Warned => Some(Outcome::Warned),
            Self::Error => Some(Outcome::Error),
            Self::Cancelled => Some(Outcome::Cancelled),
            Self::Queued | Self::Starting | Self::Running | Self::Cancelling => None,
        }
    }

    /// Whether nothing can happen any more.
    pub const fn is_terminal(self) -> bool {
        self.outcome().is_some()
    }

    /// Whether an execution of it may exist.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Cancelling)
    }

    /// What follows from an event; terminal states absorb.
    ///
    /// # Errors
    /// [`Illegal`] where the table says so.
    pub fn apply(self, event: RunEvent) -> Result<Self, Illegal> {
        use RunEvent as E;
        match (self, event) {
            (Self::Success | Self::Warned | Self::Error | Self::Cancelled, _) => Ok(self),
            (Self::Queued, E::Admitted) => Ok(Self::Starting),
            (Self::Queued | Self::Starting, E::Requeued) => Ok(Self::Queued),
            (Self::Queued, E::CancelRequested) => Ok(Self::Cancelled),
            (Self::Starting | Self::Running, E::Started) => Ok(Self::Running),
            (Self::Cancelling, E::Started) => Ok(Self::Cancelling),
            (Self::Starting | Self::Running | Self::Cancelling, E::CancelRequested) => Ok(Self::Cancelling),
            (Self::Running | Self::Cancelling, E::Succeeded) => Ok(Self::Success),
            (Self::Running | Self::Cancelling, E::Warned) => Ok(Self::Warned),
            (Self::Queued | Self::Starting | Self::Running, E::Failed) => Ok(Self::Error),
            (Self::Cancelling, E::Failed) => Ok(Self::Cancelled),
            (Self::Queued | Self::Starting | Self::Running | Self::Cancelling, E::Stopped) => Ok(Self::Cancelled),
            (Self::Starting | Self::Running | Self::Cancelling, E::Admitted)
            | (Self::Running | Self::Cancelling, E::Requeued)
            | (Self::Queued, E::Started | E::Succeeded | E::Warned)
            | (Self::Starting, E::Succeeded | E::Warned) => {
                Err(Illegal::new("run", self.name(), &format!("{event:?}")))
            }
        }
    }
}

/// Where a step stands.
///
/// | from \ event | Started | Succeeded | Warned | Failed | Skipped | Cancelled |
/// |---|---|---|---|---|---|---|
/// | Pending | Running | illegal | illegal | Error | Skipped | Cancelled |
/// | Running | Running | Success | Warned | Error | illegal | Cancelled |
/// | terminal | absorbs | absorbs | absorbs | absorbs | absorbs | absorbs |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// Its process runs.
    Running,
    /// Passed.
    Success,
    /// Passed with warnings.
    Warned,
    /// Failed.
    Error,
    /// Not begun because an earlier one failed.
    Skipped,
    /// Stopped, or not begun because the run was.
    Cancelled,
}

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepEvent {
    /// Its process began.
    Started,
    /// It passed.
    Succeeded,
    /// It passed with warnings.
    Warned,
    /// It failed.
    Failed,
    /// An earlier one failed.
    Skipped,
    /// The run was stopped.
    Cancelled,
}

impl StepEvent {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Started,
        Self::Succeeded,
        Self::Warned,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
    ];
}

impl StepStatus {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Success,
        Self::Warned,
        Self::Error,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Success => "success",
            Self::Warned => "warned",
            Self::Error => "error",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing can happen any more.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// What follows from an event; terminal states absorb.
    ///
    /// # Errors
    /// [`Illegal`] where the table says so.
    pub fn apply(self, event: StepEvent) -> Result<Self, Illegal> {
        use StepEvent as E;
        match (self, event) {
            (Self::Success | Self::Warned | Self::Error | Self::Skipped | Self::Cancelled, _) => Ok(self),
            (Self::Pending | Self::Running, E::Started) => Ok(Self::Running),
            (Self::Running, E::Succeeded) => Ok(Self::Success),
            (Self::Running, E::Warned) => Ok(Self::Warned),
            (Self::Pending | Self::Running, E::Failed) => Ok(Self::Error),
            (Self::Pending, E::Skipped) => Ok(Self::Skipped),
            (Self::Pending | Self::Running, E::Cancelled) => Ok(Self::Cancelled),
            (Self::Pending, E::Succeeded | E::Warned) | (Self::Running, E::Skipped) => {
                Err(Illegal::new("step", self.name(), &format!("{event:?}")))
            }
        }
    }

    /// Whether a report may move a step from `self` to `next`: by some event, or not at all.
    pub fn may_become(self, next: Self) -> bool {
        self == next || StepEvent::ALL.into_iter().any(|event| self.apply(event) == Ok(next))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run_event() -> impl Strategy<Value = RunEvent> {
        proptest::sample::select(RunEvent::ALL.as_slice())
    }

    proptest! {
        #[test]
        fn a_terminal_run_stays_what_it_is(events in proptest::collection::vec(run_event(), 0..40)) {
            let mut status = RunStatus::Queued;
            let mut ended = None;
            for event in events {
                match status.apply(event) {
                    Ok(next) => status = next,
                    Err(_) => prop_assert!(!status.is_terminal(), "a terminal state refuses nothing"),
                }
                if let Some(end) = ended { prop_assert_eq!(status, end); }
                if status.is_terminal() { ended.get_or_insert(status); }
            }
        }

        #[test]
        fn success_needs_an_execution(events in proptest::collection::vec(run_event(), 0..40)) {
            let mut status = RunStatus::Queued;
            let mut executes = false;
            for event in events {
                if let Ok(next) = status.apply(event) {
                    // A start that is reported after a cancellation shows in no state; an admission always does.
                    executes |= event == RunEvent::Admitted;
                    status = next;
                }
            }
            if matches!(status, RunStatus::Success | RunStatus::Warned) { prop_assert!(executes); }
        }
    }

    #[test]
    fn every_live_run_can_still_end() {
        for status in RunStatus::ALL {
            let after = status.apply(RunEvent::Stopped).map(RunStatus::is_terminal);
            assert_eq!(after, Ok(true), "{status:?}");
        }
    }

    #[test]
    fn names_round_trip() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::from_name(status.name()), Some(status));
        }
        for status in StepStatus::ALL {
            assert_eq!(StepStatus::from_name(status.name()), Some(status));
        }
    }

    #[test]
    fn terminal_steps_absorb_and_pending_ones_never_jump_to_success() {
        for status in StepStatus::ALL {
            for event in StepEvent::ALL {
                if status.is_terminal() {
                    assert_eq!(status.apply(event), Ok(status));
                }
            }
        }
        assert!(!StepStatus::Pending.may_become(StepStatus::Success));
        assert!(StepStatus::Running.may_become(StepStatus::Success));
        assert!(!StepStatus::Success.may_become(StepStatus::Running));
    }

    #[test]
    fn a_run_that_finished_under_cancellation_keeps_its_result() {
        assert_eq!(RunStatus::Cancelling.apply(RunEvent::Succeeded), Ok(RunStatus::Success));
        assert_eq!(RunStatus::Cancelling.apply(RunEvent::Failed), Ok(RunStatus::Cancelled));
    }
}
