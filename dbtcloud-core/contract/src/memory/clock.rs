use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use dbtcloud_core::ports::Clock;
use dbtcloud_core::time::Timestamp;
use tokio::sync::watch;

/// A clock that stands still until a test moves it. A clone is the same clock.
///
/// ```
/// use std::time::Duration;
/// use dbtcloud_contract::memory::ManualClock;
/// use dbtcloud_core::{Timestamp, ports::Clock};
/// let clock = ManualClock::at(Timestamp::EPOCH);
/// clock.advance(Duration::from_secs(1));
/// assert_eq!(clock.now(), Timestamp::from_micros(1_000_000));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: std::sync::Arc<watch::Sender<Timestamp>>,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: Timestamp) -> Self {
        Self {
            now: std::sync::Arc::new(watch::Sender::new(now)),
        }
    }

    /// Moves it on, and wakes every sleeper whose span has passed.
    pub fn advance(&self, span: Duration) {
        self.now.send_modify(|now| *now = now.plus(span));
    }

    /// Sets it, also back.
    pub fn set(&self, now: Timestamp) {
        self.now.send_replace(now);
    }

    /// How many sleep on it now: what a test waits for before it moves the clock.
    pub fn sleepers(&self) -> usize {
        self.now.receiver_count()
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    async fn sleep(&self, span: Duration) {
        let mut watched = self.now.subscribe();
        let end = watched.borrow().plus(span);
        // The sender lives as long as `self`, so that this cannot fail.
        let _ = watched.wait_for(|now| *now >= end).await;
    }
}

/// The machine's clock, for tests of adapters that live in real time.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock;

#[expect(clippy::disallowed_methods, reason = "the one clock here that is a real one")]
#[async_trait]
impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::EPOCH.plus(since)
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}
