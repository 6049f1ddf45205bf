//! What a control plane can be told. Nothing here is read from the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dbtcloud_core::retention::Retention;

/// How agents are started and where they find things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentLaunch {
    /// Program and arguments of the agent role: the `dbtcloud` binary with `agent`, or the embedder's own
    /// program, which hands over to [`crate::agent::main`].
    pub command: Vec<String>,
    /// Where agents reach the control plane: `unix:/path`, `http://host:port` or `https://host:port`.
    pub server: String,
    /// Scratch space; every execution has a folder of its own in it.
    pub work_dir: PathBuf,
    /// Shared by the executions of a host: git mirrors, dbt environments, parse caches.
    pub cache_dir: PathBuf,
    /// The rest of the agent's environment (`PATH`, `HOME`, `DBTCLOUD_UV`, …).
    pub environment: BTreeMap<String, String>,
}

/// Variables of the control plane's own environment that agents need as well: where programs and package
/// indexes are. Everything else stays behind.
pub const PASSED_ON: [&str; 18] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "TZ",
    "DBTCLOUD_UV",
    "DBTCLOUD_PYTHON",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_FIND_LINKS",
    "UV_CACHE_DIR",
    "UV_OFFLINE",
    "PIP_INDEX_URL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
];

impl AgentLaunch {
    /// Agents of this host: `command` in the agent role, reached by a unix socket in `data_dir`, with their
    /// scratch space and caches in it too. Of `environment` (usually `std::env::vars()`) they get
    /// [`PASSED_ON`] only.
    pub fn local(
        command: Vec<String>,
        data_dir: &std::path::Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self {
            command,
            server: format!("unix:{}", data_dir.join("agent.sock").display()),
            work_dir: data_dir.join("work"),
            cache_dir: data_dir.join("cache"),
            environment: environment
                .into_iter()
                .filter(|(name, _)| PASSED_ON.contains(&name.as_str()))
                .collect(),
        }
    }
}

/// The knobs of a [`crate::ControlPlane`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this process in leases; must be unique among living processes.
    pub instance: String,
    /// How agents are started.
    pub agent: AgentLaunch,
    /// How long a claimed run is this process's without a renewal. Renewed at a third of it.
    pub lease: Duration,
    /// The longest the loops wait without being woken.
    pub poll: Duration,
    /// How many runs this process drives at one time.
    pub run_capacity: usize,
    /// How long an execution may take to begin.
    pub provision_timeout: Duration,
    /// How long an agent may be silent before it is ended.
    pub heartbeat_timeout: Duration,
    /// Between SIGINT and SIGKILL when a run is stopped.
    pub grace: Duration,
    /// How often the most frequent of the background chores run.
    pub cleanup_interval: Duration,
    /// How long what is over is kept, where an account says nothing else. The default lets runs go after a year.
    pub retention: Retention,
}

impl Config {
    /// The defaults, with what has none.
    pub fn new(instance: impl Into<String>, agent: AgentLaunch) -> Self {
        Self {
            instance: instance.into(),
            agent,
            lease: Duration::from_secs(15),
            poll: Duration::from_secs(1),
            run_capacity: 64,
            provision_timeout: Duration::from_secs(300),
            heartbeat_timeout: Duration::from_secs(300),
            grace: Duration::from_secs(10),
            cleanup_interval: Duration::from_secs(30),
            retention: Retention::default(),
        }
    }
}
