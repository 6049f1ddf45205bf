//! The warm backend: a parent process that has imported and exercised dbt forks a child per command.
//!
//! One parent per (environment, account), found by name in a private directory and shared by every agent of that
//! account on the host. Whoever finds none starts one, under a lock. It is a process of its own session: it outlives
//! the agent that started it and leaves when idle, old or replaced. The parent refuses to serve versions it was not
//! tested with, and when it has more than one thread after its warm-up. `py/warm_parent.py` is the other side.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cli::UMASK;
use super::env::Environment;
use super::error::EngineError;
use super::files;
use super::invocation::{Backend, Canceller, EngineEvent, Exit, ExitStatus, Invocation, Sink, Stop, Usage};
use super::pipes;
use super::profile;
use super::scripts::Scripts;
use super::version;

const PROTOCOL: u32 = 1;
/// Longest reply line of the parent.
const REPLY_LIMIT: u64 = 64 * 1024;
/// How long a parent may take to answer before dbt is started.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a failure to start a parent is remembered.
const RETRY_AFTER: Duration = Duration::from_secs(300);
/// Longest name of a unix socket, the closing zero not counted.
const SOCKET_NAME_LIMIT: usize = 107;
/// Adapters whose thread state after import was checked.
pub const WARM_ADAPTERS: &[&str] = &["duckdb", "postgres"];
/// dbt-core versions whose internals the parent patches and which the tests run with.
pub const WARM_CORES: &[&str] = &[version::TESTED_CORE, version::TESTED_CORE_1_12];
/// Variables dbt reads while it is imported: a forked child would not see them.
const COLD_VARIABLES: &[&str] = &["DBT_PACKAGE_HUB_URL"];

/// Limits of warm parents.
#[derive(Clone, Debug)]
pub struct WarmOptions {
    /// A parent leaves after this long without a request.
    pub idle: Duration,
    /// A parent is replaced after this many requests,
    pub max_forks: u64,
    /// or after this long.
    pub max_age: Duration,
    /// Invocations of one parent at a time; more go the plain way.
    pub max_running: usize,
    /// How long a parent may take to start.
    pub start_limit: Duration,
    /// dbt-core versions it may serve.
    pub cores: Vec<String>,
}

impl Default for WarmOptions {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(15 * 60),
            max_forks: 2_000,
            max_age: Duration::from_secs(12 * 3600),
            max_running: 64,
            start_limit: Duration::from_secs(60),
            cores: WARM_CORES.iter().map(|core| (*core).to_owned()).collect(),
        }
    }
}

/// The warm parent of one environment and account.
#[derive(Clone, Debug)]
pub struct WarmParent {
    dir: PathBuf,
    key: String,
    python: PathBuf,
    script: PathBuf,
    adapter: String,
    core: String,
    options: WarmOptions,
    /// The last failure to start one, and until when it is believed: a refusal costs seconds and tends to repeat.
    failure: Arc<Mutex<Option<(Instant, String)>>>,
}

/// What a parent says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Pong {
    /// Its process.
    pub pid: i32,
    /// Requests so far.
    pub forks: u64,
    /// Requests under way.
    pub running: u64,
    /// Seconds since it was ready.
    pub uptime: f64,
    /// Installed versions.
    pub versions: BTreeMap<String, String>,
    key: String,
}

#[derive(Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum Reply {
    Pong(Pong),
    Stopping,
    Ready {},
    Accepted,
    Refused {
        reason: String,
    },
    Started {},
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
        user_us: u64,
        system_us: u64,
        max_rss_kib: u64,
    },
}

#[derive(Serialize)]
struct Request<'a> {
    op: &'static str,
    protocol: u32,
    argv: &'a [String],
    env: BTreeMap<String, &'a str>,
    cwd: &'a Path,
    umask: u32,
    grace: f64,
    events: bool,
}

fn not_started(what: &str) -> impl FnOnce(std::io::Error) -> EngineError + '_ {
    move |error| EngineError::not_started(format!("{what}: {error}"))
}

