//! [`OpendalArtifacts`]: the artifacts port on an operator.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, ArtifactKey, ArtifactMeta, Artifacts, ByteRange, ByteStream, RunStream};
use dbtcloud_core::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use opendal::{EntryMode, Operator, Writer};

use crate::failure::{Store, cannot_use, is_absent, is_in_the_way, unavailable};
use crate::layout;
use crate::place::{Options, Place};

/// How much is sent to an object store at once. S3 takes 10,000 parts of at least 5 MiB, so a file may be
/// 80 GB.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// How many parts of one file are on their way at the same time, while the next one fills up.
const CHUNK_CONCURRENCY: usize = 2;

/// How many files' lengths are asked for at the same time where a listing does not tell them.
const STAT_CONCURRENCY: usize = 16;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Artifacts in S3, Azure Blob Storage, Google Cloud Storage, a directory or memory.
///
/// - **Layout**: `<account>/<run>/steps/<n>/<path>` and `<account>/<run>/logs/<path>` below the operator's
///   root; odd characters are percent-encoded.
/// - **Atomic**: where the store can rename (directories), a file comes in below `.incoming/` and is renamed
///   when it is whole and synced, together with its directories; elsewhere the store itself shows an object
///   only when its upload is complete. A put that fails or is dropped takes its parts away again; a process
///   that is killed leaves at most an invisible part, which [`Artifacts::remove`] clears in a directory and a
///   lifecycle rule for incomplete uploads in a bucket.
/// - **Checked**: what arrives at S3 is compared with its CRC-32C before it is taken.
/// - **Absent**: a question about an object is answered alike by a bucket without the object and by no bucket
///   at all, so before `None` is told the bucket is asked for.
/// - **Time**: a call has its time-outs, and is tried four times in all, with pauses that grow and jitter.
/// - **Memory**: a put holds 24 MiB at most, a read one chunk, whatever the file's length. The `memory://`
///   store holds everything, of course; it is for tests.
/// - **One path a file and a directory** (`a` and `a/b`): fine in an object store; in a directory the second
///   put is `Invalid`.
///
/// ```
/// use bytes::Bytes;
/// use dbtcloud_core::Result;
/// use dbtcloud_core::id::{AccountId, RunId};
/// use dbtcloud_core::ports::{Area, ArtifactKey, Artifacts, ByteRange};
/// use dbtcloud_opendal::{OpendalArtifacts, Options};
/// use futures::{TryStreamExt, stream};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let artifacts = OpendalArtifacts::from_url("memory://", &Options::new())?;
/// let key = ArtifactKey {
///     account: AccountId::new(1),
///     run: RunId::new(42),
///     area: Area::Step(0),
///     path: "manifest.json".parse()?,
/// };
/// artifacts.put(&key, Box::pin(stream::iter([Ok(Bytes::from("{}"))]))).await?;
/// let parts: Vec<Bytes> = artifacts.open(&key, ByteRange::default()).await?.try_collect().await?;
/// assert_eq!(parts.concat(), b"{}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct OpendalArtifacts {
    pub(crate) operator: Operator,
    pub(crate) store: Store,
    /// Whether it is asked over a network, where a bucket may be missing.
    pub(crate) remote: bool,
    /// The directory to be synced, when it is one.
    pub(crate) directory: Option<PathBuf>,
    /// The bucket that it is a part of, when a URL named it.
    bucket: Option<Arc<Bucket>>,
    /// Tells what this store lets in from what other processes do, also on other machines.
    token: u64,
}

impl OpendalArtifacts {
    /// Artifacts below the root of `operator`, with whatever layers the caller gave it.
    pub fn new(operator: Operator) -> Self {
        let info = operator.info();
        let store = Store::new(
            format!("{} {}", info.scheme(), info.name()),
            "the operator's credentials",
        );
        Self::at(operator, store)
    }

    fn at(operator: Operator, store: Store) -> Self {
        let info = operator.info();
        let directory = (info.scheme() == "fs").then(|| PathBuf::from(info.root()));
        Self {
            remote: directory.is_none() && info.scheme() != "memory",
            operator,
            store,
            directory,
            bucket: None,
            token: RandomState::new().build_hasher().finish(),
        }
    }

