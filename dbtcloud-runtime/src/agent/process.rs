//! Programs other than dbt: run to their end, their output told as it comes, their whole group gone when they are
//! dropped.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;

use super::console::{Console, Source};

/// The most output that is kept of each stream.
const KEEP_BYTES: usize = 256 * 1024;
/// How often a lock that somebody else holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Kills a group unless it is known to be over.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a program without input. Standard error goes to `console` as it comes. Dropping the future kills the group.
pub(super) async fn run(command: std::process::Command, mut console: Option<&mut Console>) -> io::Result<Ran> {
    let mut command = tokio::process::Command::from(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let read_out = async {
        let mut piece = vec![0; 64 * 1024];
        loop {
            let count = out.read(&mut piece).await?;
            if count == 0 {
                return io::Result::Ok(());
            }
            let room = KEEP_BYTES - stdout.len();
            stdout.extend_from_slice(&piece[..count.min(room)]);
        }
    };
    let read_err = async {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let count = err.read(&mut piece).await?;
            if count == 0 {
                return io::Result::Ok(());
            }
            let room = KEEP_BYTES - stderr.len();
            stderr.extend_from_slice(&piece[..count.min(room)]);
            if let Some(console) = console.as_deref_mut() {
                console.write(Source::Err, &piece[..count]).await;
            }
        }
    };
    let (out, err) = tokio::join!(read_out, read_err);
    out.and(err)?;
    let status = child.wait().await?;
    group.0 = None;
    Ok(Ran {
        success: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

/// Takes an exclusive lock between processes; dropping the file releases it, and so does the end of the process.
pub(super) async fn lock(path: &Path, limit: Duration) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}
