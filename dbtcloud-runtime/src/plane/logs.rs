//! Reading step logs, wherever they are.

use bytes::{Bytes, BytesMut};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, ArtifactKey, ArtifactPath, ByteRange, ByteStream, LOG_READ_LIMIT_BYTES, LogPage};
use dbtcloud_core::run::RunStep;
use dbtcloud_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

use super::ControlPlane;

/// The path of a step's moved log in [`Area::Logs`].
///
/// # Errors
/// None in practice: the path is always a legal one.
pub fn log_path(step: u32) -> Result<ArtifactPath> {
    format!("step-{step}.log").parse()
}

/// The path of a step's debug log in [`Area::Logs`].
///
/// # Errors
/// None in practice: the path is always a legal one.
pub fn debug_log_path(step: u32) -> Result<ArtifactPath> {
    format!("step-{step}.debug.log").parse()
}

impl ControlPlane {
    /// Bytes of a step's log from `offset`, at most `limit` and at most [`LOG_READ_LIMIT_BYTES`]: the same
    /// before, while and after the log is moved to the artifact store.
    ///
    /// # Errors
    /// `NotFound` when there is no such step in the account.
    pub async fn step_log(&self, account: AccountId, step: &RunStep, offset: u64, limit: u32) -> Result<LogPage> {
        let index = step.state.index;
        let limit = limit.min(LOG_READ_LIMIT_BYTES);
        if step.log_object.is_none() {
            let page = self.logs().read(account, step.run, index, offset, limit).await?;
            if page.offset == offset || !page.bytes.is_empty() || page.length <= offset {
                return Ok(page);
            }
            // Moved between the caller's read of the step and ours: fall through to the store.
        }
        let key = ArtifactKey {
            account,
            run: step.run,
            area: Area::Logs,
            path: log_path(index)?,
        };
        let range = ByteRange {
            start: offset,
            end: Some(offset.saturating_add(u64::from(limit))),
        };
        let bytes = collect(self.artifacts()?.open(&key, range).await?, limit as usize).await?;
        Ok(LogPage {
            offset,
            length: step.log_bytes.max(offset + bytes.len() as u64),
            bytes,
        })
    }

    /// The last bytes of a step's log, at most `limit`.
    ///
    /// # Errors
    /// As [`ControlPlane::step_log`].
    pub async fn step_log_tail(&self, account: AccountId, step: &RunStep, limit: u32) -> Result<LogPage> {
        let limit = limit.min(LOG_READ_LIMIT_BYTES);
        self.step_log(account, step, step.log_bytes.saturating_sub(u64::from(limit)), limit)
            .await
    }

    /// A whole step's log as a stream, up to what there is now.
    pub fn step_log_stream(&self, account: AccountId, step: RunStep) -> ByteStream {
        let plane = self.clone();
        let end = step.log_bytes;
        let pages = futures::stream::try_unfold(0u64, move |offset| {
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
                Ok(Some((page.bytes, next)))
            }
        });
        pages.boxed()
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
