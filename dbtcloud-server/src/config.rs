//! What the `dbtcloud` binary can be told: flags, `DBTCLOUD_*` variables and one TOML file, in that order of
//! precedence, over defaults. Every problem is found before anything is done, and all are told at once.
//!
//! A new setting has a line in `given`, in `resolve` and in `show`, and a row in the README.

mod given;
mod resolve;
mod show;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

use dbtcloud_core::retention::Retention;
use dbtcloud_runtime::dial::Reach;
pub use given::{Given, KEYS};

use crate::forwarded::Proxies;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Terminates connections of people and programs.
    Gateway,
    /// Answers the API.
    App,
    /// Fires schedules and drives runs.
    Scheduler,
    /// Runs the background chores.
    Cleanup,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::App, Self::Scheduler, Self::Cleanup];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::App => "app",
            Self::Scheduler => "scheduler",
            Self::Cleanup => "cleanup",
        }
    }
}

/// Where TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// How the database is used.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// File with the password of its role.
    pub password_file: Option<PathBuf>,
    /// Where wake-ups are heard, when the URL leads to a pooler. It may hold a password.
    pub listen_url: Option<String>,
    /// Connections of this process.
    pub pool_size: u32,
    /// Seconds that a statement may take.
    pub statement_timeout_seconds: u64,
    /// Seconds that a statement may wait for a lock.
    pub lock_timeout_seconds: u64,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Who is told of lineage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The OpenLineage service.
    pub url: String,
    /// File with its API key.
    pub api_key_file: Option<PathBuf>,
    /// Namespace of jobs.
    pub namespace: String,
}

/// How mail is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smtp {
    /// The mail server.
    pub url: String,
    /// Whom mail comes from.
    pub from: String,
    /// File with the password of the URL's user.
    pub password_file: Option<PathBuf>,
}

/// The cluster that runs execute in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Namespace of runs.
    pub namespace: Option<String>,
    /// Context of the kubeconfig.
    pub context: Option<String>,
    /// Image of runs whose environment names none.
    pub image: String,
    /// Name before those of Jobs and volumes.
    pub installation: Option<String>,
    /// Service account of runs whose environment names none.
    pub service_account: Option<String>,
    /// StorageClass of volumes.
    pub storage_class: Option<String>,
    /// Size of a volume.
    pub volume_size: String,
    /// File with part of a pod template.
    pub pod_overlay_file: Option<PathBuf>,
    /// Whether every account has a namespace of its own.
    pub namespace_per_account: bool,
}

/// Settings that were understood.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// A second address, with TLS.
    pub tls: Option<Tls>,
    /// Directory for everything this server keeps.
    pub data_dir: PathBuf,
    /// The database. It may hold a password.
    pub database_url: String,
    /// How it is used.
    pub database: Database,
    /// Artifacts and logs. It may hold a secret.
    pub artifacts_url: String,
    /// What this process does; never empty.
    pub roles: Vec<Role>,
    /// For links.
    pub public_url: Option<String>,
    /// Whose word counts about where a request came from.
    pub trusted_proxies: Proxies,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
    /// Keys that seal secrets.
    pub key_file: PathBuf,
    /// Runs that this process drives at one time.
    pub run_capacity: usize,
    /// Apps that a gateway passes requests to.
    pub app_urls: Vec<String>,
    /// Where agents reach an app; a unix socket in the data directory when absent.
    pub agent_url: Option<String>,
    /// Authorities that vouch for it.
    pub agent_ca: Option<PathBuf>,
    /// Seconds that a gateway or app goes on serving, not ready, when asked to stop.
    pub drain_seconds: u64,
    /// Seconds between interrupt and kill.
    pub grace_seconds: u64,
    /// The collector of traces.
    pub otlp_endpoint: Option<String>,
    /// Who is told of lineage.
    pub lineage: Option<Lineage>,
    /// Which addresses webhooks may lead to.
    pub webhook_targets: Reach,
    /// How mail is sent; none is when absent.
    pub smtp: Option<Smtp>,
    /// How long what is over is kept, where an account says nothing else.
    pub retention: Retention,
    /// The cluster that runs execute in; processes of this machine when absent.
    pub kubernetes: Option<Kubernetes>,
    /// Whether the schema is brought up to date at the start.
    pub migrate: bool,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.show())
    }
}

/// One thing that is wrong with what was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// What is wrong, and what was expected. No secret stands here.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// Every problem that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

impl Settings {
    /// Whether the database is a file of this server alone.
    pub fn is_embedded(&self) -> bool {
        self.database_url.starts_with("sqlite:")
    }

    /// Whether this process only passes requests on: it needs no database then.
    pub fn is_gateway_alone(&self) -> bool {
        self.roles == [Role::Gateway]
    }

    /// Whether this process has a role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}
