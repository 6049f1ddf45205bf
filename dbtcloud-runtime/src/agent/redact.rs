//! Redaction by value: every secret of a run, in every spelling that output tends to give it, becomes `*****`.
//!
//! A byte is masked when it belongs to any occurrence of any spelling; each unbroken stretch of masked bytes becomes
//! one [`MASK`]. That is independent of how the text was cut into chunks, so a stream and a whole give the same result.
//! No spelling holds a line break: a secret of several lines is masked line by line, and nothing is ever held back
//! beyond the end of a line.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use aho_corasick::automaton::{Automaton as _, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use dbtcloud_core::{Error, Result};

/// What a secret is replaced with.
pub const MASK: &[u8] = b"*****";
/// Shorter values are not masked: they would mask ordinary text and hide nothing.
pub const SECRET_MIN_CHARS: usize = 4;
/// In artifacts, which programs read, shorter values are not masked.
pub const ARTIFACT_SECRET_MIN_CHARS: usize = 8;
/// Size of the pieces in which files are redacted.
const PIECE_BYTES: usize = 64 * 1024;

/// Knows the secrets of a run. Immutable; streams are made from it.
#[derive(Debug)]
pub(super) struct Redactor {
    automaton: Option<Known>,
}

#[derive(Debug)]
struct Known {
    nfa: NFA,
    start: StateID,
    /// Whether a byte begins some spelling.
    begins: [bool; 256],
}

impl Redactor {
    /// For console text and messages: every value of at least [`SECRET_MIN_CHARS`].
    ///
    /// # Errors
    /// `Invalid` when there are more secrets than an automaton can hold (billions of bytes).
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut spellings = BTreeSet::new();
        for secret in secrets {
            for line in secret.lines() {
                spell(line, &mut spellings);
            }
            // As one text in a JSON string, a URL or base64, where line breaks are no line breaks.
            if secret.contains('\n') {
                spell_whole(secret, &mut spellings);
            }
        }
        spellings.retain(|spelling| {
            std::str::from_utf8(spelling).map_or(spelling.len(), |text| text.chars().count()) >= SECRET_MIN_CHARS
        });
        Self::build(spellings)
    }

    /// For artifacts, which must stay readable JSON and name what the run is about: values that are long enough to be
    /// no accident, are no number, and are not among `public` (schema, target, adapter, …).
    ///
    /// # Errors
    /// As [`Redactor::new`].
    pub(super) fn for_artifacts<'a>(secrets: impl IntoIterator<Item = &'a str>, public: &[&str]) -> Result<Self> {
        let kept = secrets.into_iter().filter(|secret| {
            secret.chars().count() >= ARTIFACT_SECRET_MIN_CHARS
                && !secret.chars().all(|c| c.is_ascii_digit() || ".-+eE".contains(c))
                && !public.contains(secret)
        });
        let mut spellings = BTreeSet::new();
        for secret in kept {
            for line in secret.lines() {
                spell(line, &mut spellings);
            }
            if secret.contains('\n') {
                spell_whole(secret, &mut spellings);
            }
        }
        spellings.retain(|spelling| {
            // A quotation mark would let a match reach over the edge of a JSON string.
            spelling.len() >= ARTIFACT_SECRET_MIN_CHARS
                && !spelling
                    .iter()
                    .enumerate()
                    .any(|(at, byte)| *byte == b'"' && (at == 0 || spelling[at - 1] != b'\\'))
        });
        Self::build(spellings)
    }

    fn build(spellings: BTreeSet<Vec<u8>>) -> Result<Self> {
        if spellings.is_empty() {
            return Ok(Self { automaton: None });
        }
        let mut begins = [false; 256];
        for byte in spellings.iter().filter_map(|spelling| spelling.first()) {
            begins[usize::from(*byte)] = true;
        }
        let nfa = NFA::builder()
            .match_kind(MatchKind::Standard)
            .build(&spellings)
            .map_err(|e| Error::invalid("secrets", "expected fewer or shorter ones").because(e))?;
        let start = nfa
            .start_state(Anchored::No)
            .map_err(|e| Error::invalid("secrets", "expected searchable ones").because(e))?;
        Ok(Self {
            automaton: Some(Known { nfa, start, begins }),
        })
    }

    /// Redacts a whole text.
    pub(super) fn text(&self, text: &str) -> String {
        let mut out = Vec::with_capacity(text.len());
        let mut stream = Stream::default();
        stream.feed(self, text.as_bytes(), &mut out);
        stream.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Redacts from a reader to a writer; the number of bytes written. Blocking.
    pub(super) fn copy(&self, mut from: impl Read, mut to: impl Write) -> std::io::Result<u64> {
        let mut stream = Stream::default();
        let (mut piece, mut out) = (vec![0; PIECE_BYTES], Vec::with_capacity(PIECE_BYTES));
        let mut written = 0;
        loop {
            let count = from.read(&mut piece)?;
            out.clear();
            if count == 0 {
                stream.finish(&mut out);
            } else {
                stream.feed(self, &piece[..count], &mut out);
            }
            to.write_all(&out)?;
            written += out.len() as u64;
            if count == 0 {
                return Ok(written);
            }
        }
    }
}

