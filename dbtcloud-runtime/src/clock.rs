//! The machine's clock.

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
