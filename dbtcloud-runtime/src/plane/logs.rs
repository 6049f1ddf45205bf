//! Reading step logs, wherever they are: parts that were moved to the artifact store, the rest in the database.

use bytes::{Bytes, BytesMut};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{
    Area, ArtifactKey, ArtifactPath, ByteRange, ByteStream, LOG_READ_LIMIT_BYTES, LogPage, LogPart,
};
use dbtcloud_core::run::{NodeReport, RunStep};
use dbtcloud_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

use super::ControlPlane;
use crate::segment::{self, Cut, Index, Mark, Reader, Scanner, Slice, TAIL_BYTES, Whom};

/// How often a read begins again because the log was moved meanwhile. One move takes longer than one read.
const READ_ATTEMPTS: usize = 8;
/// How much of a log that was not moved yet is looked through for what the index of a part would tell.
const SCAN_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
/// The most that compressed marks of a part may be.
const MARKS_LIMIT_BYTES: usize = 8 * 1024 * 1024;

/// The path of a step's log in [`Area::Logs`] as version 0.1 moved it: whole, not compressed.
///
/// # Errors
/// None in practice: the path is always a legal one.
pub fn log_path(step: u32) -> Result<ArtifactPath> {
    format!("step-{step}.log").parse()
}

/// The path of a part of a step's log in [`Area::Logs`].
///
/// The name says which bytes they are, so whoever moves them again writes the same over the same.
///
/// # Errors
/// None in practice: the path is always a legal one.
pub fn log_part_path(step: u32, part: LogPart) -> Result<ArtifactPath> {
    format!("step-{step}.{:012}-{:012}.log.zst", part.start, part.end).parse()
}

/// The path of a step's debug log in [`Area::Logs`].
///
/// # Errors
/// None in practice: the path is always a legal one.
pub fn debug_log_path(step: u32) -> Result<ArtifactPath> {
    format!("step-{step}.debug.log").parse()
}

/// Lines of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLines {
    /// Line breaks of the log before the first byte.
    pub line: u64,
    /// Where the first byte is in the log.
    pub offset: u64,
    /// The bytes, line breaks and all.
    pub bytes: Bytes,
}

/// The key of a part of a step's log.
pub(crate) fn part_key(account: AccountId, run: RunId, step: u32, part: LogPart) -> Result<ArtifactKey> {
    Ok(ArtifactKey {
        account,
        run,
        area: Area::Logs,
        path: log_part_path(step, part)?,
    })
}

impl ControlPlane {
    /// Bytes of a step's log from `offset`, at most `limit` and at most [`LOG_READ_LIMIT_BYTES`]: the same
    /// before, while and after the log is moved to the artifact store. What was discarded is not there any
    /// more: the page then begins further on.
    ///
    /// # Errors
    /// `NotFound` when there is no such step in the account; those of the artifact store; `Corrupt` when a
    /// part of the log is damaged there.
    pub async fn step_log(&self, account: AccountId, step: &RunStep, offset: u64, limit: u32) -> Result<LogPage> {
        let limit = limit.min(LOG_READ_LIMIT_BYTES);
        let mut known = step.clone();
        for _ in 0..READ_ATTEMPTS {
            if let Some(page) = self.moved_log(account, &known, offset, limit).await? {
                return Ok(page);
            }
            let page = self
                .logs()
                .read(account, known.run, known.state.index, offset, limit)
                .await?;
            // Beyond what we know of, the log may have been moved meanwhile; otherwise it was discarded.
            if page.offset <= offset || page.offset <= known.log_first {
                return Ok(page);
            }
            known = self.runs().step(account, known.id).await?;
        }
        Err(Error::unavailable("the log is being moved; try again"))
    }

    /// What of a page is in the artifact store, if its first byte is.
    async fn moved_log(&self, account: AccountId, step: &RunStep, offset: u64, limit: u32) -> Result<Option<LogPage>> {
        let (run, index) = (step.run, step.state.index);
        let bytes = if let Some(part) = step.log_part(offset) {
            let end = part.end.min(offset + u64::from(limit));
            let key = part_key(account, run, index, part)?;
            let index = self.part_index(&key, part).await?;
            self.part_bytes(&key, index.cut(offset, end)).await?
        } else if step.log_object.is_some() && offset < step.log_first {
            let key = ArtifactKey {
                account,
                run,
                area: Area::Logs,
                path: log_path(index)?,
            };
            let range = ByteRange {
                start: offset,
                end: Some(offset.saturating_add(u64::from(limit))),
            };
            collect(self.artifacts()?.open(&key, range).await?, limit as usize).await?
        } else {
            return Ok(None);
        };
        Ok(Some(LogPage {
            offset,
            length: step.log_bytes.max(offset + bytes.len() as u64),
            bytes,
        }))
    }

