//! What a step leaves behind: copied aside at once (redacted, before the next step writes over it), sent while the run
//! goes on, tried again while the control plane is away.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dbtcloud_core::ports::ArtifactPath;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::halt::Halt;
use super::redact::Redactor;
use super::reporter::Reporter;
use super::uplink::{Backoff, Uplink, is_full};

/// Files on their way at one time.
pub const CONCURRENCY: usize = 8;
/// How long files may take to arrive after the last step while the control plane is there and the artifact store
/// is not: an outage delays a run, and loses nothing that it left.
pub const OUTAGE_LIMIT: Duration = Duration::from_secs(3600);
/// The same while the store is there and has no room: waiting makes none.
pub const FULL_LIMIT: Duration = Duration::from_secs(60);
/// The most files that one step may leave.
pub const FILE_LIMIT: usize = 100_000;
/// Files that are of no use to anybody else, or hold more than they should.
const LEFT_OUT: [&str; 3] = ["partial_parse.msgpack", "graph.gpickle", ".user.yml"];
/// Files in which secrets are looked for.
const TEXT: [&str; 8] = ["json", "sql", "log", "txt", "yml", "yaml", "md", "csv"];

/// A file that is to be sent.
#[derive(Debug)]
struct Outgoing {
    step: u32,
    parts: Vec<String>,
    file: PathBuf,
}

#[derive(Debug)]
struct Sent {
    step: u32,
    path: String,
    result: Result<(), String>,
}

/// What became of all files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// Paths of artifacts that arrived, with their steps.
    pub(super) arrived: Vec<(u32, String)>,
    /// Those that did not, and why.
    pub(super) failed: Vec<(u32, String, String)>,
}

impl Saved {
    pub(super) fn has(&self, name: &str) -> bool {
        self.arrived.iter().any(|(_, path)| path == name)
    }
}

/// Sends files in the background.
#[derive(Debug)]
pub(super) struct Uploads {
    uplink: Uplink,
    halt: Halt,
    redactor: Arc<Redactor>,
    outbox: PathBuf,
    seen: HashMap<PathBuf, (SystemTime, u64)>,
    permits: Arc<Semaphore>,
    tasks: JoinSet<Sent>,
    saved: Saved,
    /// Why a file had to be sent again the last time: what is told when there is no more time to try.
    refused: Arc<std::sync::Mutex<Option<Refused>>>,
}

#[derive(Debug)]
struct Refused {
    why: String,
    full: bool,
}

impl Uploads {
    pub(super) fn new(uplink: Uplink, halt: Halt, redactor: Arc<Redactor>, outbox: PathBuf) -> Self {
        Self {
            uplink,
            halt,
            redactor,
            outbox,
            seen: HashMap::new(),
            permits: Arc::new(Semaphore::new(CONCURRENCY)),
            tasks: JoinSet::new(),
            saved: Saved::default(),
            refused: Arc::default(),
        }
    }

    /// Takes over what changed in `target` since the last call, and the debug log in `logs`, as those of `step`.
    /// The error is for the step's log; what could be taken over is.
    pub(super) async fn take(&mut self, step: u32, target: &Path, logs: &Path) -> Result<(), String> {
        let (target, logs) = (target.to_path_buf(), logs.to_path_buf());
        let (redactor, outbox) = (self.redactor.clone(), self.outbox.join(step.to_string()));
        let mut seen = std::mem::take(&mut self.seen);
        let taken = tokio::task::spawn_blocking(move || {
            let mut taken = Vec::new();
            let mut result = take_changed(step, &target, &outbox.join("target"), &redactor, &mut seen, &mut taken);
            if let Err(error) = take_log(step, &logs, &outbox, &redactor, &mut taken) {
                result = result.and(Err(format!("dbt.log cannot be kept: {error}")));
            }
            (taken, seen, result)
        })
        .await;
        let (taken, seen, result) = taken.map_err(|_| "artifacts cannot be looked at".to_owned())?;
        self.seen = seen;
        for outgoing in taken {
            let (uplink, halt, permits) = (self.uplink.clone(), self.halt.clone(), self.permits.clone());
            let refused = self.refused.clone();
            self.tasks
                .spawn(async move { send(&uplink, &halt, &permits, &refused, outgoing).await });
        }
        result
    }