impl WarmParent {
    /// The parent for `environment` and `account`, in `dir`. Starts nothing.
    pub(super) fn new(
        dir: &Path,
        environment: &Environment,
        account: &str,
        scripts: &Scripts,
        options: WarmOptions,
    ) -> Self {
        let text = format!(
            "{}\n{}\n{}\n{account}",
            environment.root.display(),
            environment.digest,
            scripts.digest
        );
        Self {
            dir: dir.to_path_buf(),
            key: hex::encode(&Sha256::digest(text.as_bytes())[..8]),
            python: environment.python(),
            script: scripts.warm.clone(),
            adapter: environment.info.adapter.clone(),
            core: environment.info.dbt_version.clone(),
            options,
            failure: Arc::default(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.key))
    }

    /// Finds a healthy parent or starts one.
    ///
    /// On `Ok` it has answered just now. Concurrent calls, in this process or others, start one parent.
    ///
    /// # Errors
    /// [`EngineError::NotStarted`] says why there is none.
    pub async fn connect_or_spawn(&self) -> Result<Pong, EngineError> {
        if let Ok(pong) = self.ping().await {
            return Ok(pong);
        }
        if let Some((until, reason)) = self.failure().as_ref()
            && Instant::now() < *until
        {
            return Err(EngineError::NotStarted { reason: reason.clone() });
        }
        files::private_dir(&self.dir)?;
        let lock = self.dir.join(format!("{}.lock", self.key));
        let _lock = files::lock(&lock, self.options.start_limit).await?;
        if let Ok(pong) = self.ping().await {
            return Ok(pong);
        }
        let started = match self.spawn().await {
            Ok(()) => self.ping().await,
            Err(error) => Err(error),
        };
        if let Err(EngineError::NotStarted { reason }) = &started {
            *self.failure() = Some((Instant::now() + RETRY_AFTER, reason.clone()));
        }
        started
    }

    fn failure(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the parent how it is. It forks to answer, so an answer means that it can.
    ///
    /// # Errors
    /// [`EngineError::NotStarted`]: there is none, or it does not answer.
    pub async fn ping(&self) -> Result<Pong, EngineError> {
        match self.ask("ping").await? {
            Reply::Pong(pong) if pong.key == self.key => Ok(pong),
            _ => Err(EngineError::not_started(
                "the warm parent gave another answer than asked for",
            )),
        }
    }

    /// Tells the parent to leave. Invocations under way are not touched.
    ///
    /// # Errors
    /// [`EngineError::NotStarted`]: there is none.
    pub async fn stop(&self) -> Result<(), EngineError> {
        self.ask("stop").await.map(drop)
    }

    async fn ask(&self, op: &str) -> Result<Reply, EngineError> {
        let mut link = self.connect().await?;
        let body = json!({ "op": op }).to_string();
        link.send(body.as_bytes(), &[])
            .await
            .map_err(not_started("asking the warm parent"))?;
        link.reply().await
    }

    async fn connect(&self) -> Result<Link, EngineError> {
        let connecting = tokio::time::timeout(ANSWER_LIMIT, UnixStream::connect(self.socket())).await;
        let stream = connecting
            .map_err(|_| EngineError::not_started("the warm parent does not accept"))?
            .map_err(not_started("connecting to the warm parent"))?;
        let peer = stream
            .peer_cred()
            .map_err(not_started("asking who the warm parent is"))?;
        if peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(EngineError::not_started("the warm parent belongs to another user"));
        }
        let (read, write) = stream.into_split();
        Ok(Link {
            read: BufReader::new(read),
            write,
        })
    }

