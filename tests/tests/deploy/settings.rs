//! What the chart and the plain manifests tell the servers, asked of the binary itself: it knows every variable and takes every value.

use std::collections::BTreeSet;
use std::process::Command;

use dbtcloud_server::config::KEYS;
use dbtcloud_tests::installation::binary;
use dbtcloud_tests::project::workspace;
use serde_json::Value;

use crate::render::{containers, installations, pods};

/// Settings that have a value of their own in the chart, so that they are not among its `settings`.
const OWN: [&str; 19] = [
    "agent_ca",
    "agent_url",
    "app_url",
    "artifacts_url",
    "data_dir",
    "database_listen_url",
    "database_password_file",
    "database_url",
    "drain_seconds",
    "executor",
    "key_file",
    "listen",
    "migrate",
    "public_url",
    "role",
    "tls_cert",
    "tls_key",
    "tls_listen",
    "trusted_proxies",
];

fn known() -> BTreeSet<String> {
    let output = Command::new(binary()).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let names = help
        .split("[env: ")
        .skip(1)
        .map(|rest| rest.split(['=', ']']).next().unwrap().to_owned());
    names.collect()
}

/// Name and value of the variables of ours that a container has.
fn variables(container: &Value, pod: &Value, objects: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |key: &str| container[key].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for from in list("envFrom") {
        let named = |object: &&Value| {
            object["kind"] == "ConfigMap" && object["metadata"]["name"] == from["configMapRef"]["name"]
        };
        let map = objects
            .iter()
            .find(named)
            .unwrap_or_else(|| panic!("{from} is not there"));
        all.extend(
            map["data"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.clone(), text(value))),
        );
    }
    for variable in list("env") {
        let label = text(&variable["valueFrom"]["fieldRef"]["fieldPath"]);
        let label = label
            .strip_prefix("metadata.labels['")
            .and_then(|rest| rest.strip_suffix("']"));
        let value = label.map_or(&variable["value"], |label| &pod["metadata"]["labels"][label]);
        all.push((text(&variable["name"]), text(value)));
    }
    all.into_iter()
        .filter(|(name, _)| name.starts_with("DBTCLOUD_"))
        .collect()
}

/// The text of a file that one of the config maps brings.
fn mounted<'a>(objects: &'a [Value], file: &str) -> &'a str {
    let mut maps = objects.iter().filter(|object| object["kind"] == "ConfigMap");
    maps.find_map(|map| map["data"][file].as_str()).unwrap()
}

#[test]
fn the_binary_knows_every_variable_and_takes_every_value() {
    let known = known();
    let mut looked = 0;
    for (values, objects) in installations() {
        for (title, pod) in pods(&objects) {
            for container in containers(&pod) {
                let variables = variables(&container, &pod, &objects);
                if variables.is_empty() {
                    continue;
                }
                for (name, _) in &variables {
                    assert!(known.contains(name), "{values} {title}: {name} is no setting");
                }
                let names: BTreeSet<&String> = variables.iter().map(|(name, _)| name).collect();
                assert_eq!(names.len(), variables.len(), "{values} {title}: one is said twice");
                // The one file that is read to tell whether settings are right.
                let place = tempfile::tempdir().unwrap();
                let overlay = place.path().join("pod.yaml");
                let mut variables = variables;
                for (name, value) in &mut variables {
                    if name == "DBTCLOUD_KUBERNETES_POD_OVERLAY_FILE" {
                        std::fs::write(&overlay, mounted(&objects, "pod.yaml")).unwrap();
                        *value = overlay.display().to_string();
                    }
                }
                let mut check = Command::new(binary());
                check.args(["config", "check"]).env_clear().envs(variables);
                let output = check.output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{values} {title}: {said}");
                looked += 1;
            }
        }
    }
    assert!(looked > 20, "only {looked} containers were looked at");
}

/// The schema's `settings` are the binary's, without those that the chart says itself.
#[test]
fn the_schema_knows_every_setting() {
    let schema = std::fs::read_to_string(workspace().join("examples/deploy/helm/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let told: BTreeSet<&str> = schema["properties"]["settings"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected: BTreeSet<&str> = KEYS
        .into_iter()
        .filter(|key| !OWN.contains(key) && !key.starts_with("kubernetes_"))
        .collect();
    assert_eq!(told, expected);
}
