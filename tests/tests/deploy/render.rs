//! The chart rendered, as objects.

use std::process::{Command, Output};

use dbtcloud_tests::project::workspace;
use serde_json::Value;

/// The values that are kept right: those of the chart, and those of `ci/`.
pub const VALUES: [&str; 3] = ["default", "production", "restricted"];

/// The overlays of the plain manifests.
const OVERLAYS: [&str; 2] = ["production", "trial"];

/// `helm` with the chart after the arguments, however it ends.
pub fn helm(arguments: &[&str], values: &str, more: &[&str]) -> Output {
    let chart = workspace().join("examples/deploy/helm");
    let mut helm = Command::new(workspace().join(".cache/bin/helm"));
    helm.args(arguments).arg(&chart);
    if values != "default" {
        helm.arg("--values").arg(chart.join(format!("ci/{values}.yaml")));
    }
    helm.args(more).output().expect("helm is built by tests/setup")
}

/// What helm said to people: what is about its own reading of files is left out.
pub fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines = said.lines().filter(|line| !line.contains("found symbolic link"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The chart's objects with values and more arguments, in helm's order.
pub fn render_with(values: &str, more: &[&str]) -> Vec<Value> {
    let output = helm(&["template", "dbtcloud", "--namespace", "dbt"], values, more);
    assert!(output.status.success(), "{values} {more:?}: {}", said(&output));
    documents(&String::from_utf8(output.stdout).unwrap())
}

/// The chart's objects with values.
pub fn render(values: &str) -> Vec<Value> {
    render_with(values, &[])
}

/// The objects of the plain manifests of an overlay.
pub fn kustomize(overlay: &str) -> Vec<Value> {
    let folder = workspace().join("examples/deploy/kustomize/overlays").join(overlay);
    let mut kubectl = Command::new(workspace().join(".cache/bin/kubectl"));
    let output = kubectl.arg("kustomize").arg(folder).output();
    let output = output.expect("kubectl is installed by tests/setup");
    assert!(output.status.success(), "{overlay}: {}", said(&output));
    documents(&String::from_utf8(output.stdout).unwrap())
}

/// Everything that makes an installation, by its name: the chart with each of its values, and the plain manifests.
pub fn installations() -> Vec<(String, Vec<Value>)> {
    let charts = VALUES.map(|values| (format!("chart, {values}"), render(values)));
    let plain = OVERLAYS.map(|overlay| (format!("kustomize, {overlay}"), kustomize(overlay)));
    charts.into_iter().chain(plain).collect()
}

/// The documents of a YAML text that are not empty.
pub fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Kind and name of an object.
pub fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The pod that an object makes, with the object's title; a `CronJob` makes none here.
pub fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let pod = |object: &Value| match object["kind"].as_str() {
        Some("Pod") => Some(object.clone()),
        Some("Deployment" | "StatefulSet" | "Job") => Some(object["spec"]["template"].clone()),
        _ => None,
    };
    objects
        .iter()
        .filter_map(|object| Some((title(object), pod(object)?)))
        .collect()
}

/// The containers of a pod, those that come before the others too.
pub fn containers(pod: &Value) -> Vec<Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|key| pod["spec"][key].as_array().cloned().unwrap_or_default())
        .collect()
}
