//! From a specification to a Job, or to a Pod with its Service.

use dbtcloud_core::environment::overlay::{self, MAIN_CONTAINER};
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Mount, Workload};
use dbtcloud_core::{Error, Result};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, Service};
use serde_json::{Map, Value, json};

use crate::options::Options;

/// Keeps a pod until its end has been read: `remove` takes it away.
pub(crate) const FINALIZER: &str = "dbtcloud.dev/outcome";
/// Which execution an object is of.
pub(crate) const EXECUTION: &str = "dbtcloud.dev/execution";
/// Set when its end was asked for.
pub(crate) const CANCELLED: &str = "dbtcloud.dev/cancelled";
/// The end that was decided for what can never begin.
pub(crate) const VERDICT: &str = "dbtcloud.dev/verdict";

/// Where a service listens.
pub(crate) const SERVICE_PORT: i32 = 8080;
/// The user that workloads are: nobody in particular.
const USER: i64 = 65_532;
/// What a pod that others delete (a drained node) has from its interrupt to its kill.
const TERMINATION_GRACE_SECONDS: u64 = 60;
/// When a Job that nobody removed goes by itself: a backstop, long after every chore has looked.
const KEPT_SECONDS: i32 = 7 * 24 * 3600;
/// Folders that can be written, and how much fits in.
const SCRATCH: [(&str, &str, &str); 3] = [
    ("work", "/work", "20Gi"),
    ("cache", "/cache", "20Gi"),
    ("tmp", "/tmp", "2Gi"),
];

/// The labels by which an execution is found.
pub(crate) fn labels(options: &Options, spec: &ExecutionSpec) -> Map<String, Value> {
    let mut labels = Map::new();
    let mut set = |name: &str, value: String| labels.insert(name.to_owned(), value.into());
    set("app.kubernetes.io/managed-by", "dbtcloud".to_owned());
    set("app.kubernetes.io/name", "dbtcloud-workload".to_owned());
    set("dbtcloud.dev/installation", options.installation_label().to_owned());
    set("dbtcloud.dev/account", spec.account.to_string());
    set(EXECUTION, spec.id.to_string());
    match spec.id {
        ExecutionId::Run { run, attempt } => {
            set("dbtcloud.dev/run", run.to_string());
            set("dbtcloud.dev/attempt", attempt.to_string());
        }
        ExecutionId::Session { session, generation } => {
            set("dbtcloud.dev/session", session.to_string());
            set("dbtcloud.dev/generation", generation.to_string());
        }
    }
    labels
}

/// The Job of a task.
pub(crate) fn job(options: &Options, spec: &ExecutionSpec) -> Result<Job> {
    let template = template(options, spec)?;
    let mut job = json!({
        "metadata": {"name": options.name_of(&spec.id.to_string()), "labels": labels(options, spec)},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": template,
        },
    });
    if let Some(lifetime) = spec.limits.lifetime {
        job["spec"]["activeDeadlineSeconds"] = lifetime.as_secs().clamp(1, i64::MAX as u64).into();
    }
    typed("spec", job)
}

/// The Pod of a service.
pub(crate) fn service_pod(options: &Options, spec: &ExecutionSpec) -> Result<Pod> {
    let template = template(options, spec)?;
    let mut pod = serde_json::to_value(template).unwrap_or_default();
    pod["metadata"]["name"] = options.name_of(&spec.id.to_string()).into();
    if let Some(lifetime) = spec.limits.lifetime {
        pod["spec"]["activeDeadlineSeconds"] = lifetime.as_secs().clamp(1, i64::MAX as u64).into();
    }
    typed("spec", pod)
}

/// The Service before a service's Pod, which goes with it.
pub(crate) fn service(options: &Options, id: ExecutionId, pod: &Pod) -> Result<Service> {
    typed(
        "spec",
        json!({
            "metadata": {
                "name": options.name_of(&id.to_string()),
                "labels": pod.metadata.labels,
                "ownerReferences": [{
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod.metadata.name,
                    "uid": pod.metadata.uid,
                }],
            },
            "spec": {
                "selector": {
                    "dbtcloud.dev/installation": options.installation_label(),
                    EXECUTION: id.to_string(),
                },
                "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": SERVICE_PORT}],
            },
        }),
    )
}

