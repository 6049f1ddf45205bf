//! What a pod-template overlay may say: everything but what makes an execution ours and keeps it in its bounds.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest an overlay may be, as JSON.
const OVERLAY_LIMIT_BYTES: usize = 64 * 1024;
/// The container that is the execution.
pub const MAIN_CONTAINER: &str = "main";

/// Fields of a pod's `spec` that are not an overlay's, and why.
const OF_THE_POD: [(&str, &str); 9] = [
    ("activeDeadlineSeconds", "the run's time-out says how long it may live"),
    ("automountServiceAccountToken", "workloads get no token of the cluster"),
    ("hostIPC", "workloads stay in namespaces of their own"),
    ("hostNetwork", "workloads stay in namespaces of their own"),
    ("hostPID", "workloads stay in namespaces of their own"),
    ("nodeName", "use node_selector: the scheduler chooses the node"),
    ("restartPolicy", "what ended is not started again"),
    ("serviceAccount", "use service_account"),
    ("serviceAccountName", "use service_account"),
];

/// Fields of the container `main` that are not an overlay's, and why.
const OF_THE_CONTAINER: [(&str, &str); 5] = [
    ("args", "it runs the agent"),
    ("command", "it runs the agent"),
    ("image", "use image"),
    ("restartPolicy", "what ended is not started again"),
    ("terminationMessagePolicy", "the end of a run is explained by it"),
];

/// Checks an overlay: part of a pod template, `{"metadata": {labels, annotations}, "spec": {…}}`.
///
/// # Errors
/// `Invalid`, naming the field below `field` that is not an overlay's to set.
pub fn validate(field: &str, overlay: &Value) -> Result<()> {
    let overlay = object(field, overlay)?;
    if serde_json::to_string(overlay).map_or(usize::MAX, |text| text.len()) > OVERLAY_LIMIT_BYTES {
        return Err(Error::invalid(
            field.to_owned(),
            format!("expected at most {OVERLAY_LIMIT_BYTES} bytes"),
        ));
    }
    for (key, value) in overlay {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "metadata" => metadata(&field, object(&field, value)?)?,
            "spec" => spec(&field, object(&field, value)?)?,
            _ => {
                return Err(Error::invalid(
                    field,
                    "expected metadata and spec only, as in a pod template",
                ));
            }
        }
    }
    Ok(())
}

/// The path of the first thing that was sent and is not in what was kept of it: a field that is not known.
/// What is null or empty need not be kept.
pub fn lost(sent: &Value, kept: &Value) -> Option<String> {
    match (sent, kept) {
        (Value::Object(sent), kept) => sent.iter().find_map(|(key, value)| {
            let below = match kept.get(key) {
                Some(kept) => lost(value, kept)?,
                None if is_empty(value) => return None,
                None => String::new(),
            };
            Some(format!(".{key}{below}"))
        }),
        (Value::Array(sent), Value::Array(kept)) => sent
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(index, (sent, kept))| Some(format!(".{index}{}", lost(sent, kept)?))),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

fn object<'a>(field: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value
        .as_object()
        .ok_or_else(|| Error::invalid(field.to_owned(), "expected an object"))
}

fn list<'a>(field: &str, value: &'a Value) -> Result<&'a Vec<Value>> {
    value
        .as_array()
        .ok_or_else(|| Error::invalid(field.to_owned(), "expected a list"))
}

fn metadata(field: &str, metadata: &Map<String, Value>) -> Result<()> {
    for (key, value) in metadata {
        let field = format!("{field}.{key}");
        if key != "labels" && key != "annotations" {
            return Err(Error::invalid(
                field,
                "expected labels and annotations only: the rest is its identity",
            ));
        }
        for (name, value) in object(&field, value)? {
            let field = format!("{field}.{name}");
            let reserved = ["dbtcloud.dev/", "app.kubernetes.io/managed-by", "batch.kubernetes.io/"];
            if reserved.iter().any(|reserved| name.starts_with(reserved)) || name == "job-name" {
                return Err(Error::invalid(field, "executions are found again by it"));
            }
            if !value.is_string() {
                return Err(Error::invalid(field, "expected a text"));
            }
        }
    }
    Ok(())
}

