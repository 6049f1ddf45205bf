//! What the agent needs of the dbt engine, as a door of its own: the engine behind it in a run, a stand-in in a test.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::engine::{
    Canceller, Engine, EngineConfig, EngineError, EnvironmentSpec, EnvironmentStore, Invocation, PreparedEngine, Reply,
    Sink,
};
use crate::protocol::RunPlan;

use super::AgentConfig;

/// Where dbt comes from.
#[async_trait]
pub(super) trait Source: Send + Sync {
    /// Makes the dbt of a plan ready to be invoked. The error is a sentence for a person.
    async fn prepare(&self, plan: &RunPlan) -> Result<Arc<dyn Dbt>, String>;
}

/// A dbt that is ready.
#[async_trait]
pub(super) trait Dbt: Send + Sync {
    /// Its version, if it is known beforehand.
    fn version(&self) -> Option<String>;

    /// What tells it and its adapter apart from others, for keys of caches.
    fn identity(&self) -> (String, String);

    /// The interpreter it runs in.
    fn python(&self) -> Option<PathBuf>;

    /// Saves the first command a wait.
    async fn warm_up(&self);

    /// See [`PreparedEngine::invoke`].
    async fn invoke(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Reply, EngineError>;
}

/// The real one.
#[derive(Clone, Debug)]
pub(super) struct FromEngine {
    config: AgentConfig,
}

impl FromEngine {
    pub(super) fn new(config: AgentConfig) -> Self {
        Self { config }
    }
}

/// Text of an error and its causes, one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[async_trait]
impl Source for FromEngine {
    async fn prepare(&self, plan: &RunPlan) -> Result<Arc<dyn Dbt>, String> {
        let config = &self.config;
        let uv = config.uv.clone().unwrap_or_else(|| PathBuf::from("uv"));
        let uv_env = config
            .passed_on
            .iter()
            .filter(|(name, _)| name.as_str() != "UV_CACHE_DIR")
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let store = EnvironmentStore::new(config.cache_dir.join("dbt-envs"), uv)
            .with_ready(config.dbt_envs.clone())
            .with_uv_env(uv_env);
        let mut engine = EngineConfig::new(store, config.cache_dir.join("warm"), plan.account.to_string());
        engine.native = config.native_dbt.clone();
        if !config.warm {
            engine.warm = None;
        }
        let mut spec = EnvironmentSpec::new(&plan.dbt_version, &plan.profile.adapter);
        if let Some(python) = &config.python {
            spec.python = python.clone();
        }
        match Engine::new(engine).prepare(&spec).await {
            Ok(prepared) => Ok(Arc::new(prepared)),
            Err(EngineError::NotInstallable { detail, .. }) => Err(format!(
                "dbt {} with adapter {} cannot be installed: {detail}",
                plan.dbt_version, plan.profile.adapter
            )),
            Err(error) => Err(format!(
                "dbt {} with adapter {} cannot be made ready: {}",
                plan.dbt_version,
                plan.profile.adapter,
                chain(&error)
            )),
        }
    }
}

#[async_trait]
impl Dbt for PreparedEngine {
    fn version(&self) -> Option<String> {
        self.environment()
            .map(|environment| environment.info.dbt_version.clone())
    }

    fn identity(&self) -> (String, String) {
        self.environment().map_or_else(
            || ("native".to_owned(), "native".to_owned()),
            |environment| (environment.digest.clone(), environment.info.adapter_version.clone()),
        )
    }

    fn python(&self) -> Option<PathBuf> {
        self.environment().map(crate::engine::Environment::python)
    }

    async fn warm_up(&self) {
        Self::warm_up(self).await;
    }

    async fn invoke(&self, invocation: &Invocation, sink: &Sink, canceller: &Canceller) -> Result<Reply, EngineError> {
        Self::invoke(self, invocation, sink, canceller).await
    }
}
