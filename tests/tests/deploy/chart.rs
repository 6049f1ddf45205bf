//! What the chart renders, word for word, and what helm itself finds wrong with it.
//!
//! After changing the chart: `UPDATE_GOLDEN=1 cargo nextest run -p dbtcloud-tests --test deploy`.

use std::fmt::Write;

use dbtcloud_tests::project::workspace;
use serde_json::{Value, json};

use crate::render::{VALUES, helm, render, render_with, said, title};

/// How wide a line of a golden file is, unless one value is wider.
const WIDTH: usize = 116;

/// Writes JSON: what fits into one line in one, and short parts side by side.
fn write(into: &mut String, value: &Value, indent: usize) {
    let one = value.to_string();
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(map) if one.len() + indent > WIDTH => map.iter().map(|(k, v)| (format!("{k:?}:"), v)).collect(),
        Value::Array(list) if one.len() + indent > WIDTH => list.iter().map(|v| (String::new(), v)).collect(),
        _ => return into.push_str(&one),
    };
    let (open, close) = if value.is_object() { ('{', '}') } else { ('[', ']') };
    into.push(open);
    let mut left = 0;
    for (number, (key, value)) in parts.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let length = key.len() + value.to_string().len() + 1;
        if length < left {
            write!(into, "{comma} {key}").unwrap();
        } else {
            write!(into, "{comma}\n{:1$}{key}", "", indent + 1).unwrap();
            left = WIDTH - indent;
        }
        write(into, value, indent + 1);
        left = left.saturating_sub(length);
    }
    write!(into, "\n{:indent$}{close}", "").unwrap();
}

/// What differs from one rendering to the next, is in every object, or stands in a file of its own is left out.
fn masked(mut object: Value) -> Value {
    if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
        labels.retain(|name, _| !name.starts_with("app.kubernetes.io/") && !name.starts_with("helm.sh/"));
    }
    for pod in ["/spec/template/spec", "/spec"] {
        for containers in ["initContainers", "containers"] {
            let all = object
                .pointer_mut(&format!("{pod}/{containers}"))
                .and_then(Value::as_array_mut);
            for container in all.into_iter().flatten() {
                container["securityContext"] = json!("…");
            }
        }
    }
    let own_file = object["metadata"]["name"]
        .as_str()
        .is_some_and(|name| name.ends_with("-dashboard"));
    if object["kind"] == "Secret" || own_file {
        for (_, value) in object["data"].as_object_mut().unwrap() {
            *value = json!("…");
        }
    }
    if object["kind"] == "PrometheusRule" {
        object["spec"]["groups"][0]["rules"] = json!("…");
    }
    object
}

