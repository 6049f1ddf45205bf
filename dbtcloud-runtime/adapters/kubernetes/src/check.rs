//! Which rights are needed, and whether the cluster grants them: for `/readyz`, for the doctor and for tests.

use std::collections::BTreeMap;

use dbtcloud_core::Result;
use dbtcloud_core::environment::{Placement, object_name};
use dbtcloud_core::id::{AccountId, SessionId};
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Workload, WorkloadLimits};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::PostParams;

use crate::cluster::Cluster;
use crate::failure::{Failure, advice};
use crate::pod;

/// One verb on one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// `create`, `list`, …
    pub verb: &'static str,
    /// The API group; empty for the core.
    pub group: &'static str,
    /// `jobs`, `pods`, …
    pub resource: &'static str,
    /// What cannot be done without it.
    pub purpose: &'static str,
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

const fn right(verb: &'static str, group: &'static str, resource: &'static str, purpose: &'static str) -> Right {
    Right {
        verb,
        group,
        resource,
        purpose,
    }
}

pub(crate) const CREATE_JOBS: Right = right("create", "batch", "jobs", "starting runs");
pub(crate) const DELETE_JOBS: Right = right("delete", "batch", "jobs", "removing runs that are over");
pub(crate) const LIST_JOBS: Right = right("list", "batch", "jobs", "observing runs");
pub(crate) const PATCH_JOBS: Right = right("patch", "batch", "jobs", "cancelling runs that have no pod yet");
pub(crate) const WATCH_JOBS: Right = right("watch", "batch", "jobs", "observing runs");
pub(crate) const CREATE_PODS: Right = right("create", "", "pods", "starting develop sessions");
pub(crate) const DELETE_PODS: Right = right("delete", "", "pods", "cancelling runs");
pub(crate) const LIST_PODS: Right = right("list", "", "pods", "observing runs");
pub(crate) const PATCH_PODS: Right = right("patch", "", "pods", "letting go pods whose end is written down");
pub(crate) const WATCH_PODS: Right = right("watch", "", "pods", "observing runs");
pub(crate) const CREATE_SERVICES: Right = right("create", "", "services", "reaching develop sessions");
pub(crate) const LIST_SERVICES: Right = right("list", "", "services", "reaching develop sessions");
pub(crate) const LIST_EVENTS: Right = right("list", "", "events", "explaining why a run does not begin");
pub(crate) const CREATE_CLAIMS: Right = right("create", "", "persistentvolumeclaims", "making volumes");
pub(crate) const DELETE_CLAIMS: Right = right("delete", "", "persistentvolumeclaims", "removing volumes");
pub(crate) const LIST_CLAIMS: Right = right("list", "", "persistentvolumeclaims", "finding volumes");
/// Needed only where every account has a namespace of its own and nobody makes them beforehand.
pub(crate) const CREATE_NAMESPACES: Right = right("create", "", "namespaces", "making namespaces of accounts");
const REVIEW: Right = right(
    "create",
    "authorization.k8s.io",
    "selfsubjectaccessreviews",
    "asking what is allowed",
);
const GET_CLASS: Right = right("get", "storage.k8s.io", "storageclasses", "looking at the StorageClass");

/// Every right that is used in a namespace of runs; no other is.
pub const RIGHTS: [Right; 16] = [
    CREATE_JOBS,
    DELETE_JOBS,
    LIST_JOBS,
    PATCH_JOBS,
    WATCH_JOBS,
    CREATE_PODS,
    DELETE_PODS,
    LIST_PODS,
    PATCH_PODS,
    WATCH_PODS,
    CREATE_SERVICES,
    LIST_SERVICES,
    LIST_EVENTS,
    CREATE_CLAIMS,
    DELETE_CLAIMS,
    LIST_CLAIMS,
];

/// Provisioners whose volumes can be mounted on several nodes at one time, by a part of their names.
const READ_WRITE_MANY: [&str; 14] = [
    "efs",
    "nfs",
    "file.csi.azure",
    "azure-file",
    "filestore",
    "cephfs",
    "fsx.csi",
    "glusterfs",
    "longhorn",
    "portworx",
    "quobyte",
    "seaweedfs",
    "juicefs",
    "host-path",
];

/// What one question came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was asked about: `create jobs`, `pod`, `StorageClass efs`, `image runner:1`.
    pub about: String,
    /// What is wrong, and what to do about it; nothing when absent.
    pub fault: Option<String>,
    /// Whether nothing works without it.
    pub vital: bool,
}

/// What a look at the cluster came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The namespace that was asked about.
    pub namespace: String,
    /// The API server's version.
    pub version: String,
    /// Every answer, those about [`RIGHTS`] first and in their order.
    pub answers: Vec<Answer>,
}

impl Check {
    /// What is wrong, in one line; nothing when all is well.
    pub fn fault(&self) -> Option<String> {
        let faults: Vec<_> = self
            .answers
            .iter()
            .filter_map(|answer| answer.fault.as_deref())
            .collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }
}

