use std::time::Duration;

use async_trait::async_trait;

use crate::time::Timestamp;

/// What time it is. Clocks of several machines may differ: they decide when to try, a fence decides who
/// may write.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The instant now.
    fn now(&self) -> Timestamp;

    /// Returns once `span` has passed on this clock. Cancellation-safe.
    async fn sleep(&self, span: Duration);
}
