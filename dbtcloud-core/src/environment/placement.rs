//! Where, as whom and with how much an environment's runs execute.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::overlay;
use crate::error::{Error, Result};

/// Entries that a map or list of a placement may have.
const ENTRY_LIMIT: usize = 64;
/// The longest reference of an image.
const IMAGE_LIMIT_BYTES: usize = 512;
/// The longest part of a label, and the longest value of one (Kubernetes' rule).
const LABEL_LIMIT_BYTES: usize = 63;
/// The longest name with dots (Kubernetes' rule).
const NAME_LIMIT_BYTES: usize = 253;

/// Where, as whom and with how much the runs of an environment execute. What is absent is left to the
/// executor's own defaults. The words are Kubernetes' own; an executor that cannot honour one says in its
/// documentation what becomes of it.
///
/// ```
/// use dbtcloud_core::environment::Placement;
/// let mut placement = Placement { image: Some("registry.example/dbt:1.11".into()), ..Placement::default() };
/// placement.resources.limits.insert("memory".into(), "2Gi".into());
/// placement.validate("execution").unwrap();
/// placement.resources.limits.insert("memory".into(), "two".into());
/// assert_eq!(placement.validate("execution").unwrap_err().field(), Some("execution.resources.limits.memory"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// The image that has dbt and the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The service account: whom the cloud's workload identity takes the run for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Processor and memory.
    #[serde(skip_serializing_if = "Resources::is_default")]
    pub resources: Resources,
    /// Labels that the node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are no hindrance.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Part of a pod template, merged over what the executor makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_overlay: Option<Value>,
}

/// What is asked for and what may be used at most, as quantities: `500m` of `cpu`, `2Gi` of `memory`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// What is set aside.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What is never exceeded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

/// A taint that is no hindrance. Without a key it is every taint.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// The taint's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `Exists` or `Equal`; `Equal` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The taint's value, for `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// For `NoExecute`: how long it is none.
    #[serde(skip_serializing_if = "Option::is_none", rename = "tolerationSeconds")]
    pub seconds: Option<i64>,
}

impl Resources {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Placement {
    /// Reads what a person wrote, and checks it; `field` is what the caller calls the whole. (What is stored is
    /// read by serde alone, which passes over what a later version knows.)
    ///
    /// # Errors
    /// `Invalid`, naming the field below `field`.
    pub fn parse(field: &str, sent: &Value) -> Result<Self> {
        let placement: Self =
            serde_json::from_value(sent.clone()).map_err(|error| Error::invalid(field.to_owned(), error))?;
        let kept = serde_json::to_value(&placement).unwrap_or_default();
        if let Some(lost) = overlay::lost(sent, &kept) {
            return Err(Error::invalid(format!("{field}{lost}"), "unknown field"));
        }
        placement.validate(field)?;
        Ok(placement)
    }