fn spec(field: &str, spec: &Map<String, Value>) -> Result<()> {
    refuse(field, spec, &OF_THE_POD)?;
    directives(field, &Value::Object(spec.clone()))?;
    if let Some(context) = spec.get("securityContext") {
        security(&format!("{field}.securityContext"), context)?;
    }
    if let Some(volumes) = spec.get("volumes") {
        let field = format!("{field}.volumes");
        for (index, volume) in list(&field, volumes)?.iter().enumerate() {
            let field = format!("{field}.{index}");
            let volume = object(&field, volume)?;
            refuse(&field, volume, &[("hostPath", "workloads see nothing of their node")])?;
            let sources = volume.get("projected").and_then(|projected| projected.get("sources"));
            let sources = sources.and_then(Value::as_array).into_iter().flatten();
            if sources
                .into_iter()
                .any(|source| source.get("serviceAccountToken").is_some())
            {
                return Err(Error::invalid(
                    format!("{field}.projected.sources"),
                    "workloads get no token of the cluster",
                ));
            }
        }
    }
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        let Some(containers) = spec.get(kind) else { continue };
        let field = format!("{field}.{kind}");
        for (index, container) in list(&field, containers)?.iter().enumerate() {
            let field = format!("{field}.{index}");
            let container = object(&field, container)?;
            let is_main = container.get("name").and_then(Value::as_str) == Some(MAIN_CONTAINER);
            match (kind, is_main) {
                ("containers", true) => {
                    refuse(&field, container, &OF_THE_CONTAINER)?;
                    variables(&field, container)?;
                }
                ("initContainers", false) => {}
                ("containers", false) => {
                    let told = format!(
                        "expected {MAIN_CONTAINER}: a run ends with it; others are initContainers with restartPolicy Always"
                    );
                    return Err(Error::invalid(format!("{field}.name"), told));
                }
                _ => {
                    return Err(Error::invalid(
                        field,
                        "expected containers and initContainers of other names",
                    ));
                }
            }
            if let Some(context) = container.get("securityContext") {
                security(&format!("{field}.securityContext"), context)?;
            }
        }
    }
    Ok(())
}

fn refuse(field: &str, object: &Map<String, Value>, refused: &[(&str, &'static str)]) -> Result<()> {
    match refused.iter().find(|(name, _)| object.contains_key(*name)) {
        Some((name, why)) => Err(Error::invalid(
            format!("{field}.{name}"),
            format!("not an overlay's to set: {why}"),
        )),
        None => Ok(()),
    }
}

/// `$patch` and its kin would take out what is checked to be there.
fn directives(field: &str, value: &Value) -> Result<()> {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let field = format!("{field}.{name}");
                if name.starts_with('$') {
                    return Err(Error::invalid(field, "expected no directives of patches"));
                }
                directives(&field, value)?;
            }
            Ok(())
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| directives(&format!("{field}.{index}"), item)),
        _ => Ok(()),
    }
}

/// What the agent is told by its environment is not an overlay's.
fn variables(field: &str, container: &Map<String, Value>) -> Result<()> {
    let Some(variables) = container.get("env") else {
        return Ok(());
    };
    let field = format!("{field}.env");
    for (index, variable) in list(&field, variables)?.iter().enumerate() {
        let name = variable.get("name").and_then(Value::as_str);
        if name.is_some_and(|name| name.starts_with("DBTCLOUD_")) {
            return Err(Error::invalid(
                format!("{field}.{index}"),
                "DBTCLOUD_* are the agent's own",
            ));
        }
    }
    Ok(())
}

