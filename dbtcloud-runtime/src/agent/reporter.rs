//! What an agent has to say, in order, in numbered batches, each sent until it is acknowledged.
//!
//! Steps, nodes, log bytes and events go through one queue, so that no step is reported over before its log is. The
//! queue is bounded: who has more to say waits (and dbt with it), nothing is lost and memory does not grow. One batch
//! is on its way at a time and is sent again unchanged until there is an answer, however long the control plane is
//! away, up to the limit given. Its status comes back with every answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dbtcloud_core::ErrorKind;
use dbtcloud_core::ports::{BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, RunPatch};
use dbtcloud_core::run::{NodeReport, RunEvent, RunStatus, StepState};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::halt::{Halt, Reason};
use super::spool::Spool;
use super::uplink::{self, Backoff, Uplink};
use crate::protocol::{Counted, LogPart, Report};

/// The longest a report waits for more to go with it.
pub const COALESCE: Duration = Duration::from_millis(150);
/// The longest silence: then an empty report is sent, to be alive and to hear.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Log bytes that are worth sending at once.
const ENOUGH_BYTES: u64 = 256 * 1024;
/// The most steps and nodes that wait. Beyond it dbt has to wait.
pub const ITEM_LIMIT: usize = 20_000;
/// Text of nodes in one batch, before JSON: its header must stay below the protocol's limit even if each byte of it is
/// written as six.
const TEXT_LIMIT_BYTES: usize = 1024 * 1024;
/// The longest message of a node or a step that is reported.
pub const MESSAGE_LIMIT_BYTES: usize = 16 * 1024;
/// Pieces in which log bytes are taken in.
const PIECE_BYTES: usize = 64 * 1024;
/// Room for the remark that log bytes were lost.
const LOST_MARK_BYTES: u64 = 128;
/// How often a batch that conflicts is sent again before the agent gives up.
const CONFLICT_TRIES: u32 = 3;

#[derive(Debug)]
enum Entry {
    /// So many bytes of the spool.
    Log {
        step: u32,
        bytes: u64,
    },
    Step(StepState),
    Node(Box<NodeReport>),
    Run(Option<RunEvent>, RunPatch),
}

#[derive(Debug)]
struct Queue {
    entries: VecDeque<Entry>,
    items: usize,
    counted: Vec<Counted>,
    spool: Spool,
    /// Length of each step's log as far as it was put into a batch.
    offsets: BTreeMap<u32, u64>,
    urgent: bool,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Notify,
    room: Notify,
    heard: watch::Sender<bool>,
}

/// Takes in what there is to say. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Reporter(Arc<Shared>);

/// How reporting ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The outcome was acknowledged.
    Delivered,
    /// The run is no longer this agent's.
    Fenced,
    /// The control plane refuses reports for good.
    Refused(String),
    /// There was no answer for too long.
    Undelivered,
}

