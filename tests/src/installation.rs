//! An installation of the real binary in a temporary directory, to be used, broken and looked at.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dbtcloud_runtime::vault::KeyringVault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::api::Api;
use crate::{processes, project};

/// How long a server may take to be ready or to stop.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// What a log may say on a slow machine: the database's driver tells how long somebody waited for it, which is the
/// operator's to know and no fault of the platform's.
const SLOW_MACHINE: [&str; 2] = ["time to acquire exceeded slow threshold", "slow statement"];

/// The binary under test, built before the tests by `cargo build --workspace --bins`.
///
/// # Panics
/// When it has not been built.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().find(|folder| folder.join("dbtcloud").is_file());
    folder
        .expect("build the binary first: cargo build --workspace --bins")
        .join("dbtcloud")
}

/// Makes a key file in a folder. Its path.
///
/// # Panics
/// When it cannot be written.
pub fn key_file(folder: &Path) -> String {
    let path = folder.join("key");
    let mut file = std::fs::File::options();
    let mut file = file.create_new(true).write(true).mode(0o600).open(&path).unwrap();
    file.write_all(KeyringVault::generate().unwrap().expose().as_bytes())
        .unwrap();
    path.display().to_string()
}

/// An installation and, while it is up, its server.
pub struct Installation {
    directory: TempDir,
    /// Warnings and errors that its log may have, as parts of lines.
    pub expected: Vec<&'static str>,
    /// Variables of the server, beside its own.
    pub environment: Vec<(&'static str, String)>,
    arguments: Vec<String>,
    keys: Option<TempDir>,
    listen: String,
    server: Option<Child>,
    api: Api,
}

impl Installation {
    /// Bootstraps an embedded installation; nothing is started yet.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same, with more arguments for every command that takes a configuration.
    ///
    /// # Panics
    /// When it cannot be bootstrapped.
    pub fn with(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("dbtcloud-test-").tempdir().unwrap();
        let mut installation = Self::in_directory(directory, arguments);
        let output = installation
            .command("bootstrap")
            .args(["--json", "--account", "Test", "--email", "test@localhost"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "bootstrap: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        installation.api = Api::new(
            &installation.url(),
            said["token"].as_str().unwrap(),
            said["account_id"].as_i64().unwrap(),
        );
        installation
    }

    fn in_directory(directory: TempDir, arguments: &[&str]) -> Self {
        share_environments(directory.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self {
            directory,
            expected: Vec::new(),
            environment: Vec::new(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            keys: None,
            listen: format!("127.0.0.1:{port}"),
            server: None,
            api: Api::new("", "", 0),
        }
    }

    /// A server on a database that has an account with a token.
    ///
    /// # Panics
    /// When no directory can be had.
    pub fn existing(database_url: &str, token: &str, account: i64) -> Self {
        let directory = tempfile::Builder::new().prefix("dbtcloud-test-").tempdir().unwrap();
        let keys = tempfile::Builder::new().prefix("dbtcloud-key-").tempdir().unwrap();
        let key = key_file(keys.path());
        let mut installation = Self::in_directory(
            directory,
            &[
                "--database-url",
                database_url,
                "--key-file",
                &key,
                "--drain-seconds",
                "0",
            ],
        );
        installation.keys = Some(keys);
        installation.api = Api::new(&installation.url(), token, account);
        installation
    }

    /// The same on PostgreSQL, with a key file of its own.
    ///
    /// # Panics
    /// When it cannot be bootstrapped.
    pub fn on(database_url: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("dbtcloud-key-").tempdir().unwrap();
        let key = key_file(folder.path());
        let own = ["--database-url", database_url, "--key-file", &key, "--migrate"];
        let quick = ["--drain-seconds", "0"];
        let mut installation = Self::with(&[&own[..], &quick, arguments].concat());
        installation.keys = Some(folder);
        installation
    }

    /// A command of the binary on this installation.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .arg(name)
            .arg("--data-dir")
            .arg(self.path())
            .args(&self.arguments);
        command.env("DBTCLOUD_UV", project::workspace().join(".cache/bin/uv"));
        command
    }

    /// Its data directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where its server is, or will be.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// A client.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Has the server listen on another address of this machine, and reaches it there.
    ///
    /// # Panics
    /// When it is up already.
    pub fn listen_on(&mut self, address: &str) {
        assert!(self.server.is_none(), "the server is up");
        let port = self.listen.rsplit(':').next().unwrap();
        self.listen = format!("{address}:{port}");
        self.api = Api::new(&self.url(), self.api.token(), self.api.account);
    }

    /// Where the server's log is.
    pub fn log(&self) -> PathBuf {
        self.path().join("server.log")
    }

    /// Starts the server and waits until it is ready.
    ///
    /// # Panics
    /// When it is not ready in time.
    pub async fn start(&mut self) {
        self.spawn();
        let began = Instant::now();
        let ready = format!("{}/readyz", self.url());
        loop {
            match reqwest::get(&ready).await {
                Ok(answer) if answer.status().is_success() => return,
                _ => {}
            }
            let gone = self.ended();
            let said = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(gone.is_none(), "the server ended with {gone:?}: {}", said());
            assert!(began.elapsed() < LIMIT, "the server was not ready: {}", said());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// How the server ended, if it did by itself.
    ///
    /// # Panics
    /// When it was not started.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.server.as_mut().unwrap().try_wait().unwrap()
    }

    /// Starts the server and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        let child = self
            .command("serve")
            .args(["--listen", &self.listen])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(child);
    }

    /// The server's process id.
    ///
    /// # Panics
    /// When it is not up.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.server.as_ref().unwrap().id()).unwrap()
    }

    /// Ends the server as a crash would.
    ///
    /// # Panics
    /// When it is not up.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Asks the server to stop, waits for it, and holds its log to the rule: no unexpected warning.
    ///
    /// # Panics
    /// When it does not stop or its log has a warning or error that is not expected.
    pub async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
            let began = Instant::now();
            while server.try_wait().unwrap().is_none() {
                assert!(began.elapsed() < LIMIT, "the server did not stop");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        self.check_log(&self.log());
    }

    /// Holds the log of one of its servers to the rule.
    ///
    /// # Panics
    /// When it has a warning or error that is not expected.
    pub fn check_log(&self, log: &Path) {
        let unexpected = self.unexpected(log);
        assert!(
            unexpected.is_empty(),
            "unexpected in {}: {unexpected:#?}",
            log.display()
        );
    }

    /// Warnings and errors in a log that are not expected.
    pub fn unexpected(&self, log: &Path) -> Vec<String> {
        let said = std::fs::read_to_string(log).unwrap_or_default();
        said.lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR") || line.contains("panicked"))
            .filter(|line| {
                !SLOW_MACHINE.iter().any(|part| line.contains(part))
                    && !self.expected.iter().any(|part| line.contains(part))
            })
            .map(str::to_owned)
            .collect()
    }

    /// Processes that belong to this installation, the server left out.
    pub fn processes(&self) -> Vec<processes::Process> {
        let server = self.server.as_ref().map(Child::id);
        processes::of(self.path())
            .into_iter()
            .filter(|process| Some(process.pid as u32) != server)
            .collect()
    }

    /// Creates everything that a job on DuckDB needs, through the API. The job's id.
    pub async fn job(&self, repository: &str, commands: &[&str]) -> i64 {
        self.api.job(self.path(), repository, commands).await
    }

    /// The same on any connection; `more` is merged into the job.
    ///
    /// # Panics
    /// When the API refuses something.
    pub async fn job_on(
        &self,
        repository: &str,
        commands: &[&str],
        connection: &Value,
        credentials: &Value,
        more: &Value,
    ) -> i64 {
        self.api
            .job_on(repository, commands, connection, credentials, more)
            .await
    }
}

impl Default for Installation {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        processes::end(self.path());
    }
}

/// dbt environments are the same for every installation: they are made once per checkout.
fn share_environments(data: &Path) {
    let shared = project::workspace().join(".cache/dbt-envs");
    std::fs::create_dir_all(&shared).unwrap();
    let cache = data.join("cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(shared, cache.join("dbt-envs")).unwrap();
}
