//! From settings to a cluster's executor and volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use dbtcloud_kubernetes::{Access, KubernetesExecutor, KubernetesVolume, Options};
use dbtcloud_runtime::AgentLaunch;

use crate::compose::told;
use crate::config::{Kubernetes, Settings};

/// What an image of the runner has.
const COMMAND: [&str; 2] = ["dbtcloud", "agent"];
const WORK_DIR: &str = "/work";
const CACHE_DIR: &str = "/cache";

/// Where the cluster is, and what is made there. `environment` is this process's.
///
/// # Errors
/// What cannot be meant: the key and what was expected.
pub(crate) fn options(kubernetes: &Kubernetes, environment: &BTreeMap<String, String>) -> anyhow::Result<Options> {
    let mut options =
        Options::new(access(kubernetes, environment), &kubernetes.image).with_volume_size(&kubernetes.volume_size);
    if let Some(namespace) = &kubernetes.namespace {
        options = options.with_namespace(namespace);
    }
    if let Some(name) = &kubernetes.installation {
        options = options.with_installation(name);
    }
    if let Some(name) = &kubernetes.service_account {
        options = options.with_service_account(name);
    }
    if let Some(name) = &kubernetes.storage_class {
        options = options.with_storage_class(name);
    }
    if let Some(path) = &kubernetes.pod_overlay_file {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("kubernetes_pod_overlay_file: cannot read {shown}"))?;
        // JSON is YAML.
        let overlay: Option<serde_json::Value> = serde_saphyr::from_str(&text).map_err(|error| {
            anyhow::anyhow!("kubernetes_pod_overlay_file: {shown} is neither YAML nor JSON: {error}")
        })?;
        if let Some(overlay) = overlay {
            options = options.with_overlay(overlay);
        }
    }
    if kubernetes.namespace_per_account {
        options = options.with_namespace_per_account();
    }
    options.validate().map_err(told)?;
    Ok(options)
}

/// As kubectl finds its cluster; a pod that is told nothing else takes its own.
fn access(kubernetes: &Kubernetes, environment: &BTreeMap<String, String>) -> Access {
    let of = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let context = kubernetes.context.clone();
    let in_pod = of("KUBERNETES_SERVICE_HOST").is_some() && context.is_none();
    match (of("KUBECONFIG"), of("HOME")) {
        (Some(files), _) => Access::Kubeconfig {
            path: PathBuf::from(files.split(':').next().unwrap_or_default()),
            context,
        },
        (None, Some(home)) if !in_pod => Access::Kubeconfig {
            path: PathBuf::from(home).join(".kube/config"),
            context,
        },
        _ => Access::InCluster,
    }
}

/// Opens both. Nothing is asked of the cluster, which need not answer.
///
/// # Errors
/// As [`options`]; credentials that cannot be read.
pub(crate) async fn open(
    kubernetes: &Kubernetes,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<(KubernetesExecutor, KubernetesVolume)> {
    let options = options(kubernetes, environment)?;
    let executor = KubernetesExecutor::open(options.clone()).await.map_err(told)?;
    let volume = KubernetesVolume::open(options).await.map_err(told)?;
    Ok((executor, volume))
}

/// How agents are started in pods: nothing of this machine's is passed on.
pub(crate) fn launch(settings: &Settings, environment: BTreeMap<String, String>) -> AgentLaunch {
    AgentLaunch {
        command: COMMAND.map(str::to_owned).to_vec(),
        server: settings.agent_url.clone().unwrap_or_default(),
        work_dir: WORK_DIR.into(),
        cache_dir: CACHE_DIR.into(),
        environment,
    }
}
