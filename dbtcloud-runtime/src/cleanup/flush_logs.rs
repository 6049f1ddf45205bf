//! Moves step logs to the artifact store, in parts, and out of the database only after a part was read back from
//! there and is what was sent. Logs of runs that execute are moved too, but for their end.
//!
//! A part depends on nothing but the log: whoever died between storing, reading back, noting and dropping, the
//! next round writes the same over the same and goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Artifacts, ByteRange, ByteStream, LOG_READ_LIMIT_BYTES, LogPart};
use dbtcloud_core::run::{LOG_PART_BYTES, LOG_TAIL_BYTES, RunStep};
use dbtcloud_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

use super::{Chore, Cursor, Failures, PAGE, PAGES, Swept, Work};
use crate::ControlPlane;
use crate::plane::part_key;
use crate::segment::{Index, Proof, Reader, Writer};

/// Flushes logs.
#[derive(Debug, Default)]
pub(super) struct FlushLogs {
    after: Cursor,
}

#[async_trait]
impl Chore for FlushLogs {
    fn name(&self) -> &'static str {
        "flush_logs"
    }

    fn kind(&self) -> &'static str {
        "log_part"
    }

    fn lease(&self) -> Option<&'static str> {
        Some("cleanup/flush_logs")
    }

    fn every(&self, interval: Duration) -> Duration {
        interval
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        let Ok(artifacts) = work.plane.artifacts() else {
            return Ok(());
        };
        let mut failures = Failures::default();
        for _ in 0..PAGES {
            let after = RunId::new(self.after.get());
            let least = LOG_PART_BYTES + LOG_TAIL_BYTES;
            let runs = work.plane.logs().unmoved(after, least, PAGE).await?;
            if runs.is_empty() {
                self.after.set(0);
                return failures.end();
            }
            for (account, run) in runs {
                if work.is_stopping() {
                    return failures.end();
                }
                swept.examined += 1;
                self.after.set(run.get());
                failures.note(of_run(work, artifacts, account, run, swept).await)?;
            }
        }
        swept.more = true;
        failures.end()
    }
}

async fn of_run(
    work: &Work<'_>,
    artifacts: &dyn Artifacts,
    account: AccountId,
    run: RunId,
    swept: &mut Swept,
) -> Result<()> {
    let ended = match work.plane.runs().get(account, run).await {
        // Retention was quicker.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        run => run?.status.is_terminal(),
    };
    for mut step in work.plane.runs().steps(account, run).await? {
        // A part is soon moved, a log of gigabytes is not.
        while !work.is_stopping()
            && let Some(part) = step.part_to_move(ended)
        {
            if work.acts() {
                match of_part(work.plane, artifacts, account, &step, part).await {
                    Ok(()) => {}
                    // Another was quicker: its word counts.
                    Err(error) if error.kind() == ErrorKind::Conflict => break,
                    Err(error) => return Err(error),
                }
                step = work.plane.runs().step(account, step.id).await?;
            } else {
                step.log_first = part.end;
            }
            swept.done += 1;
            swept.bytes += part.end - part.start;
        }
    }
    Ok(())
}

async fn of_part(
    plane: &ControlPlane,
    artifacts: &dyn Artifacts,
    account: AccountId,
    step: &RunStep,
    part: LogPart,
) -> Result<()> {
    let (run, index) = (step.run, step.state.index);
    let first_line = match part.start.checked_sub(1).and_then(|before| step.log_part(before)) {
        None => 0,
        Some(before) => {
            let key = part_key(account, run, index, before)?;
            plane.part_index(&key, before).await?.last_line()
        }
    };
    let key = part_key(account, run, index, part)?;
    let written = Arc::new(Mutex::new(None));
    let file = file(plane, account, run, index, part, first_line, written.clone());
    let length = artifacts.put(&key, file).await?;
    let sent = written.lock().unwrap_or_else(PoisonError::into_inner).take();
    let sent = sent.ok_or_else(|| Error::unavailable("the artifact store did not take the whole log"))?;
    // What is read back is the bytes themselves and the index that later reads depend on.
    let differs = || {
        Error::unavailable(format!(
            "{} read back from the artifact store is not what was sent",
            key.path
        ))
    };
    if artifacts.stat(&key).await?.map(|meta| meta.bytes) != Some(length) {
        return Err(differs());
    }
    let mut kept = artifacts.open(&key, ByteRange::default()).await?;
    let mut reader = Reader::new(Proof::default())?;
    while let Some(chunk) = kept.try_next().await? {
        reader.feed(&chunk)?;
    }
    let (bytes, digest) = reader.into_sink().result();
    if bytes != part.end - part.start || digest != sent.sha256 || plane.part_index(&key, part).await? != sent {
        return Err(differs());
    }
    plane.logs().moved(account, run, index, part).await
}

/// The file of a part, made while it is sent: never more of it in memory than a page and a frame.
fn file(
    plane: &ControlPlane,
    account: AccountId,
    run: RunId,
    step: u32,
    part: LogPart,
    first_line: u64,
    written: Arc<Mutex<Option<Index>>>,
) -> ByteStream {
    let plane = plane.clone();
    let state = Some((Writer::new(part, first_line), part.start));
    let pieces = futures::stream::try_unfold(state, move |state| {
        let (plane, written) = (plane.clone(), written.clone());
        async move {
            let Some((mut writer, offset)) = state else {
                return Ok(None);
            };
            if offset >= part.end {
                let (rest, index) = writer.finish()?;
                *written.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
                return Ok(Some((rest, None)));
            }
            let limit = (part.end - offset).min(u64::from(LOG_READ_LIMIT_BYTES));
            let limit = u32::try_from(limit).unwrap_or(LOG_READ_LIMIT_BYTES);
            let page = plane.logs().read(account, run, step, offset, limit).await?;
            if page.offset != offset || page.bytes.is_empty() {
                return Err(Error::conflict("the log was moved meanwhile"));
            }
            let next = offset + page.bytes.len() as u64;
            let compressed = tokio::task::spawn_blocking(move || writer.write(&page.bytes).map(|full| (full, writer)));
            let compressed = compressed.await;
            let (full, writer) = compressed.map_err(|e| Error::unavailable("compression ended").because(e))??;
            Ok(Some((full, Some((writer, next)))))
        }
    });
    pieces
        .map_ok(|pieces: Vec<Bytes>| futures::stream::iter(pieces).map(Ok))
        .try_flatten()
        .boxed()
}
