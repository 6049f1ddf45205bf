//! The outbox: what follows from a change of a run's status, done at least once and in order per run.
//!
//! Each consumer has a loop of its own, so that a slow one holds up nobody else. A delivery that fails is put
//! off and tried again, longer and longer; nothing is retried inside a round. Any number of processes may
//! deliver at the same time: storage gives each delivery to one of them, and again to another when the first
//! does not come back.

mod follow;
mod notify;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::ports::{Bell, Consumer, Delivery};
use dbtcloud_core::{ErrorKind, Result, Timestamp, failpoint};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;

pub(crate) use follow::Follow;
pub(crate) use notify::Notify;

/// Deliveries that one round takes of one consumer.
const PAGE: u32 = 50;
/// Deliveries of one consumer that are on their way side by side.
const WIDTH: usize = 8;
/// How long a delivery is this process's. One that takes longer may be made twice.
const HOLD: Duration = Duration::from_secs(120);
/// How long a failed delivery waits at first; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest that a failed delivery waits.
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How often a delivery is tried that fails for another reason than that something cannot be had now.
const TRIES_LIMIT: u32 = 12;
/// How long a loop that failed waits before it begins again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// What follows from it is done, or nothing does.
    Delivered,
    /// It is to come again at this instant.
    Later(Timestamp),
}

/// Does what follows from a change of a run's status. One for each [`Consumer`]; a consumer without one is
/// told nothing, and nothing piles up for it.
#[async_trait]
pub trait Consume: Send + Sync {
    /// Does what follows from one event. It is called at least once, for the events of one run in their
    /// order, one at a time; several runs side by side. So what it does must be idempotent: the event is
    /// known by its run and sequence.
    ///
    /// Errors: any. The delivery comes again, after a pause that grows with `delivery.tries`; forever when
    /// it is `Unavailable`, and a bounded number of times otherwise.
    async fn consume(&self, plane: &ControlPlane, delivery: &Delivery) -> Result<Handled>;
}

/// Delivers to one consumer until `shutdown`.
pub(crate) async fn run(plane: &ControlPlane, consumer: Consumer, shutdown: &CancellationToken) {
    let mut bell = plane.bell(Bell::Outbox);
    while !shutdown.is_cancelled() {
        bell.mark_unchanged();
        let pause = match AssertUnwindSafe(deliver(plane, consumer)).catch_unwind().await {
            Ok(Ok(0)) => plane.config().poll,
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => {
                tracing::warn!(consumer = consumer.name(), error = %error.chain(), "outbox cannot be read; it is tried again");
                FAILURE_PAUSE
            }
            Err(_) => {
                tracing::error!(consumer = consumer.name(), "delivery panicked; it is tried again");
                FAILURE_PAUSE
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = bell.changed() => {}
            () = plane.clock().sleep(pause) => {}
        }
    }
}

/// Delivers once to every consumer what is due; how many deliveries were tried.
///
/// # Errors
/// Those of storage; what was delivered before stays so.
pub async fn round(plane: &ControlPlane) -> Result<usize> {
    let mut tried = 0;
    for consumer in Consumer::ALL {
        tried += deliver(plane, consumer).await?;
    }
    Ok(tried)
}

/// Delivers to one consumer what is due; how many deliveries were tried.
async fn deliver(plane: &ControlPlane, consumer: Consumer) -> Result<usize> {
    let now = plane.clock().now();
    let taken = plane.outbox().take(consumer, now, now.plus(HOLD), PAGE).await?;
    let count = taken.len();
    let results: Vec<Result<()>> = futures::stream::iter(taken)
        .map(|delivery| async move { hand_over(plane, consumer, &delivery).await })
        .buffer_unordered(WIDTH)
        .collect()
        .await;
    results.into_iter().collect::<Result<()>>()?;
    Ok(count)
}

async fn hand_over(plane: &ControlPlane, consumer: Consumer, delivery: &Delivery) -> Result<()> {
    let outcome = match plane.consumer(consumer) {
        Some(consume) => consume.consume(plane, delivery).await,
        None => Ok(Handled::Delivered),
    };
    failpoint::reached("outbox", consumer.name(), "after_consume");
    let event = &delivery.event;
    let later = match outcome {
        Ok(Handled::Delivered) => None,
        Ok(Handled::Later(at)) => Some(at),
        Err(error) if error.kind() != ErrorKind::Unavailable && delivery.tries >= TRIES_LIMIT => {
            tracing::error!(
                consumer = consumer.name(), account_id = event.account.get(), run_id = event.run.get(), tries = delivery.tries, error = %error.chain(),
                "delivery given up"
            );
            None
        }
        Err(error) => {
            plane.metrics().deliveries_failed.add(1);
            tracing::warn!(
                consumer = consumer.name(), account_id = event.account.get(), run_id = event.run.get(), tries = delivery.tries, error = %error.chain(),
                "delivery failed; it is tried again"
            );
            Some(plane.clock().now().plus(pause_after(delivery.tries)))
        }
    };
    match later {
        Some(at) => plane.outbox().postpone(consumer, event.run, event.sequence, at).await,
        None => {
            plane.outbox().delivered(consumer, event.run, event.sequence).await?;
            plane.metrics().deliveries.add(1);
            Ok(())
        }
    }
}

/// How long a delivery waits that failed so many times.
fn pause_after(tries: u32) -> Duration {
    let doublings = tries.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LAST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_growing() {
        let seconds: Vec<u64> = (0..12).map(|tries| pause_after(tries).as_secs()).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause_after(u32::MAX), LAST_PAUSE);
    }
}
