//! One server of an installation that has several, each with a role.

use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dbtcloud_contract::wait::until;
use dbtcloud_runtime::vault::KeyringVault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::installation::Installation;

/// How long a server may take to be ready or to stop.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A file with a fresh key for secrets, in a folder. Its path.
///
/// # Panics
/// When it cannot be written.
pub fn key(folder: &Path) -> String {
    let path = folder.join("key");
    let mut options = std::fs::File::options();
    let mut file = options.create_new(true).write(true).mode(0o600).open(&path).unwrap();
    let fresh = KeyringVault::generate().unwrap();
    std::io::Write::write_all(&mut file, fresh.expose().as_bytes()).unwrap();
    path.display().to_string()
}

/// One server; it comes back at the same address.
pub struct Server {
    /// Where it is.
    pub url: String,
    /// Where it logs.
    pub log: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// A server of one role. It is not started yet, and agents reach the installation's own address.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn new(installation: &Installation, role: &str, number: usize) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::at(installation, role, number, &format!("http://127.0.0.1:{port}"))
    }

    /// A gateway before apps, at the installation's own address.
    pub fn gateway(installation: &Installation, apps: &[&str]) -> Self {
        let mut gateway = Self::at(installation, "gateway", 0, &installation.url());
        gateway.arguments.extend(["--app-url".to_owned(), apps.join(",")]);
        gateway
    }

    /// The same server with more arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    fn at(installation: &Installation, role: &str, number: usize, url: &str) -> Self {
        let listen = url.trim_start_matches("http://");
        let arguments = ["--role", role, "--listen", listen, "--drain-seconds", "1"];
        let agents = ["--agent-url".to_owned(), installation.url()];
        Self {
            url: url.to_owned(),
            log: installation.path().join(format!("{role}-{number}.log")),
            arguments: arguments.into_iter().map(str::to_owned).chain(agents).collect(),
            child: None,
        }
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self, installation: &Installation) {
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(&self.log).unwrap();
        let mut command = installation.command("serve");
        command
            .args(&self.arguments)
            .envs(installation.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn ready(&self) {
        let ready = format!("{}/readyz", self.url);
        until(LIMIT, || async {
            match reqwest::get(&ready).await {
                Ok(answer) if answer.status().is_success() => Ok(()),
                _ => Err(std::fs::read_to_string(&self.log).unwrap_or_default()),
            }
        })
        .await;
    }

    /// How it ended, if it did by itself; it is not up any more then.
    ///
    /// # Panics
    /// When that cannot be told.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Sends it a signal, if it is up.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        }
    }

    /// Ends it as a crash would.
    ///
    /// # Panics
    /// When it does not end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to stop and waits for it.
    ///
    /// # Panics
    /// When it does not stop in good order.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().unwrap();
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < LIMIT, "{} did not stop", self.log.display());
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        assert!(status.success(), "{} ended with {status}", self.log.display());
        let said = std::fs::read_to_string(&self.log).unwrap();
        assert!(said.contains("stopped"), "{said}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