    /// Waits until everything has arrived or is given up. While the control plane is away, up to `deadline`;
    /// while it is there, for [`OUTAGE_LIMIT`] or [`FULL_LIMIT`].
    pub(super) async fn finish(&mut self, reporter: &Reporter, deadline: tokio::time::Instant) -> Saved {
        let mut waited = Duration::ZERO;
        let look = Duration::from_secs(1);
        while !self.tasks.is_empty() {
            match tokio::time::timeout(look, self.tasks.join_next()).await {
                Ok(Some(Ok(sent))) => match sent.result {
                    Ok(()) => self.saved.arrived.push((sent.step, sent.path)),
                    Err(why) => self.saved.failed.push((sent.step, sent.path, why)),
                },
                Ok(_) => {}
                Err(_) if reporter.heard() => waited = waited.saturating_add(look),
                Err(_) => {}
            }
            let full = |last: std::sync::MutexGuard<'_, Option<Refused>>| last.as_ref().is_some_and(|last| last.full);
            let limit = if self.refused.lock().is_ok_and(full) {
                FULL_LIMIT
            } else {
                OUTAGE_LIMIT
            };
            if waited >= limit || tokio::time::Instant::now() >= deadline {
                let late = self.tasks.len();
                self.tasks.shutdown().await;
                let last = self.refused.lock().ok().and_then(|mut last| last.take());
                let why = last.map_or_else(
                    || "they took too long".to_owned(),
                    |last| format!("they took too long; the last answer was: {}", last.why),
                );
                self.saved.failed.push((0, format!("{late} files"), why));
            }
        }
        std::mem::take(&mut self.saved)
    }
}

async fn send(
    uplink: &Uplink,
    halt: &Halt,
    permits: &Semaphore,
    refused: &std::sync::Mutex<Option<Refused>>,
    outgoing: Outgoing,
) -> Sent {
    let parts: Vec<&str> = outgoing.parts.iter().map(String::as_str).collect();
    let trying = async {
        let mut backoff = Backoff::default();
        loop {
            let permit = permits.acquire().await;
            let answer = uplink.put(&parts, &outgoing.file).await;
            drop(permit);
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if error.retryable() => {
                    if let Ok(mut last) = refused.lock() {
                        *last = Some(Refused {
                            why: error.chain(),
                            full: is_full(&error),
                        });
                    }
                    backoff.pause().await;
                }
                Err(error) => return Err(error.chain()),
            }
        }
    };
    let result = tokio::select! {
        result = trying => result,
        _ = halt.silenced() => Err("nobody takes it any more".to_owned()),
    };
    let _ = tokio::fs::remove_file(&outgoing.file).await;
    let path = if outgoing.parts[0] == "artifacts" {
        outgoing.parts[2..].join("/")
    } else {
        "dbt.log".to_owned()
    };
    Sent {
        step: outgoing.step,
        path,
        result,
    }
}

