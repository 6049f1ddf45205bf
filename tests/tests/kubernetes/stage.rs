//! A namespace with an executor in it, and what goes on there seen from outside.

use std::time::Duration;

use dbtcloud_contract::suite::executor::plain_spec;
use dbtcloud_contract::wait::until;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Exit, Observation};
use dbtcloud_kubernetes::{Access, KubernetesExecutor, Options};
use dbtcloud_tests::cluster::{self, LIMIT, Namespace};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams};
use serde_json::json;

/// What every namespace of runs should say.
const RESTRICTED: [(&str, &str); 1] = [("pod-security.kubernetes.io/enforce", "restricted")];

/// A namespace of a test's own. What the test leaves is let go, so that the namespace can be removed.
pub(crate) struct Stage {
    pub(crate) namespace: Namespace,
}

impl Stage {
    pub(crate) async fn new(topic: &str) -> Self {
        Self {
            namespace: Namespace::labelled(topic, &RESTRICTED).await,
        }
    }

    pub(crate) fn options(&self) -> Options {
        let access = Access::Kubeconfig {
            path: cluster::kubeconfig(),
            context: None,
        };
        Options::new(access, cluster::busybox())
            .with_namespace(self.namespace.name())
            .with_overlay(json!({"spec": {"containers": [{"name": "main", "imagePullPolicy": "IfNotPresent"}]}}))
    }

    pub(crate) async fn executor(&self) -> KubernetesExecutor {
        KubernetesExecutor::open(self.options()).await.unwrap()
    }

    /// The pods of an execution.
    pub(crate) async fn pods(&self, id: ExecutionId) -> Vec<Pod> {
        let pods: Api<Pod> = self.namespace.api();
        let of_it = ListParams::default().labels(&format!("dbtcloud.dev/execution={id}"));
        pods.list(&of_it).await.unwrap().items
    }

    /// What its container wrote.
    pub(crate) async fn log(&self, id: ExecutionId) -> String {
        let pods: Api<Pod> = self.namespace.api();
        let mut all = String::new();
        for pod in self.pods(id).await {
            let name = pod.metadata.name.unwrap();
            all += &pods.logs(&name, &LogParams::default()).await.unwrap_or_default();
        }
        all
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let pods = self.namespace.try_kubectl(&["get", "pods", "--output", "name"]).stdout;
        for pod in String::from_utf8_lossy(&pods).lines() {
            let freed = r#"{"metadata": {"finalizers": null}}"#;
            self.namespace
                .try_kubectl(&["patch", pod, "--type", "merge", "--patch", freed]);
        }
    }
}

pub(crate) fn run(run: i64) -> ExecutionId {
    ExecutionId::Run {
        run: RunId::new(run),
        attempt: 1,
    }
}

pub(crate) fn script(id: ExecutionId, text: &str) -> ExecutionSpec {
    let mut spec = plain_spec(id);
    spec.command = vec!["sh".into(), "-c".into(), text.into()];
    spec
}

/// Looks until what is seen is as wanted.
pub(crate) async fn seen<T>(
    executor: &KubernetesExecutor,
    id: ExecutionId,
    mut wanted: impl FnMut(&Observation) -> Option<T>,
) -> T {
    let answers = |observation: Observation| wanted(&observation).ok_or(observation);
    let answers = std::cell::RefCell::new(answers);
    until(LIMIT.max(Duration::from_secs(90)), || async {
        match executor.observe(id).await {
            Ok(observation) => (answers.borrow_mut())(observation).map_err(|seen| format!("{seen:?}")),
            Err(error) => Err(error.chain()),
        }
    })
    .await
}

pub(crate) async fn ended(executor: &KubernetesExecutor, id: ExecutionId) -> Exit {
    seen(executor, id, |observation| match observation {
        Observation::Exited(exit) => Some(exit.clone()),
        _ => None,
    })
    .await
}

pub(crate) async fn waits_for(executor: &KubernetesExecutor, id: ExecutionId, part: &str) -> String {
    seen(executor, id, |observation| match observation {
        Observation::Pending { reason } if reason.contains(part) => Some(reason.clone()),
        _ => None,
    })
    .await
}

pub(crate) async fn running(executor: &KubernetesExecutor, id: ExecutionId) {
    seen(executor, id, |observation| {
        matches!(observation, Observation::Running { .. }).then_some(())
    })
    .await;
}
