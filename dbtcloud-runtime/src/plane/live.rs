//! Following a run while it happens: status, steps, nodes and log bytes, resumable at any event.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Bell, Event};
use dbtcloud_core::{Error, Result};
use futures::Stream;

use super::ControlPlane;

/// Journal events read at one time.
const EVENT_PAGE: u32 = 500;
/// Log bytes read at one time.
const LOG_PAGE_BYTES: u32 = 64 * 1024;
/// Steps a cursor may name; more than a run can have.
const CURSOR_STEP_LIMIT: usize = 256;

/// How far a follower has come. As text it is an event id: `17;1:0;4:2048`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LiveCursor {
    /// The last journal event seen.
    sequence: u64,
    /// The next log byte of each step.
    offsets: BTreeMap<u32, u64>,
}

impl LiveCursor {
    /// The same cursor, `bytes` further back in a step's log: for a follower that was given bytes which it
    /// has not passed on yet.
    #[must_use]
    pub fn held_back(mut self, step: u32, bytes: u64) -> Self {
        if let Some(offset) = self.offsets.get_mut(&step) {
            *offset = offset.saturating_sub(bytes);
        }
        self
    }
}

impl std::fmt::Display for LiveCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.sequence)?;
        self.offsets
            .iter()
            .try_for_each(|(step, offset)| write!(f, ";{step}:{offset}"))
    }
}

impl std::str::FromStr for LiveCursor {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("last_event_id", "expected an id that this stream has sent");
        let mut parts = text.split(';');
        let sequence = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let mut offsets = BTreeMap::new();
        for part in parts {
            let (step, offset) = part.split_once(':').ok_or_else(bad)?;
            offsets.insert(step.parse().map_err(|_| bad())?, offset.parse().map_err(|_| bad())?);
            if offsets.len() > CURSOR_STEP_LIMIT {
                return Err(bad());
            }
        }
        Ok(Self { sequence, offsets })
    }
}

/// One thing that happened, and where to go on after it.
#[derive(Clone, Debug, PartialEq)]
pub enum LiveEvent {
    /// A change of the run, a step or a node.
    Journal(LiveCursor, Box<Event>),
    /// Log bytes of a step.
    Log {
        /// Where to go on.
        cursor: LiveCursor,
        /// The step's index.
        step: u32,
        /// Where they begin.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// The run has ended and everything was told.
    End(LiveCursor),
}

struct Follower {
    plane: ControlPlane,
    account: AccountId,
    run: RunId,
    cursor: LiveCursor,
    pending: VecDeque<LiveEvent>,
    ended: bool,
}

impl Follower {
    /// Fills `pending` with what is new. Returns whether the run had ended before it looked.
    async fn look(&mut self) -> Result<bool> {
        let runs = self.plane.runs();
        let terminal = runs.get(self.account, self.run).await?.status.is_terminal();
        let events = self
            .plane
            .journal()
            .of_run(self.account, self.run, self.cursor.sequence, EVENT_PAGE)
            .await?;
        for event in events {
            self.cursor.sequence = event.sequence;
            self.pending
                .push_back(LiveEvent::Journal(self.cursor.clone(), Box::new(event)));
        }
        for step in runs.steps(self.account, self.run).await? {
            let index = step.state.index;
            let from = self.cursor.offsets.get(&index).copied().unwrap_or(0);
            if step.log_bytes <= from {
                continue;
            }
            let page = self.plane.step_log(self.account, &step, from, LOG_PAGE_BYTES).await?;
            if page.bytes.is_empty() {
                continue;
            }
            self.cursor.offsets.insert(index, page.offset + page.bytes.len() as u64);
            self.pending.push_back(LiveEvent::Log {
                cursor: self.cursor.clone(),
                step: index,
                offset: page.offset,
                bytes: page.bytes,
            });
        }
        Ok(terminal)
    }

    async fn next(mut self) -> Result<Option<(LiveEvent, Self)>> {
        let mut bell = self.plane.bell(Bell::Reports);
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some((event, self)));
            }
            if self.ended {
                return Ok(None);
            }
            let terminal = self.look().await?;
            if !self.pending.is_empty() {
                continue;
            }
            if terminal {
                self.ended = true;
                let cursor = self.cursor.clone();
                self.pending.push_back(LiveEvent::End(cursor));
                continue;
            }
            tokio::select! {
                _ = bell.changed() => {}
                () = self.plane.clock().sleep(self.plane.config().poll) => {}
            }
        }
    }
}

impl ControlPlane {
    /// What happens to a run, from the beginning or from where `cursor` says, until it has ended and
    /// everything was told. Log bytes come whole and in order per step; nothing is told twice to a follower
    /// that resumes with the cursor of the last event it took in. Memory is bounded by two pages.
    pub fn live(
        &self,
        account: AccountId,
        run: RunId,
        cursor: LiveCursor,
    ) -> impl Stream<Item = Result<LiveEvent>> + Send + 'static + use<> {
        let follower = Follower {
            plane: self.clone(),
            account,
            run,
            cursor,
            pending: VecDeque::new(),
            ended: false,
        };
        futures::stream::try_unfold(follower, Follower::next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = LiveCursor {
            sequence: 17,
            offsets: BTreeMap::from([(1, 0), (4, 2048)]),
        };
        assert_eq!(cursor.to_string(), "17;1:0;4:2048");
        assert_eq!(cursor.to_string().parse::<LiveCursor>().ok(), Some(cursor));
        let back: LiveCursor = "17;4:2048".parse().unwrap_or_default();
        assert_eq!(back.held_back(4, 3).held_back(5, 1).to_string(), "17;4:2045");
        for bad in ["", "x", "1;2", "1;2:x", "-1"] {
            assert!(bad.parse::<LiveCursor>().is_err(), "{bad}");
        }
    }
}
