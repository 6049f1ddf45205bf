//! The agents' unix socket. Several processes of a host may be told the same path: one of them holds the lock beside
//! it and serves, the others wait for their turn, so that agents know one address whoever comes and goes. The lock
//! spares work; what is written is fenced whoever takes it in.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use dbtcloud_core::{Error, Result};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// How often a process that waits asks for the lock, and one that serves whether the path is still its own.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A socket that is ours, and the lock that says so.
pub(crate) struct Door {
    listener: UnixListener,
    inode: u64,
    _lock: File,
}

/// Opens the socket at `path`; nothing when another process serves there. What an earlier one left is replaced.
///
/// # Errors
/// `Unavailable`, with the path.
pub(crate) fn open(path: &Path) -> Result<Option<Door>> {
    let cannot = |error: io::Error| {
        Error::unavailable(format!("agents' socket {} cannot be opened", path.display())).because(error)
    };
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_extension("lock"))
        .map_err(cannot)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(cannot(error)),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(cannot)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(cannot)?;
    let inode = std::fs::metadata(path).map_err(cannot)?.ino();
    Ok(Some(Door {
        listener,
        inode,
        _lock: lock,
    }))
}

/// Resolves when the path leads elsewhere: it was tidied away, or taken by a process that knows no lock.
async fn lost(path: &Path, inode: u64) {
    while std::fs::metadata(path).is_ok_and(|meta| meta.ino() == inode) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Serves at `path` until `shutdown`, from the moment that no other process does.
pub(crate) async fn serve(path: PathBuf, mut door: Option<Door>, router: Router, shutdown: CancellationToken) {
    loop {
        if let Some(Door { listener, inode, _lock }) = door.take() {
            let served =
                axum::serve(listener, router.clone()).with_graceful_shutdown(shutdown.clone().cancelled_owned());
            tokio::select! {
                served = std::future::IntoFuture::into_future(served) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the agents' door closed");
                    }
                }
                // Connections that are there go on.
                () = lost(&path, inode) => {
                    tracing::warn!(path = %path.display(), "the agents' socket was taken away; opening it again");
                }
            }
        } else {
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.cancelled() => {}
            }
        }
        if shutdown.is_cancelled() {
            return;
        }
        door = open(&path).unwrap_or_else(|error| {
            tracing::warn!(error = %error.chain(), "agents cannot report to this process");
            None
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answers(path: &Path) -> bool {
        let client = crate::dial::Dialer::unix(path).client();
        client
            .get("http://plane/who".parse().unwrap())
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }

    async fn until(path: &Path) {
        let found = async {
            while !answers(path).await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.unwrap();
    }

    #[tokio::test]
    async fn one_serves_and_the_next_takes_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let router = || Router::new().route("/who", axum::routing::get(|| async { "ok" }));
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let door = open(&path).unwrap();
        assert!(door.is_some());
        let one = tokio::spawn(serve(path.clone(), door, router(), first.clone()));
        assert!(open(&path).unwrap().is_none());
        let two = tokio::spawn(serve(path.clone(), None, router(), second.clone()));
        until(&path).await;
        // Somebody tidies up.
        std::fs::remove_file(&path).unwrap();
        until(&path).await;
        first.cancel();
        one.await.unwrap();
        until(&path).await;
        second.cancel();
        two.await.unwrap();
        assert!(!answers(&path).await);
    }
}
