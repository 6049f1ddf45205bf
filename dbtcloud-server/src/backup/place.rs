//! Where a backup is, and files on their way there and back.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use dbtcloud_core::Error;
use dbtcloud_core::ports::ByteStream;
use dbtcloud_opendal::{Files, Options};
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::explained;
use super::manifest::{Manifest, Sum};

/// How much of a file is read at once.
const PIECE_BYTES: usize = 1024 * 1024;
/// The longest that a file is which is read into memory: a manifest.
const SMALL_LIMIT_BYTES: usize = 1024 * 1024;

/// Counts what passes through a stream.
#[derive(Clone, Default)]
pub(super) struct Meter(Arc<Mutex<(u64, Sha256)>>);

impl Meter {
    pub(super) fn take(&self, bytes: &[u8]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0 += bytes.len() as u64;
        seen.1.update(bytes);
    }

    pub(super) fn on(&self, stream: ByteStream) -> ByteStream {
        let meter = self.clone();
        Box::pin(stream.inspect_ok(move |bytes| meter.take(bytes)))
    }

    pub(super) fn sum(&self) -> Sum {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Sum {
            bytes: seen.0,
            sha256: hex::encode(seen.1.clone().finalize()),
        }
    }
}

/// The length and checksum of a stream.
pub(super) async fn sum_of(mut stream: ByteStream) -> dbtcloud_core::Result<Sum> {
    let meter = Meter::default();
    while let Some(bytes) = stream.try_next().await? {
        meter.take(&bytes);
    }
    Ok(meter.sum())
}

/// A stream that breaks off at its end when it was not what it should be, so that nobody keeps it.
pub(super) fn guarded(stream: ByteStream, expected: Sum, name: String) -> ByteStream {
    let meter = Meter::default();
    let stream = meter.on(stream);
    let end = stream::once(async move {
        differs(&name, &expected, &meter.sum()).map_or(Ok(None), |why| Err(Error::corrupt(why)))
    });
    Box::pin(stream.chain(end.try_filter_map(futures::future::ok)))
}

/// In what way a file is not what it should be.
pub(super) fn differs(name: &str, expected: &Sum, got: &Sum) -> Option<String> {
    if expected.bytes != got.bytes {
        return Some(format!(
            "{name} is damaged: {} bytes long, not {}",
            got.bytes, expected.bytes
        ));
    }
    (expected.sha256 != got.sha256).then(|| format!("{name} is damaged: it has another checksum"))
}

/// A backup's directory or prefix.
pub(super) struct Place {
    pub(super) files: Files,
    /// What messages call it.
    pub(super) name: String,
}

impl Place {
    /// Where a backup is to be; a directory is made.
    pub(super) fn make(text: &str) -> anyhow::Result<Self> {
        let url = match text.contains("://") {
            true => text.to_owned(),
            false => {
                let path = std::path::absolute(text)?;
                let url = url::Url::from_file_path(&path);
                url.map_err(|()| anyhow::anyhow!("{} is no path", path.display()))?
                    .into()
            }
        };
        let files = Files::from_url(&url, &Options::new().with_standard_credentials());
        Ok(Self {
            files: files.map_err(explained)?,
            name: text.to_owned(),
        })
    }

    /// Where a backup is.
    pub(super) fn find(text: &str) -> anyhow::Result<Self> {
        let directory = text.strip_prefix("file://").or((!text.contains("://")).then_some(text));
        if directory.is_some_and(|directory| !Path::new(directory).is_dir()) {
            bail!("there is no directory {text}");
        }
        Self::make(text)
    }

    /// A small file; `None` when there is none.
    pub(super) async fn read(&self, name: &str) -> anyhow::Result<Option<Bytes>> {
        let Some(mut stream) = self.files.open(name).await.map_err(explained)? else {
            return Ok(None);
        };
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.try_next().await.map_err(explained)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > SMALL_LIMIT_BYTES {
                bail!("{name} is damaged: longer than {SMALL_LIMIT_BYTES} bytes");
            }
        }
        Ok(Some(bytes.freeze()))
    }

    /// Writes a small file.
    pub(super) async fn write(&self, name: &str, text: Vec<u8>) -> anyhow::Result<()> {
        let stream = Box::pin(stream::iter([Ok(Bytes::from(text))]));
        self.files.put(name, stream).await.map_err(explained).map(drop)
    }

    /// The manifest, which says that the backup is whole.
    pub(super) async fn manifest(&self) -> anyhow::Result<Manifest> {
        match self.read(super::MANIFEST).await? {
            Some(text) => Manifest::from_text(&text),
            None if self.read(super::UNFINISHED).await?.is_some() => {
                bail!("the backup in {} broke off and is not whole; run it again", self.name)
            }
            None => bail!("there is no backup in {}: {} is missing", self.name, super::MANIFEST),
        }
    }

    /// Takes over a local file: by its name alone, where that can be.
    pub(super) async fn keep(&self, file: &Path, name: &str) -> anyhow::Result<Sum> {
        let meter = Meter::default();
        let stream = meter.on(bytes_of(file).await?);
        match self.files.directory() {
            None => {
                self.files.put(name, stream).await.map_err(explained)?;
            }
            Some(directory) => {
                sum_of(stream).await.map_err(explained)?;
                let kept = || {
                    std::fs::File::open(file)?.sync_all()?;
                    std::fs::rename(file, directory.join(name))?;
                    std::fs::File::open(directory)?.sync_all()
                };
                kept().with_context(|| format!("cannot write {name} in {}", self.name))?;
            }
        }
        Ok(meter.sum())
    }

    /// Copies a file to a local one; what it is.
    pub(super) async fn fetch(&self, name: &str, file: &Path) -> anyhow::Result<Sum> {
        let Some(mut stream) = self.files.open(name).await.map_err(explained)? else {
            bail!("{name} is missing in {}", self.name);
        };
        let meter = Meter::default();
        let cannot = || format!("cannot write {}", file.display());
        let mut into = tokio::fs::File::create(file).await.with_context(cannot)?;
        while let Some(bytes) = stream.try_next().await.map_err(explained)? {
            meter.take(&bytes);
            into.write_all(&bytes).await.with_context(cannot)?;
        }
        into.flush().await.with_context(cannot)?;
        Ok(meter.sum())
    }
}

/// The bytes of a local file.
async fn bytes_of(file: &Path) -> anyhow::Result<ByteStream> {
    let cannot = format!("cannot read {}", file.display());
    let opened = tokio::fs::File::open(file).await.context(cannot.clone())?;
    let pieces = tokio_util::io::ReaderStream::with_capacity(opened, PIECE_BYTES);
    Ok(Box::pin(pieces.map_err(move |error| {
        Error::unavailable(cannot.clone()).because(error)
    })))
}