    /// The index of a part.
    pub(crate) async fn part_index(&self, key: &ArtifactKey, part: LogPart) -> Result<Index> {
        let missing = || Error::not_found("log", &key.path);
        let meta = self.artifacts()?.stat(key).await?.ok_or_else(missing)?;
        let range = ByteRange {
            start: meta.bytes.saturating_sub(TAIL_BYTES),
            end: Some(meta.bytes),
        };
        let tail = collect(self.artifacts()?.open(key, range).await?, TAIL_BYTES as usize).await?;
        let index = Index::parse(&tail, meta.bytes)?;
        if index.part() != part {
            return Err(Error::corrupt(format!("{} is another part of a log", key.path)));
        }
        Ok(index)
    }

    async fn part_bytes(&self, key: &ArtifactKey, cut: Cut) -> Result<Bytes> {
        let mut compressed = self.artifacts()?.open(key, cut.range).await?;
        let mut reader = Reader::new(Slice::new(&cut))?;
        while let Some(chunk) = compressed.try_next().await? {
            reader.feed(&chunk)?;
        }
        let whole = reader.into_sink().result();
        whole.ok_or_else(|| Error::corrupt(format!("{} is cut off in the artifact store", key.path)))
    }

    /// The last bytes of a step's log, at most `limit`.
    ///
    /// # Errors
    /// As [`ControlPlane::step_log`].
    pub async fn step_log_tail(&self, account: AccountId, step: &RunStep, limit: u32) -> Result<LogPage> {
        let limit = limit.min(LOG_READ_LIMIT_BYTES);
        let from = step.log_bytes.saturating_sub(u64::from(limit));
        let mut page = self.step_log(account, step, from, limit).await?;
        let mut bytes = BytesMut::from(&page.bytes[..]);
        // It may come from more than one place.
        while page.offset + (bytes.len() as u64) < step.log_bytes {
            let next = page.offset + bytes.len() as u64;
            let room = limit.saturating_sub(u32::try_from(bytes.len()).unwrap_or(limit));
            let more = self.step_log(account, step, next, room).await?;
            if more.bytes.is_empty() || more.offset != next {
                break;
            }
            bytes.extend_from_slice(&more.bytes);
        }
        page.bytes = bytes.freeze();
        Ok(page)
    }

    /// A whole step's log as a stream, up to what there is now.
    pub fn step_log_stream(&self, account: AccountId, step: RunStep) -> ByteStream {
        let end = step.log_bytes;
        let pages = self.pages(account, step, 0, end).map_ok(|page| page.bytes);
        pages.boxed()
    }