    /// Artifacts where a URL says. Nothing is asked of an object store yet: see [`Self::check`].
    ///
    /// - `s3://bucket/prefix?region=NAME&endpoint=http://host:port&path_style=true&checksum=crc32c`: the region
    ///   may be left out with an endpoint; path style is the default with an endpoint; `checksum` is `crc32c`,
    ///   `md5` or `none`
    /// - `azblob://container/prefix?account=NAME&endpoint=https://host`: one of the two at least
    /// - `gcs://bucket/prefix`
    /// - `file:///path`, which is made if it is not there
    /// - `memory://`, which is empty
    ///
    /// Errors: `Invalid` for anything else, and for credentials in the URL, naming the variable they belong
    /// in; `Unavailable` when a directory cannot be made.
    pub fn from_url(url: &str, options: &Options) -> Result<Self> {
        Self::of(Place::parse(url)?, options)
    }

    pub(crate) fn of(place: Place, options: &Options) -> Result<Self> {
        let mut artifacts = Self::at(place.operator(options)?, place.store());
        if artifacts.remote {
            let (options, whole) = (options.clone(), OnceLock::new());
            artifacts.bucket = Some(Arc::new(Bucket { place, options, whole }));
        }
        Ok(artifacts)
    }

    /// Whether a URL can be understood; nothing is opened. Errors: `Invalid`.
    pub fn check_url(url: &str) -> Result<()> {
        Place::parse(url).map(drop)
    }

    /// Writes, reads, lists and removes a small object: everything that will be asked of the store.
    ///
    /// Errors: `Invalid` and `Denied` for what only a person can mend, such as a wrong bucket or a missing
    /// permission; `Unavailable` for what may be better later.
    pub async fn check(&self) -> Result<()> {
        let failed = |error| cannot_use(&self.store, error);
        let at = format!("{}{:016x}", layout::CHECK, self.token);
        self.operator.write(&at, "dbtcloud").await.map_err(failed)?;
        let seen = self.operator.read(&at).await.map_err(failed)?;
        if seen.to_bytes() != "dbtcloud".as_bytes() {
            return Err(Error::corrupt(format!(
                "artifacts in {}: what was read is not what was written",
                self.store
            )));
        }
        self.ask().await.map_err(failed)?;
        self.operator.delete(&at).await.map_err(failed)
    }

    /// One page of a list, of one entry.
    async fn ask(&self) -> opendal::Result<()> {
        let mut entries = self.operator.lister_with("/").limit(1).await?;
        entries.try_next().await.map(drop)
    }

    /// Makes sure that what was said to be absent is, and not the bucket.
    pub(crate) async fn confirm_absent(&self, what: impl std::fmt::Display) -> Result<()> {
        if self.remote {
            self.ask().await.map_err(|error| self.unavailable(what, error))?;
        }
        Ok(())
    }

    fn unavailable(&self, what: impl std::fmt::Display, error: opendal::Error) -> Error {
        unavailable(&self.store, what, error)
    }

