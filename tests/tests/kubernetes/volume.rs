//! Volumes as claims: the contract, and a run and a service that share one.

use std::path::Path;
use std::sync::Arc;

use dbtcloud_contract::suite::Subject;
use dbtcloud_core::ErrorKind;
use dbtcloud_core::id::{AccountId, ProjectId, UserId};
use dbtcloud_core::ports::{Executor, Observation, Volume, VolumeId, Workload};
use dbtcloud_kubernetes::KubernetesVolume;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::stage::{Stage, ended, run, script, seen};

/// Directories of one file system that this process sees too, as a file server's provisioner makes them: what the
/// provisioner of the tests' own cluster makes is seen by its node alone.
struct Provisioner {
    task: tokio::task::JoinHandle<()>,
}

impl Provisioner {
    fn new(stage: &Stage, root: Arc<tempfile::TempDir>) -> Self {
        let (claims, client): (Api<PersistentVolumeClaim>, _) = (stage.namespace.api(), stage.namespace.client());
        let mut events = watcher(claims, watcher::Config::default()).default_backoff().boxed();
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(claim) | watcher::Event::InitApply(claim)) => {
                        make(&client, root.path(), &claim).await;
                    }
                    Ok(watcher::Event::Delete(claim)) => destroy(&client, root.path(), &claim).await,
                    _ => {}
                }
            }
        });
        Self { task }
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("{}-{}", claim.namespace().unwrap(), claim.name_any())
}

async fn make(client: &Client, root: &Path, claim: &PersistentVolumeClaim) {
    if claim.metadata.deletion_timestamp.is_some() {
        return;
    }
    let (namespace, name) = (claim.namespace().unwrap(), claim.name_any());
    let path = root.join(&namespace).join(&name);
    std::fs::create_dir_all(&path).unwrap();
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&path, anybody).unwrap();
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": volume_name(claim)},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "10Gi"},
            "claimRef": {"namespace": namespace, "name": name},
            "hostPath": {"path": path},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "of-the-tests",
        },
    }))
    .unwrap();
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let _ = volumes.create(&PostParams::default(), &volume).await;
}

async fn destroy(client: &Client, root: &Path, claim: &PersistentVolumeClaim) {
    let path = root.join(claim.namespace().unwrap()).join(claim.name_any());
    let _ = std::fs::remove_dir_all(path);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let _ = volumes.delete(&volume_name(claim), &DeleteParams::default()).await;
}

dbtcloud_contract::volume_suite!(contract, || async {
    let stage = Stage::new("volume").await;
    let root = Arc::new(tempfile::tempdir().unwrap());
    let provisioner = Provisioner::new(&stage, Arc::clone(&root));
    let options = stage.options().with_storage_class("of-the-tests");
    let volume = KubernetesVolume::open(options).await.unwrap().with_root(root.path());
    Subject::volume(volume)
        .keeping(root)
        .keeping(provisioner)
        .keeping(stage)
});

const ID: VolumeId = VolumeId {
    account: AccountId::new(1),
    project: ProjectId::new(2),
    user: UserId::new(3),
};

/// On the cluster's default class, as a pod sees it.
#[tokio::test]
async fn a_run_and_a_service_mount_one_volume_together() {
    let stage = Stage::new("shared").await;
    let executor = stage.executor().await;
    let volumes = KubernetesVolume::open(stage.options()).await.unwrap();
    volumes.ensure(ID).await.unwrap();
    let mount = volumes.mount(ID).await.unwrap();
    let unseen = volumes.path(ID).await.unwrap_err();
    assert_eq!(unseen.kind(), ErrorKind::Unavailable, "{unseen}");

    let at = mount.target.display();
    let mut service = script(
        run(1),
        &format!("trap 'exit 0' INT; httpd -f -p $DBTCLOUD_PORT -h {at} & wait"),
    );
    service.workload = Workload::Service;
    service.mounts = vec![mount.clone()];
    executor.start(&service).await.unwrap();
    let address = seen(&executor, run(1), |observation| match observation {
        Observation::Running { address } => address.clone(),
        _ => None,
    })
    .await;

    let mut task = script(run(2), &format!("echo written > {at}/model.sql"));
    task.mounts = vec![mount];
    executor.start(&task).await.unwrap();
    let exit = ended(&executor, run(2)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.message);
    let read = reqwest::get(format!("http://{address}/model.sql")).await.unwrap();
    assert_eq!(read.text().await.unwrap(), "written\n");

    executor.remove(run(2)).await.unwrap();
    executor.remove(run(1)).await.unwrap();
    volumes.remove(ID).await.unwrap();
    let gone = || async {
        let listed = volumes.list().await.unwrap();
        if listed.is_empty() { Ok(()) } else { Err(listed) }
    };
    dbtcloud_contract::wait::until(dbtcloud_tests::cluster::LIMIT, gone).await;
}
