use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{AccountId, RunId};

/// The longest an artifact's path may be, in bytes (below what S3 and file systems allow).
pub const ARTIFACT_PATH_LIMIT_BYTES: usize = 768;

/// Bytes on their way; never a whole file in memory.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// Runs on their way out of a listing that may be long; never all of them in memory.
pub type RunStream = Pin<Box<dyn Stream<Item = Result<(AccountId, RunId)>> + Send>>;

/// A path inside a run's artifacts: relative, `/`-separated, without `.`, `..`, empty parts, control
/// characters or backslashes.
///
/// ```
/// use dbtcloud_core::ports::ArtifactPath;
/// assert!("compiled/shop/orders.sql".parse::<ArtifactPath>().is_ok());
/// assert!("../secrets".parse::<ArtifactPath>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ArtifactPath(String);

impl ArtifactPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ArtifactPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ArtifactPath {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let part_ok = |part: &str| !part.is_empty() && part != "." && part != "..";
        let char_ok = |c: char| !c.is_control() && c != '\\';
        if text.len() > ARTIFACT_PATH_LIMIT_BYTES || !text.split('/').all(part_ok) || !text.chars().all(char_ok) {
            return Err(Error::invalid(
                "path",
                format!("expected a relative path of at most {ARTIFACT_PATH_LIMIT_BYTES} bytes without '..'"),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for ArtifactPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Which part of a run's artifacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// What one step left, by its index.
    Step(u32),
    /// Step logs, moved out of the database, and debug logs.
    Logs,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArtifactKey {
    /// Whose.
    pub account: AccountId,
    /// Of which run.
    pub run: RunId,
    /// Which part.
    pub area: Area,
    /// Which file.
    pub path: ArtifactPath,
}

/// What is known of an artifact without reading it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArtifactMeta {
    /// Which part.
    pub area: Area,
    /// Which file.
    pub path: ArtifactPath,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A part of a file: from `start`, up to but not including `end` (the end of the file when absent).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// First byte that is not wanted.
    pub end: Option<u64>,
}

/// Files that runs leave behind, in an object store. Streams, never whole files in memory.
#[async_trait]
pub trait Artifacts: Send + Sync {
    /// Stores a file. On `Ok` it is whole and durable and its length is returned; otherwise what was there
    /// before is still there. A second call writes over it.
    ///
    /// Errors: those of the stream, unchanged; `Unavailable` when the store is.
    async fn put(&self, key: &ArtifactKey, bytes: ByteStream) -> Result<u64>;

    /// A file, or a part of it. A range beyond the end gives what there is.
    ///
    /// Errors: `NotFound` at once; `Unavailable` at once or in the stream.
    async fn open(&self, key: &ArtifactKey, range: ByteRange) -> Result<ByteStream>;

    /// What is known of a file; `None` is an answer.
    async fn stat(&self, key: &ArtifactKey) -> Result<Option<ArtifactMeta>>;

    /// All files of a run (of one area, if given), by area and path. Empty for a run that has none.
    async fn list(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<Vec<ArtifactMeta>>;

    /// Every run that has a file, whole or half come in, over all accounts, in no order, possibly twice. One
    /// whose files come or go meanwhile is told or is not, and one that has lost its last file may be told
    /// still. For loops that look for what nobody owns.
    ///
    /// Errors: `Unavailable` at once or in the stream.
    async fn runs(&self) -> Result<RunStream>;

    /// Removes all files of a run (of one area, if given). `Ok` when there are none.
    async fn remove(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<()>;
}