impl Reporter {
    /// A reporter that keeps what waits in memory, and then in `dir` up to `disk_limit` bytes.
    pub(super) fn new(dir: PathBuf, disk_limit: u64) -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::new(Queue {
                entries: VecDeque::new(),
                items: 0,
                counted: Vec::new(),
                spool: Spool::new(dir, disk_limit),
                offsets: BTreeMap::new(),
                urgent: false,
                closed: false,
            }),
            work: Notify::new(),
            room: Notify::new(),
            heard: watch::Sender::new(true),
        }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the last report was answered at once: the control plane is there.
    pub(super) fn heard(&self) -> bool {
        *self.0.heard.borrow()
    }

    /// Tells a step's state.
    pub(super) fn step(&self, state: StepState) {
        let mut queue = self.queue();
        if !queue.closed {
            queue.entries.push_back(Entry::Step(state));
            queue.items += 1;
            drop(queue);
            self.0.work.notify_one();
        }
    }

    /// Tells what was counted, with the next report.
    pub(super) fn count(&self, counted: impl IntoIterator<Item = Counted>) {
        let mut queue = self.queue();
        if !queue.closed {
            queue.counted.extend(counted);
        }
    }

    /// Tells what happened to the run, and what is known of it.
    pub(super) fn run(&self, event: Option<RunEvent>, patch: RunPatch) {
        let mut queue = self.queue();
        if !queue.closed {
            queue.entries.push_back(Entry::Run(event, patch));
            queue.urgent |= event.is_some();
            drop(queue);
            self.0.work.notify_one();
        }
    }

    /// Tells a node's state; waits while there is no room. Not cancellation-safe: dropped early, it is not told.
    pub(super) async fn node(&self, mut report: NodeReport) {
        if let Some(message) = &mut report.message {
            cut(message, MESSAGE_LIMIT_BYTES);
        }
        self.with_room(|queue| {
            if queue.items >= ITEM_LIMIT {
                return false;
            }
            queue.items += 1;
            queue.entries.push_back(Entry::Node(Box::new(report.clone())));
            true
        })
        .await;
    }

    /// Tells log bytes of a step; waits while there is no room. Dropped early, a part of them may be told.
    pub(super) async fn log(&self, step: u32, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.with_room(|queue| match queue.spool.push(piece) {
                Ok(true) => {
                    let count = piece.len() as u64;
                    match queue.entries.back_mut() {
                        Some(Entry::Log { step: last, bytes }) if *last == step => *bytes += count,
                        _ => queue.entries.push_back(Entry::Log { step, bytes: count }),
                    }
                    true
                }
                Ok(false) => false,
                Err(error) => {
                    tracing::warn!(%error, "log bytes cannot be kept on disk; dbt waits");
                    false
                }
            })
            .await;
        }
    }

    /// Runs `put` until it says that it could. What is put after the end is dropped.
    async fn with_room(&self, mut put: impl FnMut(&mut Queue) -> bool) {
        loop {
            let room = self.0.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut queue = self.queue();
                if queue.closed {
                    return;
                }
                if put(&mut queue) {
                    break;
                }
            }
            room.await;
        }
        self.0.work.notify_one();
    }

    /// Takes out everything that waits, as reports.
    #[cfg(test)]
    pub(super) fn drain(&self) -> Vec<Report> {
        let mut queue = self.queue();
        let mut reports = Vec::new();
        while !queue.entries.is_empty() {
            reports.push(queue.take(reports.len() as u64 + 1));
        }
        reports
    }

    fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.entries.clear();
        queue.items = 0;
        queue.spool.clear();
        drop(queue);
        self.0.room.notify_waiters();
    }

    /// Sends what there is to send until an event that ends the run was acknowledged, or nobody listens for good.
    /// `halt` learns what the control plane wants; `deadline` is when an unanswered report is given up.
    pub(super) async fn deliver(&self, uplink: &Uplink, halt: &Halt, deadline: Instant) -> Ended {
        let ended = self.deliver_all(uplink, halt, deadline).await;
        match &ended {
            Ended::Delivered => {}
            Ended::Fenced => halt.raise(Reason::Fenced),
            Ended::Refused(_) | Ended::Undelivered => halt.raise(Reason::Unheard),
        }
        self.close();
        ended
    }

    async fn deliver_all(&self, uplink: &Uplink, halt: &Halt, deadline: Instant) -> Ended {
        let mut number = 0;
        loop {
            self.wait_for_work().await;
            number += 1;
            let report = self.queue().take(number);
            self.0.room.notify_waiters();
            let last = report.event.is_some_and(|event| {
                matches!(
                    event,
                    RunEvent::Succeeded | RunEvent::Warned | RunEvent::Failed | RunEvent::Stopped
                )
            });
            let status = match self.send(uplink, &report, deadline).await {
                Ok(status) => status,
                Err(ended) => return ended,
            };
            match status {
                _ if last => return Ended::Delivered,
                RunStatus::Cancelling => halt.raise(Reason::Cancelled),
                // Ended by somebody else: there is nothing left to say.
                status if status.is_terminal() => return Ended::Fenced,
                _ => {}
            }
        }
    }

    /// Until there is enough to send, or it has waited long enough, or a sign of life is due.
    async fn wait_for_work(&self) {
        let silent_until = Instant::now() + HEARTBEAT;
        let mut send_at = silent_until;
        loop {
            {
                let queue = self.queue();
                if queue.urgent || queue.spool.len() >= ENOUGH_BYTES || queue.entries.len() >= BATCH_LIMIT_ITEMS / 2 {
                    return;
                }
                if !queue.entries.is_empty() {
                    send_at = send_at.min(Instant::now() + COALESCE);
                }
            }
            if tokio::time::timeout_at(send_at, self.0.work.notified()).await.is_err() {
                return;
            }
        }
    }

    async fn send(&self, uplink: &Uplink, report: &Report, deadline: Instant) -> Result<RunStatus, Ended> {
        let frame = uplink::frame(report).map_err(|error| Ended::Refused(error.chain()))?;
        let (mut backoff, mut conflicts) = (Backoff::default(), 0);
        loop {
            let error = match uplink.report(frame.clone()).await {
                Ok(ack) if ack.number >= report.number => {
                    self.0.heard.send_if_modified(|heard| !std::mem::replace(heard, true));
                    return Ok(ack.status);
                }
                Ok(ack) => {
                    dbtcloud_core::Error::conflict(format!("report {} was answered with {}", report.number, ack.number))
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Fenced => return Err(Ended::Fenced),
                ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Invalid => {
                    return Err(Ended::Refused(error.chain()));
                }
                ErrorKind::Conflict | ErrorKind::AlreadyExists if conflicts >= CONFLICT_TRIES => {
                    return Err(Ended::Refused(error.chain()));
                }
                ErrorKind::Conflict | ErrorKind::AlreadyExists => conflicts += 1,
                _ => {
                    if self.0.heard.send_if_modified(|heard| std::mem::replace(heard, false)) {
                        tracing::warn!(error = %error.chain(), "control plane is away; the run goes on");
                    }
                    if Instant::now() >= deadline {
                        return Err(Ended::Undelivered);
                    }
                }
            }
            backoff.pause().await;
        }
    }
}

