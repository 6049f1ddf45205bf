//! Numbers that nobody commits and that have to be looked at: what waits in the outbox, which sessions there are.

use std::time::Duration;

use dbtcloud_core::Result;
use dbtcloud_core::id::SessionId;
use dbtcloud_core::ports::{Channel, Consumer};
use dbtcloud_core::session::SessionStatus;
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(15);
/// Sessions that are read at one time.
const PAGE: u32 = 500;
/// Pages that are read in one round; what is beyond them is not counted.
const PAGES: usize = 40;

/// Looks again and again until `shutdown`.
pub(crate) async fn run(plane: &ControlPlane, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        if let Err(error) = look(plane).await {
            tracing::debug!(error = %error.chain(), "numbers cannot be looked at now");
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = plane.clock().sleep(INTERVAL) => {}
        }
    }
}

/// Looks once.
///
/// # Errors
/// Those of storage; numbers that were looked at before stand.
pub async fn look(plane: &ControlPlane) -> Result<()> {
    for consumer in Consumer::ALL {
        let depth = plane.outbox().depth(consumer).await?;
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        plane.metrics().outbox_depth.set([consumer.name()], depth);
    }
    for channel in Channel::ALL {
        let waiting = plane.dispatches().undelivered(channel).await?;
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        plane.metrics().dispatches_waiting.set([channel.name()], waiting);
    }
    let states: Vec<SessionStatus> = SessionStatus::ALL
        .into_iter()
        .filter(|state| !state.is_terminal())
        .collect();
    let (mut seen, mut after) = (Vec::new(), SessionId::new(0));
    for _ in 0..PAGES {
        let page = plane.sessions().scan(&states, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        seen.extend(page.iter().map(|session| [session.status.name()]));
        if page.len() < PAGE as usize {
            break;
        }
    }
    plane.metrics().sessions.tally(seen);
    Ok(())
}
