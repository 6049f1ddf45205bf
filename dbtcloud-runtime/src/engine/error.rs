//! What can go wrong before, and instead of, an answer from dbt. A failing dbt run is not an error here.

use std::path::PathBuf;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The `dbt_version` is not understood. The caller's fault.
    #[error("dbt version {version:?} is not understood")]
    UnknownVersion {
        /// As given, shortened.
        version: String,
    },
    /// A part of an environment specification or an invocation is not acceptable. The caller's fault.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// Which part.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// uv could not build the environment. `detail` is the end of uv's own message.
    #[error("dbt {dbt_version} with adapter {adapter} (python {python}) is not installable: {detail}")]
    NotInstallable {
        /// Requirement for dbt-core.
        dbt_version: String,
        /// Adapter.
        adapter: String,
        /// Python asked for.
        python: String,
        /// Bounded tail of uv's standard error.
        detail: String,
    },
    /// uv was not found or could not be started.
    #[error("uv cannot be run from {path:?}: install it (pip install uv) or name it in DBTCLOUD_UV")]
    Uv {
        /// Where it was looked for.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Something took longer than its limit.
    #[error("{what} took longer than {seconds} s")]
    Timeout {
        /// What.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// dbt was not started; another backend may be tried.
    #[error("dbt was not started: {reason}")]
    NotStarted {
        /// Why.
        reason: String,
    },
    /// A stop was asked for before dbt was started. Nothing ran.
    #[error("cancelled before dbt was started")]
    Cancelled,
    /// dbt was started and the way its end is learned was lost. It has been interrupted; what it did is unknown.
    #[error("dbt was started and its end is unknown: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The native engine was asked for and no binary is configured.
    #[error("no dbt 2.x binary is configured")]
    NativeNotConfigured,
    /// A file could not be read or written.
    #[error("{what} failed for {path:?}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl EngineError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    pub(super) fn not_started(reason: impl Into<String>) -> Self {
        Self::NotStarted { reason: reason.into() }
    }
}