/// The pod's template: ours, with the installation's overlay and the environment's over it.
fn template(options: &Options, spec: &ExecutionSpec) -> Result<PodTemplateSpec> {
    let mut template = plain(options, spec)?;
    let fields = [
        ("kubernetes_pod_overlay_file", options.overlay.as_ref()),
        ("execution.pod_overlay", spec.placement.pod_overlay.as_ref()),
    ];
    for (field, part) in fields {
        let Some(part) = part else { continue };
        overlay::validate(field, part)?;
        merge(&mut template, part);
        let understood: PodTemplateSpec = serde_json::from_value(template.clone())
            .map_err(|error| Error::invalid(field, format!("makes a pod that cannot be understood: {error}")))?;
        let kept = serde_json::to_value(&understood).unwrap_or_default();
        if let Some(lost) = overlay::lost(&template, &kept) {
            return Err(Error::invalid(format!("{field}{lost}"), "no pod has such a field"));
        }
    }
    typed("spec", template)
}

fn typed<T: serde::de::DeserializeOwned>(field: &'static str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::invalid(field, error))
}

fn plain(options: &Options, spec: &ExecutionSpec) -> Result<Value> {
    let placement = &spec.placement;
    placement.validate("execution")?;
    if spec.command.is_empty() {
        return Err(Error::invalid("command", "expected a program"));
    }
    let mut variables = Vec::new();
    for (name, value) in &spec.environment {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid("environment", format!("'{name}' cannot be a variable")));
        }
        variables.push(json!({"name": name, "value": literal(value)}));
    }
    if let Some(ticket) = &spec.ticket {
        variables.push(json!({"name": "DBTCLOUD_TICKET", "value": literal(ticket.expose())}));
    }
    let mut limits: Map<String, Value> = quantities(&placement.resources.limits);
    if let Some(bytes) = spec.limits.memory_bytes {
        limits.entry("memory").or_insert_with(|| bytes.to_string().into());
    }
    let mut container = json!({
        "name": MAIN_CONTAINER,
        "image": placement.image.as_deref().unwrap_or(&options.image),
        "command": spec.command.iter().map(|part| literal(part)).collect::<Vec<_>>(),
        "resources": {"requests": quantities(&placement.resources.requests), "limits": limits},
        // The end of its output is the message of what failed.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
        },
    });
    if spec.workload == Workload::Service {
        variables.push(json!({"name": "DBTCLOUD_PORT", "value": SERVICE_PORT.to_string()}));
        container["ports"] = json!([{"name": "http", "containerPort": SERVICE_PORT}]);
        container["readinessProbe"] = json!({"tcpSocket": {"port": SERVICE_PORT}, "periodSeconds": 1});
    }
    container["env"] = variables.into();
    let (volumes, mounts) = volumes(&spec.mounts)?;
    container["volumeMounts"] = mounts.into();
    Ok(json!({
        "metadata": {"labels": labels(options, spec), "finalizers": [FINALIZER]},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "serviceAccountName": placement.service_account.as_ref().or(options.service_account.as_ref()),
            "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
            "nodeSelector": placement.node_selector,
            "tolerations": placement.tolerations,
            "securityContext": {
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "runAsGroup": USER,
                "runAsNonRoot": true,
                "runAsUser": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        },
    }))
}

fn quantities(all: &std::collections::BTreeMap<String, String>) -> Map<String, Value> {
    all.iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect()
}

/// Kubernetes replaces `$(NAME)` in commands and variables; we mean what we say.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// Scratch folders, and claims where mounts are; a mount in the place of a scratch folder replaces it.
fn volumes(wanted: &[Mount]) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for (index, mount) in wanted.iter().enumerate() {
        let target = mount.target.to_str().filter(|_| mount.target.is_absolute());
        let Some(target) = target else {
            let told = format!("expected an absolute path, got {}", mount.target.display());
            return Err(Error::invalid("mounts", told));
        };
        let name = format!("volume-{index}");
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": mount.source}}));
        mounts.push(json!({"name": name, "mountPath": target}));
    }
    for (name, path, size) in SCRATCH {
        if wanted.iter().all(|mount| mount.target != std::path::Path::new(path)) {
            volumes.push(json!({"name": name, "emptyDir": {"sizeLimit": size}}));
            mounts.push(json!({"name": name, "mountPath": path}));
        }
    }
    Ok((volumes, mounts))
}