    async fn spawn(&self) -> Result<(), EngineError> {
        let socket = self.socket();
        if socket.as_os_str().len() > SOCKET_NAME_LIMIT {
            return Err(EngineError::not_started(format!(
                "{} is too long for a socket",
                socket.display()
            )));
        }
        if !WARM_ADAPTERS.contains(&self.adapter.as_str()) {
            return Err(EngineError::not_started(format!(
                "adapter {} was not tested with the warm parent",
                self.adapter
            )));
        }
        if !self.options.cores.contains(&self.core) {
            return Err(EngineError::not_started(format!(
                "dbt-core {} was not tested with the warm parent",
                self.core
            )));
        }
        let config = self.dir.join(format!("{}.json", self.key));
        let text = json!({
            "key": self.key,
            "socket": socket,
            "adapter": self.adapter,
            "adapters": WARM_ADAPTERS,
            "core_versions": self.options.cores,
            "profile": profile::dummy_target(&self.adapter),
            "idle_seconds": self.options.idle.as_secs_f64(),
            "max_forks": self.options.max_forks,
            "max_seconds": self.options.max_age.as_secs_f64(),
            "max_running": self.options.max_running,
        });
        files::write_atomic(&config, text.to_string().as_bytes())?;
        // Nothing of ours is inherited: no environment, no descriptor but the one it reports on.
        let mut child = tokio::process::Command::new(&self.python)
            .args(["-I", "-X", "utf8"])
            .arg(&self.script)
            .arg(&config)
            .env_clear()
            .env("PATH", super::invocation::DEFAULT_PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
            // It serves later executions too: the executor leaves it when the one that started it ends. What
            // it forks ends with its requester all the same, by the connection.
            .env("DBTCLOUD_DETACHED", "1")
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(not_started("starting the warm parent"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(REPLY_LIMIT));
            // When this is given up the pipe closes, and a parent that becomes ready later leaves by itself.
            tokio::time::timeout(self.options.start_limit, stdout.read_line(&mut line))
                .await
                .map_err(|_| EngineError::not_started("the warm parent was not ready in time"))?
                .map_err(not_started("waiting for the warm parent"))?;
        }
        let _ = child.wait().await;
        match serde_json::from_str(&line) {
            Ok(Reply::Ready {}) => Ok(()),
            Ok(Reply::Refused { reason }) => {
                Err(EngineError::not_started(format!("the warm parent refused: {reason}")))
            }
            _ => Err(EngineError::not_started("the warm parent ended without a word")),
        }
    }

    /// Why an invocation must go the plain way.
    fn unfit(invocation: &Invocation) -> Option<String> {
        let cold = |name: &&String| {
            name.starts_with("PYTHON") || name.starts_with("LD_") || COLD_VARIABLES.contains(&name.as_str())
        };
        invocation
            .env
            .keys()
            .find(cold)
            .map(|name| format!("{name} is read before a fork could set it"))
    }

    /// Gets as far as the parent holding the request and dbt not yet started.
    async fn offer(&self, invocation: &Invocation, body: &[u8]) -> Result<Offer, EngineError> {
        let (stdout, stdout_write) = pipes::pipe().map_err(not_started("making a pipe"))?;
        let (stderr, stderr_write) = pipes::pipe().map_err(not_started("making a pipe"))?;
        let (events, events_write) = pipes::pipe().map_err(not_started("making a pipe"))?;
        let mut link = self.connect().await?;
        let descriptors = [stdout_write, stderr_write, events_write];
        let send = link.send(body, &descriptors);
        tokio::time::timeout(ANSWER_LIMIT, send)
            .await
            .map_err(|_| EngineError::not_started("the warm parent does not read"))?
            .map_err(not_started("asking the warm parent"))?;
        match link.reply().await? {
            Reply::Accepted => Ok(Offer {
                link,
                stdout,
                stderr,
                events: invocation.events.then_some(events),
            }),
            Reply::Refused { reason } => Err(EngineError::not_started(reason)),
            _ => Err(EngineError::not_started(
                "the warm parent gave another answer than asked for",
            )),
        }
    }
}

struct Offer {
    link: Link,
    stdout: tokio::net::unix::pipe::Receiver,
    stderr: tokio::net::unix::pipe::Receiver,
    events: Option<tokio::net::unix::pipe::Receiver>,
}

/// A connection. Dropping it makes the keeper interrupt and then kill its dbt.
struct Link {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Link {
    /// Sends a framed body with descriptors attached to its first byte.
    async fn send(&mut self, body: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
        let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        let raw: Vec<i32> = fds.iter().map(OwnedFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let stream: &UnixStream = self.write.as_ref();
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &control };
                sendmsg::<()>(
                    stream.as_raw_fd(),
                    &[IoSlice::new(&frame)],
                    control,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )
                .map_err(Into::into)
            })
            .await?;
        self.write.write_all(&frame[sent..]).await
    }

    /// The next reply, bounded in time and size.
    async fn reply(&mut self) -> Result<Reply, EngineError> {
        tokio::time::timeout(ANSWER_LIMIT, self.line())
            .await
            .map_err(|_| EngineError::not_started("the warm parent does not answer"))?
            .ok_or_else(|| EngineError::not_started("the warm parent hung up"))
    }

