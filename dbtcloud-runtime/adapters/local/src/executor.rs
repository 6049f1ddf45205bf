//! [`LocalExecutor`]: the executor port as processes of this machine.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dbtcloud_core::ports::{Execution, ExecutionId, ExecutionSpec, Executor, Observation};
use dbtcloud_core::{Error, Result, Timestamp};

use crate::directory::{ExecutionDirectory, State};
use crate::supervisor::{self, Started};
use crate::{processes, spec, tree};

/// How long a call waits for another process that is in the middle of starting or ending the same execution.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a removal leaves the end to the execution's own watchdog before it ends it itself.
const WATCHDOG_PATIENCE: Duration = Duration::from_secs(3);

/// Executions as processes of this machine, each below a supervising shell of its own that outlives us.
///
/// Everything it knows is in its directory, one directory per execution. Any number of instances may share
/// it, in this and in other processes, also one after the other; all see and end the same executions. It
/// must be on a file system of this machine (locks, FIFOs) and is readable by its owner only.
///
/// - **Environment**: the specification's, `DBTCLOUD_TICKET`, `DBTCLOUD_ADDRESS_FILE` for a service, and
///   `DBTCLOUD_EXECUTION`, by which leftovers are found should the supervisor itself be killed. Names are
///   letters, digits and underscores. The ticket passes through memory only, never argv or a file.
/// - **Descendants**: the supervisor is a subreaper, so what daemonizes or calls `setsid` is still its own
///   and is killed when the command ends. The exception is a process that was *executed* with
///   `DBTCLOUD_DETACHED=1` in its environment and in a session of its own, for daemons that several
///   executions share: it is left alone.
/// - **Exit code or signal**: an exit code of 130 or 141 is told as SIGINT or SIGPIPE, which a shell cannot tell
///   apart; where `/bin/sh` is bash, so is every exit code from 129 to 192 as its signal.
/// - **Interrupt**: SIGINT to the command's process group, once; SIGKILL to everything after the grace.
/// - **Memory**: a limit is the size of the data of each single process (`RLIMIT_DATA`), beyond which its
///   allocations fail. `out_of_memory` is told when the command was killed by a SIGKILL that was not ours
///   while the kernel counted an out-of-memory kill.
/// - **Mounts**: a process sees a directory where it is, so source and target are the same path.
/// - **Output**: stdout and stderr go to `output.log`, cut by `observe` when it is beyond 1 MiB; the last
///   2 KiB are told in the message of an exit that is not 0.
/// - **Placement**: a process has no image, service account, node or resources of its own: all of it is
///   passed over.
/// - **Working directory**: an empty one of its own, gone with `remove`.
///
/// Under systemd, a restart of the service kills everything in its control group unless the unit says
/// `KillMode=process`. Its methods need a tokio runtime with I/O enabled.
///
/// ```
/// use std::collections::BTreeMap;
/// use dbtcloud_core::id::{AccountId, RunId};
/// use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Observation, Workload, WorkloadLimits};
/// use dbtcloud_local::LocalExecutor;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dbtcloud_core::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// let executor = LocalExecutor::new(directory.path())?;
/// let id = ExecutionId::Run { run: RunId::new(42), attempt: 1 };
/// executor
///     .start(&ExecutionSpec {
///         id,
///         account: AccountId::new(1),
///         workload: Workload::Task,
///         command: vec!["sh".into(), "-c".into(), "exit 3".into()],
///         environment: BTreeMap::new(),
///         ticket: None,
///         mounts: Vec::new(),
///         limits: WorkloadLimits::default(),
///         placement: Default::default(),
///     })
///     .await?;
/// let exit = loop {
///     match executor.observe(id).await? {
///         Observation::Exited(exit) => break exit,
///         _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
///     }
/// };
/// assert_eq!(exit.code, Some(3));
/// executor.remove(id).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LocalExecutor {
    root: Arc<PathBuf>,
}

