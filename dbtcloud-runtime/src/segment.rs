//! A part of a step's log as a file in the artifact store: zstd frames that can be read from the middle, and
//! what finds the middle. It never does I/O and never holds more than one frame.
//!
//! ```text
//! frames                  FRAME_BYTES of log each, the last one less; every one by itself, with a checksum
//! skippable 0x184D2A50    marks: the lines that tell of nodes, JSON in a zstd frame
//! skippable 0x184D2A50    index: where it belongs, lines of every frame, digest of the whole, JSON
//! skippable 0x184D2A5E    the seek table of zstd's seekable format; its last two entries are the two above
//! ```
//!
//! `zstd -d` of the file gives the log.

mod marks;

use std::io::Write;

use bytes::Bytes;
use dbtcloud_core::ports::{ByteRange, LogPart};
use dbtcloud_core::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use marks::{Mark, Scanner, Whom};

/// Log bytes of a frame: what is decompressed to read one byte.
pub(crate) const FRAME_BYTES: usize = 1024 * 1024;
/// The end of the file that has index and seek table, of a part as long as parts may be.
pub(crate) const TAIL_BYTES: u64 = 16 * 1024;
/// The most that marks may be, decompressed.
const MARKS_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// zstd's own default: a dbt log shrinks to about a tenth.
const LEVEL: i32 = 3;
const OWN_MAGIC: u32 = 0x184D_2A50;
const TABLE_MAGIC: u32 = 0x184D_2A5E;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;

/// What the file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// The first byte of the log in it.
    pub(crate) start: u64,
    /// The first that is not in it any more.
    pub(crate) end: u64,
    /// Line breaks of the log before it.
    pub(crate) first_line: u64,
    /// Line breaks of every frame.
    pub(crate) lines: Vec<u32>,
    /// SHA-256 of the log bytes in it, lower-case hex.
    pub(crate) sha256: String,
    /// Where the compressed frames end in the file, and after them the marks.
    #[serde(skip)]
    ends: Vec<u64>,
}

/// Which bytes of the file to read, and what to do with what they decompress to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Compressed bytes.
    pub(crate) range: ByteRange,
    /// Bytes to leave out at the beginning.
    pub(crate) skip: u64,
    /// Bytes to take after that.
    pub(crate) take: u64,
}

