//! Which lines of a log tell of which node. dbt says it in two ways: by position (`3 of 8 OK created …`) and,
//! when something went wrong, by name (`Failure in test not_null_orders_id (models/…)`). Lines without a time
//! of their own belong to the line before them.

use serde::{Deserialize, Serialize};

/// Marks that one part of a log may have; a dbt project of 10,000 nodes has about 25,000 in all.
const MARK_LIMIT: usize = 100_000;
/// How much of a line's beginning is looked at.
const LINE_LIMIT_BYTES: usize = 512;
/// The longest that a mark may be.
const SPAN_LIMIT_BYTES: u64 = 64 * 1024;

/// A line, with those that belong to it, that tells of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Line breaks of the log before it.
    #[serde(rename = "l")]
    pub(crate) line: u64,
    /// Its first byte.
    #[serde(rename = "o")]
    pub(crate) offset: u64,
    /// Its length in bytes.
    #[serde(rename = "n")]
    pub(crate) bytes: u64,
    /// Whom it tells of.
    #[serde(rename = "w")]
    pub(crate) whom: Whom,
}

/// Whom a line tells of, in dbt's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Whom {
    /// The node at this position, from 1, of so many.
    Position(u32, u32),
    /// The node of this type and name: `model orders`.
    Name(String),
}

/// Finds marks in a log as it comes.
pub(crate) struct Scanner {
    offset: u64,
    line: u64,
    /// The beginning of the line that is being read, and where it begins.
    head: Vec<u8>,
    begins: u64,
    open: Option<Mark>,
    found: Vec<Mark>,
}

impl Scanner {
    /// A scanner of a log from this byte on, before which there are so many line breaks.
    pub(crate) fn new(offset: u64, line: u64) -> Self {
        Self {
            offset,
            line,
            head: Vec::new(),
            begins: offset,
            open: None,
            found: Vec::new(),
        }
    }

    /// Takes bytes in.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_LIMIT_BYTES.saturating_sub(self.head.len()).min(piece.len());
            self.head.extend_from_slice(&piece[..room]);
            self.offset += piece.len() as u64;
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let head = std::mem::take(&mut self.head);
        let text = crate::agent::plain(&String::from_utf8_lossy(&head));
        match untimed(&text) {
            Some(text) => {
                self.close(self.begins);
                self.open = whom(text).map(|whom| Mark {
                    line: self.line,
                    offset: self.begins,
                    bytes: 0,
                    whom,
                });
            }
            None if self.offset - self.open.as_ref().map_or(self.begins, |mark| mark.offset) > SPAN_LIMIT_BYTES => {
                self.close(self.begins);
            }
            None => {}
        }
        self.line += 1;
        self.begins = self.offset;
        self.head = head;
        self.head.clear();
    }

    fn close(&mut self, end: u64) {
        if let Some(mut mark) = self.open.take()
            && self.found.len() < MARK_LIMIT
        {
            mark.bytes = end - mark.offset;
            self.found.push(mark);
        }
    }

    /// All that were found.
    pub(crate) fn finish(mut self) -> Vec<Mark> {
        if !self.head.is_empty() {
            self.end_line();
        }
        self.close(self.offset);
        self.found
    }
}

/// A line without its time; `None` when it has none.
fn untimed(line: &str) -> Option<&str> {
    let (time, rest) = line.split_at_checked(8)?;
    let digits = |at: usize| time.as_bytes()[at..at + 2].iter().all(u8::is_ascii_digit);
    let colons = time.as_bytes()[2] == b':' && time.as_bytes()[5] == b':';
    (colons && digits(0) && digits(3) && digits(6)).then(|| rest.trim())
}

fn whom(text: &str) -> Option<Whom> {
    position(text).or_else(|| name(text))
}

/// `3 of 8 OK created sql table model main.orders …`
fn position(text: &str) -> Option<Whom> {
    let (index, rest) = text.split_once(" of ")?;
    let (total, rest) = rest.split_once(' ')?;
    let (index, total) = (index.parse().ok()?, total.parse().ok()?);
    rest.starts_with(|c: char| c.is_ascii_uppercase())
        .then_some(Whom::Position(index, total))
}

/// `Database Error in model orders (models/orders.sql)`
fn name(text: &str) -> Option<Whom> {
    let (what, rest) = text.split_once(" in ")?;
    let told = ["Failure", "Error", "Warning"].iter().any(|word| what.ends_with(word));
    let (whom, place) = rest.split_once(" (")?;
    let two = whom.split(' ').count() == 2;
    (told && two && place.contains(')')).then(|| Whom::Name(whom.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "Cloning\n\
        12:00:01  1 of 2 START sql table model main.orders ... [RUN]\n\
        12:00:01  2 of 2 START test not_null_orders_id ... [RUN]\n\
        12:00:02  \x1b[31m1 of 2 ERROR creating sql table model main.orders ... [ERROR in 0.1s]\x1b[0m\n\
        12:00:03  1 of them all\n\
        12:00:03    Database Error in model orders (models/orders.sql)\n  \
          syntax error\n  \
          LINE 3\n\
        12:00:04  \n\
        12:00:05  Failure in test not_null_orders_id (models/schema.yml)";

    fn marks(pieces: impl Iterator<Item = &'static [u8]>) -> Vec<(u64, String, Whom)> {
        let mut scanner = Scanner::new(100, 10);
        pieces.for_each(|piece| scanner.feed(piece));
        let text = |mark: &Mark| {
            let from = (mark.offset - 100) as usize;
            LOG[from..from + mark.bytes as usize].to_owned()
        };
        let found = scanner.finish();
        found
            .iter()
            .map(|mark| (mark.line, text(mark), mark.whom.clone()))
            .collect()
    }

    #[test]
    fn lines_that_tell_of_nodes_are_found_however_they_come() {
        let found = marks([LOG.as_bytes()].into_iter());
        let told: Vec<_> = found.iter().map(|(line, _, whom)| (*line, whom.clone())).collect();
        let name = |name: &str| Whom::Name(name.to_owned());
        assert_eq!(
            told,
            [
                (11, Whom::Position(1, 2)),
                (12, Whom::Position(2, 2)),
                (13, Whom::Position(1, 2)),
                (15, name("model orders")),
                (19, name("test not_null_orders_id")),
            ]
        );
        assert!(found[3].1.ends_with("LINE 3\n"), "what belongs to it: {:?}", found[3].1);
        assert_eq!(
            found[4].1,
            "12:00:05  Failure in test not_null_orders_id (models/schema.yml)"
        );
        for size in [1, 7, 64] {
            assert_eq!(marks(LOG.as_bytes().chunks(size)), found, "in pieces of {size}");
        }
    }
}
