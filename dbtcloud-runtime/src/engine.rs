//! The dbt engine: which dbt runs, where it is installed, and how it is started, followed and stopped.
//!
//! [`Engine::prepare`] turns a specification into an environment on disk ([`mod@env`]); [`PreparedEngine::invoke`] runs one
//! command in it, by the quickest way that is safe: forked from a warm parent ([`warm`]), or a fresh interpreter
//! ([`cli`]), with the same console text, artifacts and exit code. dbt 2.x is behind the same trait ([`native`]).
//!
//! dbt is always a killable child in its own process group, never inside this process. Nothing here reads the
//! environment; secrets are [`dbtcloud_core::secret::Secret`] and reach neither a command line nor a log.

pub mod cli;
pub mod env;
pub mod error;
pub mod events;
mod files;
pub mod invocation;
pub mod native;
pub mod parse_cache;
mod pipes;
mod process;
pub mod profile;
pub mod results;
mod scripts;
pub mod version;
pub mod warm;

use std::path::PathBuf;
use std::sync::Arc;

pub use cli::CliBackend;
pub use env::{Environment, EnvironmentInfo, EnvironmentSpec, EnvironmentStore, find_uv};
pub use error::EngineError;
pub use events::{CommandEvent, NodeEvent, NodeEventKind};
pub use invocation::{Backend, Canceller, EngineEvent, Exit, ExitStatus, Invocation, Sink, Stop, Stopped, Usage};
pub use native::NativeBackend;
pub use warm::{WarmOptions, WarmParent};

/// What an engine needs to know.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where environments are.
    pub store: EnvironmentStore,
    /// A directory for sockets, locks and scripts. Made private; keep its path short (a socket's name has 107 bytes).
    pub runtime_dir: PathBuf,
    /// Whose invocations these are: accounts never share a warm parent.
    pub account: String,
    /// Limits of warm parents; `None` always takes the plain way.
    pub warm: Option<WarmOptions>,
    /// A dbt 2.x binary, if there is one.
    pub native: Option<PathBuf>,
}

impl EngineConfig {
    /// With warm parents and without dbt 2.x.
    pub fn new(store: EnvironmentStore, runtime_dir: impl Into<PathBuf>, account: impl Into<String>) -> Self {
        Self {
            store,
            runtime_dir: runtime_dir.into(),
            account: account.into(),
            warm: Some(WarmOptions::default()),
            native: None,
        }
    }
}

/// Prepares environments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    config: Arc<EngineConfig>,
}

/// How a command went, and by which way.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Its end.
    pub exit: Exit,
    /// Which backend ran it: `warm`, `cli` or `native`.
    pub backend: &'static str,
    /// Why it was not the preferred one.
    pub fallback_reason: Option<String>,
}

/// An environment that commands can be run in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PreparedEngine {
    environment: Option<Environment>,
    preferred: Option<WarmParent>,
    plain: Arc<dyn Backend>,
}

impl Engine {
    /// An engine. Touches nothing yet.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config: Arc::new(config),
        }
    }

    /// Finds or builds what `spec` asks for. The first call for a specification takes seconds, later ones
    /// milliseconds and no network.
    ///
    /// # Errors
    /// As [`EnvironmentStore::ensure`]; [`EngineError::NativeNotConfigured`] for dbt 2.x without a binary.
    pub async fn prepare(&self, spec: &EnvironmentSpec) -> Result<PreparedEngine, EngineError> {
        let config = &self.config;
        if version::resolve(&spec.dbt_version)? == version::DbtVersion::Native {
            let binary = config.native.clone().ok_or(EngineError::NativeNotConfigured)?;
            return Ok(PreparedEngine {
                environment: None,
                preferred: None,
                plain: Arc::new(NativeBackend::new(binary)),
            });
        }
        let environment = config.store.ensure(spec).await?;
        files::private_dir(&config.runtime_dir)?;
        let scripts = scripts::install(&config.runtime_dir)?;
        let preferred = config
            .warm
            .clone()
            .map(|options| WarmParent::new(&config.runtime_dir, &environment, &config.account, &scripts, options));
        let plain = CliBackend::new(environment.python(), scripts.cold);
        Ok(PreparedEngine {
            environment: Some(environment),
            preferred,
            plain: Arc::new(plain),
        })
    }
}

impl PreparedEngine {
    /// The environment; `None` for dbt 2.x.
    pub fn environment(&self) -> Option<&Environment> {
        self.environment.as_ref()
    }

    /// The warm parent, if this engine uses one.
    pub fn warm_parent(&self) -> Option<&WarmParent> {
        self.preferred.as_ref()
    }

    /// The way that is always there.
    pub fn plain(&self) -> &dyn Backend {
        self.plain.as_ref()
    }

    /// Starts the warm parent if there is none, so that the first command need not wait: call it while the
    /// repository is cloned. Failing is no error; the commands then go the plain way.
    pub async fn warm_up(&self) {
        if let Some(parent) = &self.preferred
            && let Err(error) = parent.connect_or_spawn().await
        {
            tracing::warn!(reason = %error, "no warm dbt parent");
        }
    }

    /// Runs one command to its end; see [`Backend::invoke`] for what `Ok` guarantees. If the warm parent cannot take it
    /// and nothing was started, the plain way is taken and [`Reply::fallback_reason`] says why.
    ///
    /// `canceller` must be new for each call; [`Canceller::ended`] resolves when this returns with dbt confirmed dead
    /// or never started.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: nothing could run this. [`EngineError::Cancelled`]: stopped before the start.
    /// [`EngineError::NotStarted`]: no backend could start it. [`EngineError::Lost`]: see there.
    pub async fn invoke(
        &self,
        invocation: &Invocation,
        sink: &Sink,
        canceller: &Canceller,
    ) -> Result<Reply, EngineError> {
        let reply = self.run(invocation, sink, canceller).await;
        if !matches!(reply, Err(EngineError::Lost { .. })) {
            canceller.finish();
        }
        reply
    }

    async fn run(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Reply, EngineError> {
        invocation.check()?;
        let mut fallback_reason = None;
        if let Some(warm) = &self.preferred {
            if canceller.stage() > Stop::No {
                return Err(EngineError::Cancelled);
            }
            match warm.invoke(invocation, sink, canceller).await {
                Ok(exit) => {
                    return Ok(Reply {
                        exit,
                        backend: warm.name(),
                        fallback_reason: None,
                    });
                }
                Err(error @ EngineError::Lost { .. }) => return Err(error),
                Err(error) => {
                    let reason = match error {
                        EngineError::NotStarted { reason } => reason,
                        other => other.to_string(),
                    };
                    tracing::warn!(%reason, "dbt is started the plain way");
                    fallback_reason = Some(reason);
                }
            }
        }
        if canceller.stage() > Stop::No {
            return Err(EngineError::Cancelled);
        }
        let exit = self.plain.invoke(invocation, sink, canceller).await?;
        Ok(Reply {
            exit,
            backend: self.plain.name(),
            fallback_reason,
        })
    }
}