impl Index {
    /// The index out of the last bytes of a file of a length.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub(crate) fn parse(tail: &[u8], length: u64) -> Result<Self> {
        Self::read(tail, length).ok_or_else(|| Error::corrupt("a moved log has no index"))
    }

    fn read(tail: &[u8], length: u64) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(tail.get(at..at.checked_add(4)?)?.try_into().ok()?));
        let footer = tail.len().checked_sub(FOOTER_BYTES)?;
        let count = word(footer)? as usize;
        if word(footer + 5)? != FOOTER_MAGIC || tail.get(footer + 4) != Some(&0) || count < 2 {
            return None;
        }
        let table = footer
            .checked_sub(count.checked_mul(ENTRY_BYTES)?)?
            .checked_sub(HEADER_BYTES)?;
        if word(table)? != TABLE_MAGIC {
            return None;
        }
        let size = |entry: usize| word(table + HEADER_BYTES + entry * ENTRY_BYTES);
        let own = table.checked_sub(size(count - 1)? as usize)?;
        if word(own)? != OWN_MAGIC {
            return None;
        }
        let mut index: Self = serde_json::from_slice(tail.get(own + HEADER_BYTES..table)?).ok()?;
        let mut at = 0;
        for entry in 0..count - 1 {
            at += u64::from(size(entry)?);
            index.ends.push(at);
        }
        let whole = at + u64::from(size(count - 1)?) + (tail.len() - table) as u64;
        let frames = index.end.checked_sub(index.start)?.div_ceil(FRAME_BYTES as u64);
        let fits = whole == length && index.lines.len() as u64 == frames && count as u64 == frames + 2;
        fits.then_some(index)
    }

    /// The part of the log that it is.
    pub(crate) const fn part(&self) -> LogPart {
        LogPart {
            start: self.start,
            end: self.end,
        }
    }

    /// Line breaks of the log up to its end.
    pub(crate) fn last_line(&self) -> u64 {
        self.first_line + self.lines.iter().copied().map(u64::from).sum::<u64>()
    }

    /// What to read for bytes of the log, both inside of the part.
    pub(crate) fn cut(&self, from: u64, to: u64) -> Cut {
        let frame_of = |offset: u64| usize::try_from((offset - self.start) / FRAME_BYTES as u64).unwrap_or(usize::MAX);
        let first = frame_of(from);
        let last = frame_of(to.max(from + 1) - 1);
        Cut {
            range: ByteRange {
                start: first.checked_sub(1).map_or(0, |before| self.end_of(before)),
                end: Some(self.end_of(last)),
            },
            skip: (from - self.start) % FRAME_BYTES as u64,
            take: to - from,
        }
    }

    /// Where the marks are in the file, without what leads to them.
    pub(crate) fn marks(&self) -> ByteRange {
        ByteRange {
            start: self.end_of(self.lines.len().wrapping_sub(1)) + HEADER_BYTES as u64,
            end: Some(self.end_of(self.lines.len())),
        }
    }

    fn end_of(&self, frame: usize) -> u64 {
        self.ends.get(frame).copied().unwrap_or(0)
    }

    /// The first byte, and the line breaks before it, of the frame in which a line begins that is in the part.
    pub(crate) fn frame_of_line(&self, line: u64) -> (u64, u64) {
        let (mut offset, mut before) = (self.start, self.first_line);
        for lines in self.lines.iter().copied().map(u64::from) {
            // Line n begins after the nth line break.
            if before + lines >= line {
                break;
            }
            before += lines;
            offset += FRAME_BYTES as u64;
        }
        (offset, before)
    }
}

/// Reads marks out of what [`Index::marks`] names.
///
/// # Errors
/// `Corrupt` when they are none.
pub(crate) fn read_marks(compressed: &[u8]) -> Result<Vec<Mark>> {
    let bad = || Error::corrupt("the marks of a moved log cannot be read");
    let json = zstd::bulk::decompress(compressed, MARKS_LIMIT_BYTES).map_err(|e| bad().because(e))?;
    serde_json::from_slice(&json).map_err(|e| bad().because(e))
}

/// Makes the file out of log bytes as they come.
pub(crate) struct Writer {
    part: LogPart,
    first_line: u64,
    frame: Vec<u8>,
    sizes: Vec<(u32, u32)>,
    lines: Vec<u32>,
    digest: Sha256,
    scanner: Scanner,
}

impl Writer {
    /// A writer of this part, before which the log has so many line breaks.
    pub(crate) fn new(part: LogPart, first_line: u64) -> Self {
        Self {
            part,
            first_line,
            frame: Vec::with_capacity(FRAME_BYTES),
            sizes: Vec::new(),
            lines: Vec::new(),
            digest: Sha256::new(),
            scanner: Scanner::new(part.start, first_line),
        }
    }