impl Queue {
    /// The disk does not give back what it took: says so in the log, once, and goes on.
    fn give_up_logs(&mut self) -> Bytes {
        let lost = self.spool.len();
        self.spool.clear();
        self.entries.retain(|entry| !matches!(entry, Entry::Log { .. }));
        Bytes::from(format!("\n[{lost} bytes of log were lost by the agent's disk]\n"))
    }

    /// The next batch: as much from the front as the limits allow, at most one state per step and one event.
    fn take(&mut self, number: u64) -> Report {
        let mut report = Report {
            number,
            counted: std::mem::take(&mut self.counted),
            ..Report::default()
        };
        let (mut steps, mut log_bytes, mut text, mut patched) = (BTreeSet::new(), 0, 0, false);
        while let Some(entry) = self.entries.front_mut() {
            if report.steps.len() + report.nodes.len() + report.logs.len() >= BATCH_LIMIT_ITEMS {
                break;
            }
            match entry {
                Entry::Step(state) if !steps.insert(state.index) => break,
                Entry::Node(_) if text >= TEXT_LIMIT_BYTES => break,
                Entry::Run(..) if patched => break,
                Entry::Log { step, bytes } => {
                    let room = (BATCH_LIMIT_BYTES - log_bytes) as u64;
                    if room == 0 {
                        break;
                    }
                    let step = *step;
                    let want = usize::try_from(room.min(*bytes)).unwrap_or(BATCH_LIMIT_BYTES);
                    let part = match self.spool.pop(want) {
                        Ok(part) => part,
                        Err(_) if room < LOST_MARK_BYTES => break,
                        Err(error) => {
                            tracing::error!(%error, "log bytes on disk cannot be read");
                            self.give_up_logs()
                        }
                    };
                    if part.is_empty() {
                        continue;
                    }
                    let offset = self.offsets.entry(step).or_default();
                    if let Some(Entry::Log { bytes, .. }) = self.entries.front_mut() {
                        *bytes = bytes.saturating_sub(part.len() as u64);
                        if *bytes == 0 {
                            self.entries.pop_front();
                        }
                    }
                    log_bytes += part.len();
                    report.logs.push(LogPart {
                        step,
                        offset: *offset,
                        bytes: part.clone(),
                    });
                    *offset += part.len() as u64;
                    continue;
                }
                _ => {}
            }
            match self.entries.pop_front() {
                Some(Entry::Step(state)) => {
                    self.items -= 1;
                    text += state.message.as_ref().map_or(0, String::len);
                    report.steps.push(state);
                }
                Some(Entry::Node(node)) => {
                    self.items -= 1;
                    text += node.unique_id.len() + node.message.as_ref().map_or(0, String::len);
                    report.nodes.push(*node);
                }
                Some(Entry::Run(event, patch)) => {
                    patched = true;
                    report.event = event;
                    report.patch = patch;
                }
                Some(Entry::Log { .. }) | None => {}
            }
        }
        self.urgent = self.entries.iter().any(|entry| matches!(entry, Entry::Run(Some(_), _)));
        report
    }
}

/// Shortens a text to at most `limit` bytes, at a character.
pub(super) fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