#[test]
fn renders_are_as_they_were() {
    for values in VALUES {
        let mut told = String::new();
        for object in render(values) {
            writeln!(told, "# {}", title(&object)).unwrap();
            write(&mut told, &masked(object), 0);
            told.push('\n');
        }
        let path = workspace().join(format!("tests/tests/deploy/golden/{values}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &told).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = told.lines().zip(golden.lines()).find(|(told, golden)| told != golden);
        assert_eq!(
            told,
            golden,
            "{values} is not as {}, first in {differs:?}",
            path.display()
        );
    }
}

#[test]
fn helm_finds_nothing_wrong() {
    for values in VALUES {
        let output = helm(&["lint", "--strict"], values, &[]);
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{values}: {found} {}", said(&output));
    }
}

/// A package holds the files that the chart has by links.
#[test]
fn a_package_renders_as_the_folder_does() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().display().to_string();
    let output = helm(&["package", "--destination", &to], "default", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let mut packages = std::fs::read_dir(folder.path()).unwrap();
    let package = packages.next().unwrap().unwrap().path();
    let more = ["--values", "examples/deploy/helm/ci/production.yaml"];
    let rendered = std::process::Command::new(workspace().join(".cache/bin/helm"))
        .current_dir(workspace())
        .args(["template", "dbtcloud", "--namespace", "dbt"])
        .arg(package)
        .args(more)
        .output()
        .unwrap();
    assert!(rendered.status.success(), "{}", said(&rendered));
    let objects = crate::render::documents(&String::from_utf8(rendered.stdout).unwrap());
    assert_eq!(objects, render("production"));
}

#[test]
fn a_component_says_no_where_the_defaults_say_yes() {
    let objects = render_with(
        "default",
        &["--set", "app.podDisruptionBudget.enabled=false,app.replicaCount=0"],
    );
    let there = |wanted: &str| objects.iter().find(|object| title(object) == wanted);
    assert!(there("PodDisruptionBudget dbtcloud-app").is_none());
    assert!(there("PodDisruptionBudget dbtcloud-gateway").is_some());
    assert_eq!(there("Deployment dbtcloud-app").unwrap()["spec"]["replicas"], 0);
}

/// One hook before everything: when it fails nothing has changed.
#[test]
fn the_migration_gates_what_follows() {
    let hooks = |objects: &[Value]| -> Vec<String> {
        let migrations = objects.iter().filter(|object| object["kind"] == "Job");
        migrations
            .map(|job| {
                job["metadata"]["annotations"]["helm.sh/hook"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let before = |objects: &[Value], component: &str| {
        let wanted = format!("Deployment dbtcloud-{component}");
        let object = objects.iter().find(|object| title(object) == wanted).unwrap();
        object["spec"]["template"]["spec"]["initContainers"].clone()
    };
    let external = render("production");
    assert_eq!(hooks(&external), ["pre-install,pre-upgrade"]);
    assert!(before(&external, "app").is_null());
    // The trial's database does not exist before its install.
    let trial = render("default");
    assert!(hooks(&trial).is_empty());
    assert_eq!(hooks(&render_with("default", &["--is-upgrade"])), ["pre-upgrade"]);
    for component in ["app", "scheduler", "cleanup"] {
        assert_eq!(before(&trial, component)[0]["args"], json!(["migrate"]));
    }
    assert!(before(&trial, "gateway").is_null());
}

/// A hook runs before the release is there: what it mounts is the operator's.
#[test]
fn the_hook_mounts_nothing_that_the_release_brings() {
    for values in ["production", "restricted"] {
        let objects = render(values);
        let job = objects.iter().find(|object| object["kind"] == "Job").unwrap();
        let volumes = job["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
        for volume in volumes {
            assert!(volume["configMap"].is_null(), "{values}: {volume}");
            let secret = volume["secret"]["secretName"].as_str();
            let ours = objects
                .iter()
                .any(|object| object["kind"] == "Secret" && object["metadata"]["name"].as_str() == secret);
            assert!(!ours, "{values}: {volume}");
        }
        assert_eq!(job["spec"]["template"]["spec"]["serviceAccountName"], "default");
    }
}

/// A pod lives long enough after SIGTERM for what it promises.
#[test]
fn pods_are_given_the_time_that_they_need_to_stop() {
    let objects = render_with("default", &["--set", "drainSeconds=45"]);
    for (title, pod) in crate::render::pods(&objects) {
        if !title.starts_with("Deployment") {
            continue;
        }
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        let drain = env.iter().find(|variable| variable["name"] == "DBTCLOUD_DRAIN_SECONDS");
        assert_eq!(drain.unwrap()["value"], "45", "{title}");
        // 10 s more for requests, and some for leases.
        assert!(
            pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap() >= 45 + 10 + 10,
            "{title}"
        );
    }
    for object in objects.iter().filter(|object| object["kind"] == "Deployment") {
        assert_eq!(
            object["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"],
            0,
            "{}",
            title(object)
        );
    }
}

/// The executor may do what the plain manifests say, in the chart too.
#[test]
fn there_is_one_list_of_rights() {
    let path = workspace().join("examples/deploy/kustomize/base/role.yaml");
    let plain = crate::render::documents(&std::fs::read_to_string(path).unwrap());
    let role = plain.iter().find(|object| object["kind"] == "Role").unwrap();
    assert!(!role["rules"].as_array().unwrap().is_empty());
    for values in VALUES {
        let objects = render(values);
        let ours = objects.iter().find(|object| object["kind"] == "Role").unwrap();
        assert_eq!(ours["rules"], role["rules"], "{values}");
    }
}

/// Where accounts have namespaces of their own the rights are the same, in all of them.
#[test]
fn rights_in_every_namespace_are_the_same() {
    let one = render("default");
    let all = render_with("default", &["--set", "runner.namespacePerAccount=true"]);
    let find = |objects: &[Value], kind: &str| objects.iter().find(|object| object["kind"] == kind).cloned();
    let (role, everywhere) = (find(&one, "Role").unwrap(), find(&all, "ClusterRole").unwrap());
    let mut rules = role["rules"].as_array().unwrap().clone();
    rules.push(json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["create"]}));
    assert_eq!(everywhere["rules"], json!(rules));
    assert!(everywhere["metadata"]["namespace"].is_null());
    assert!(find(&all, "Role").is_none() && find(&all, "RoleBinding").is_none());
    let binding = find(&all, "ClusterRoleBinding").unwrap();
    assert_eq!(binding["roleRef"]["name"], everywhere["metadata"]["name"]);
}

/// What is generated once is never generated again over what is there, and an uninstall leaves it.
#[test]
fn generated_secrets_stay() {
    let objects = render("default");
    let secrets: Vec<_> = objects.iter().filter(|object| object["kind"] == "Secret").collect();
    assert_eq!(secrets.len(), 2);
    for secret in secrets {
        assert_eq!(
            secret["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep",
            "{}",
            title(secret)
        );
    }
    assert!(render("production").iter().all(|object| object["kind"] != "Secret"));
}