    /// Takes log bytes in; the frames that became full, compressed.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<Vec<Bytes>> {
        self.digest.update(bytes);
        self.scanner.feed(bytes);
        let mut full = Vec::new();
        while !bytes.is_empty() {
            let room = FRAME_BYTES - self.frame.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == FRAME_BYTES {
                full.push(self.flush()?);
            }
        }
        Ok(full)
    }

    fn flush(&mut self) -> Result<Bytes> {
        let compressed = compress(&self.frame)?;
        let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        self.sizes.push((size(compressed.len()), size(self.frame.len())));
        self.lines
            .push(size(self.frame.iter().filter(|byte| **byte == b'\n').count()));
        self.frame.clear();
        Ok(compressed.into())
    }

    /// The rest of the file, and its index.
    pub(crate) fn finish(mut self) -> Result<(Vec<Bytes>, Index)> {
        let mut rest = Vec::new();
        if !self.frame.is_empty() {
            rest.push(self.flush()?);
        }
        let mut index = Index {
            start: self.part.start,
            end: self.part.end,
            first_line: self.first_line,
            lines: self.lines,
            sha256: hex::encode(self.digest.finalize()),
            ends: Vec::new(),
        };
        let marks = skippable(OWN_MAGIC, &compress(&json(&self.scanner.finish())?)?);
        let own = skippable(OWN_MAGIC, &json(&index)?);
        for skipped in [&marks, &own] {
            self.sizes.push((u32::try_from(skipped.len()).unwrap_or(u32::MAX), 0));
        }
        let mut table = Vec::new();
        for (compressed, plain) in &self.sizes {
            table.extend_from_slice(&compressed.to_le_bytes());
            table.extend_from_slice(&plain.to_le_bytes());
        }
        table.extend_from_slice(&u32::try_from(self.sizes.len()).unwrap_or(u32::MAX).to_le_bytes());
        table.push(0);
        table.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
        let mut at = 0;
        for (compressed, _) in &self.sizes[..self.sizes.len() - 1] {
            at += u64::from(*compressed);
            index.ends.push(at);
        }
        rest.extend([marks, own, skippable(TABLE_MAGIC, &table)].map(Bytes::from));
        Ok((rest, index))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::corrupt("a log's index cannot be written").because(e))
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let compressed = || {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
        compressor.compress(bytes)
    };
    compressed().map_err(|e: std::io::Error| Error::corrupt("a log cannot be compressed").because(e))
}

fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&magic.to_le_bytes(), &length.to_le_bytes(), content].concat()
}

/// What decompressed bytes are poured into.
pub(crate) trait Sink {
    /// Takes bytes in.
    fn take(&mut self, bytes: &[u8]);
}

/// Counts and digests what comes, and keeps nothing.
#[derive(Default)]
pub(crate) struct Proof {
    digest: Sha256,
    bytes: u64,
}

impl Proof {
    /// The length and the SHA-256 of all that came.
    pub(crate) fn result(self) -> (u64, String) {
        (self.bytes, hex::encode(self.digest.finalize()))
    }
}

