//! `dbtcloud doctor` on a cluster: each thing that can be wrong is told, with what to do about it.

use std::process::Command;

use dbtcloud_tests::cluster::{self, LIMIT};
use dbtcloud_tests::installation::binary;
use dbtcloud_tests::processes::ended_within;
use serde_json::{Value, json};

use crate::stage::Stage;

/// What it says of the cluster, with these variables on top of right ones: check, verdict and text of each.
fn told(stage: &Stage, settings: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let home = tempfile::tempdir().unwrap();
    let mut doctor = Command::new(binary());
    doctor
        .args(["doctor", "--json", "--data-dir"])
        .arg(home.path().join("data"))
        .env("DBTCLOUD_EXECUTOR", "kubernetes")
        .env("DBTCLOUD_KUBERNETES_NAMESPACE", stage.namespace.name())
        .env("DBTCLOUD_KUBERNETES_IMAGE", cluster::busybox())
        .env("DBTCLOUD_AGENT_URL", "http://app.example:8080")
        .envs(settings.iter().copied());
    let said = ended_within(&mut doctor, LIMIT);
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let of_cluster =
        checks.filter(|check| text(check, "check").starts_with("kubernetes") || text(check, "verdict") == "wrong");
    of_cluster
        .map(|check| (text(check, "check"), text(check, "verdict"), text(check, "text")))
        .collect()
}

/// That this check and no other has this verdict, and says this.
#[track_caller]
fn one(told: &[(String, String, String)], check: &str, verdict: &str, what: &str) {
    let bad: Vec<_> = told.iter().filter(|(_, seen, _)| seen == verdict).collect();
    let [(name, _, text)] = bad.as_slice() else {
        panic!("expected one {verdict}: {told:?}");
    };
    assert!(
        name == check && text.contains(what),
        "expected {check} '{what}': {told:?}"
    );
}

#[tokio::test]
async fn each_fault_of_a_cluster_is_told() {
    let stage = Stage::new("doctor").await;
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &Value| {
        let path = home.path().join(name);
        std::fs::write(&path, text.to_string()).unwrap();
        path.display().to_string()
    };

    let well = told(&stage, &[]);
    assert!(well.iter().all(|(_, verdict, _)| verdict != "wrong"), "{well:?}");
    one(
        &well,
        "kubernetes_storage_class",
        "warning",
        "set kubernetes_storage_class",
    );

    let absent = [("DBTCLOUD_KUBERNETES_STORAGE_CLASS", "no-such-class")];
    one(
        &told(&stage, &absent),
        "kubernetes_storage_class",
        "warning",
        "it is not there: make it, or name another",
    );
    let nowhere = [("DBTCLOUD_KUBERNETES_NAMESPACE", "no-such-namespace")];
    one(
        &told(&stage, &nowhere),
        "kubernetes_pod",
        "wrong",
        "there is no namespace no-such-namespace",
    );
    let nobody = [("DBTCLOUD_KUBERNETES_SERVICE_ACCOUNT", "no-such-account")];
    one(
        &told(&stage, &nobody),
        "kubernetes_pod",
        "wrong",
        "its service account is not there",
    );
    for (spec, check, what) in [
        (json!({"hostNetwork": true}), "settings", "hostNetwork"),
        (
            json!({"priorityClassName": "no-such-class"}),
            "kubernetes_pod",
            "no PriorityClass",
        ),
    ] {
        let overlay = file("overlay", &json!({ "spec": spec }));
        let broken = told(&stage, &[("DBTCLOUD_KUBERNETES_POD_OVERLAY_FILE", &overlay)]);
        one(&broken, check, "wrong", what);
    }
    let context = [("DBTCLOUD_KUBERNETES_CONTEXT", "no-such-context")];
    one(&told(&stage, &context), "kubernetes", "wrong", "no-such-context");
    let no_cluster = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "hunter2"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    let gone = told(&stage, &[("KUBECONFIG", &file("gone", &no_cluster))]);
    one(&gone, "kubernetes", "wrong", "API server did not answer");
    assert!(!format!("{gone:?}").contains("hunter2"), "{gone:?}");
    // A token that the cluster does not know any more.
    let shown = stage
        .namespace
        .kubectl(&["config", "view", "--raw", "--flatten", "--output", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let mut expired = no_cluster;
    expired["clusters"][0]["cluster"] = shown["clusters"][0]["cluster"].clone();
    let expired = told(&stage, &[("KUBECONFIG", &file("expired", &expired))]);
    one(&expired, "kubernetes", "wrong", "renew it, or choose another context");

    stage.namespace.kubectl(&["create", "quota", "none", "--hard=pods=0"]);
    dbtcloud_contract::wait::until(LIMIT, || async {
        let full = told(&stage, &[]);
        let seen = full
            .iter()
            .any(|(_, verdict, text)| verdict == "wrong" && text.contains("quota has at all"));
        seen.then_some(()).ok_or(full)
    })
    .await;
}

#[tokio::test]
async fn whoever_may_nothing_is_told_every_verb() {
    let stage = Stage::new("doctor-rights").await;
    let somebody = crate::rights::Somebody::new(&stage);
    let told = told(&stage, &[("KUBECONFIG", &somebody.kubeconfig.display().to_string())]);
    one(&told, "kubernetes_rights", "wrong", "needs the verb create on jobs");
    let (_, _, text) = told.iter().find(|(check, ..)| check == "kubernetes_rights").unwrap();
    assert_eq!(
        text.matches("needs the verb").count(),
        dbtcloud_kubernetes::RIGHTS.len(),
        "{text}"
    );
}