/// The place in one stream of bytes. Always used with the same [`Redactor`].
#[derive(Debug, Default)]
pub(super) struct Stream {
    state: Option<StateID>,
    /// How many of the last bytes may belong to an occurrence that is not complete yet; may be too many, never too few.
    open: usize,
    held: Vec<u8>,
    /// Masked stretches of `held`, in order, apart from each other.
    masked: Vec<(usize, usize)>,
    /// Whether the last byte given out was a masked one.
    masking: bool,
}

impl Stream {
    /// Takes bytes in and appends what can be told already to `out`.
    pub(super) fn feed(&mut self, redactor: &Redactor, input: &[u8], out: &mut Vec<u8>) {
        let Some(known) = &redactor.automaton else {
            out.extend_from_slice(input);
            return;
        };
        let mut at = self.held.len();
        self.held.extend_from_slice(input);
        let mut state = self.state.unwrap_or(known.start);
        while at < self.held.len() {
            if state == known.start {
                let rest = &self.held[at..];
                let Some(skip) = rest.iter().position(|byte| known.begins[usize::from(*byte)]) else {
                    self.open = 0;
                    break;
                };
                at += skip;
                self.open = 0;
            }
            state = known.nfa.next_state(Anchored::No, state, self.held[at]);
            at += 1;
            self.open = if state == known.start { 0 } else { self.open + 1 };
            if known.nfa.is_match(state) {
                let longest = (0..known.nfa.match_len(state))
                    .map(|index| {
                        let pattern = known.nfa.match_pattern(state, index);
                        known.nfa.pattern_len(pattern)
                    })
                    .max()
                    .unwrap_or(0);
                self.mask(at.saturating_sub(longest), at);
            }
        }
        self.open = self.open.min(known.nfa.max_pattern_len());
        self.state = Some(state);
        let settled = self.held.len().saturating_sub(self.open);
        self.give(settled, out);
    }

    /// The stream is over: what was held back comes out.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let end = self.held.len();
        self.give(end, out);
        *self = Self::default();
    }

    fn mask(&mut self, mut start: usize, end: usize) {
        while let Some((first, last)) = self.masked.last().copied() {
            if last < start {
                break;
            }
            start = start.min(first);
            self.masked.pop();
        }
        self.masked.push((start, end));
    }

    fn give(&mut self, end: usize, out: &mut Vec<u8>) {
        let mut at = 0;
        for &(start, stop) in self.masked.iter().take_while(|(start, _)| *start < end) {
            if start > at {
                out.extend_from_slice(&self.held[at..start]);
                self.masking = false;
            }
            if !self.masking {
                out.extend_from_slice(MASK);
                self.masking = true;
            }
            at = stop.min(end);
        }
        if end > at {
            out.extend_from_slice(&self.held[at..end]);
            self.masking = false;
        }
        self.held.drain(..end);
        self.masked.retain_mut(|(start, stop)| {
            *start = start.saturating_sub(end);
            *stop = stop.saturating_sub(end);
            *stop > 0
        });
    }
}

