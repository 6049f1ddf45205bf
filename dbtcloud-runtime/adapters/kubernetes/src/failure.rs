//! What a call of the API server came to, when it did not come to what was asked.

use dbtcloud_core::{Error, ErrorKind};
use kube::core::Status;

use crate::check::Right;

/// Why a call did nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The object is not there, or its namespace is not.
    NotFound(String),
    /// An object of this name is there.
    Exists,
    /// It has changed since it was read.
    Changed,
    /// The API server or an admission controller does not want it: the same again may be wanted later or never.
    Refused(String),
    /// A right is missing, or the credentials are not believed.
    Denied(String),
    /// No answer, or none that can be understood.
    Away(String, Option<Box<dyn std::error::Error + Send + Sync>>),
}

impl Failure {
    pub(crate) fn of(right: &Right, namespace: &str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::told(right, namespace, *status),
            kube::Error::Auth(error) => Self::Denied(format!("the credentials for the cluster cannot be had: {error}")),
            error => Self::Away(
                format!("the cluster's API server did not answer ({right})"),
                Some(error.into()),
            ),
        }
    }

    fn told(right: &Right, namespace: &str, status: Status) -> Self {
        let message = status.message.clone();
        match (status.code, status.reason.as_str()) {
            (401, _) => Self::Denied(
                "the cluster does not believe the credentials (401): the token has expired or is another cluster's; \
                 renew it, or choose another context"
                    .to_owned(),
            ),
            (404, _) => Self::NotFound(message),
            (409, "AlreadyExists") => Self::Exists,
            // Also what a namespace says that is about to go.
            (409, _) => Self::Changed,
            (403, _) if is_rbac(&message) => Self::Denied(format!(
                "the cluster does not allow to {right} in namespace {namespace}: add verb {} on {} to the Role \
                 (examples/deploy/kustomize/base/role.yaml has all that are needed); it said: {message}",
                right.verb, right.resource
            )),
            (400 | 403 | 413 | 422, _) => Self::Refused(message),
            _ => Self::Away(
                format!("the cluster's API server could not do it ({right})"),
                Some(status.into()),
            ),
        }
    }
}

fn is_rbac(message: &str) -> bool {
    message.contains(" cannot ") && message.contains(" resource ")
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(message) => Self::new(ErrorKind::NotFound, message),
            Failure::Exists => Self::new(ErrorKind::AlreadyExists, "it is there already"),
            Failure::Changed => Self::unavailable("it changes at the same time"),
            Failure::Refused(message) => match will_heal(&message) {
                Heals::Never => Self::new(ErrorKind::Invalid, advice(&message)),
                Heals::Within(_) | Heals::Perhaps => Self::unavailable(advice(&message)),
            },
            Failure::Denied(message) => Self::new(ErrorKind::Denied, message),
            Failure::Away(message, None) => Self::unavailable(message),
            Failure::Away(message, Some(source)) => Self::unavailable(message).because(source),
        }
    }
}

/// Whether what is in the way can go away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heals {
    /// It cannot.
    Never,
    /// It is given so much time, and then called hopeless.
    Within(std::time::Duration),
    /// It can; who waits decides how long.
    Perhaps,
}

/// How long a service account may take to be made.
pub(crate) const SERVICE_ACCOUNT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

/// Whether a pod that was refused with these words will be let in later.
pub(crate) fn will_heal(message: &str) -> Heals {
    if message.contains("exceeded quota") {
        return if fits_quota(message) {
            Heals::Perhaps
        } else {
            Heals::Never
        };
    }
    if message.contains("serviceaccount \"") && message.contains("not found") {
        return Heals::Within(SERVICE_ACCOUNT_PATIENCE);
    }
    if message.contains("failed calling webhook") || message.contains("timeout") {
        return Heals::Perhaps;
    }
    Heals::Never
}

/// Whether what was asked would fit into the quota if nothing else were there. The API server says
/// `exceeded quota: NAME, requested: cpu=2,pods=1, used: …, limited: cpu=1,pods=0`.
fn fits_quota(message: &str) -> bool {
    let part = |name: &str| -> Vec<(&str, f64)> {
        let Some((_, rest)) = message.split_once(&format!("{name}: ")) else {
            return Vec::new();
        };
        let end = [", used: ", ", limited: "]
            .iter()
            .filter_map(|end| rest.find(end))
            .min()
            .unwrap_or(rest.len());
        let pairs = rest[..end].split(',').filter_map(|pair| pair.trim().split_once('='));
        pairs
            .filter_map(|(what, amount)| Some((what, quantity(amount)?)))
            .collect()
    };
    let limits = part("limited");
    part("requested").iter().all(|(what, asked)| {
        limits
            .iter()
            .find(|(limited, _)| limited == what)
            .is_none_or(|(_, limit)| asked <= limit)
    })
}

/// A quantity as a number: `500m`, `2Gi`, `1`.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok()?;
    let factor = match &text[digits.len()..] {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number * factor)
}

/// What a refusal means and what to do about it, before its own words.
pub(crate) fn advice(message: &str) -> String {
    let means = if message.contains("exceeded quota") {
        if fits_quota(message) {
            "the namespace's quota is used up; it waits until others end"
        } else {
            "it asks for more than the namespace's quota has at all: ask for less, or raise the quota"
        }
    } else if message.contains("failed quota") {
        "the namespace's quota wants resources to be named: set execution.resources of the environment"
    } else if message.contains("violates PodSecurity") {
        "the namespace's Pod Security level does not let the pod in: take out of the overlay what it names"
    } else if message.contains("failed calling webhook") {
        "an admission webhook of the cluster does not answer"
    } else if message.contains("denied the request") || message.contains("ValidatingAdmissionPolicy") {
        "an admission policy of the cluster denies it: ask whoever keeps the policy"
    } else if message.contains("serviceaccount \"") && message.contains("not found") {
        "its service account is not there: make it, or name another"
    } else if message.contains("being terminated") {
        "its namespace is being deleted"
    } else if message.contains("is invalid") {
        "the API server cannot accept the pod: mend the overlay or the environment's execution"
    } else {
        "the API server refuses it"
    };
    format!("{means} ({message})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_that_can_never_be_kept_are_told_apart() {
        let said = |requested, limited| {
            format!(
                "pods \"x\" is forbidden: exceeded quota: q, requested: {requested}, used: pods=0, limited: {limited}"
            )
        };
        assert_eq!(will_heal(&said("pods=1", "pods=10")), Heals::Perhaps);
        assert_eq!(will_heal(&said("pods=1", "pods=0")), Heals::Never);
        assert_eq!(
            will_heal(&said("limits.memory=2Gi,pods=1", "limits.memory=1Gi,pods=9")),
            Heals::Never
        );
        assert_eq!(will_heal(&said("requests.cpu=500m", "requests.cpu=1")), Heals::Perhaps);
    }
}