/// Merges `part` over `base`, as strategic merge patches do where it matters: objects field by field, `null` takes
/// a field away, lists of named things (containers, variables, volumes; mounts by their path) thing by thing.
/// Tolerations are added. Every other list is replaced.
fn merge(base: &mut Value, part: &Value) {
    match (base, part) {
        (Value::Object(base), Value::Object(part)) => {
            for (name, value) in part {
                match (base.get_mut(name), value) {
                    (_, Value::Null) => drop(base.remove(name)),
                    (Some(Value::Array(there)), Value::Array(more)) if name == "tolerations" => {
                        there.extend(more.iter().cloned());
                    }
                    (Some(there), value) => merge(there, value),
                    (None, value) => drop(base.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(base), Value::Array(part)) if is_named(base, part) => {
            for item in part {
                let same = base.iter_mut().find(|there| name_of(there) == name_of(item));
                match same {
                    Some(there) => merge(there, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, part) => *base = part.clone(),
    }
}

fn is_named(base: &[Value], part: &[Value]) -> bool {
    base.iter().chain(part).all(|item| name_of(item).is_some())
}

/// What tells one of a list's things from the others. Several mounts may be of one volume.
fn name_of(item: &Value) -> Option<&str> {
    item.get("mountPath").or_else(|| item.get("name"))?.as_str()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dbtcloud_core::environment::Placement;
    use dbtcloud_core::id::{AccountId, RunId};
    use dbtcloud_core::ports::WorkloadLimits;
    use dbtcloud_core::secret::Secret;

    use super::*;
    use crate::options::Access;

    fn options() -> Options {
        Options::new(Access::InCluster, "runner:1").with_installation("blue")
    }

    fn spec() -> ExecutionSpec {
        ExecutionSpec {
            id: ExecutionId::Run {
                run: RunId::new(42),
                attempt: 1,
            },
            account: AccountId::new(7),
            workload: Workload::Task,
            command: vec!["dbtcloud".into(), "agent".into()],
            environment: BTreeMap::from([("PRICE".into(), "$(HOME) $5".into())]),
            ticket: Some(Secret::new("t")),
            mounts: Vec::new(),
            limits: WorkloadLimits::default(),
            placement: Placement::default(),
        }
    }

    #[test]
    fn pods_are_restricted_and_known_by_their_labels() {
        let job = serde_json::to_value(job(&options(), &spec()).unwrap()).unwrap();
        assert_eq!(job["metadata"]["name"], "blue-run-42-1");
        let pod = &job["spec"]["template"];
        assert_eq!(pod["metadata"]["labels"][EXECUTION], "run-42-1");
        assert_eq!(pod["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        assert_eq!(pod["spec"]["securityContext"]["runAsUser"], USER);
        let main = &pod["spec"]["containers"][0];
        assert_eq!(main["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(main["env"][0]["value"], "$$(HOME) $$5");
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), SCRATCH.len());
    }

    #[test]
    fn overlays_are_merged_by_name_and_in_order() {
        let mut spec = spec();
        let overlay = json!({"spec": {
            "priorityClassName": "low",
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "containers": [{"name": "main", "env": [{"name": "MORE", "value": "1"}]}],
            "volumes": [{"name": "work", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "ca", "configMap": {"name": "ca"}}],
        }});
        spec.placement = Placement::parse(
            "execution",
            &json!({
                "tolerations": [{"key": "spot", "operator": "Exists"}],
                "pod_overlay": {"spec": {"priorityClassName": "high"}},
            }),
        )
        .unwrap();
        let job = serde_json::to_value(job(&options().with_overlay(overlay), &spec).unwrap()).unwrap();
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["priorityClassName"], "high");
        assert_eq!(pod["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(pod["containers"][0]["env"].as_array().unwrap().len(), 3);
        assert_eq!(pod["volumes"][0]["emptyDir"]["sizeLimit"], "1Gi");
        assert_eq!(pod["volumes"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn overlays_that_make_no_pod_are_refused_by_name() {
        for (part, field) in [
            (
                json!({"spec": {"priorityClas": "x"}}),
                "execution.pod_overlay.spec.priorityClas",
            ),
            (json!({"spec": {"containers": [{"name": "main", "envv": []}, ]}}), ""),
            (
                json!({"spec": {"volumes": [{"name": "x", "emptyDirr": {"a": "b"}}]}}),
                "execution.pod_overlay.spec.volumes.3.emptyDirr",
            ),
            (json!({"spec": {"priorityClassName": 7}}), "execution.pod_overlay"),
            (json!({"spec": {"hostPID": true}}), "execution.pod_overlay.spec.hostPID"),
        ] {
            let mut spec = spec();
            spec.placement.pod_overlay = Some(part.clone());
            match job(&options(), &spec) {
                Err(error) => assert_eq!(error.field(), Some(field), "{part}: {error}"),
                Ok(_) => assert_eq!(field, "", "{part}"),
            }
        }
    }
}