    async fn write(&self, at: &str, name: &str, mut bytes: ByteStream) -> Result<u64> {
        let failed = |error| self.unavailable(name, error);
        let writer = self.operator.writer_with(at);
        let writer = if self.remote {
            writer.chunk(CHUNK_BYTES).concurrent(CHUNK_CONCURRENCY)
        } else {
            writer
        };
        let mut upload = Upload(Some(writer.await.map_err(failed)?));
        let mut length = 0;
        while let Some(next) = bytes.next().await {
            let written = match next {
                Ok(part) => {
                    length += part.len() as u64;
                    upload.write(part).await.map_err(failed)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                upload.abort().await;
                return Err(error);
            }
        }
        if let Err(error) = upload.close().await {
            upload.abort().await;
            return Err(failed(error));
        }
        Ok(length)
    }

    /// Stores what errors call `name`, by way of the folder `way` where the store can rename.
    pub(crate) async fn put_at(&self, at: &str, way: &str, name: &str, bytes: ByteStream) -> Result<u64> {
        if !self.operator.info().capability().rename {
            return self.write(at, name, bytes).await;
        }
        let touched = self.touched(at).await;
        let mut incoming = Incoming::new(self, way);
        let length = self.write(&incoming.at, name, bytes).await?;
        self.operator.rename(&incoming.at, at).await.map_err(|error| {
            if is_in_the_way(&error) {
                let expected = format!("{name} is both a file and a directory, which this store cannot hold");
                return Error::invalid("path", expected).because(error);
            }
            self.unavailable(name, error)
        })?;
        incoming.arrived = true;
        sync(touched)
            .await
            .map_err(|error| Error::unavailable(format!("{name}: not durable")).because(error))?;
        Ok(length)
    }

    /// Makes a file of `other` a file here without its bytes passing through: two names of one file, where both are
    /// directories of one file system; a copy that the store makes, where both are in one bucket. `false` when that
    /// cannot be had, or the file is not there.
    ///
    /// Two names of one file: whatever one store does to it is done to the other's. For files that nobody changes.
    pub async fn link(&self, other: &Self, key: &ArtifactKey) -> Result<bool> {
        let at = layout::key(key);
        if let (Some(ours), Some(theirs)) = (&self.bucket, &other.bucket) {
            return Ok(match ours.paths(theirs, &at) {
                Some((from, to)) => ours.whole()?.copy(&from, &to).await.is_ok(),
                None => false,
            });
        }
        let (Some(to), Some(from)) = (&self.directory, &other.directory) else {
            return Ok(false);
        };
        let touched = self.touched(&at).await;
        let (from, to) = (from.join(&at), to.join(&at));
        let linked = tokio::task::spawn_blocking(move || hard_link(&from, &to)).await;
        if !linked.is_ok_and(|linked| linked.is_ok()) {
            return Ok(false);
        }
        let not_durable = |error| Error::unavailable(format!("artifact {}: not durable", key.path)).because(error);
        sync(touched).await.map_err(not_durable)?;
        Ok(true)
    }

    /// The bytes of what stands at `at` and is so long, from `range.start` on; a failure is told by `failed`.
    pub(crate) async fn read_at(
        &self,
        at: &str,
        range: std::ops::Range<u64>,
        failed: impl Fn(opendal::Error) -> Error + Send + 'static,
    ) -> Result<ByteStream> {
        let reader = self
            .operator
            .reader_with(at)
            .chunk(CHUNK_BYTES)
            .await
            .map_err(&failed)?;
        let stream = reader.into_stream(range).await.map_err(&failed)?;
        let parts = stream.map_err(move |error| match failed(error) {
            // Once it streams, gone is a matter of trying again: what was told so far was of a file.
            error if error.kind() == dbtcloud_core::ErrorKind::NotFound => {
                Error::unavailable("artifact removed while it was read").because(error)
            }
            error => error,
        });
        Ok(Box::pin(parts.flat_map(|buffer| match buffer {
            Ok(buffer) => futures::stream::iter(Iterator::map(buffer, Ok)).left_stream(),
            Err(error) => futures::stream::iter([Err(error)]).right_stream(),
        })))
    }

    /// The directories below `prefix` whose names are numbers, each with its own path; none where there is
    /// no such prefix.
    async fn numbers(&self, prefix: String) -> Result<futures::stream::BoxStream<'static, Result<(i64, String)>>> {
        let (store, remote) = (self.store.clone(), self.remote);
        let failed = move |error| unavailable(&store, "artifacts cannot be listed", error);
        let entries = match self.operator.lister(&prefix).await {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) && !remote => return Ok(futures::stream::empty().boxed()),
            Err(error) => return Err(failed(error)),
        };
        let numbers = entries.filter_map(move |entry| {
            let number = match entry {
                // A directory may list itself.
                Ok(entry) if entry.path() == prefix => None,
                Ok(entry) => layout::number(entry.name()).map(|number| Ok((number, entry.path().to_owned()))),
                // Removed while it was listed.
                Err(error) if is_absent(&error) && !remote => None,
                Err(error) => Some(Err(failed(error))),
            };
            futures::future::ready(number)
        });
        Ok(numbers.boxed())
    }

    /// The directories whose entries a put at `at` makes or changes: the file's own, and when that is not
    /// there yet, all above it. Empty where the store is no directory.
    async fn touched(&self, at: &str) -> Vec<PathBuf> {
        let Some(root) = &self.directory else { return Vec::new() };
        let file = root.join(at);
        let mut above: Vec<PathBuf> = file
            .ancestors()
            .skip(1)
            .take_while(|above| above.starts_with(root))
            .map(Path::to_owned)
            .collect();
        // A question that fails is answered by syncing more.
        let known = match at.rsplit_once('/') {
            Some((parent, _)) => self.operator.exists(&format!("{parent}/")).await.unwrap_or(false),
            None => false,
        };
        above.truncate(if known { 1 } else { above.len() });
        above
    }
}

