//! The directory of one execution, and what can be told from it.
//!
//! | file | written by | means |
//! |---|---|---|
//! | `lock` | starter, then supervisor | held: somebody starts or supervises it ([`crate::lock`]) |
//! | `control` | callers | FIFO to the watchdog: `cancel <seconds>`, `end <reason>` |
//! | `started` | supervisor | from here on it counts as started, once and for all; its time is the start |
//! | `work/`, `output.log` | the command | its working directory, its stdout and stderr |
//! | `address` | the command | where a service answers |
//! | `why.<reason>` | watchdog | it killed the command, and for what |
//! | `ending` → `exit.<status>.<how>.<why>` | supervisor | it ended and nothing of it is left; its time is the end |
//!
//! | `lock` | `started` | `exit.*` | state |
//! |---|---|---|---|
//! | free | no | no | [`State::Absent`], also after a crash in the middle of a start; start begins anew |
//! | held | no | no | [`State::Starting`] |
//! | held | yes | no | [`State::Running`] |
//! | any | yes | yes | [`State::Ended`] |
//! | free | yes | no | [`State::Lost`]: the supervisor was killed; settled by whoever sees it |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dbtcloud_core::Timestamp;
use dbtcloud_core::ports::Exit;
use nix::sys::stat::Mode;

use crate::{lock, processes};

/// How much of the command's output is kept while it runs: beyond it, seen at an observation, the file is
/// cut to its last [`TAIL_LIMIT_BYTES`].
pub(crate) const OUTPUT_LIMIT_BYTES: u64 = 1024 * 1024;

/// How much of the output's end an [`Exit`] tells.
pub(crate) const TAIL_LIMIT_BYTES: u64 = 2048;

/// The longest an address may be.
const ADDRESS_LIMIT_BYTES: u64 = 4096;

/// How long settling waits for killed processes to be gone.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);

/// What was started and has not ended, in the table above.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Absent,
    Starting,
    Running,
    Ended(Ending),
    Lost,
}

/// What the supervisor said of the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    status: i32,
    how: String,
    why: String,
    at: Timestamp,
}

impl Ending {
    fn parse(name: &str, at: Timestamp) -> Option<Self> {
        let mut parts = name.strip_prefix("exit.")?.split('.');
        let (status, how, why) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        parts.next().is_none().then(|| Self {
            status,
            how: how.to_owned(),
            why: why.to_owned(),
            at,
        })
    }
}

/// The directory of one execution. It may not exist.
pub(crate) struct ExecutionDirectory {
    path: PathBuf,
}