impl Sink for Proof {
    fn take(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

/// Keeps a slice of what comes.
pub(crate) struct Slice {
    skip: u64,
    take: u64,
    bytes: Vec<u8>,
}

impl Slice {
    /// Leaves out `skip` bytes and keeps the `take` after them.
    pub(crate) fn new(cut: &Cut) -> Self {
        Self {
            skip: cut.skip,
            take: cut.take,
            bytes: Vec::with_capacity(usize::try_from(cut.take).unwrap_or(0)),
        }
    }

    /// What was kept, if all of it came.
    pub(crate) fn result(self) -> Option<Bytes> {
        (self.take == 0).then(|| self.bytes.into())
    }
}

impl Sink for Slice {
    fn take(&mut self, bytes: &[u8]) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        let rest = &bytes[skipped..];
        let taken = usize::try_from(self.take).unwrap_or(usize::MAX).min(rest.len());
        self.take -= taken as u64;
        self.bytes.extend_from_slice(&rest[..taken]);
    }
}

struct Pour<S>(S);

impl<S: Sink> Write for Pour<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Decompresses what comes into a sink.
pub(crate) struct Reader<S: Sink>(zstd::stream::write::Decoder<'static, Pour<S>>);

impl<S: Sink> Reader<S> {
    /// A reader into this sink.
    pub(crate) fn new(sink: S) -> Result<Self> {
        let decoder = zstd::stream::write::Decoder::new(Pour(sink));
        decoder
            .map(Self)
            .map_err(|e| Error::unavailable("zstd cannot be used").because(e))
    }

    /// Takes compressed bytes in.
    ///
    /// # Errors
    /// `Corrupt` when they are not what was written.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let fed = self.0.write_all(bytes).and_then(|()| self.0.flush());
        fed.map_err(|e| Error::corrupt("a moved log is damaged in the artifact store").because(e))
    }

    /// The sink.
    pub(crate) fn into_sink(self) -> S {
        self.0.into_inner().0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(log: &[u8], start: u64, first_line: u64, piece: usize) -> (Vec<u8>, Index) {
        let part = LogPart {
            start,
            end: start + log.len() as u64,
        };
        let mut writer = Writer::new(part, first_line);
        let mut file = Vec::new();
        for piece in log.chunks(piece) {
            file.extend(writer.write(piece).unwrap().concat());
        }
        let (rest, index) = writer.finish().unwrap();
        file.extend(rest.concat());
        (file, index)
    }

    /// A log without much order in it.
    fn log(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            b"0123456789abcdefghijklmnopqrst\nu"[(state >> 20) as usize % 32]
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn read(file: &[u8], cut: &Cut) -> Bytes {
        let range = cut.range.start as usize..cut.range.end.unwrap() as usize;
        let mut reader = Reader::new(Slice::new(cut)).unwrap();
        for piece in file[range].chunks(10_007) {
            reader.feed(piece).unwrap();
        }
        reader.into_sink().result().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_range_comes_back(
            seed: u64,
            length in prop_oneof![1_usize..5_000, FRAME_BYTES - 2..FRAME_BYTES + 3, 2 * FRAME_BYTES..3 * FRAME_BYTES],
            start in 0_u64..1_000_000,
            from: proptest::sample::Index,
            to: proptest::sample::Index,
        ) {
            let log = log(seed, length);
            let (file, index) = file(&log, start, 7, 70_001);
            let tail = &file[file.len().saturating_sub(TAIL_BYTES as usize)..];
            let parsed = Index::parse(tail, file.len() as u64).unwrap();
            prop_assert_eq!(&parsed, &index);
            let (from, to) = (from.index(length), to.index(length));
            let (from, to) = (from.min(to), from.max(to) + 1);
            let cut = parsed.cut(start + from as u64, start + to as u64);
            prop_assert!(read(&file, &cut) == log[from..to]);
            prop_assert_eq!(parsed.last_line(), 7 + log.iter().filter(|byte| **byte == b'\n').count() as u64);
        }
    }

    #[test]
    fn zstd_reads_the_whole_file_and_its_digest_is_right() {
        let log = log(3, 2 * FRAME_BYTES + 77);
        let (file, index) = file(&log, 0, 0, 999_983);
        assert!(zstd::stream::decode_all(&file[..]).unwrap() == log);
        let mut reader = Reader::new(Proof::default()).unwrap();
        for piece in file.chunks(4_096) {
            reader.feed(piece).unwrap();
        }
        assert_eq!(reader.into_sink().result(), (log.len() as u64, index.sha256));
    }

    #[test]
    fn damage_is_noticed() {
        let log = log(5, 300_000);
        let (file, _) = file(&log, 0, 0, 300_000);
        let length = file.len() as u64;
        assert!(Index::parse(&file, length + 1).is_err(), "cut off");
        assert!(Index::parse(&file[..file.len() - 1], length - 1).is_err());
        assert!(Index::parse(b"", 0).is_err());
        for at in (0..file.len() - 400).step_by(9_973) {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            let mut reader = Reader::new(Proof::default()).unwrap();
            let fed = reader.feed(&bad);
            assert!(fed.is_err() || reader.into_sink().result().0 != 300_000, "byte {at}");
        }
    }

    #[test]
    fn a_line_is_in_the_frame_that_says_so() {
        let line = format!("{}\n", "x".repeat(99));
        let log = line.repeat(3 * FRAME_BYTES / 100);
        let (_, index) = file(log.as_bytes(), 1_000, 5, 65_536);
        for number in [5, 6, 10_000, 10_491, 20_976, 31_000, index.last_line()] {
            let (offset, before) = index.frame_of_line(number);
            let begins = 1_000 + (number - 5) * 100;
            assert!(
                offset <= begins && begins <= offset + FRAME_BYTES as u64,
                "{number}: {offset}"
            );
            let breaks = log.as_bytes()[..(offset - 1_000) as usize]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            assert_eq!(before, 5 + breaks as u64, "{number}");
        }
    }
}
