//! An installation of the real binary whose runs are Jobs, and a git server for them.

use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_tests::api::Api as Client;
use dbtcloud_tests::cluster::{self, Namespace};
use dbtcloud_tests::installation::Installation;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::origin::Origin;

/// A job on DuckDB, whose file goes with the pod.
pub(crate) async fn job(api: &Client, repository: &str, commands: &[&str]) -> i64 {
    let connection = json!({"name": "DuckDB", "adapter_version": "duckdb_v0", "config": {"path": "/tmp/w.duckdb"}});
    let credentials = json!({"adapter_version": "duckdb_v0", "schema": "main", "threads": 2});
    api.job_on(repository, commands, &connection, &credentials, &json!({}))
        .await
}

/// What ended while no driver had it is left to cleanup, which looks every half minute at what began two ago.
const GONE: Duration = Duration::from_secs(180);

/// Nothing of it is started but the git server.
pub(crate) struct World {
    pub(crate) installation: Installation,
    pub(crate) namespace: Namespace,
    origin: Origin,
}

impl World {
    pub(crate) async fn new(topic: &str) -> Self {
        let namespace = Namespace::labelled(topic, &[("pod-security.kubernetes.io/enforce", "restricted")]).await;
        let mut installation = Installation::new();
        installation.listen_on(&cluster::host());
        let url = installation.url();
        installation.environment.extend([
            ("DBTCLOUD_EXECUTOR", "kubernetes".to_owned()),
            ("DBTCLOUD_AGENT_URL", url),
            ("DBTCLOUD_KUBERNETES_NAMESPACE", namespace.name().to_owned()),
            ("DBTCLOUD_KUBERNETES_IMAGE", cluster::runner()),
        ]);
        Self {
            installation,
            namespace,
            origin: Origin::new().await,
        }
    }

    /// Where a project goes that pods clone, and its address.
    pub(crate) fn origin(&self, name: &str) -> (std::path::PathBuf, String) {
        self.origin.of(name)
    }

    /// See [`job`].
    pub(crate) async fn job(&self, repository: &str, commands: &[&str]) -> i64 {
        job(self.installation.api(), repository, commands).await
    }

    pub(crate) async fn jobs(&self) -> Vec<Job> {
        let jobs: Api<Job> = self.namespace.api();
        jobs.list(&ListParams::default()).await.unwrap().items
    }

    pub(crate) async fn pods(&self) -> Vec<Pod> {
        let pods: Api<Pod> = self.namespace.api();
        pods.list(&ListParams::default()).await.unwrap().items
    }

    /// Waits until nothing of any run is left on the cluster.
    pub(crate) async fn empty(&self) {
        until(GONE, || async {
            match (self.jobs().await, self.pods().await) {
                (jobs, pods) if jobs.is_empty() && pods.is_empty() => Ok(()),
                left => Err(left),
            }
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What a test that failed left is let go, so that the namespace can be removed.
        let pods = self.namespace.try_kubectl(&["get", "pods", "--output", "name"]).stdout;
        for pod in String::from_utf8_lossy(&pods).lines() {
            let freed = r#"{"metadata": {"finalizers": null}}"#;
            self.namespace
                .try_kubectl(&["patch", pod, "--type", "merge", "--patch", freed]);
        }
    }
}
