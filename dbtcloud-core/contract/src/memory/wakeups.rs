use std::sync::Arc;

use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::ports::{Bell, BellStream, Wakeups};
use futures::stream;
use tokio::sync::watch;

use super::MemoryStorage;
use super::state::Mutation;

/// How often each bell was rung.
pub(super) type Bells = Arc<watch::Sender<[u64; Bell::ALL.len()]>>;

#[async_trait]
impl Wakeups for MemoryStorage {
    async fn ring(&self, bell: Bell) -> Result<()> {
        let bell = if self.lock().breaks(Mutation::MixBells) {
            Bell::Queue
        } else {
            bell
        };
        self.bells.send_modify(|counts| counts[bell as usize] += 1);
        Ok(())
    }

    async fn listen(&self) -> Result<BellStream> {
        let mut bells = self.bells.subscribe();
        let seen = *bells.borrow_and_update();
        Ok(Box::pin(stream::unfold(Some((bells, seen)), |listener| async {
            let (mut bells, mut seen) = listener?;
            loop {
                let counts = *bells.borrow_and_update();
                let rung = |bell: &Bell| counts[*bell as usize] != seen[*bell as usize];
                if let Some(bell) = Bell::ALL.into_iter().find(rung) {
                    seen[bell as usize] = counts[bell as usize];
                    return Some((Ok(bell), Some((bells, seen))));
                }
                if bells.changed().await.is_err() {
                    return Some((Err(Error::unavailable("the storage is gone")), None));
                }
            }
        })))
    }
}