/// Asks the API server one question that every right of ours allows.
pub(crate) async fn answers(cluster: &Cluster) -> Result<String> {
    let asked = cluster.client().apiserver_version();
    let version = cluster.call(&LIST_JOBS, cluster.namespace(), asked).await?;
    Ok(version.git_version)
}

/// Asks about every right, a pod as runs have it, the StorageClass and the image's name. Changes nothing.
pub(crate) async fn check(cluster: &Cluster) -> Result<Check> {
    let version = answers(cluster).await?;
    let mut all = Vec::new();
    for right in RIGHTS {
        let granted = is_granted(cluster, &right).await?;
        let fault = (!granted).then(|| {
            format!(
                "{} needs the verb {} on {} in namespace {}: add it to the Role",
                right.purpose,
                right.verb,
                right.resource,
                cluster.namespace()
            )
        });
        all.push(Answer {
            about: right.to_string(),
            fault,
            vital: true,
        });
    }
    all.push(pod_let_in(cluster).await?);
    all.push(storage_class(cluster).await?);
    let image = &cluster.options().image;
    let floats = !image.contains('@') && image.rsplit('/').next().is_none_or(|name| !name.contains(':'));
    all.push(Answer {
        about: format!("image {image}"),
        fault: floats.then(|| "it has no tag: name a version, so that all runs have the same one".to_owned()),
        vital: false,
    });
    Ok(Check {
        namespace: cluster.namespace().to_owned(),
        version,
        answers: all,
    })
}

/// Whether the namespace is there and lets a pod of ours in: by Pod Security, quota, webhooks, and what the overlay
/// says. The API server is asked to make one, and to make it not.
async fn pod_let_in(cluster: &Cluster) -> Result<Answer> {
    let spec = ExecutionSpec {
        id: ExecutionId::Session {
            session: SessionId::new(0),
            generation: 0,
        },
        account: AccountId::new(0),
        workload: Workload::Service,
        command: vec!["dbtcloud".to_owned()],
        environment: BTreeMap::new(),
        ticket: None,
        placement: Placement::default(),
        mounts: Vec::new(),
        limits: WorkloadLimits::default(),
    };
    let answer = |fault| Answer {
        about: "pod".to_owned(),
        fault,
        vital: true,
    };
    let pod = match pod::service_pod(cluster.options(), &spec) {
        Ok(pod) => pod,
        Err(error) => return Ok(answer(Some(error.chain()))),
    };
    let (namespace, api) = (cluster.namespace(), cluster.within::<Pod>(cluster.namespace()));
    let trial = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let fault = match cluster.ask(&CREATE_PODS, namespace, api.create(&trial, &pod)).await {
        // The right is asked for by itself.
        Ok(_) | Err(Failure::Exists | Failure::Changed | Failure::Denied(_)) => None,
        Err(Failure::NotFound(_)) if cluster.options().namespace_per_account => None,
        Err(Failure::NotFound(_)) => Some(format!("there is no namespace {namespace}: make it, or name another")),
        Err(Failure::Refused(told)) => Some(advice(&told)),
        Err(away) => return Err(away.into()),
    };
    Ok(answer(fault))
}

async fn is_granted(cluster: &Cluster, right: &Right) -> Result<bool> {
    let namespace = (!cluster.options().namespace_per_account).then(|| cluster.namespace().to_owned());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(right.verb.to_owned()),
                group: Some(right.group.to_owned()),
                resource: Some(right.resource.to_owned()),
                namespace,
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client().clone());
    let plain = PostParams::default();
    let asked = api.create(&plain, &review);
    let answer = cluster.call(&REVIEW, cluster.namespace(), asked).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Whether the StorageClass is there and its volumes can be shared, as far as its name tells.
async fn storage_class(cluster: &Cluster) -> Result<Answer> {
    let Some(name) = &cluster.options().storage_class else {
        return Ok(Answer {
            about: "StorageClass".to_owned(),
            fault: Some(
                "none is named, so volumes are of the cluster's default class, which is seldom read-write-many: set \
                 kubernetes_storage_class"
                    .to_owned(),
            ),
            vital: false,
        });
    };
    object_name("kubernetes_storage_class", name)?;
    let api: Api<StorageClass> = Api::all(cluster.client().clone());
    let fault = match cluster.ask(&GET_CLASS, "(cluster)", api.get_opt(name)).await {
        Ok(Some(class)) => {
            let shared = READ_WRITE_MANY.iter().any(|part| class.provisioner.contains(part));
            (!shared).then(|| {
                format!(
                    "volumes of {} are usually of one node at a time; several pods need one that can ReadWriteMany",
                    class.provisioner
                )
            })
        }
        Ok(None) => Some("it is not there: make it, or name another".to_owned()),
        Err(Failure::Denied(_)) => {
            Some("whether it is there cannot be told without the verb get on storageclasses".to_owned())
        }
        Err(failure) => return Err(failure.into()),
    };
    Ok(Answer {
        about: format!("StorageClass {name}"),
        fault,
        vital: false,
    })
}