impl LocalExecutor {
    /// Opens the executions in `directory`, which is made if it is not there.
    ///
    /// Errors: `Unavailable` when the directory cannot be made or written, or the machine has no `/proc` or
    /// no `/bin/sh`.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let failed = |error| unavailable(format!("executions in {}", directory.display()), error);
        for needed in ["/proc/self/stat", supervisor::SHELL] {
            fs::metadata(needed).map_err(|error| unavailable(format!("{needed} of this machine"), error))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed)?;
        let root = directory.canonicalize().map_err(failed)?;
        tree::empty_trash(&root).map_err(failed)?;
        Ok(Self { root: Arc::new(root) })
    }

    fn directory(&self, id: ExecutionId) -> ExecutionDirectory {
        ExecutionDirectory::new(self.root.join(id.to_string()))
    }

    /// Runs file system work off the async threads. It is finished even if the caller's future is dropped.
    async fn blocking<T, F>(&self, what: String, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Self) -> io::Result<T> + Send + 'static,
    {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(this)).await {
            Ok(done) => done.map_err(|error| unavailable(what, error)),
            Err(error) => Err(Error::unavailable(format!("{what}: interrupted")).because(error)),
        }
    }

    fn start_blocking(&self, id: ExecutionId, plan: &spec::Plan) -> io::Result<()> {
        let directory = self.directory(id);
        let patience = Patience::new("another process is in the middle of starting it");
        loop {
            let Some(file) = directory.make()? else {
                continue;
            };
            if directory.take(&file)? {
                if directory.was_started()? {
                    return Ok(());
                }
                let control = directory.prepare()?;
                if let Started::Yes = supervisor::start(&id.to_string(), directory.path(), plan, &file, control)? {
                    return Ok(());
                }
                // The lock is still ours, so nobody can have begun anew in what is taken away.
                let complaint = directory.complaint();
                processes::end(directory.path(), WATCHDOG_PATIENCE)?;
                tree::remove(directory.path())?;
                return Err(io::Error::other(format!("its supervisor did not start: {complaint}")));
            }
            if let State::Running | State::Ended(_) = directory.state()? {
                return Ok(());
            }
            patience.pause()?;
        }
    }

    fn observe_blocking(&self, id: ExecutionId) -> io::Result<Observation> {
        let directory = self.directory(id);
        let patience = Patience::new("another process is settling its end");
        loop {
            return Ok(match directory.state()? {
                State::Absent => Observation::Absent,
                State::Starting => Observation::Pending {
                    reason: "being started".to_owned(),
                },
                State::Running => {
                    directory.bound_output()?;
                    Observation::Running {
                        address: directory.address()?,
                    }
                }
                State::Ended(ending) => Observation::Exited(directory.exit(&ending)?),
                State::Lost => {
                    if !directory.settle()? {
                        patience.pause()?;
                    }
                    continue;
                }
            });
        }
    }

    fn cancel_blocking(&self, id: ExecutionId, grace: Duration) -> io::Result<()> {
        let directory = self.directory(id);
        let patience = Patience::new("its watchdog does not listen; remove it to end it");
        loop {
            match directory.state()? {
                State::Absent | State::Ended(_) => return Ok(()),
                State::Running if directory.tell(&format!("cancel {}", spec::seconds(grace)))? => {
                    return Ok(());
                }
                // Between the end of the command and the end of everything nobody listens any more.
                State::Running | State::Starting => patience.pause()?,
                State::Lost => {
                    if !directory.settle()? {
                        patience.pause()?;
                    }
                }
            }
        }
    }

    fn remove_blocking(&self, id: ExecutionId) -> io::Result<()> {
        let directory = self.directory(id);
        let patience = Patience::new("its processes do not end");
        let mut told: Option<Instant> = None;
        loop {
            if !directory.path().exists() {
                return Ok(());
            }
            let Some(file) = directory.make()? else {
                continue;
            };
            if directory.take(&file)? {
                // What a killed supervisor left; there is nothing of one that ended.
                if directory.was_started()? && !matches!(directory.state()?, State::Ended(_)) {
                    while !processes::end(directory.path(), WATCHDOG_PATIENCE)? {
                        patience.pause()?;
                    }
                }
                return tree::remove(directory.path());
            }
            if told.is_none_or(|at| at.elapsed() > Duration::from_millis(250)) {
                told = directory.tell("end remove")?.then(Instant::now);
            }
            if patience.spent() > WATCHDOG_PATIENCE {
                processes::end(directory.path(), Duration::ZERO)?;
            }
            patience.pause()?;
        }
    }

    fn list_blocking(&self) -> io::Result<Vec<Execution>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.as_path())? {
            let entry = entry?;
            // By the name's own form, so that what only looks like one is left alone.
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.parse::<ExecutionId>().ok().filter(|id| id.to_string() == name) else {
                continue;
            };
            let directory = self.directory(id);
            if directory.state()? == State::Absent {
                continue;
            }
            let started_at = match directory.started_at()? {
                Some(at) => at,
                None => match entry.metadata().and_then(|meta| meta.modified()) {
                    Ok(at) => Timestamp::EPOCH.plus(at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()),
                    Err(_) => continue,
                },
            };
            found.push(Execution { id, started_at });
        }
        found.sort_by_key(|execution| execution.id);
        Ok(found)
    }
}

#[async_trait]
impl Executor for LocalExecutor {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        let id = spec.id;
        let directory = self.directory(id);
        let plan = spec::plan(spec, directory.path(), &directory.address_file())?;
        self.blocking(format!("execution {id} in {}", self.root.display()), move |this| {
            this.start_blocking(id, &plan)
        })
        .await
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        self.blocking(format!("execution {id}"), move |this| this.observe_blocking(id))
            .await
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        self.blocking(format!("cancellation of execution {id}"), move |this| {
            this.cancel_blocking(id, grace)
        })
        .await
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        self.blocking(format!("removal of execution {id}"), move |this| {
            this.remove_blocking(id)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        self.blocking(format!("executions in {}", self.root.display()), |this| {
            this.list_blocking()
        })
        .await
    }
}

/// A wait for somebody else, with an end.
struct Patience {
    since: Instant,
    for_what: &'static str,
}

impl Patience {
    fn new(for_what: &'static str) -> Self {
        Self {
            since: Instant::now(),
            for_what,
        }
    }

    fn spent(&self) -> Duration {
        self.since.elapsed()
    }

    fn pause(&self) -> io::Result<()> {
        if self.spent() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, self.for_what));
        }
        processes::pause();
        Ok(())
    }
}

pub(crate) fn unavailable(what: String, error: io::Error) -> Error {
    // The reason stands in the text too: a full disk is for a person to see.
    Error::unavailable(format!("{what}: {error}")).because(error)
}
