//! What can go wrong in a cluster, told by the run in words that say what to do; others go on.

use std::time::Duration;

use dbtcloud_core::ErrorKind;
use dbtcloud_core::environment::Placement;
use dbtcloud_core::ports::{ExecutionSpec, Executor, Observation};
use dbtcloud_kubernetes::{Access, KubernetesExecutor};
use dbtcloud_tests::cluster;
use serde_json::{Value, json};

use crate::stage::{Stage, ended, run, running, script, waits_for};

fn placed(text: &str, execution: Value) -> ExecutionSpec {
    let mut spec = script(run(1), text);
    spec.placement = Placement::parse("execution", &execution).unwrap();
    spec
}

/// What another run does meanwhile: it ends well.
async fn others_go_on(stage: &Stage, executor: &KubernetesExecutor) {
    let _ = stage;
    executor.start(&script(run(2), "exit 0")).await.unwrap();
    assert_eq!(ended(executor, run(2)).await.code, Some(0));
    executor.remove(run(2)).await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_not_there() {
    let stage = Stage::new("image").await;
    let executor = stage.executor().await;
    executor
        .start(&placed("true", json!({"image": "local.test/no-such:1"})))
        .await
        .unwrap();
    let reason = waits_for(&executor, run(1), "cannot be pulled").await;
    assert!(reason.contains("local.test/no-such:1"), "{reason}");
    others_go_on(&stage, &executor).await;
    executor.remove(run(1)).await.unwrap();

    let never = json!({
        "image": "local.test/no-such:1",
        "pod_overlay": {"spec": {"containers": [{"name": "main", "imagePullPolicy": "Never"}]}},
    });
    executor.start(&placed("true", never)).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(
        exit.code.is_none() && exit.message.contains("never to be pulled"),
        "{exit:?}"
    );
    assert_eq!(ended(&stage.executor().await, run(1)).await, exit, "it stays so");
    executor.remove(run(1)).await.unwrap();
    assert_eq!(executor.observe(run(1)).await.unwrap(), Observation::Absent);
}

#[tokio::test]
async fn no_node_that_can_take_it() {
    let stage = Stage::new("unschedulable").await;
    let executor = stage.executor().await;
    let much = json!({"resources": {"requests": {"cpu": "640"}}});
    executor.start(&placed("true", much)).await.unwrap();
    let reason = waits_for(&executor, run(1), "no node can take it").await;
    assert!(reason.contains("Insufficient cpu"), "{reason}");
    others_go_on(&stage, &executor).await;
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn a_quota_that_is_used_up_and_one_that_is_too_small() {
    let stage = Stage::new("quota").await;
    let executor = stage.executor().await;
    executor
        .start(&script(run(2), "trap 'exit 0' INT; while :; do sleep 0.1; done"))
        .await
        .unwrap();
    running(&executor, run(2)).await;
    stage
        .namespace
        .kubectl(&["create", "quota", "small", "--hard=pods=1,requests.cpu=1"]);
    // The quota counts what is there already; until it has, everybody is let in.
    let counted = || async {
        let used = stage
            .namespace
            .kubectl(&["get", "quota", "small", "--output", "jsonpath={.status.used.pods}"]);
        if used == "1" { Ok(()) } else { Err(used) }
    };
    dbtcloud_contract::wait::until(cluster::LIMIT, counted).await;
    let asks = |cpu: &str| placed("exit 5", json!({"resources": {"requests": {"cpu": cpu}}}));
    executor.start(&asks("10m")).await.unwrap();
    let reason = waits_for(&executor, run(1), "quota is used up").await;
    assert!(reason.contains("exceeded quota: small"), "{reason}");
    // It heals.
    executor.remove(run(2)).await.unwrap();
    assert_eq!(ended(&executor, run(1)).await.code, Some(5));
    executor.remove(run(1)).await.unwrap();

    executor.start(&asks("2")).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(
        exit.message.contains("more than the namespace's quota has at all"),
        "{exit:?}"
    );
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn more_memory_than_there_is() {
    let stage = Stage::new("memory").await;
    let executor = stage.executor().await;
    let hungry = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let limited = json!({"resources": {"limits": {"memory": "24Mi"}}});
    executor.start(&placed(hungry, limited)).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(
        exit.out_of_memory && exit.message.contains("its limit of 24Mi"),
        "{exit:?}"
    );
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_deleted_by_hand() {
    let stage = Stage::new("deleted").await;
    let executor = stage.executor().await;
    executor
        .start(&script(run(1), "trap 'exit 9' INT; while :; do sleep 0.1; done"))
        .await
        .unwrap();
    running(&executor, run(1)).await;
    stage.namespace.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    let exit = ended(&executor, run(1)).await;
    assert!(exit.message.contains("deleted while it ran"), "{exit:?}");
    assert_eq!(stage.pods(run(1)).await.len(), 1, "no second one was made");
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_not_in_the_image() {
    let stage = Stage::new("program").await;
    let executor = stage.executor().await;
    let mut spec = script(run(1), "");
    spec.command = vec!["/no/such/program".into()];
    executor.start(&spec).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(
        exit.message.contains("could not be started") && exit.message.contains("/no/such/program"),
        "{exit:?}"
    );
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn last_words_are_in_the_message() {
    let stage = Stage::new("words").await;
    let executor = stage.executor().await;
    executor
        .start(&script(run(1), "echo no warehouse >&2; exit 2"))
        .await
        .unwrap();
    let exit = ended(&executor, run(1)).await;
    assert_eq!((exit.code, exit.message.as_str()), (Some(2), "no warehouse"));
    executor.remove(run(1)).await.unwrap();
}

/// Refused before anything is made, by us, by the API server or by admission.
#[tokio::test]
async fn overlays_that_break_the_pod() {
    let stage = Stage::new("overlay").await;
    let executor = stage.executor().await;
    let overlaid = |spec: Value| placed("true", json!({"pod_overlay": {"spec": spec}}));
    for (overlay, part) in [
        (json!({"priorityClas": "x"}), "execution.pod_overlay.spec.priorityClas"),
        (json!({"dnsPolicy": "Sometimes"}), "dnsPolicy"),
        (
            json!({"containers": [{"name": "main", "volumeMounts": [{"name": "no", "mountPath": "/no"}]}]}),
            "Not found",
        ),
    ] {
        let error = executor.start(&overlaid(overlay)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.chain().contains(part), "{}", error.chain());
    }
    assert_eq!(executor.list().await.unwrap(), []);

    // Pod Security looks at pods only: the Job is there, and its pod never is.
    let escaping = json!({"initContainers": [{"name": "x", "image": "x", "restartPolicy": "Always"}]});
    executor.start(&overlaid(escaping)).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(exit.message.contains("Pod Security level"), "{exit:?}");
    executor.remove(run(1)).await.unwrap();

    executor
        .start(&placed("true", json!({"service_account": "nobody"})))
        .await
        .unwrap();
    waits_for(&executor, run(1), "its service account is not there").await;
    let exit = ended(&executor, run(1)).await;
    assert!(exit.message.contains("serviceaccount \"nobody\" not found"), "{exit:?}");
    executor.remove(run(1)).await.unwrap();

    let mounts = json!([{"name": "main", "volumeMounts": [{"name": "ca", "mountPath": "/ca"}]}]);
    let missing = json!({"volumes": [{"name": "ca", "configMap": {"name": "no-such"}}], "containers": mounts});
    executor.start(&overlaid(missing)).await.unwrap();
    let reason = waits_for(&executor, run(1), "no-such").await;
    assert!(reason.contains("MountVolume.SetUp failed"), "{reason}");
    executor.remove(run(1)).await.unwrap();

    let variable = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no-such", "key": "a"}}}]);
    executor
        .start(&overlaid(json!({"containers": [{"name": "main", "env": variable}]})))
        .await
        .unwrap();
    let reason = waits_for(&executor, run(1), "CreateContainerConfigError").await;
    assert!(
        reason.contains("is a ConfigMap or Secret of the overlay missing"),
        "{reason}"
    );
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_drained() {
    let stage = Stage::new("drained").await;
    let executor = stage.executor().await;
    executor
        .start(&script(run(1), "trap 'exit 9' INT; while :; do sleep 0.1; done"))
        .await
        .unwrap();
    running(&executor, run(1)).await;
    let pod = stage.pods(run(1)).await[0].metadata.name.clone().unwrap();
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = stage.namespace.api();
    pods.evict(&pod, &Default::default()).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(exit.message.contains("a node is drained"), "{exit:?}");
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn clusters_that_cannot_be_used() {
    let stage = Stage::new("access").await;
    let with = |path: std::path::PathBuf, context: Option<&str>| {
        let access = Access::Kubeconfig {
            path,
            context: context.map(str::to_owned),
        };
        KubernetesExecutor::open(
            dbtcloud_kubernetes::Options::new(access, "x:1").with_namespace(stage.namespace.name()),
        )
    };
    let wrong = with(cluster::kubeconfig(), Some("elsewhere")).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Invalid);
    assert!(
        wrong.chain().contains("has no context 'elsewhere'; it has"),
        "{}",
        wrong.chain()
    );
    let none = with("/no/such/kubeconfig".into(), None).await.unwrap_err();
    assert!(none.chain().contains("cannot be read"), "{}", none.chain());

    let root = tempfile::tempdir().unwrap();
    let file = |name: &str, cluster: Value, user: Value| {
        let path = root.path().join(name);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    };
    let away = with(file("away", json!({"server": "https://127.0.0.1:1"}), json!({})), None)
        .await
        .unwrap();
    let error = away.observe(run(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.chain().contains("did not answer"), "{}", error.chain());

    let there: Value = {
        let shown = cluster::kubectl()
            .args(["config", "view", "--raw", "--flatten", "--output", "json"])
            .output()
            .unwrap();
        serde_json::from_slice(&shown.stdout).unwrap()
    };
    let expired = file(
        "expired",
        there["clusters"][0]["cluster"].clone(),
        json!({"token": "of-yesterday"}),
    );
    let expired = with(expired, None).await.unwrap();
    let denied = || async {
        match expired.observe(run(1)).await.unwrap_err() {
            error if error.kind() == ErrorKind::Denied => Ok(error.chain()),
            error => Err(error.chain()),
        }
    };
    let told = dbtcloud_contract::wait::until(Duration::from_secs(20), denied).await;
    assert!(told.contains("the token has expired"), "{told}");

    let nowhere = KubernetesExecutor::open(stage.options().with_namespace("no-such-namespace"))
        .await
        .unwrap();
    let error = nowhere.start(&script(run(1), "true")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.chain().contains("no namespace no-such-namespace"),
        "{}",
        error.chain()
    );
}