/// The spellings of one line of a secret.
fn spell(line: &str, spellings: &mut BTreeSet<Vec<u8>>) {
    let line = line.trim();
    if line.chars().count() < SECRET_MIN_CHARS {
        return;
    }
    spellings.insert(line.as_bytes().to_vec());
    spell_whole(line, spellings);
}

/// The spellings that hold no line break even if `text` does.
fn spell_whole(text: &str, spellings: &mut BTreeSet<Vec<u8>>) {
    if text.chars().count() < SECRET_MIN_CHARS {
        return;
    }
    let json = serde_json::Value::from(text).to_string();
    if let Some(inside) = json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
        spellings.insert(inside.as_bytes().to_vec());
        spellings.insert(ascii_json(inside).into_bytes());
    }
    for (safe, space, upper) in [
        ("-._~", "%20", true),
        ("-._~", "%20", false),
        ("-._~/", "%20", true),
        ("-._~", "+", true),
        ("-._*", "+", true),
    ] {
        spellings.insert(percent(text, safe, space, upper).into_bytes());
    }
    for encoded in [STANDARD.encode(text), URL_SAFE.encode(text)] {
        spellings.insert(encoded.trim_end_matches('=').as_bytes().to_vec());
        spellings.insert(encoded.into_bytes());
    }
    // Inside a longer text that is base64 as a whole (`user:token`), at each of the three ways to fall on its grid.
    for (offset, first) in [(0, 0), (1, 2), (2, 3)] {
        let mut padded = vec![0; offset];
        padded.extend_from_slice(text.as_bytes());
        let whole = padded.len() * 8 / 6;
        let encoded = STANDARD_NO_PAD.encode(&padded);
        if let Some(inner) = encoded.get(first..whole).filter(|inner| inner.len() >= 6) {
            spellings.insert(inner.as_bytes().to_vec());
            spellings.insert(inner.replace('+', "-").replace('/', "_").into_bytes());
        }
    }
}

/// JSON text as Python writes it: nothing but ASCII.
fn ascii_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

