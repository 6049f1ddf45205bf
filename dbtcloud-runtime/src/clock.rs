//! The machine's clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Timestamp;
use dbtcloud_core::ports::Clock;

/// The machine's wall clock and tokio's timer: the default of a [`crate::ControlPlane`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that sleeps on tokio's timer")]
    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}

/// How far a clock may go back before it is a fault: small corrections are every machine's.
const BACK_LIMIT: Duration = Duration::from_secs(10);

/// The highest instant that a process has seen, to tell when its clock was set back.
#[derive(Debug, Default)]
pub(crate) struct Watch(AtomicI64);

impl Watch {
    /// How far behind the highest instant `now` is, if that is too far.
    pub(crate) fn look(&self, now: Timestamp) -> Option<Duration> {
        let highest = self.0.fetch_max(now.as_micros(), Ordering::Relaxed);
        let behind = Timestamp::from_micros(highest).since(now);
        (behind > BACK_LIMIT).then_some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_is_told_until_it_is_there_again() {
        let (watch, at) = (Watch::default(), |seconds: i64| {
            Timestamp::from_micros(seconds * 1_000_000)
        });
        for (seconds, behind) in [
            (5_000, None),
            (4_995, None),
            (1_400, Some(3_600)),
            (4_980, Some(20)),
            (5_001, None),
        ] {
            let expected = behind.map(Duration::from_secs);
            assert_eq!(watch.look(at(seconds)), expected, "{seconds}");
        }
    }
}
