//! Why a run has to end before its steps are through, told once and seen by everybody.

use std::sync::Arc;

use tokio::sync::watch;

/// Why the run has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The control plane says so.
    Cancelled,
    /// It took longer than it may.
    TimedOut {
        /// The limit.
        seconds: u64,
    },
    /// The agent itself was told to end.
    Told,
    /// The run is no longer this agent's: nothing more is reported.
    Fenced,
    /// Nobody takes reports any more: nothing more is reported.
    Unheard,
}

impl Reason {
    /// Whether the control plane still wants to hear from this agent.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Fenced | Self::Unheard)
    }

    /// The reason as the beginning of a message.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Cancelled => "Cancelled by request".to_owned(),
            Self::TimedOut { seconds } => format!("Timed out after {seconds} s"),
            Self::Told => "Stopped because the run's agent was told to end".to_owned(),
            Self::Fenced => "The run is no longer this agent's".to_owned(),
            Self::Unheard => "The control plane takes no more reports".to_owned(),
        }
    }
}

/// Tells that the run has to end. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Halt(Arc<watch::Sender<Option<Reason>>>);

impl Default for Halt {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Halt {
    /// Gives a reason. The first one stays, except that one to be silent outranks one to speak.
    pub(super) fn raise(&self, reason: Reason) {
        self.0.send_if_modified(|present| {
            let wins = present
                .as_ref()
                .is_none_or(|present| reason.is_silent() && !present.is_silent());
            if wins {
                *present = Some(reason);
            }
            wins
        });
    }

    /// The reason, if there is one.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.0.borrow().clone()
    }

    /// Waits for a reason. Cancellation-safe.
    pub(super) async fn raised(&self) -> Reason {
        let mut watch = self.0.subscribe();
        loop {
            if let Some(reason) = watch.borrow_and_update().clone() {
                return reason;
            }
            // The sender lives in self.
            let _ = watch.changed().await;
        }
    }

    /// Waits for a reason to be silent. Cancellation-safe.
    pub(super) async fn silenced(&self) -> Reason {
        let mut watch = self.0.subscribe();
        loop {
            if let Some(reason) = watch.borrow_and_update().clone()
                && reason.is_silent()
            {
                return reason;
            }
            let _ = watch.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays_unless_silence_is_asked_for() {
        let halt = Halt::default();
        halt.raise(Reason::TimedOut { seconds: 3 });
        halt.raise(Reason::Cancelled);
        assert_eq!(halt.reason(), Some(Reason::TimedOut { seconds: 3 }));
        halt.raise(Reason::Fenced);
        halt.raise(Reason::Unheard);
        assert_eq!(halt.reason(), Some(Reason::Fenced));
    }
}
