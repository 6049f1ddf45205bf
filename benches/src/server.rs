//! The release build of the server, as an installation of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dbtcloud_tests::installation::Installation;
use serde_json::Value;

/// How often a run is asked for: often enough not to blur seconds, seldom enough not to be the load.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How often a starting server is asked whether it is ready.
const READY_AGAIN: Duration = Duration::from_millis(1);
/// The longest anything of a benchmark may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Builds the server as users run it, if it is not built: `cargo bench` builds its own package only.
///
/// # Panics
/// When it does not build.
pub fn build() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--package",
            "dbtcloud-server",
        ])
        .current_dir(dbtcloud_tests::project::workspace())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "the server does not build");
}

/// A server that is up. Ended, by its process id, when dropped.
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts the server of an installation, with these variables on top of this process's; and the seconds
    /// from before its start until `/readyz` said 200.
    ///
    /// # Panics
    /// When it cannot be started or is not ready in time.
    pub fn start(installation: &Installation, environment: &[(&str, String)]) -> (Self, f64) {
        let url = installation.api().url("");
        let listen = url.trim_start_matches("http://").trim_end_matches("/api/").to_owned();
        let log = std::fs::File::create(installation.log()).expect("a log");
        let began = Instant::now();
        let child = installation
            .command("serve")
            .args(["--listen", &listen])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let server = Self { child };
        while !is_ready(&listen) {
            let log = || std::fs::read_to_string(installation.log()).unwrap_or_default();
            assert!(began.elapsed() < LIMIT, "the server is not ready: {}", log());
            std::thread::sleep(READY_AGAIN);
        }
        (server, began.elapsed().as_secs_f64())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(mut self) {
        let told = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        assert!(told.is_ok_and(|status| status.success()), "kill");
        self.child.wait().expect("a child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing happens to one that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(listen: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(listen)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET /readyz HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

/// Triggers a job and waits for the end of the run, through the API: the run, and the seconds from before
/// the request to the answer that tells of the end.
///
/// # Panics
/// When the API refuses or the run takes too long.
pub async fn run(installation: &Installation, job: i64) -> (Value, f64) {
    let began = Instant::now();
    let run = installation.api().trigger(job).await;
    let seen = ended(installation, run).await;
    (seen, began.elapsed().as_secs_f64())
}

/// Waits for the end of a run.
///
/// # Panics
/// When it takes too long.
pub async fn ended(installation: &Installation, run: i64) -> Value {
    let began = Instant::now();
    loop {
        let seen = installation.api().get(&format!("v2/accounts/{{a}}/runs/{run}/")).await;
        if seen["is_complete"] == Value::Bool(true) {
            return seen;
        }
        assert!(began.elapsed() < LIMIT, "run {run} does not end: {seen:#}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The `dbt` of the environment that jobs on DuckDB run in. It is there after their first run.
///
/// # Panics
/// When it is not there.
pub fn dbt() -> std::path::PathBuf {
    use dbtcloud_runtime::engine::{EnvironmentSpec, EnvironmentStore};
    let store = EnvironmentStore::new(dbtcloud_tests::project::workspace().join(".cache/dbt-envs"), "uv");
    let environment = store
        .path(&EnvironmentSpec::new("latest", "duckdb"))
        .expect("a specification");
    let dbt = environment.join("bin/dbt");
    assert!(dbt.is_file(), "{} is not there", dbt.display());
    dbt
}
