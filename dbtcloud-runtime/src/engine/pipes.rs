//! Draining dbt's pipes: always, whoever listens, until nobody can write any more.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::events::{CommandEvent, LINE_LIMIT, Parsed, parse_line};
use super::invocation::{EngineEvent, Sink};

const READ_SIZE: usize = 64 * 1024;
/// After dbt's end, how long a pipe may stay silent before it is given up: a process that left the group may hold it.
const SILENCE: Duration = Duration::from_secs(2);

/// A pipe: our end for reading, the other for a process.
pub(super) fn pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = std::io::pipe()?;
    Ok((
        pipe::Receiver::from_owned_fd(OwnedFd::from(read))?,
        OwnedFd::from(write),
    ))
}

/// What an event pipe said about itself.
#[derive(Debug, Default)]
pub(super) struct EventTotals {
    pub(super) bad: u64,
    pub(super) invocation_id: Option<String>,
}

/// The next piece, or `None` at the end, or when dbt is over and nothing comes.
async fn next(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    over: &mut watch::Receiver<bool>,
) -> Option<usize> {
    buffer.reserve(READ_SIZE);
    if !*over.borrow() {
        tokio::select! {
            biased;
            read = reader.read_buf(buffer) => return read.ok().filter(|count| *count > 0),
            _ = over.wait_for(|over| *over) => {}
        }
    }
    let read = tokio::time::timeout(SILENCE, reader.read_buf(buffer)).await;
    read.ok().and_then(Result::ok).filter(|count| *count > 0)
}

/// Forwards raw bytes. `over` turns true when the process is dead.
pub(super) fn forward(
    mut reader: impl AsyncRead + Unpin + Send + 'static,
    sink: Sink,
    wrap: fn(Bytes) -> EngineEvent,
    mut over: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        while next(&mut reader, &mut buffer, &mut over).await.is_some() {
            // A receiver that is gone is no reason to stop: dbt writes a traceback per line into a closed pipe.
            let _ = sink.send(wrap(buffer.split().freeze())).await;
        }
    })
}

/// Forwards events, a line each.
pub(super) fn forward_events(
    mut reader: impl AsyncRead + Unpin + Send + 'static,
    sink: Sink,
    mut over: watch::Receiver<bool>,
) -> JoinHandle<EventTotals> {
    tokio::spawn(async move {
        let mut totals = EventTotals::default();
        let mut lines = Lines::default();
        let mut buffer = BytesMut::new();
        while next(&mut reader, &mut buffer, &mut over).await.is_some() {
            for parsed in lines.feed(&buffer.split()) {
                if let Some(event) = totals.take(parsed) {
                    let _ = sink.send(event).await;
                }
            }
        }
        if lines.rest() {
            totals.bad += 1;
        }
        totals
    })
}

impl EventTotals {
    /// Counts, and says what to forward.
    pub(super) fn take(&mut self, parsed: Parsed) -> Option<EngineEvent> {
        match parsed {
            Parsed::Node(node) => Some(EngineEvent::Node(node)),
            Parsed::Command(command) => {
                if let CommandEvent::Version { invocation_id, .. } = &command {
                    self.invocation_id = Some(invocation_id.clone());
                }
                Some(EngineEvent::Command(command))
            }
            Parsed::Other => None,
            Parsed::Bad => {
                self.bad += 1;
                None
            }
        }
    }
}

/// Cuts a stream into lines, bounded: a line over the limit is dropped and counted once.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    skipping: bool,
}

impl Lines {
    pub(super) fn feed(&mut self, data: &[u8]) -> Vec<Parsed> {
        self.feed_raw(data)
            .into_iter()
            .map(|line| line.map_or(Parsed::Bad, |line| parse_line(&line)))
            .collect()
    }

    /// Whole lines without their ends; `None` for one that was too long.
    pub(super) fn feed_raw(&mut self, data: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (body, ends) = match piece.split_last() {
                Some((b'\n', body)) => (body, true),
                _ => (piece, false),
            };
            if !self.skipping {
                self.held.extend_from_slice(body);
                if self.held.len() > LINE_LIMIT {
                    self.held.clear();
                    self.skipping = true;
                }
            }
            if ends {
                let line = std::mem::take(&mut self.held);
                if std::mem::take(&mut self.skipping) {
                    lines.push(None);
                } else {
                    lines.push(Some(line));
                }
            }
        }
        lines
    }

    /// Whether the stream ended inside a line.
    pub(super) fn rest(&self) -> bool {
        self.skipping || !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_cut_wherever_reads_fall() {
        let mut lines = Lines::default();
        assert!(lines.feed(br#"{"k":"sta"#).is_empty());
        let parsed = lines.feed(b"rt\",\"id\":\"a\"}\nrubbish\n{}\n");
        assert!(matches!(
            parsed.as_slice(),
            [Parsed::Node(_), Parsed::Bad, Parsed::Other]
        ));
        assert!(!lines.rest());
    }

    #[test]
    fn an_endless_line_costs_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..40 {
            assert!(lines.feed(&[b'x'; 64 * 1024]).is_empty());
            assert!(lines.held.len() <= LINE_LIMIT);
        }
        assert_eq!(lines.feed(b"x\n{}\n"), vec![Parsed::Bad, Parsed::Other]);
    }

    #[tokio::test]
    async fn a_dropped_receiver_does_not_block_the_writer() {
        let (reader, writer) = pipe().unwrap();
        let (sink, receiver) = tokio::sync::mpsc::channel(1);
        drop(receiver);
        let (_over, watch) = watch::channel(false);
        let task = forward(reader, sink, EngineEvent::Stdout, watch);
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            std::fs::File::from(writer).write_all(&vec![b'x'; 1 << 20]).unwrap();
        })
        .await
        .unwrap();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_pipe_held_by_a_stranger_is_given_up() {
        let (reader, _held) = pipe().unwrap();
        let (sink, _receiver) = tokio::sync::mpsc::channel(1);
        let (over, watch) = watch::channel(false);
        let task = forward(reader, sink, EngineEvent::Stdout, watch);
        over.send_replace(true);
        task.await.unwrap();
    }
}
