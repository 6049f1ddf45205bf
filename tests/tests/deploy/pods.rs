//! Every pod of the chart and of the plain manifests is one that a namespace with Pod Security `restricted` lets in, and holds no more than it
//! needs. The API server says the same in `tests/tests/kubernetes/chart.rs`.

use serde_json::{Value, json};

use crate::render::{containers, installations, pods};

#[test]
fn every_pod_is_restricted() {
    for (values, objects) in installations() {
        for (title, pod) in pods(&objects) {
            let (spec, security) = (&pod["spec"], &pod["spec"]["securityContext"]);
            assert_eq!(security["runAsNonRoot"], true, "{values} {title}");
            assert!(security["runAsUser"].as_i64().unwrap() > 0, "{values} {title}");
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{values} {title}");
            for key in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(spec[key].is_null(), "{values} {title}: {key}");
            }
            assert_eq!(spec["enableServiceLinks"], false, "{values} {title}");
            for container in containers(&pod) {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{values} {title}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{values} {title}");
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{values} {title}");
                assert!(
                    container["resources"]["requests"]["memory"].is_string(),
                    "{values} {title}"
                );
            }
            for volume in spec["volumes"].as_array().unwrap() {
                let kinds = ["emptyDir", "secret", "configMap"];
                assert!(
                    kinds.iter().any(|kind| volume.get(kind).is_some()),
                    "{values} {title}: {volume}"
                );
            }
        }
    }
}

/// Of the components only those that start runs, and the app that looks at the cluster, have a token of it.
#[test]
fn tokens_of_the_cluster_are_for_those_that_need_one() {
    let with_token = ["app", "scheduler", "cleanup", "doctor"];
    for (values, objects) in installations() {
        for (title, pod) in pods(&objects) {
            let component = title.rsplit('-').next().unwrap();
            let token = pod["spec"]["automountServiceAccountToken"] == true;
            assert_eq!(token, with_token.contains(&component), "{values} {title}");
        }
        for account in objects.iter().filter(|object| object["kind"] == "ServiceAccount") {
            assert_eq!(account["automountServiceAccountToken"], false, "{values} {account}");
        }
        let binding = objects.iter().find(|object| object["kind"] == "RoleBinding").unwrap();
        let bound: Vec<&str> = binding["subjects"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["name"].as_str().unwrap())
            .collect();
        assert_eq!(bound.len(), 2, "{values}: {bound:?}");
        assert!(
            bound[0].ends_with("-scheduler") && bound[1].ends_with("-cleanup"),
            "{values}: {bound:?}"
        );
    }
}

/// Secrets reach a pod as files, and as variables only where a library reads nothing else.
#[test]
fn secrets_are_files() {
    for (values, objects) in installations() {
        for (title, pod) in pods(&objects) {
            for container in containers(&pod) {
                for variable in container["env"].as_array().cloned().unwrap_or_default() {
                    let name = variable["name"].as_str().unwrap();
                    let from = &variable["valueFrom"]["secretKeyRef"];
                    assert_eq!(!from.is_null(), name.starts_with("AWS_"), "{values} {title}: {name}");
                    let text = variable["value"].as_str().unwrap_or_default();
                    let password = text.split('@').next().unwrap().matches(':').count() > 1 && text.contains('@');
                    assert!(!password, "{values} {title}: {name} has a password");
                }
            }
        }
    }
}

/// Every pod of ours is under a policy that says whom it may reach.
#[test]
fn no_pod_is_without_a_network_policy() {
    let selects = |selector: &Value, labels: &Value| {
        let exact = selector["matchLabels"]
            .as_object()
            .is_none_or(|wanted| wanted.iter().all(|(k, v)| &labels[k] == v));
        let any = selector["matchExpressions"].as_array().is_none_or(|all| {
            all.iter().all(|expression| {
                let label = &labels[expression["key"].as_str().unwrap()];
                expression["values"].as_array().unwrap().contains(label)
            })
        });
        exact && any
    };
    for (values, objects) in installations() {
        let policies: Vec<&Value> = objects
            .iter()
            .filter(|object| object["kind"] == "NetworkPolicy")
            .collect();
        for (title, pod) in pods(&objects) {
            let labels = &pod["metadata"]["labels"];
            for direction in ["Ingress", "Egress"] {
                let held = policies.iter().any(|policy| {
                    let types = policy["spec"]["policyTypes"].as_array().unwrap();
                    types.contains(&json!(direction)) && selects(&policy["spec"]["podSelector"], labels)
                });
                assert!(held, "{values} {title}: nothing says {direction}");
            }
        }
    }
}
