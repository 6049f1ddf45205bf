//! What a store's failures mean to the caller.

use std::io;

use dbtcloud_core::{Error, ErrorKind};

/// A failure of the store, about `what`. Reasons that a person can do something about stand in the text.
pub(crate) fn unavailable(what: impl std::fmt::Display, error: opendal::Error) -> Error {
    let reason = match io_kind(&error) {
        Some(io::ErrorKind::StorageFull) => "no space left on the device".to_owned(),
        Some(io::ErrorKind::QuotaExceeded) => "the quota is used up".to_owned(),
        Some(io::ErrorKind::ReadOnlyFilesystem) => "the file system is read-only".to_owned(),
        _ => format!("the store answered {}", error.kind().into_static()),
    };
    Error::new(ErrorKind::Unavailable, format!("{what}: {reason}")).because(error)
}

/// Whether the thing is not there. On a file system also when a file stands where its directory would be.
pub(crate) fn is_absent(error: &opendal::Error) -> bool {
    matches!(
        error.kind(),
        opendal::ErrorKind::NotFound | opendal::ErrorKind::NotADirectory
    ) || io_kind(error) == Some(io::ErrorKind::NotADirectory)
}

/// Whether a file stands where a directory is needed or the other way round; only file systems have that.
pub(crate) fn is_in_the_way(error: &opendal::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    matches!(
        io_kind(error),
        Some(AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory)
    ) || matches!(
        error.kind(),
        opendal::ErrorKind::NotADirectory | opendal::ErrorKind::IsADirectory
    )
}

fn io_kind(error: &opendal::Error) -> Option<io::ErrorKind> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}