/// What a security context may not take back. Stricter is welcome.
fn security(field: &str, context: &Value) -> Result<()> {
    let context = object(field, context)?;
    let wrong = |name: &str, why: &'static str| Error::invalid(format!("{field}.{name}"), why);
    for (name, needed) in [
        ("privileged", false),
        ("allowPrivilegeEscalation", false),
        ("runAsNonRoot", true),
        ("readOnlyRootFilesystem", true),
    ] {
        if context.get(name).is_some_and(|value| value.as_bool() != Some(needed)) {
            return Err(wrong(name, if needed { "expected true" } else { "expected false" }));
        }
    }
    for name in ["runAsUser", "runAsGroup"] {
        let fine = |value: &Value| value.as_i64().is_some_and(|id| id > 0);
        if context.get(name).is_some_and(|value| !fine(value)) {
            return Err(wrong(name, "expected a user that is not root"));
        }
    }
    if let Some(profile) = context.get("seccompProfile") {
        let kind = profile.get("type").and_then(Value::as_str);
        if !matches!(kind, Some("RuntimeDefault" | "Localhost")) {
            return Err(wrong("seccompProfile", "expected RuntimeDefault or Localhost"));
        }
    }
    if let Some(capabilities) = context.get("capabilities") {
        let drops_all = |drop: &Value| drop.as_array().is_some_and(|drop| drop.iter().any(|one| one == "ALL"));
        let adds = capabilities
            .get("add")
            .is_some_and(|add| add != &Value::Array(Vec::new()));
        if adds || capabilities.get("drop").is_some_and(|drop| !drops_all(drop)) || capabilities.is_null() {
            return Err(wrong("capabilities", "expected all to be dropped and none added"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_people_need_is_fine() {
        let overlay = json!({
            "metadata": {"labels": {"team": "data"}, "annotations": {"karpenter.sh/do-not-disrupt": "true"}},
            "spec": {
                "priorityClassName": "low",
                "imagePullSecrets": [{"name": "registry"}],
                "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
                "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
                "containers": [{"name": "main", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}]}],
                "initContainers": [{"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}],
            }
        });
        validate("o", &overlay).unwrap();
    }

    #[test]
    fn what_would_break_it_is_named() {
        for (overlay, field) in [
            (json!({"kind": "Pod"}), "o.kind"),
            (json!({"metadata": {"name": "x"}}), "o.metadata.name"),
            (json!({"metadata": {"finalizers": []}}), "o.metadata.finalizers"),
            (
                json!({"metadata": {"labels": {"dbtcloud.dev/run": "1"}}}),
                "o.metadata.labels.dbtcloud.dev/run",
            ),
            (json!({"metadata": {"labels": {"a": 1}}}), "o.metadata.labels.a"),
            (json!({"spec": {"restartPolicy": "Always"}}), "o.spec.restartPolicy"),
            (
                json!({"spec": {"automountServiceAccountToken": true}}),
                "o.spec.automountServiceAccountToken",
            ),
            (
                json!({"spec": {"serviceAccountName": "x"}}),
                "o.spec.serviceAccountName",
            ),
            (json!({"spec": {"hostNetwork": true}}), "o.spec.hostNetwork"),
            (json!({"spec": {"$patch": "replace"}}), "o.spec.$patch"),
            (
                json!({"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}),
                "o.spec.volumes.0.hostPath",
            ),
            (
                json!({"spec": {"volumes": [{"name": "x", "projected": {"sources": [{"serviceAccountToken": {}}]}}]}}),
                "o.spec.volumes.0.projected.sources",
            ),
            (
                json!({"spec": {"containers": [{"name": "other"}]}}),
                "o.spec.containers.0.name",
            ),
            (
                json!({"spec": {"containers": [{"name": "main", "command": ["x"]}]}}),
                "o.spec.containers.0.command",
            ),
            (
                json!({"spec": {"containers": [{"name": "main", "env": [{"name": "DBTCLOUD_SERVER"}]}]}}),
                "o.spec.containers.0.env.0",
            ),
            (
                json!({"spec": {"containers": [{"name": "main", "securityContext": {"privileged": true}}]}}),
                "o.spec.containers.0.securityContext.privileged",
            ),
            (
                json!({"spec": {"securityContext": {"runAsUser": 0}}}),
                "o.spec.securityContext.runAsUser",
            ),
            (
                json!({"spec": {"securityContext": {"runAsNonRoot": null}}}),
                "o.spec.securityContext.runAsNonRoot",
            ),
            (
                json!({"spec": {"initContainers": [{"name": "a", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]}}),
                "o.spec.initContainers.0.securityContext.capabilities",
            ),
        ] {
            let error = validate("o", &overlay).unwrap_err();
            assert_eq!(error.field(), Some(field), "{overlay}: {error}");
        }
        let long = json!({"metadata": {"annotations": {"a": "x".repeat(OVERLAY_LIMIT_BYTES)}}});
        assert_eq!(validate("o", &long).unwrap_err().field(), Some("o"));
    }
}