    /// Whether everything is left to the executor.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this can be meant; `field` is what the caller calls the whole.
    ///
    /// # Errors
    /// `Invalid`, naming the field below `field`.
    pub fn validate(&self, field: &str) -> Result<()> {
        if let Some(image) = &self.image {
            image_reference(&format!("{field}.image"), image)?;
        }
        if let Some(account) = &self.service_account {
            name(&format!("{field}.service_account"), account)?;
        }
        for (part, quantities) in [
            ("requests", &self.resources.requests),
            ("limits", &self.resources.limits),
        ] {
            let field = format!("{field}.resources.{part}");
            few(&field, quantities.len())?;
            for (resource, quantity) in quantities {
                label_key(&field, resource)?;
                if !is_quantity(quantity) {
                    let told = format!("expected a quantity such as 500m or 2Gi, got '{quantity}'");
                    return Err(Error::invalid(format!("{field}.{resource}"), told));
                }
            }
        }
        let selector = format!("{field}.node_selector");
        few(&selector, self.node_selector.len())?;
        for (key, value) in &self.node_selector {
            label_key(&selector, key)?;
            label_value(&format!("{selector}.{key}"), value)?;
        }
        few(&format!("{field}.tolerations"), self.tolerations.len())?;
        for (index, toleration) in self.tolerations.iter().enumerate() {
            toleration.validate(&format!("{field}.tolerations.{index}"))?;
        }
        match &self.pod_overlay {
            Some(part) => overlay::validate(&format!("{field}.pod_overlay"), part),
            None => Ok(()),
        }
    }
}

impl Toleration {
    fn validate(&self, field: &str) -> Result<()> {
        let exists = match self.operator.as_deref() {
            Some("Exists") => true,
            None | Some("Equal") => false,
            Some(other) => {
                let told = format!("expected Exists or Equal, got '{other}'");
                return Err(Error::invalid(format!("{field}.operator"), told));
            }
        };
        match &self.key {
            Some(key) => label_key(&format!("{field}.key"), key)?,
            None if exists => {}
            None => {
                return Err(Error::invalid(
                    format!("{field}.key"),
                    "expected one, or operator Exists",
                ));
            }
        }
        if let Some(value) = &self.value {
            if exists {
                return Err(Error::invalid(
                    format!("{field}.value"),
                    "expected none with operator Exists",
                ));
            }
            label_value(&format!("{field}.value"), value)?;
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if let Some(effect) = self.effect.as_deref().filter(|effect| !effects.contains(effect)) {
            let told = format!("expected {}, got '{effect}'", effects.join(", "));
            return Err(Error::invalid(format!("{field}.effect"), told));
        }
        Ok(())
    }
}

fn few(field: &str, count: usize) -> Result<()> {
    if count > ENTRY_LIMIT {
        return Err(Error::invalid(
            field.to_owned(),
            format!("expected at most {ENTRY_LIMIT} entries"),
        ));
    }
    Ok(())
}

/// Checks the reference of an image: `registry/name:tag` or `registry/name@sha256:…`.
///
/// # Errors
/// `Invalid`, naming `field`.
pub fn image_reference(field: &str, image: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let starts = image.starts_with(|c: char| c.is_ascii_alphanumeric());
    if image.len() <= IMAGE_LIMIT_BYTES && starts && image.chars().all(fine) {
        return Ok(());
    }
    let told = format!("expected an image such as registry.example/dbt:1.11, got '{image}'");
    Err(Error::invalid(field.to_owned(), told))
}

/// Checks a name as Kubernetes gives them to objects: lower case letters, digits, `-` and `.`.
///
/// # Errors
/// `Invalid`, naming `field`.
pub fn name(field: &str, text: &str) -> Result<()> {
    let part = |part: &str| {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.chars().all(fine)
    };
    if text.len() <= NAME_LIMIT_BYTES && text.split('.').all(part) {
        return Ok(());
    }
    let told = format!("expected lower case letters, digits, '-' and '.', got '{text}'");
    Err(Error::invalid(field.to_owned(), told))
}

fn is_label_part(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= LABEL_LIMIT_BYTES && text.chars().all(fine) && edge(text.chars().next()) && edge(text.chars().last())
}

fn label_key(field: &str, key: &str) -> Result<()> {
    let fine = match key.split_once('/') {
        Some((prefix, rest)) => name(field, prefix).is_ok() && is_label_part(rest),
        None => is_label_part(key),
    };
    if fine {
        return Ok(());
    }
    let told = format!("expected keys such as topology.kubernetes.io/zone, got '{key}'");
    Err(Error::invalid(field.to_owned(), told))
}

fn label_value(field: &str, value: &str) -> Result<()> {
    if value.is_empty() || is_label_part(value) {
        return Ok(());
    }
    let told = format!("expected at most {LABEL_LIMIT_BYTES} letters, digits, '-', '_' and '.', got '{value}'");
    Err(Error::invalid(field.to_owned(), told))
}

/// Whether it is a quantity of Kubernetes that is not negative: `1`, `0.5`, `500m`, `2Gi`, `1e3`.
fn is_quantity(text: &str) -> bool {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let (rest, some) = match digits.strip_prefix('.') {
        Some(fraction) => (
            fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
            text.len() - digits.len() + fraction.len() > 0,
        ),
        None => (digits, digits.len() < text.len()),
    };
    let suffixes = [
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    let exponent = |rest: &str| {
        rest.strip_prefix(['e', 'E'])
            .is_some_and(|number| number.parse::<i8>().is_ok())
    };
    some && (suffixes.contains(&rest) || exponent(rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fault(value: Value) -> String {
        let placement: Placement = serde_json::from_value(value).unwrap();
        let error = placement.validate("execution").unwrap_err();
        error.field().unwrap().to_owned()
    }

    #[test]
    fn what_is_sent_is_read_back() {
        let sent = json!({
            "image": "registry.example:5000/dbt@sha256:0123",
            "service_account": "analytics",
            "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}},
            "node_selector": {"kubernetes.io/arch": "arm64"},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}],
            "pod_overlay": {"spec": {"priorityClassName": "low"}},
        });
        let placement: Placement = serde_json::from_value(sent.clone()).unwrap();
        placement.validate("execution").unwrap();
        assert_eq!(serde_json::to_value(&placement).unwrap(), sent);
        assert_eq!(serde_json::to_value(Placement::default()).unwrap(), json!({}));
    }

    #[test]
    fn faults_name_their_field() {
        for (value, field) in [
            (json!({"image": "a b"}), "execution.image"),
            (json!({"image": ""}), "execution.image"),
            (json!({"service_account": "Root"}), "execution.service_account"),
            (
                json!({"resources": {"limits": {"cpu": "-1"}}}),
                "execution.resources.limits.cpu",
            ),
            (
                json!({"resources": {"requests": {"c p": "1"}}}),
                "execution.resources.requests",
            ),
            (json!({"node_selector": {"/x": "y"}}), "execution.node_selector"),
            (json!({"node_selector": {"x": "y z"}}), "execution.node_selector.x"),
            (
                json!({"tolerations": [{"operator": "Sometimes"}]}),
                "execution.tolerations.0.operator",
            ),
            (
                json!({"tolerations": [{"operator": "Equal"}]}),
                "execution.tolerations.0.key",
            ),
            (
                json!({"tolerations": [{"key": "a", "effect": "No"}]}),
                "execution.tolerations.0.effect",
            ),
            (json!({"pod_overlay": []}), "execution.pod_overlay"),
        ] {
            assert_eq!(fault(value.clone()), field, "{value}");
        }
    }

    #[test]
    fn unknown_fields_are_named() {
        for (sent, field) in [
            (json!({"imge": "x"}), "execution.imge"),
            (
                json!({"tolerations": [{"key": "a"}, {"key": "a", "efect": "x"}]}),
                "execution.tolerations.1.efect",
            ),
            (json!("small"), "execution"),
        ] {
            assert_eq!(Placement::parse("execution", &sent).unwrap_err().field(), Some(field));
        }
        assert!(
            Placement::parse("execution", &json!({"image": null, "node_selector": {}}))
                .unwrap()
                .is_default()
        );
    }

    #[test]
    fn quantities() {
        for fine in ["1", "0.5", ".5", "1.", "500m", "2Gi", "1e3", "1E-3", "128974848"] {
            assert!(is_quantity(fine), "{fine}");
        }
        for bad in ["", ".", "Gi", "-1", "1 Gi", "1gi", "1e", "two", "1GB"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
