//! This same binary, started as a server.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

/// How long the server may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What `dbtcloud bootstrap --json` prints.
#[derive(Deserialize)]
struct Bootstrap {
    account_id: i64,
    token: String,
}

pub(super) struct Server {
    child: Option<Child>,
    pub(super) url: String,
    pub(super) token: String,
    pub(super) account: i64,
}

impl Server {
    /// Bootstraps an installation in `data` and serves it on a free port of the loopback interface.
    pub(super) async fn start(data: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let output = Command::new(&program)
            .args([
                "bootstrap",
                "--json",
                "--account",
                "Harbour",
                "--email",
                "demo@localhost",
                "--data-dir",
            ])
            .arg(data)
            .output()?;
        if !output.status.success() {
            bail!("bootstrap failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let bootstrap: Bootstrap =
            serde_json::from_slice(&output.stdout).context("bootstrap printed something unexpected")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let log = data.join("server.log");
        let file = std::fs::File::create(&log)?;
        let child = Command::new(&program)
            .args(["serve", "--listen", &listen, "--data-dir"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        let url = format!("http://{listen}");
        let mut server = Self {
            child: Some(child),
            url,
            token: bootstrap.token,
            account: bootstrap.account_id,
        };
        server.ready(&log).await?;
        Ok(server)
    }

    async fn ready(&mut self, log: &Path) -> anyhow::Result<()> {
        let client = reqwest::Client::new();
        let ready = async {
            loop {
                if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
                    let said = std::fs::read_to_string(log).unwrap_or_default();
                    bail!("the server ended ({:?}): {}", status?, said.trim());
                }
                match client.get(format!("{}/readyz", self.url)).send().await {
                    Ok(answer) if answer.status().is_success() => return Ok(()),
                    _ => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        tokio::time::timeout(READY_LIMIT, ready)
            .await
            .with_context(|| format!("the server was not ready within {READY_LIMIT:?}; see {}", log.display()))?
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Leaves it running.
    pub(super) fn leave(mut self) {
        self.child = None;
    }

    /// Asks it to stop and waits for it.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
        let ended = async {
            while child.try_wait()?.is_none() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(STOP_LIMIT, ended)
            .await
            .context("the server did not stop")?
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // An error on the way: nothing is left behind.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
