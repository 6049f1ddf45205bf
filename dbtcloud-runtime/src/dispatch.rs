//! What leaves the house: to each addressee at least once, in order per run, and without waiting for anybody else.
//!
//! The outbox says what follows from a change of a run; what follows for people and programs outside is posted as
//! dispatches, one per addressee, and carried from here. So an addressee that hangs or is down costs its own dispatches
//! time, and no consumer of the outbox waits for it. A loop per way out; a dispatch is one process's for a while, and
//! another's when that one does not come back. Its name and body are the same on every try.

mod letter;
mod mail;
mod payload;
mod webhook;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use dbtcloud_core::ports::{Addressee, Bell, Channel, DispatchState, Dispatched, Next, Try};
use dbtcloud_core::{Result, failpoint};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;

pub use mail::{MAIL_LIMIT, Mail, MailServer};
pub(crate) use payload::Told;
pub use payload::{event_id, event_of};
pub use webhook::{ANSWER_LIMIT, ANSWER_LIMIT_BYTES, Answer, Webhooks};

/// Webhooks that a process carries at one time.
const WEBHOOK_WIDTH: usize = 64;
/// Mails that a process hands over at one time: each takes a connection to the one mail server.
const MAIL_WIDTH: usize = 8;
/// Dispatches of one addressee among them.
const EACH: u32 = 4;
/// How long a dispatch is this process's; longer than a try may take.
const HOLD: Duration = Duration::from_secs(20);
/// How often a dispatch is tried: once, and five times again (dbt Cloud's rule).
pub const TRIES_LIMIT: u32 = 6;
/// How long a failed dispatch waits at first; four times as long each time, eleven minutes in all.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// How long a loop that failed waits before it begins again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// How long what is on its way is waited for at the end of the process. What is cut off then is sent again.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// What came of carrying a dispatch.
pub(crate) enum Carried {
    /// It was tried, and arrived when the error is empty.
    Tried(Try),
    /// It was tried and refused for good: another try would be, too.
    Refused(Try),
    /// Nobody wants it any more, and why.
    Unwanted(String),
}

/// Carries the dispatches of one way out until `shutdown`.
pub(crate) async fn run(plane: &ControlPlane, channel: Channel, shutdown: &CancellationToken) {
    let mut bell = plane.bell(Bell::Outbox);
    // Tasks, since each goes on while this loop waits for storage: one that held its only connection and was not polled
    // would keep everybody waiting.
    let mut flying = JoinSet::new();
    let mut busy = BTreeMap::<Addressee, u32>::new();
    while !shutdown.is_cancelled() {
        bell.mark_unchanged();
        let mut pause = plane.config().poll;
        let except: Vec<Addressee> = busy.keys().copied().collect();
        match take(plane, channel, width(channel) - flying.len(), &except).await {
            Ok(taken) => {
                for dispatched in taken {
                    let to = dispatched.dispatch.id.to;
                    *busy.entry(to).or_default() += 1;
                    let plane = plane.clone();
                    flying.spawn(async move {
                        carry(&plane, &dispatched).await;
                        to
                    });
                }
            }
            Err(error) => {
                tracing::warn!(channel = channel.name(), error = %error.chain(), "dispatches cannot be read; they are tried again");
                pause = FAILURE_PAUSE;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            Some(Ok(to)) = flying.join_next() => {
                let left = busy.entry(to).or_default();
                *left = left.saturating_sub(1);
                busy.retain(|_, left| *left > 0);
            }
            _ = bell.changed() => {}
            () = plane.clock().sleep(pause) => {}
        }
    }
    let rest = async { while flying.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_LIMIT, rest).await;
}

/// Carries once what is due, by every way; how many were tried.
///
/// # Errors
/// Those of storage; what was carried before stays so.
pub async fn round(plane: &ControlPlane) -> Result<usize> {
    let mut tried = 0;
    for channel in Channel::ALL {
        let taken = take(plane, channel, width(channel), &[]).await?;
        tried += taken.len();
        let all: FuturesUnordered<_> = taken.iter().map(|dispatched| carry(plane, dispatched)).collect();
        all.collect::<Vec<()>>().await;
    }
    Ok(tried)
}

const fn width(channel: Channel) -> usize {
    match channel {
        Channel::Webhook => WEBHOOK_WIDTH,
        Channel::Notification => MAIL_WIDTH,
    }
}

async fn take(plane: &ControlPlane, channel: Channel, room: usize, except: &[Addressee]) -> Result<Vec<Dispatched>> {
    if channel == Channel::Notification && plane.mail().is_none() {
        // What waits is left to a process that sends mail.
        return Ok(Vec::new());
    }
    let now = plane.clock().now();
    match u32::try_from(room) {
        Ok(room) if room > 0 => {
            plane
                .dispatches()
                .take(channel, now, now.plus(HOLD), room, EACH, except)
                .await
        }
        _ => Ok(Vec::new()),
    }
}

/// Makes one try and writes down what came of it. What cannot be written down comes again.
async fn carry(plane: &ControlPlane, dispatched: &Dispatched) {
    let dispatch = &dispatched.dispatch;
    let (channel, account) = (dispatch.id.to.channel().name(), dispatch.account.get());
    let outcome = AssertUnwindSafe(one_try(plane, dispatched)).catch_unwind().await;
    let error = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.chain().to_string(),
        Err(_) => "it panicked".to_owned(),
    };
    tracing::warn!(channel, account_id = account, run_id = dispatch.id.run.get(), %error, "dispatch could not be made; it is tried again");
}