fn take_changed(
    step: u32,
    target: &Path,
    outbox: &Path,
    redactor: &Redactor,
    seen: &mut HashMap<PathBuf, (SystemTime, u64)>,
    taken: &mut Vec<Outgoing>,
) -> Result<(), String> {
    let mut result = Ok(());
    let mut folders = vec![target.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                result = Err(format!("{} cannot be read: {error}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // Of the entry itself: a symbolic link is neither followed nor taken.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(path);
                continue;
            }
            let name = entry.file_name();
            if !meta.is_file() || LEFT_OUT.iter().any(|left| name == *left) {
                continue;
            }
            let mark = (meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len());
            if seen.get(&path) == Some(&mark) {
                continue;
            }
            let Ok(inside) = path.strip_prefix(target) else {
                continue;
            };
            let Some(inside) = inside.to_str().filter(|inside| inside.parse::<ArtifactPath>().is_ok()) else {
                result = Err(format!("{} has a name that cannot be kept", path.display()));
                continue;
            };
            if taken.len() >= FILE_LIMIT {
                return Err(format!("more than {FILE_LIMIT} files; the rest is not kept"));
            }
            let copy = outbox.join(inside);
            match copy_redacted(&path, &copy, redactor) {
                Ok(()) => {
                    let parts = ["artifacts".to_owned(), step.to_string()];
                    taken.push(Outgoing {
                        step,
                        parts: parts.into_iter().chain(inside.split('/').map(str::to_owned)).collect(),
                        file: copy,
                    });
                    seen.insert(path, mark);
                }
                Err(error) => result = Err(format!("{inside} cannot be kept: {error}")),
            }
        }
    }
    result
}

fn copy_redacted(from: &Path, to: &Path, redactor: &Redactor) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = from
        .extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| TEXT.contains(&ending));
    if text {
        redactor.copy(File::open(from)?, File::create(to)?)?;
    } else {
        std::fs::copy(from, to)?;
    }
    Ok(())
}

/// dbt's debug log with what it rotated away, oldest first.
fn take_log(step: u32, logs: &Path, outbox: &Path, redactor: &Redactor, taken: &mut Vec<Outgoing>) -> io::Result<()> {
    let rotated = (1..=9).rev().map(|number| logs.join(format!("dbt.log.{number}")));
    let files: Vec<PathBuf> = rotated
        .chain([logs.join("dbt.log")])
        .filter(|file| file.is_file())
        .collect();
    if files.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(outbox)?;
    let copy = outbox.join("dbt.log");
    let mut out = File::create(&copy)?;
    for file in files {
        redactor.copy(File::open(file)?, &mut out)?;
    }
    taken.push(Outgoing {
        step,
        parts: vec!["debug-logs".to_owned(), step.to_string()],
        file: copy,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_changed_is_taken_and_secrets_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (target, outbox) = (dir.path().join("target"), dir.path().join("outbox"));
        std::fs::create_dir_all(target.join("compiled/shop")).unwrap();
        std::fs::write(target.join("manifest.json"), r#"{"x": "hunter2-hunter2"}"#).unwrap();
        std::fs::write(target.join("compiled/shop/a.sql"), "select 1").unwrap();
        std::fs::write(target.join("partial_parse.msgpack"), "x").unwrap();
        std::fs::write(target.join("graph.gpickle"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", target.join("link.json")).unwrap();
        let redactor = Redactor::for_artifacts(["hunter2-hunter2"], &[]).unwrap();
        let (mut seen, mut taken) = (HashMap::new(), Vec::new());
        take_changed(3, &target, &outbox, &redactor, &mut seen, &mut taken).unwrap();
        let mut paths: Vec<String> = taken.iter().map(|outgoing| outgoing.parts.join("/")).collect();
        paths.sort();
        assert_eq!(paths, ["artifacts/3/compiled/shop/a.sql", "artifacts/3/manifest.json"]);
        assert_eq!(
            std::fs::read_to_string(outbox.join("manifest.json")).unwrap(),
            r#"{"x": "*****"}"#
        );

        taken.clear();
        std::fs::write(target.join("run_results.json"), "{}").unwrap();
        take_changed(4, &target, &outbox, &redactor, &mut seen, &mut taken).unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].parts, ["artifacts", "4", "run_results.json"]);
    }

    #[test]
    fn a_rotated_log_is_put_together() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("dbt.log.2", "a\n"), ("dbt.log.1", "b\n"), ("dbt.log", "c\n")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut taken = Vec::new();
        let redactor = Redactor::new([]).unwrap();
        take_log(2, dir.path(), &dir.path().join("out"), &redactor, &mut taken).unwrap();
        assert_eq!(std::fs::read_to_string(&taken[0].file).unwrap(), "a\nb\nc\n");
    }
}