impl ExecutionDirectory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn address_file(&self) -> PathBuf {
        self.path.join("address")
    }

    /// Makes the directory exist and opens its lock; `None` when it was removed in between.
    pub(crate) fn make(&self) -> io::Result<Option<File>> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        absent_as_none(options.open(self.lock_file()))
    }

    /// Opens the lock of a directory that exists.
    pub(crate) fn open(&self) -> io::Result<Option<File>> {
        absent_as_none(OpenOptions::new().read(true).write(true).open(self.lock_file()))
    }

    /// Takes the lock if it is free and still that of this directory.
    pub(crate) fn take(&self, file: &File) -> io::Result<bool> {
        Ok(lock::try_lock(file)? && lock::is_at(file, &self.lock_file())?)
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// What is seen now. `Lost` is a suspicion until [`Self::settle`] confirms it under the lock.
    pub(crate) fn state(&self) -> io::Result<State> {
        let Some(file) = self.open()? else {
            return Ok(State::Absent);
        };
        if let Some(ending) = self.ending()? {
            return Ok(State::Ended(ending));
        }
        let held = lock::is_held(&file)?;
        let started = self.started_at()?.is_some();
        Ok(match (held, started, self.ending()?) {
            (_, _, Some(ending)) => State::Ended(ending),
            (true, true, None) => State::Running,
            (true, false, None) => State::Starting,
            (false, true, None) => State::Lost,
            (false, false, None) => State::Absent,
        })
    }

    /// Whether it ever was started. Only to be asked under the lock.
    pub(crate) fn was_started(&self) -> io::Result<bool> {
        Ok(self.started_at()?.is_some() || self.ending()?.is_some())
    }

    /// When it was started.
    pub(crate) fn started_at(&self) -> io::Result<Option<Timestamp>> {
        let meta = absent_as_none(fs::metadata(self.path.join("started")))?;
        meta.map(|meta| meta.modified().map(timestamp)).transpose()
    }

    fn ending(&self) -> io::Result<Option<Ending>> {
        let Some(entries) = absent_as_none(fs::read_dir(&self.path))? else {
            return Ok(None);
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("exit.") {
                let Some(meta) = absent_as_none(entry.metadata())? else {
                    return Ok(None);
                };
                return match Ending::parse(&entry.file_name().to_string_lossy(), timestamp(meta.modified()?)) {
                    Some(ending) => Ok(Some(ending)),
                    None => Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{:?}", entry.file_name()),
                    )),
                };
            }
        }
        Ok(None)
    }

    /// Clears what a start that died left and lays out what the supervisor needs. Only under the lock.
    pub(crate) fn prepare(&self) -> io::Result<File> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else if entry.file_name() != "lock" {
                fs::remove_file(entry.path())?;
            }
        }
        DirBuilder::new().mode(0o700).create(self.path.join("work"))?;
        for name in ["output.log", "ending"] {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(self.path.join(name))?;
        }
        let control = self.path.join("control");
        nix::unistd::mkfifo(&control, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Opened for both, it neither waits for another end nor ever reads an end of file.
        OpenOptions::new().read(true).write(true).open(control)
    }

    /// Tells the watchdog something; `false` when there is none to be told.
    pub(crate) fn tell(&self, message: &str) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        let mut control = match options.open(self.path.join("control")) {
            Ok(control) => control,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(false),
            Err(error) => return Err(error),
        };
        // Shorter than PIPE_BUF, so it is written whole or not at all.
        control.write_all(format!("{message}\n").as_bytes())?;
        Ok(true)
    }

    /// Ends what a killed supervisor left and records that; `false` when it was not lost after all.
    pub(crate) fn settle(&self) -> io::Result<bool> {
        let Some(file) = self.open()? else {
            return Ok(false);
        };
        if !self.take(&file)? || self.started_at()?.is_none() || self.ending()?.is_some() {
            return Ok(false);
        }
        if !processes::end(&self.path, SETTLE_PATIENCE)? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "processes of a lost execution do not end",
            ));
        }
        let ending = self.path.join("ending");
        File::create(&ending)?;
        fs::rename(ending, self.path.join("exit.0.lost.none"))?;
        Ok(true)
    }

    /// Where the service answers, once it said so.
    pub(crate) fn address(&self) -> io::Result<Option<String>> {
        let Some(file) = absent_as_none(File::open(self.address_file()))? else {
            return Ok(None);
        };
        let mut text = String::new();
        file.take(ADDRESS_LIMIT_BYTES).read_to_string(&mut text)?;
        let text = text.trim();
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// Holds the output to its limit. What is written between reading its end and cutting it is lost.
    pub(crate) fn bound_output(&self) -> io::Result<()> {
        let path = self.path.join("output.log");
        if absent_as_none(fs::metadata(&path))?.is_none_or(|meta| meta.len() <= OUTPUT_LIMIT_BYTES) {
            return Ok(());
        }
        let tail = self.tail("output.log")?;
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.set_len(0)?;
        file.write_all(format!("[cut at {OUTPUT_LIMIT_BYTES} bytes]\n{tail}").as_bytes())
    }

    /// The end as the port tells it.
    pub(crate) fn exit(&self, ending: &Ending) -> io::Result<Exit> {
        let (code, signal) = match ending.how.as_str() {
            "code" => (Some(ending.status), None),
            "signal" => (None, Some(ending.status - 128)),
            _ => (None, None),
        };
        let mut message = match (ending.why.as_str(), code, signal) {
            ("cancel", ..) => "killed after its grace".to_owned(),
            ("lifetime", ..) => "killed at the end of its lifetime".to_owned(),
            ("remove", ..) => "killed to be removed".to_owned(),
            ("memory", ..) => "killed while the machine was out of memory".to_owned(),
            (_, Some(code), _) => format!("ended with exit code {code}"),
            (_, _, Some(signal)) => format!("ended by signal {signal}"),
            _ => "its supervisor was killed or the machine restarted; what was left of it has been ended".to_owned(),
        };
        if code != Some(0) {
            for name in ["notes", "output.log"] {
                let tail = self.tail(name)?;
                // The shell's own word for a signal is told already.
                if !tail.trim().is_empty() && (name == "output.log" || ending.how == "lost") {
                    message.push_str(": ");
                    message.push_str(tail.trim());
                }
            }
        }
        Ok(Exit {
            code,
            signal,
            out_of_memory: ending.why == "memory",
            at: ending.at,
            message,
        })
    }

    /// Why a start came to nothing, as the shell told it.
    pub(crate) fn complaint(&self) -> String {
        ["lock", "notes"]
            .iter()
            .filter_map(|name| self.tail(name).ok())
            .collect::<String>()
            .trim()
            .to_owned()
    }

    fn tail(&self, name: &str) -> io::Result<String> {
        let Some(mut file) = absent_as_none(File::open(self.path.join(name)))? else {
            return Ok(String::new());
        };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_LIMIT_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_LIMIT_BYTES).read_to_end(&mut bytes)?;
        // A cut may fall inside a character.
        Ok(String::from_utf8_lossy(&bytes)
            .trim_start_matches('\u{fffd}')
            .to_owned())
    }
}

fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let span = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH.plus(span)
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
