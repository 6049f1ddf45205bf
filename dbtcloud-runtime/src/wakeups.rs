//! Bells: in this process at once, between processes through [`Wakeups`](dbtcloud_core::ports::Wakeups).
//! Two loops, one that passes on what was rung here and one that hears what others rang. Neither may be what
//! anything depends on: whoever waits for a bell also polls.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dbtcloud_core::Error;
use dbtcloud_core::ports::Bell;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;

/// The least time between two rings of one bell to other processes: many changes make few notifications.
const RING_GAP: Duration = Duration::from_millis(10);
/// How long a lost listener waits before it tries again, at first and at most.
const LISTEN_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The bells of one process.
#[derive(Default)]
pub(crate) struct Bells {
    rung: [watch::Sender<u64>; Bell::ALL.len()],
    /// Which of them other processes are to hear, a bit each.
    owed: AtomicU8,
    owing: Notify,
    fault: Mutex<Option<String>>,
}

impl Bells {
    pub(crate) fn ring(&self, bell: Bell) {
        self.sound(bell);
        self.owed.fetch_or(1 << bell as u8, Ordering::AcqRel);
        self.owing.notify_one();
    }

    /// In this process alone.
    fn sound(&self, bell: Bell) {
        self.rung[bell as usize].send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn receiver(&self, bell: Bell) -> watch::Receiver<u64> {
        self.rung[bell as usize].subscribe()
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it was fine before.
    fn set_fault(&self, fault: Option<String>) -> bool {
        let mut stored = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *stored, fault).is_none()
    }
}

/// Runs both loops until `shutdown`.
pub(crate) async fn run(plane: &ControlPlane, shutdown: &CancellationToken) {
    let both = async { tokio::join!(pass_on(plane), hear(plane)) };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = both => {}
    }
    plane.metrics().wakeups_listening.set(0);
}

/// Rings in other processes what was rung here.
async fn pass_on(plane: &ControlPlane) {
    let bells = plane.bells();
    loop {
        bells.owing.notified().await;
        let owed = bells.owed.swap(0, Ordering::AcqRel);
        for bell in Bell::ALL.into_iter().filter(|bell| owed & (1 << *bell as u8) != 0) {
            if let Err(error) = plane.wakeups().ring(bell).await {
                tracing::debug!(%bell, error = %error.chain(), "bell not rung; other processes find out by polling");
            }
        }
        plane.clock().sleep(RING_GAP).await;
    }
}

/// Hears what others rang, and listens again when it was lost.
async fn hear(plane: &ControlPlane) {
    let (bells, metrics) = (plane.bells(), plane.metrics());
    let mut pause = LISTEN_AGAIN.0;
    loop {
        let heard = AssertUnwindSafe(listen(plane, &mut pause)).catch_unwind().await;
        let error = heard.unwrap_or_else(|_| Error::unavailable("the loop that hears wake-ups panicked"));
        metrics.wakeups_listening.set(0);
        metrics.wakeups_lost.add(1);
        if bells.set_fault(Some(error.to_string())) {
            tracing::warn!(error = %error.chain(), "bells of other processes are not heard; polling goes on");
        }
        plane.clock().sleep(pause).await;
        pause = (pause * 2).min(LISTEN_AGAIN.1);
    }
}

async fn listen(plane: &ControlPlane, pause: &mut Duration) -> Error {
    let bells = plane.bells();
    let mut heard = match plane.wakeups().listen().await {
        Ok(heard) => heard,
        Err(error) => return error,
    };
    *pause = LISTEN_AGAIN.0;
    plane.metrics().wakeups_listening.set(1);
    if !bells.set_fault(None) {
        tracing::info!("bells of other processes are heard again");
    }
    // What was rung while nobody listened.
    Bell::ALL.into_iter().for_each(|bell| bells.sound(bell));
    while let Some(bell) = heard.next().await {
        match bell {
            Ok(bell) => bells.sound(bell),
            Err(error) => return error,
        }
    }
    Error::unavailable("the wake-ups ended")
}