fn percent(text: &str, safe: &str, space: &str, upper: bool) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        match byte {
            b' ' => out.push_str(space),
            _ if byte.is_ascii_alphanumeric() || safe.contains(char::from(byte)) => {
                out.push(char::from(byte));
            }
            _ if upper => out.push_str(&format!("%{byte:02X}")),
            _ => out.push_str(&format!("%{byte:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn streamed<'a>(redactor: &Redactor, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        for chunk in chunks {
            stream.feed(redactor, chunk, &mut out);
        }
        stream.finish(&mut out);
        out
    }

    /// The definition, by brute force, for secrets whose spellings are all plain.
    fn masked(spellings: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
        let mut hit = vec![false; text.len()];
        for spelling in spellings {
            for at in 0..text.len() {
                if text[at..].starts_with(spelling) {
                    hit[at..at + spelling.len()].fill(true);
                }
            }
        }
        let mut out = Vec::new();
        for at in 0..text.len() {
            match (hit[at], at > 0 && hit[at - 1]) {
                (false, _) => out.push(text[at]),
                (true, false) => out.extend_from_slice(MASK),
                (true, true) => {}
            }
        }
        out
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference_and_the_definition_holds(
            secrets in proptest::collection::vec("[ab]{4,9}", 1..5),
            text in "[ab\n ]{0,200}",
            cuts in proptest::collection::vec(0usize..200, 0..20),
        ) {
            let mut spellings = BTreeSet::new();
            for secret in &secrets { spell(secret, &mut spellings); }
            let plain: Vec<Vec<u8>> = spellings.iter().cloned().collect();
            let redactor = Redactor::new(secrets.iter().map(String::as_str)).unwrap();
            let expected = masked(&plain, text.as_bytes());
            prop_assert_eq!(redactor.text(&text).into_bytes(), expected.clone());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(streamed(&redactor, chunks), expected);
        }

        #[test]
        fn no_secret_survives_any_chunking(
            secret in "[a-zA-Z0-9+/=\"\\\\é ]{5,40}",
            before in "[ -~\n]{0,60}",
            after in "[ -~\n]{0,60}",
            size in 1usize..17,
        ) {
            prop_assume!(secret.trim().chars().count() >= SECRET_MIN_CHARS);
            let redactor = Redactor::new([secret.as_str()]).unwrap();
            let json = serde_json::Value::from(secret.as_str()).to_string();
            let text = format!("{before}{secret}{after}|{json}|{}", STANDARD.encode(&secret));
            let out = String::from_utf8_lossy(&streamed(&redactor, text.as_bytes().chunks(size))).into_owned();
            prop_assert!(!out.contains(secret.trim()));
            prop_assert!(!out.contains(json.trim_matches('"').trim()));
        }
    }

    #[test]
    fn spellings_are_masked() {
        let secret = "p@ss wörd\"\\x";
        let redactor = Redactor::new([secret]).unwrap();
        let basic = STANDARD.encode(format!("oauth2:{secret}"));
        for text in [
            secret.to_owned(),
            "p%40ss%20w%C3%B6rd%22%5Cx".to_owned(),
            "p%40ss%20w%c3%b6rd%22%5cx".to_owned(),
            "p%40ss+w%C3%B6rd%22%5Cx".to_owned(),
            "p@ss wörd\\\"\\\\x".to_owned(),
            "p@ss w\\u00f6rd\\\"\\\\x".to_owned(),
            STANDARD.encode(secret),
            URL_SAFE.encode(secret),
        ] {
            assert_eq!(redactor.text(&format!("<{text}>")), "<*****>", "{text}");
        }
        let out = redactor.text(&format!("Basic {basic}"));
        assert!(out.contains("*****") && out.len() < basic.len(), "{out}");
    }

    #[test]
    fn a_key_of_several_lines_is_masked_line_by_line() {
        let key = "-----BEGIN KEY-----\nAAAABBBB\nCCCCDDDD\n-----END KEY-----\n";
        let redactor = Redactor::new([key]).unwrap();
        assert_eq!(redactor.text("x AAAABBBB y\nCCCCDDDD\n"), "x ***** y\n*****\n");
        assert_eq!(redactor.text(&serde_json::Value::from(key).to_string()), "\"*****\"");
    }

    #[test]
    fn short_values_and_nothing_are_left_alone() {
        let redactor = Redactor::new(["abc", "", "\n"]).unwrap();
        assert_eq!(redactor.text("abc abc"), "abc abc");
        assert_eq!(Redactor::new([]).unwrap().text("abc"), "abc");
    }

    #[test]
    fn a_line_is_given_out_at_its_end() {
        let redactor = Redactor::new(["secret-value\nsecond-line"]).unwrap();
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        stream.feed(&redactor, b"hello secret-\n", &mut out);
        assert_eq!(out, b"hello secret-\n");
        out.clear();
        stream.feed(&redactor, b"plain", &mut out);
        assert_eq!(out, b"plain");
    }

    #[test]
    fn artifacts_keep_what_is_public_and_stay_json() {
        let redactor = Redactor::for_artifacts(
            ["postgres", "1700000000", "hunter2-hunter2", "a\", \"b-and-more"],
            &["postgres"],
        )
        .unwrap();
        let json = serde_json::json!({
            "adapter_type": "postgres", "at": 1_700_000_000, "password": "hunter2-hunter2", "odd": "a\", \"b-and-more",
        });
        let out = redactor.text(&json.to_string());
        let read: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(read["adapter_type"], "postgres");
        assert_eq!(read["at"], 1_700_000_000);
        assert_eq!(
            (read["password"].as_str(), read["odd"].as_str()),
            (Some("*****"), Some("*****"))
        );
    }

    #[test]
    fn it_is_quick_and_small() {
        let secrets: Vec<String> = (0..50)
            .map(|n| format!("secret-number-{n}-{}", "x".repeat(200)))
            .collect();
        let redactor = Redactor::new(secrets.iter().map(String::as_str)).unwrap();
        let line = b"12:00:01  1 of 28 START sql table model main.orders ................ [RUN]\n".repeat(1000);
        let mut out = Vec::new();
        let mut stream = Stream::default();
        for _ in 0..100 {
            out.clear();
            stream.feed(&redactor, &line, &mut out);
            assert_eq!(out.len(), line.len());
            assert!(stream.held.capacity() < 4 * line.len());
        }
    }
}
