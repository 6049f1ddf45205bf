//! A Kubernetes cluster for tests: the one that `KUBECONFIG` names, brought up by `tests/run kubernetes` or the user's
//! own. Every test has a namespace of its own in it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use dbtcloud_contract::wait::until;
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Pod, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;

use crate::project::workspace;

/// How long a cluster may take for what takes it a second.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Names the folder of a cluster whose components may be killed, as `tests/kubernetes/up` made it.
const FOLDER: &str = "DBTCLOUD_TEST_CLUSTER";

fn variable(name: &str, otherwise: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| otherwise.to_owned())
}

/// Image of a shell with its tools, for pods.
pub fn busybox() -> String {
    variable("DBTCLOUD_TEST_BUSYBOX", "local.test/busybox:1")
}

/// Image of the agent with dbt and DuckDB, built from `examples/deploy/images/runner`.
pub fn runner() -> String {
    variable("DBTCLOUD_TEST_RUNNER", "local.test/dbtcloud-runner:1")
}

/// Image of the server, built from `examples/deploy/images/control-plane`.
pub fn control_plane() -> String {
    variable("DBTCLOUD_TEST_CONTROL_PLANE", "local.test/dbtcloud:1")
}

/// The address at which pods reach what a test listens on.
pub fn host() -> String {
    variable("DBTCLOUD_TEST_HOST", "10.250.0.1")
}

/// Where the cluster's kubeconfig is.
///
/// # Panics
/// Outside of a cluster.
pub fn kubeconfig() -> PathBuf {
    std::env::var_os("KUBECONFIG")
        .map(PathBuf::from)
        .expect("tests on a cluster are run by `tests/run kubernetes`, or with KUBECONFIG for one of your own")
}

/// A client with every right.
///
/// # Panics
/// When the kubeconfig cannot be used.
pub async fn client() -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

/// `kubectl`, on the cluster.
pub fn kubectl() -> Command {
    let mut kubectl = Command::new(workspace().join(".cache/bin/kubectl"));
    kubectl.arg("--kubeconfig").arg(kubeconfig());
    kubectl
}

/// A namespace of a test's own, removed with the value.
pub struct Namespace {
    client: Client,
    name: String,
}

impl Namespace {
    /// Makes one whose name begins like this, and waits until pods can be made in it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn new(topic: &str) -> Self {
        Self::labelled(topic, &[]).await
    }

    /// The same with labels, such as those of Pod Security.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn labelled(topic: &str, labels: &[(&str, &str)]) -> Self {
        let client = client().await;
        let labels: serde_json::Map<_, _> = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let wanted: NamespaceObject = serde_json::from_value(json!({
            "metadata": {"generateName": format!("dbtcloud-test-{topic}-"), "labels": labels},
        }))
        .unwrap();
        let made = Api::all(client.clone())
            .create(&PostParams::default(), &wanted)
            .await
            .unwrap();
        let namespace = Self {
            client,
            name: made.metadata.name.unwrap(),
        };
        // Until it has its service account, pods in it are refused.
        let accounts: Api<ServiceAccount> = namespace.api();
        until(LIMIT, || accounts.get("default")).await;
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A client with every right, in the whole cluster.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The objects of a kind in it.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Waits until a container of a pod that is not in `but` has been started. The pod's name.
    ///
    /// # Panics
    /// When none is.
    pub async fn started(&self, but: &[String]) -> String {
        let pods: Api<Pod> = self.api();
        until(LIMIT, || async {
            let listed = pods.list(&ListParams::default()).await.unwrap().items;
            let mut fresh = listed.into_iter().filter(|pod| !but.contains(&pod.name_any()));
            let Some(pod) = fresh.next() else { return Err(None) };
            let status = pod.status.clone().unwrap_or_default();
            let states = status
                .container_statuses
                .iter()
                .flatten()
                .filter_map(|status| status.state.as_ref());
            let started = states
                .clone()
                .any(|state| state.running.is_some() || state.terminated.is_some());
            if started { Ok(pod.name_any()) } else { Err(Some(status)) }
        })
        .await
    }

    /// Runs `kubectl` in it, however it ends.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = kubectl();
        command.args(["--namespace", &self.name]).args(arguments);
        command.output().expect("kubectl is installed by tests/setup")
    }

    /// Runs `kubectl` in it. What it said.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            said(&output.stderr)
        );
        said(&output.stdout)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut delete = kubectl();
        delete.args(["delete", "namespace", "--wait=false", &self.name]);
        let _ = delete.output();
    }
}

/// A part of the cluster that a test may break: `apiserver`, `kubelet`, … It is whole again with the end of the value.
pub struct Component {
    folder: PathBuf,
    name: &'static str,
}

impl Component {
    /// Names one. Tests that do are alone on the cluster: those in `faults` are, by `.config/nextest.toml`.
    ///
    /// # Panics
    /// On a cluster that is not the tests' own.
    pub fn new(name: &'static str) -> Self {
        let folder = std::env::var_os(FOLDER).map(PathBuf::from);
        let folder = folder.expect("components are killed on a cluster of `tests/kubernetes/up` alone");
        Self { folder, name }
    }

    fn tell(&self, what: &str) {
        let script = workspace().join("tests/kubernetes/component");
        let mut command = Command::new(script);
        command.arg(&self.folder).args([self.name, what]);
        assert!(command.status().unwrap().success(), "{} {what}", self.name);
    }

    /// Ends it as a crash would.
    ///
    /// # Panics
    /// When it is not up.
    pub fn kill(&self) {
        self.tell("KILL");
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it cannot be.
    pub fn start(&self) {
        self.tell("start");
    }
}