/// What a store is a part of.
#[derive(Debug)]
struct Bucket {
    place: Place,
    options: Options,
    whole: OnceLock<Operator>,
}

impl Bucket {
    /// Where a file of another part of the same bucket is in it, and where it would be in this one.
    fn paths(&self, other: &Self, at: &str) -> Option<(String, String)> {
        let ((ours, to), (theirs, from)) = (self.place.clone().whole()?, other.place.clone().whole()?);
        (ours == theirs).then(|| (format!("{from}{at}"), format!("{to}{at}")))
    }

    /// All of it.
    fn whole(&self) -> Result<&Operator> {
        if let Some(whole) = self.whole.get() {
            return Ok(whole);
        }
        let place = self.place.clone();
        let (place, _) = place
            .whole()
            .ok_or_else(|| Error::invalid("artifacts_url", "expected a bucket"))?;
        let operator = place.operator(&self.options)?;
        Ok(self.whole.get_or_init(|| operator))
    }
}

/// Makes the entries of directories outlast a power cut.
#[expect(
    clippy::disallowed_methods,
    reason = "opendal syncs files, and has no word for directories"
)]
async fn sync(directories: Vec<PathBuf>) -> std::io::Result<()> {
    let synced = tokio::task::spawn_blocking(move || {
        directories
            .iter()
            .try_for_each(|directory| std::fs::File::open(directory)?.sync_all())
    });
    synced.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// A second name of a file. One that is there already is replaced: it may be half of an earlier try, or older.
#[expect(clippy::disallowed_methods, reason = "opendal has no word for links")]
fn hard_link(from: &Path, to: &Path) -> std::io::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(to)?;
            std::fs::hard_link(from, to)
        }
        linked => linked,
    }
}

/// Parts on their way. Dropped before they are a file, they are taken away.
struct Upload(Option<Writer>);

impl Upload {
    async fn write(&mut self, part: Bytes) -> opendal::Result<()> {
        match &mut self.0 {
            Some(writer) => writer.write(part).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self) -> opendal::Result<()> {
        if let Some(writer) = &mut self.0 {
            writer.close().await?;
        }
        self.0 = None;
        Ok(())
    }

    /// The failure that made us abort is the one to be told; a part that stays is invisible.
    async fn abort(&mut self) {
        if let Some(writer) = &mut self.0 {
            let _ = writer.abort().await;
        }
        self.0 = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut writer), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { writer.abort().await });
        }
    }
}

/// A file on its way. Dropped before it arrived, it is deleted.
struct Incoming<'a> {
    operator: &'a Operator,
    at: String,
    arrived: bool,
}

impl<'a> Incoming<'a> {
    fn new(store: &'a OpendalArtifacts, way: &str) -> Self {
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let at = format!("{way}{:016x}-{serial}", store.token);
        Self {
            operator: &store.operator,
            at,
            arrived: false,
        }
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if self.arrived {
            return;
        }
        let (operator, at) = (self.operator.clone(), std::mem::take(&mut self.at));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { operator.delete(&at).await });
        }
    }
}

#[async_trait]
impl Artifacts for OpendalArtifacts {
    async fn put(&self, key: &ArtifactKey, bytes: ByteStream) -> Result<u64> {
        let way = layout::incoming(key.account, key.run);
        self.put_at(&layout::key(key), &way, &format!("artifact {}", key.path), bytes)
            .await
    }

