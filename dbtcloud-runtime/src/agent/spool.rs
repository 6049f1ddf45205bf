//! Log bytes on their way to the control plane: a queue that lives in memory while it is short and on disk while the
//! control plane is away. Bounded on both sides.
//!
//! The files on disk have no name: they are gone with the process, however it ends. Nobody could use them after it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};

/// The most bytes that are kept in memory.
pub const MEMORY_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// The most bytes that are kept on disk. Beyond it dbt has to wait.
pub const DISK_LIMIT_BYTES: u64 = 512 * 1024 * 1024;
/// Size of a file on disk; it is freed when it has been read.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Size of a block in memory.
const BLOCK_BYTES: usize = 64 * 1024;

#[derive(Debug)]
struct Segment {
    file: File,
    written: u64,
    read: u64,
}

/// A first-in first-out queue of bytes.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    disk_limit: u64,
    memory: VecDeque<BytesMut>,
    memory_bytes: u64,
    /// Younger than everything in memory.
    segments: VecDeque<Segment>,
    disk_bytes: u64,
}

impl Spool {
    /// An empty queue that may put at most `disk_limit` bytes into `dir`.
    pub(super) fn new(dir: impl Into<PathBuf>, disk_limit: u64) -> Self {
        Self {
            dir: dir.into(),
            disk_limit,
            memory: VecDeque::new(),
            memory_bytes: 0,
            segments: VecDeque::new(),
            disk_bytes: 0,
        }
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> u64 {
        self.memory_bytes + self.disk_bytes
    }

    /// Appends bytes; `false`, and nothing is appended, when there is no room.
    ///
    /// # Errors
    /// Those of the disk; nothing is appended.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let count = bytes.len() as u64;
        if self.segments.is_empty() && self.memory_bytes + count <= MEMORY_LIMIT_BYTES {
            self.memory_bytes += count;
            match self.memory.back_mut() {
                Some(block) if block.len() + bytes.len() <= BLOCK_BYTES => {
                    block.extend_from_slice(bytes);
                }
                _ => {
                    let mut block = BytesMut::with_capacity(BLOCK_BYTES.max(bytes.len()));
                    block.extend_from_slice(bytes);
                    self.memory.push_back(block);
                }
            }
            return Ok(true);
        }
        if self.disk_bytes + count > self.disk_limit {
            return Ok(false);
        }
        if self.segments.back().is_none_or(|last| last.written >= SEGMENT_BYTES) {
            self.segments.push_back(Segment {
                file: tempfile::tempfile_in(&self.dir)?,
                written: 0,
                read: 0,
            });
        }
        if let Some(segment) = self.segments.back_mut() {
            // A write that failed half-way is written over by the next.
            segment.file.write_all_at(bytes, segment.written)?;
            segment.written += count;
            self.disk_bytes += count;
        }
        Ok(true)
    }

    /// Takes at most `limit` bytes from the front: at least one if there is one and `limit` is not 0, and fewer than
    /// `limit` also when more wait.
    ///
    /// # Errors
    /// Those of the disk; nothing is taken.
    pub(super) fn pop(&mut self, limit: usize) -> io::Result<Bytes> {
        if let Some(block) = self.memory.front_mut() {
            let bytes = block.split_to(limit.min(block.len())).freeze();
            if block.is_empty() {
                self.memory.pop_front();
            }
            self.memory_bytes -= bytes.len() as u64;
            return Ok(bytes);
        }
        let Some(segment) = self.segments.front_mut() else {
            return Ok(Bytes::new());
        };
        let rest = segment.written - segment.read;
        let count = usize::try_from(rest).unwrap_or(usize::MAX).min(limit);
        let mut bytes = BytesMut::zeroed(count);
        segment.file.read_exact_at(&mut bytes, segment.read)?;
        segment.read += count as u64;
        self.disk_bytes -= count as u64;
        if segment.read == segment.written {
            self.segments.pop_front();
        }
        Ok(bytes.freeze())
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self) {
        *self = Self::new(std::mem::take(&mut self.dir), self.disk_limit);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Bytes that tell their place, `251` being no divisor of any size here.
    fn sample(from: u64, count: usize) -> Vec<u8> {
        let pattern: Vec<u8> = (0..251).collect();
        pattern
            .into_iter()
            .cycle()
            .skip((from % 251) as usize)
            .take(count)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_goes_in_comes_out_in_order(
            pushes in proptest::collection::vec((1usize..700_000, any::<bool>(), 1usize..2_000_000), 1..40),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = Spool::new(dir.path(), 8 * 1024 * 1024);
            let (mut next_in, mut next_out) = (0u64, 0u64);
            for (size, pops, limit) in pushes {
                let bytes = sample(next_in, size);
                if spool.push(&bytes).unwrap() {
                    next_in += size as u64;
                } else {
                    prop_assert!(spool.disk_bytes + size as u64 > 8 * 1024 * 1024);
                }
                prop_assert!(spool.memory_bytes <= MEMORY_LIMIT_BYTES);
                if pops {
                    let out = spool.pop(limit).unwrap();
                    prop_assert!(out.len() <= limit);
                    prop_assert!(out == sample(next_out, out.len()));
                    next_out += out.len() as u64;
                }
                prop_assert_eq!(spool.len(), next_in - next_out);
            }
            while spool.len() > 0 {
                let out = spool.pop(1 << 20).unwrap();
                prop_assert!(out == sample(next_out, out.len()));
                next_out += out.len() as u64;
            }
            prop_assert_eq!(next_in, next_out);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file has a name");
        }
    }

    #[test]
    fn segments_are_freed_as_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), DISK_LIMIT_BYTES);
        let block = vec![7; 1 << 20];
        for _ in 0..64 {
            assert!(spool.push(&block).unwrap());
        }
        assert!(spool.segments.len() > 3);
        while spool.len() > 0 {
            spool.pop(1 << 20).unwrap();
        }
        assert!(spool.segments.is_empty());
        assert!(spool.push(b"x").unwrap());
        assert_eq!(spool.memory_bytes, 1);
    }

    #[test]
    fn a_disk_that_fails_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path().join("missing"), DISK_LIMIT_BYTES);
        let block = vec![7; 1 << 20];
        for _ in 0..4 {
            assert!(spool.push(&block).unwrap());
        }
        assert!(spool.push(&block).is_err());
        assert_eq!(spool.len(), 4 << 20);
    }
}
