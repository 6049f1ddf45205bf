//! The log of one step: what dbt or git print and what the agent has to add, redacted, bounded, in order.

use std::sync::Arc;

use super::redact::{Redactor, Stream};
use super::reporter::Reporter;

/// The longest log of a step that is kept. What comes after is read and dropped, and the log says so.
pub const STEP_LOG_LIMIT_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// How much of the end of the output is kept at hand, to find out what went wrong.
const TAIL_BYTES: usize = 8 * 1024;

/// Writes one step's log.
#[derive(Debug)]
pub(super) struct Console {
    reporter: Reporter,
    redactor: Arc<Redactor>,
    step: u32,
    streams: [Stream; 2],
    out: Vec<u8>,
    written: u64,
    limit: u64,
    full: bool,
    /// Whether the last byte was a line break.
    fresh: bool,
    tail: Vec<u8>,
}

/// Which stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Out = 0,
    Err = 1,
}

impl Console {
    pub(super) fn new(reporter: Reporter, redactor: Arc<Redactor>, step: u32) -> Self {
        Self {
            reporter,
            redactor,
            step,
            streams: Default::default(),
            out: Vec::new(),
            written: 0,
            limit: STEP_LOG_LIMIT_BYTES,
            full: false,
            fresh: true,
            tail: Vec::new(),
        }
    }

    /// The same with another limit.
    #[cfg(test)]
    pub(super) fn with_limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// Bytes of a process.
    pub(super) async fn write(&mut self, source: Source, bytes: &[u8]) {
        self.out.clear();
        self.streams[source as usize].feed(&self.redactor, bytes, &mut self.out);
        self.give().await;
    }

    /// A line of the agent's own.
    pub(super) async fn line(&mut self, text: &str) {
        self.settle().await;
        let text = self.redactor.text(text);
        self.out.clear();
        if !self.fresh {
            self.out.push(b'\n');
        }
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'\n');
        self.give().await;
    }

    /// What was held back because it might have become a secret comes out.
    pub(super) async fn settle(&mut self) {
        for source in [Source::Out, Source::Err] {
            self.out.clear();
            self.streams[source as usize].finish(&mut self.out);
            self.give().await;
        }
    }

    /// The end of the output, redacted, without colours.
    pub(super) fn tail(&self) -> String {
        plain(&String::from_utf8_lossy(&self.tail))
    }

    async fn give(&mut self) {
        let Some(last) = self.out.last() else { return };
        self.fresh = *last == b'\n';
        let keep = self.out.len().min(TAIL_BYTES);
        self.tail.extend_from_slice(&self.out[self.out.len() - keep..]);
        if self.tail.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
        if self.full {
            return;
        }
        let room = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
        let count = self.out.len().min(room);
        self.reporter.log(self.step, &self.out[..count]).await;
        self.written += count as u64;
        if count < self.out.len() {
            self.full = true;
            let mark = format!("\n[log cut here: it is longer than {} bytes]\n", self.limit);
            self.reporter.log(self.step, mark.as_bytes()).await;
        }
    }
}

/// Text without terminal escape sequences.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            out.push(c);
        } else if chars.clone().next() == Some('[') {
            chars.next();
            for c in chars.by_ref() {
                if ('@'..='~').contains(&c) {
                    break;
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_log_beyond_its_limit_is_cut_and_says_so_once() {
        let dir = tempfile::tempdir().unwrap();
        let reporter = Reporter::new(dir.path().to_path_buf(), 1 << 30);
        let redactor = Arc::new(Redactor::new([]).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut console = Console::new(reporter.clone(), redactor, 1).with_limit(10);
            console.write(Source::Out, b"0123456789abc\n").await;
            console.write(Source::Out, b"more\n").await;
            console.settle().await;
        });
        let reports = reporter.drain();
        let bytes: Vec<u8> = reports
            .iter()
            .flat_map(|report| &report.logs)
            .flat_map(|part| part.bytes.to_vec())
            .collect();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "0123456789\n[log cut here: it is longer than 10 bytes]\n"
        );
    }

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m and \u{1b}[1;32mgreen"), "red and green");
    }
}
