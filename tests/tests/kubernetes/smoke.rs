//! The cluster does what a cluster does; without that, the failures of the others would be riddles.

use dbtcloud_contract::wait::until;
use dbtcloud_tests::cluster::{self, LIMIT, Namespace};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams, LogParams, PostParams};
use serde_json::json;

#[tokio::test]
async fn a_job_of_nobody_writes_to_a_shared_volume_and_says_so() {
    let namespace = Namespace::labelled("smoke", &[("pod-security.kubernetes.io/enforce", "restricted")]).await;
    let claims: Api<PersistentVolumeClaim> = namespace.api();
    let claim = json!({
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let claim = serde_json::from_value(claim).unwrap();
    claims.create(&PostParams::default(), &claim).await.unwrap();

    let jobs: Api<Job> = namespace.api();
    let script = "id -u > /shared/who && cat /shared/who && ! touch /here 2>/dev/null";
    let job = json!({
        "metadata": {"name": "smoke"},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "shell", "image": cluster::busybox(), "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            }],
            "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}],
        }}},
    });
    let job = serde_json::from_value(job).unwrap();
    jobs.create(&PostParams::default(), &job).await.unwrap();
    until(LIMIT, || async {
        let status = jobs.get("smoke").await.unwrap().status.unwrap_or_default();
        if status.succeeded == Some(1) {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;

    let pods: Api<Pod> = namespace.api();
    let of_job = ListParams::default().labels("job-name=smoke");
    let pod = pods.list(&of_job).await.unwrap().items.remove(0).metadata.name.unwrap();
    let log = pods.logs(&pod, &LogParams::default()).await.unwrap();
    assert_eq!(log, "65532\n");
    // What kubectl sees is what the client sees.
    assert_eq!(namespace.kubectl(&["logs", "job/smoke"]), log);
}