    /// Pages of a step's log from `start` up to `end`.
    fn pages(
        &self,
        account: AccountId,
        step: RunStep,
        start: u64,
        end: u64,
    ) -> futures::stream::BoxStream<'static, Result<LogPage>> {
        let plane = self.clone();
        let pages = futures::stream::try_unfold(start, move |offset| {
            let (plane, step) = (plane.clone(), step.clone());
            async move {
                if offset >= end {
                    return Ok(None);
                }
                let limit = u32::try_from((end - offset).min(u64::from(LOG_READ_LIMIT_BYTES))).unwrap_or(u32::MAX);
                let page = plane.step_log(account, &step, offset, limit).await?;
                if page.bytes.is_empty() {
                    return Ok(None);
                }
                let next = page.offset + page.bytes.len() as u64;
                Ok(Some((page, next)))
            }
        });
        pages.boxed()
    }

    /// Lines of a step's log from the one with `line` line breaks before it, at most `count`, of at most
    /// [`LOG_READ_LIMIT_BYTES`] together. Empty beyond the end.
    ///
    /// What was moved is found by its index; the rest is looked through.
    ///
    /// # Errors
    /// As [`ControlPlane::step_log`].
    pub async fn step_log_lines(&self, account: AccountId, step: &RunStep, line: u64, count: u32) -> Result<LogLines> {
        let step = self.runs().step(account, step.id).await?;
        let (mut offset, mut before) = self.near_line(account, &step, line).await?;
        let mut lines = LogLines {
            line: before,
            offset,
            bytes: Bytes::new(),
        };
        let mut kept = BytesMut::new();
        let last = line.saturating_add(u64::from(count));
        let mut pages = self.pages(account, step.clone(), offset, step.log_bytes);
        while before < last
            && let Some(page) = pages.try_next().await?
        {
            for piece in page.bytes.split_inclusive(|byte| *byte == b'\n') {
                if before >= last || kept.len() + piece.len() > LOG_READ_LIMIT_BYTES as usize {
                    before = last;
                    break;
                }
                if before >= line {
                    if kept.is_empty() {
                        (lines.line, lines.offset) = (before, offset);
                    }
                    kept.extend_from_slice(piece);
                }
                offset += piece.len() as u64;
                before += u64::from(piece.ends_with(b"\n"));
            }
        }
        lines.bytes = kept.freeze();
        Ok(lines)
    }

    /// A byte that is not behind the beginning of a line, and the line breaks before it.
    async fn near_line(&self, account: AccountId, step: &RunStep, line: u64) -> Result<(u64, u64)> {
        let parts = parts(step);
        let (mut low, mut high) = (0, parts.len());
        while low < high {
            let middle = low.midpoint(high);
            let key = part_key(account, step.run, step.state.index, parts[middle])?;
            let index = self.part_index(&key, parts[middle]).await?;
            if line < index.first_line {
                high = middle;
            } else if line > index.last_line() {
                low = middle + 1;
            } else {
                return Ok(index.frame_of_line(line));
            }
        }
        match parts.last() {
            Some(part) if low == parts.len() => {
                let key = part_key(account, step.run, step.state.index, *part)?;
                Ok((part.end, self.part_index(&key, *part).await?.last_line()))
            }
            _ => Ok((0, 0)),
        }
    }

    /// The lines of a step's log that tell of a node, in order, each with those that belong to it. What was not
    /// moved yet is looked through, if it is no more than 64 MiB.
    ///
    /// # Errors
    /// As [`ControlPlane::step_log`].
    pub async fn node_log(&self, account: AccountId, step: &RunStep, node: &NodeReport) -> Result<Vec<LogLines>> {
        let step = self.runs().step(account, step.id).await?;
        let place = node.index.zip(node.total);
        let name = format!("{} {}", node.resource_type, node.name);
        let tells = |mark: &Mark| match &mark.whom {
            Whom::Position(index, total) => place == Some((*index, *total)),
            Whom::Name(whom) => *whom == name,
        };
        let mut found = Vec::new();
        let mut line = 0;
        for part in parts(&step) {
            let key = part_key(account, step.run, step.state.index, part)?;
            let index = self.part_index(&key, part).await?;
            let marks = self.artifacts()?.open(&key, index.marks()).await?;
            let marks = segment::read_marks(&collect(marks, MARKS_LIMIT_BYTES).await?)?;
            found.extend(marks.into_iter().filter(|mark| tells(mark)));
            line = index.last_line();
        }
        if step.log_bytes - step.log_first <= SCAN_LIMIT_BYTES {
            let mut scanner = Scanner::new(step.log_first, line);
            let mut pages = self.pages(account, step.clone(), step.log_first, step.log_bytes);
            while let Some(page) = pages.try_next().await? {
                scanner.feed(&page.bytes);
            }
            found.extend(scanner.finish().into_iter().filter(|mark| tells(mark)));
        }
        let mut lines = Vec::with_capacity(found.len());
        for mark in found {
            let limit = u32::try_from(mark.bytes).unwrap_or(u32::MAX);
            lines.push(LogLines {
                line: mark.line,
                offset: mark.offset,
                bytes: self.step_log(account, &step, mark.offset, limit).await?.bytes,
            });
        }
        Ok(lines)
    }

    /// The last bytes of a step's debug log (dbt's `dbt.log`), at most `limit`; `None` when there is none.
    ///
    /// # Errors
    /// Those of the artifact store.
    pub async fn debug_log_tail(&self, account: AccountId, run: RunId, step: u32, limit: u32) -> Result<Option<Bytes>> {
        let key = ArtifactKey {
            account,
            run,
            area: Area::Logs,
            path: debug_log_path(step)?,
        };
        let Some(meta) = self.artifacts()?.stat(&key).await? else {
            return Ok(None);
        };
        let range = ByteRange {
            start: meta.bytes.saturating_sub(u64::from(limit)),
            end: None,
        };
        match self.artifacts()?.open(&key, range).await {
            Ok(stream) => Ok(Some(collect(stream, limit as usize).await?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The parts of a step's log that are in the artifact store.
fn parts(step: &RunStep) -> Vec<LogPart> {
    let starts = std::iter::once(0).chain(step.log_parts.iter().copied());
    let parts = starts
        .zip(&step.log_parts)
        .map(|(start, end)| LogPart { start, end: *end });
    parts.collect()
}

/// Reads a stream into memory, refusing more than `limit` bytes.
async fn collect(mut stream: ByteStream, limit: usize) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.try_next().await? {
        if bytes.len() + chunk.len() > limit {
            return Err(Error::corrupt(
                "the artifact store returned more bytes than were asked for",
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}