async fn one_try(plane: &ControlPlane, dispatched: &Dispatched) -> Result<()> {
    let (dispatch, tries) = (&dispatched.dispatch, dispatched.tries);
    let (id, channel) = (&dispatch.id, dispatch.id.to.channel());
    let (account, run) = (dispatch.account.get(), id.run.get());
    let carried = match id.to {
        Addressee::Webhook(hook) => webhook::carry(plane, hook, dispatch).await?,
        Addressee::Notification(notification) => mail::carry(plane, notification, dispatch).await?,
    };
    failpoint::reached("dispatch", channel.name(), "after_send");
    let (tried, next, result) = match carried {
        Carried::Tried(tried) if tried.error.is_empty() => (tried, Next::End(DispatchState::Delivered), "delivered"),
        Carried::Tried(tried) if tries < TRIES_LIMIT => {
            let later = plane.clock().now().plus(pause_after(tries));
            tracing::info!(channel = channel.name(), to = id.to.id(), account_id = account, run_id = run, tries, error = %tried.error, "not delivered; it is tried again");
            (tried, Next::Again(later), "again")
        }
        Carried::Tried(tried) | Carried::Refused(tried) => {
            tracing::warn!(channel = channel.name(), to = id.to.id(), account_id = account, run_id = run, tries, error = %tried.error, "not delivered; given up");
            (tried, Next::End(DispatchState::Failed), "failed")
        }
        Carried::Unwanted(why) => {
            let tried = Try {
                at: plane.clock().now(),
                code: None,
                error: why,
                answer: String::new(),
            };
            (tried, Next::End(DispatchState::Dropped), "dropped")
        }
    };
    plane.dispatches().settle(id, &tried, next).await?;
    plane.metrics().dispatches.add([channel.name(), result], 1);
    if let (Addressee::Webhook(hook), Next::End(DispatchState::Failed)) = (id.to, next) {
        webhook::deactivate(plane, dispatch.account, hook).await?;
    }
    Ok(())
}

/// How long a dispatch waits that was tried so many times.
fn pause_after(tries: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(4_u32.saturating_pow(tries.saturating_sub(1).min(8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow() {
        let seconds: Vec<u64> = (1..TRIES_LIMIT).map(|tries| pause_after(tries).as_secs()).collect();
        assert_eq!(seconds, [2, 8, 32, 128, 512]);
        assert!(HOLD > ANSWER_LIMIT + DRAIN_LIMIT && HOLD > MAIL_LIMIT + DRAIN_LIMIT);
    }
}