    /// The next reply, or `None` at the end or on nonsense. Not cancellation safe.
    async fn line(&mut self) -> Option<Reply> {
        let mut line = Vec::new();
        (&mut self.read)
            .take(REPLY_LIMIT)
            .read_until(b'\n', &mut line)
            .await
            .ok()?;
        serde_json::from_slice(&line).ok()
    }
}

#[async_trait]
impl Backend for WarmParent {
    fn name(&self) -> &'static str {
        "warm"
    }

    async fn invoke(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Exit, EngineError> {
        if let Some(reason) = Self::unfit(invocation) {
            return Err(EngineError::NotStarted { reason });
        }
        let env = invocation.environment();
        let body = zeroize::Zeroizing::new(
            serde_json::to_vec(&Request {
                op: "run",
                protocol: PROTOCOL,
                argv: &invocation.argv,
                env: env.iter().map(|(name, value)| (name.clone(), value.expose())).collect(),
                cwd: &invocation.cwd,
                umask: UMASK,
                grace: invocation.leash_grace.as_secs_f64(),
                events: invocation.events,
            })
            .map_err(|error| EngineError::not_started(error.to_string()))?,
        );
        let offer = match self.offer(invocation, &body).await {
            Ok(offer) => offer,
            // None there, or one on its way out: look for another, once.
            Err(_) => {
                self.connect_or_spawn().await?;
                self.offer(invocation, &body).await?
            }
        };
        let Offer {
            mut link,
            stdout,
            stderr,
            events,
        } = offer;
        let (over, watch) = watch::channel(false);
        let stdout = pipes::forward(stdout, sink.clone(), EngineEvent::Stdout, watch.clone());
        let stderr = pipes::forward(stderr, sink.clone(), EngineEvent::Stderr, watch.clone());
        let events = events.map(|events| pipes::forward_events(events, sink.clone(), watch));

        let end = follow(&mut link, canceller).await;
        over.send_replace(true);
        let _ = tokio::join!(stdout, stderr);
        let totals = match events {
            Some(events) => events.await.unwrap_or_default(),
            None => pipes::EventTotals::default(),
        };
        let (status, usage) = end?;
        Ok(Exit {
            status,
            usage,
            bad_events: totals.bad,
            invocation_id: totals.invocation_id,
            stopped: canceller.stage() > Stop::No,
        })
    }
}

/// Says go, passes signals on, and waits for the end.
async fn follow(link: &mut Link, canceller: &Canceller) -> Result<(ExitStatus, Usage), EngineError> {
    let Link { read, write } = link;
    write.write_all(b"G").await.map_err(not_started("starting dbt"))?;
    let lost = || EngineError::Lost {
        reason: "the warm parent's keeper went away".into(),
    };
    let mut stop = canceller.watch();
    let mut sent = Stop::No;
    let mut started = false;
    let mut line = Vec::new();
    loop {
        let stage = *stop.borrow_and_update();
        // The keeper reads commands only once dbt is started; until then a byte would be its answer.
        if started && stage > sent {
            let command: &[u8] = if stage == Stop::Kill { b"K" } else { b"I" };
            write.write_all(command).await.map_err(|_| lost())?;
            sent = stage;
        }
        tokio::select! {
            // `line` outlives the branch, so a reply read in pieces is not lost.
            read = read.read_until(b'\n', &mut line) => {
                if !matches!(read, Ok(1..)) || line.len() as u64 > REPLY_LIMIT {
                    return Err(lost());
                }
                match serde_json::from_slice(&line) {
                    Ok(Reply::Started {}) => started = true,
                    Ok(Reply::Exited { code, signal, user_us, system_us, max_rss_kib }) => {
                        let status = match (code, signal) {
                            (Some(code), _) => ExitStatus::Code(code),
                            (None, Some(signal)) => ExitStatus::Signal(signal),
                            (None, None) => return Err(lost()),
                        };
                        return Ok((status, Usage { user_us, system_us, max_rss_kib }));
                    }
                    _ => return Err(lost()),
                }
                line.clear();
            }
            _ = stop.changed() => {}
        }
    }
}