    async fn open(&self, key: &ArtifactKey, range: ByteRange) -> Result<ByteStream> {
        let Some(meta) = self.stat(key).await? else {
            return Err(Error::not_found("artifact", &key.path));
        };
        let end = range.end.unwrap_or(meta.bytes).min(meta.bytes);
        if range.start >= end {
            return Ok(Box::pin(futures::stream::empty()));
        }
        let (path, store) = (key.path.clone(), self.store.clone());
        let failed = move |error: opendal::Error| {
            if is_absent(&error) {
                Error::not_found("artifact", &path)
            } else {
                unavailable(&store, format!("artifact {path}"), error)
            }
        };
        self.read_at(&layout::key(key), range.start..end, failed).await
    }

    async fn stat(&self, key: &ArtifactKey) -> Result<Option<ArtifactMeta>> {
        match self.operator.stat(&layout::key(key)).await {
            Ok(meta) if meta.mode() == EntryMode::DIR => Ok(None),
            Ok(meta) => Ok(Some(ArtifactMeta {
                area: key.area,
                path: key.path.clone(),
                bytes: meta.content_length(),
            })),
            Err(error) if is_absent(&error) => {
                self.confirm_absent(format!("artifact {}", key.path)).await?;
                Ok(None)
            }
            Err(error) => Err(self.unavailable(format!("artifact {}", key.path), error)),
        }
    }

    async fn list(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<Vec<ArtifactMeta>> {
        let failed = |error| self.unavailable(format!("artifacts of run {run}"), error);
        let run_prefix = layout::prefix(account, run, None);
        let lister = self
            .operator
            .lister_with(&layout::prefix(account, run, area))
            .recursive(true)
            .await;
        let entries = match lister {
            Ok(lister) => lister,
            Err(error) if is_absent(&error) && !self.remote => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let found = entries
            .try_filter_map(|entry| {
                let ours =
                    layout::parse(&run_prefix, entry.path()).filter(|_| entry.metadata().mode() != EntryMode::DIR);
                futures::future::ok(ours.map(|(area, path)| (area, path, entry)))
            })
            .map_ok(|(area, path, entry)| async move {
                let bytes = match entry.metadata().mode() {
                    EntryMode::FILE => entry.metadata().content_length(),
                    // Stores that list names only.
                    _ => match self.operator.stat(entry.path()).await {
                        Ok(meta) => meta.content_length(),
                        Err(error) if is_absent(&error) => return Ok(None),
                        Err(error) => return Err(error),
                    },
                };
                Ok(Some(ArtifactMeta { area, path, bytes }))
            })
            .try_buffer_unordered(STAT_CONCURRENCY)
            .try_filter_map(futures::future::ok);
        let mut found: Vec<ArtifactMeta> = match found.try_collect().await {
            Ok(found) => found,
            Err(error) if is_absent(&error) && !self.remote => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        found.sort();
        Ok(found)
    }

    async fn runs(&self) -> Result<RunStream> {
        let mut roots = vec!["/".to_owned()];
        if self.operator.info().capability().rename {
            roots.push(layout::INCOMING.to_owned());
        }
        let store = self.clone();
        let accounts = futures::stream::iter(roots).then(move |root| {
            let store = store.clone();
            async move { store.numbers(root).await }
        });
        let store = self.clone();
        let runs = accounts.try_flatten().and_then(move |(account, below)| {
            let store = store.clone();
            async move {
                let runs = store.numbers(below).await?;
                Ok(runs.map_ok(move |(run, _)| (AccountId::new(account), RunId::new(run))))
            }
        });
        Ok(Box::pin(runs.try_flatten()))
    }

    async fn remove(&self, account: AccountId, run: RunId, area: Option<Area>) -> Result<()> {
        let mut prefixes = vec![layout::prefix(account, run, area)];
        if self.operator.info().capability().rename && area.is_none() {
            prefixes.push(layout::incoming(account, run));
        }
        for prefix in prefixes {
            match self.operator.delete_with(&prefix).recursive(true).await {
                Ok(()) => {}
                Err(error) if is_absent(&error) && !self.remote => {}
                Err(error) => return Err(self.unavailable(format!("artifacts of run {run}"), error)),
            }
        }
        Ok(())
    }
}
