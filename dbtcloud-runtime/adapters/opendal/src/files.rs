//! [`Files`]: plain files of a directory or an object store, beside artifacts.

use std::path::Path;

use dbtcloud_core::ports::ByteStream;
use dbtcloud_core::{Error, Result};
use futures::TryStreamExt;

use crate::artifacts::OpendalArtifacts;
use crate::failure::{is_absent, unavailable};
use crate::place::{Options, Place};

/// Files by their names at a place that a URL names, and artifacts in a folder beside them: what a backup consists
/// of. They come in as artifacts do: whole and durable, or not at all.
///
/// ```
/// use dbtcloud_core::Result;
/// use dbtcloud_opendal::{Files, Options};
/// use futures::{TryStreamExt, stream};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let files = Files::from_url("memory://", &Options::new())?;
/// assert!(files.open("note").await?.is_none());
/// files.put("note", Box::pin(stream::iter([Ok("text".into())]))).await?;
/// assert!(files.open("note").await?.is_some());
/// assert!(!files.is_empty().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Files {
    url: String,
    options: Options,
    inner: OpendalArtifacts,
}

impl Files {
    /// Files where a URL says; see [`OpendalArtifacts::from_url`].
    ///
    /// Errors: as there.
    pub fn from_url(url: &str, options: &Options) -> Result<Self> {
        Ok(Self {
            url: url.to_owned(),
            options: options.clone(),
            inner: OpendalArtifacts::from_url(url, options)?,
        })
    }

    /// The directory, when it is one.
    pub fn directory(&self) -> Option<&Path> {
        self.inner.directory.as_deref()
    }

    /// Artifacts in a folder of this name. In memory the folder is a store of its own.
    ///
    /// Errors: as [`OpendalArtifacts::from_url`].
    pub fn artifacts(&self, folder: &str) -> Result<OpendalArtifacts> {
        OpendalArtifacts::of(Place::parse(&self.url)?.below(folder), &self.options)
    }

    /// Makes sure that the place can be used; see [`OpendalArtifacts::check`].
    ///
    /// Errors: as there.
    pub async fn check(&self) -> Result<()> {
        self.inner.check().await
    }

    /// Whether nothing at all is there.
    ///
    /// Errors: `Unavailable`.
    pub async fn is_empty(&self) -> Result<bool> {
        let failed = |error| unavailable(&self.inner.store, "files cannot be listed", error);
        let lister = match self.inner.operator.lister_with("/").recursive(true).await {
            Err(error) if is_absent(&error) && !self.inner.remote => return Ok(true),
            lister => lister.map_err(failed)?,
        };
        let mut files = lister.try_filter(|entry| futures::future::ready(!entry.path().ends_with('/')));
        Ok(files.try_next().await.map_err(failed)?.is_none())
    }

    /// Stores a file; see [`dbtcloud_core::ports::Artifacts::put`].
    ///
    /// Errors: as there.
    pub async fn put(&self, name: &str, bytes: ByteStream) -> Result<u64> {
        self.inner.put_at(name, ".incoming/", name, bytes).await
    }

    /// A file; `None` is an answer.
    ///
    /// Errors: `Unavailable` at once or in the stream.
    pub async fn open(&self, name: &str) -> Result<Option<ByteStream>> {
        let bytes = match self.inner.operator.stat(name).await {
            Ok(meta) => meta.content_length(),
            Err(error) if is_absent(&error) => {
                self.inner.confirm_absent(name).await?;
                return Ok(None);
            }
            Err(error) => return Err(unavailable(&self.inner.store, name, error)),
        };
        if bytes == 0 {
            return Ok(Some(Box::pin(futures::stream::empty())));
        }
        let (store, what) = (self.inner.store.clone(), name.to_owned());
        let failed = move |error: opendal::Error| {
            if is_absent(&error) {
                Error::not_found("file", &what)
            } else {
                unavailable(&store, &what, error)
            }
        };
        self.inner.read_at(name, 0..bytes, failed).await.map(Some)
    }

    /// Removes a file. `Ok` when there is none.
    ///
    /// Errors: `Unavailable`.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let removed = self.inner.operator.delete(name).await;
        removed.map_err(|error| unavailable(&self.inner.store, name, error))
    }
}
