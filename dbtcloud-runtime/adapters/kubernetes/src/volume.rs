//! [`KubernetesVolume`]: the volume port as persistent volume claims.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, ProjectId, UserId};
use dbtcloud_core::ports::{Mount, Volume, VolumeId};
use dbtcloud_core::{Error, Result};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::check::{CREATE_CLAIMS, DELETE_CLAIMS, LIST_CLAIMS};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::options::Options;

/// Where workloads see their volume.
const TARGET: &str = "/volume";
/// How long a claim may take to be bound, and to go, where this process sees the volumes.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it is.
const PAUSE: Duration = Duration::from_millis(200);

/// Volumes as read-write-many claims, one for each account, project and user.
///
/// Their StorageClass must let several nodes mount one volume at a time; size and class are the options'. A claim
/// lives in the namespace of its account's executions, and `mount` gives its name, which the executor attaches
/// at `/volume`. What becomes of the data of a removed claim is decided by the class's reclaim policy (`Delete`
/// destroys it) and, where this process sees the volumes, by this process, which empties them first.
///
/// A claim that pods still mount goes when they do: Kubernetes protects it so long, and `list` shows it so long.
#[derive(Clone)]
pub struct KubernetesVolume {
    cluster: Arc<Cluster>,
    root: Option<PathBuf>,
}

impl std::fmt::Debug for KubernetesVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesVolume")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl KubernetesVolume {
    /// Opens the volumes of a cluster. Nothing is asked of it yet.
    ///
    /// # Errors
    /// `Invalid` for options that cannot be meant and credentials that cannot be read.
    pub async fn open(options: Options) -> Result<Self> {
        Ok(Self {
            cluster: Cluster::open(options).await?,
            root: None,
        })
    }

    /// Where this process sees the volumes: each as `<namespace>/<claim>` below `root`. (For CSI drivers that
    /// make directories of a shared file system: name them by `${pvc.metadata.namespace}/${pvc.metadata.name}`.)
    /// Without it `path` is `Unavailable`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    fn name_of(&self, id: VolumeId) -> String {
        self.cluster.options().name_of(&id.to_string())
    }

    fn directory(&self, root: &Path, id: VolumeId) -> PathBuf {
        root.join(self.cluster.namespace_of(id.account)).join(self.name_of(id))
    }

    fn claims(&self, id: VolumeId) -> Api<PersistentVolumeClaim> {
        self.cluster.within(&self.cluster.namespace_of(id.account))
    }

    async fn find(&self, id: VolumeId) -> Result<Option<PersistentVolumeClaim>, Failure> {
        let api = self.claims(id);
        let by_name = ListParams::default().fields(&format!("metadata.name={}", self.name_of(id)));
        let namespace = self.cluster.namespace_of(id.account);
        let listed = self.cluster.call(&LIST_CLAIMS, &namespace, api.list(&by_name)).await?;
        Ok(listed.items.into_iter().next())
    }

    /// The claim, which must be there and not about to go.
    async fn existing(&self, id: VolumeId) -> Result<PersistentVolumeClaim> {
        match self.find(id).await? {
            Some(claim) if claim.metadata.deletion_timestamp.is_none() => Ok(claim),
            _ => Err(Error::not_found("volume", id)),
        }
    }

    fn claim(&self, id: VolumeId) -> Result<PersistentVolumeClaim> {
        let options = self.cluster.options();
        let claim = json!({
            "metadata": {
                "name": self.name_of(id),
                "labels": {
                    "app.kubernetes.io/managed-by": "dbtcloud",
                    "dbtcloud.dev/installation": options.installation_label(),
                    "dbtcloud.dev/account": id.account.to_string(),
                    "dbtcloud.dev/project": id.project.to_string(),
                    "dbtcloud.dev/user": id.user.to_string(),
                },
            },
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": options.storage_class,
                "resources": {"requests": {"storage": options.volume_size}},
            },
        });
        serde_json::from_value(claim).map_err(|error| Error::invalid("kubernetes_volume_size", error))
    }

    /// Waits until something about a claim is so.
    async fn until<T, F>(&self, id: VolumeId, what: &str, mut look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let begin = Instant::now();
        loop {
            if let Some(done) = look().await? {
                return Ok(done);
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::unavailable(format!("volume {id} {what} within {PATIENCE:?}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[async_trait]
impl Volume for KubernetesVolume {
    async fn ensure(&self, id: VolumeId) -> Result<()> {
        let namespace = self.cluster.namespace_of(id.account);
        let claim = self.claim(id)?;
        let mut made_namespace = false;
        loop {
            let api = self.claims(id);
            let plain = PostParams::default();
            let asked = api.create(&plain, &claim);
            match self.cluster.call(&CREATE_CLAIMS, &namespace, asked).await {
                Ok(_) => break,
                // One that is about to go is made anew when it has gone.
                Err(Failure::Exists) => match self.existing(id).await {
                    Ok(_) => break,
                    Err(_) => {
                        let told = format!("volume {id} is being removed; what mounts it must end first");
                        return Err(Error::unavailable(told));
                    }
                },
                Err(Failure::NotFound(_)) if self.cluster.options().namespace_per_account && !made_namespace => {
                    self.cluster.make_namespace(&namespace).await?;
                    made_namespace = true;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        let Some(root) = &self.root else { return Ok(()) };
        let directory = self.directory(root, id);
        self.until(id, "was not provisioned", || async {
            let claim = self.find(id).await?;
            let phase = claim.and_then(|claim| claim.status?.phase);
            let there = tokio::fs::metadata(&directory).await.is_ok();
            Ok((phase.as_deref() == Some("Bound") && there).then_some(()))
        })
        .await
    }

    async fn mount(&self, id: VolumeId) -> Result<Mount> {
        Ok(Mount {
            source: self.existing(id).await?.name_any(),
            target: PathBuf::from(TARGET),
        })
    }

    async fn path(&self, id: VolumeId) -> Result<PathBuf> {
        self.existing(id).await?;
        let Some(root) = &self.root else {
            return Err(Error::unavailable(format!("volume {id} is seen by pods only")));
        };
        let directory = self.directory(root, id);
        match tokio::fs::metadata(&directory).await {
            Ok(meta) if meta.is_dir() => Ok(directory),
            _ => Err(Error::unavailable(format!(
                "volume {id} is not at {}",
                directory.display()
            ))),
        }
    }

    async fn remove(&self, id: VolumeId) -> Result<()> {
        if let Some(root) = &self.root {
            empty(&self.directory(root, id))
                .await
                .map_err(|error| Error::unavailable(format!("volume {id} cannot be emptied")).because(error))?;
        }
        let api = self.claims(id);
        let namespace = self.cluster.namespace_of(id.account);
        let name = self.name_of(id);
        let plain = DeleteParams::default();
        let asked = api.delete(&name, &plain);
        match self.cluster.call(&DELETE_CLAIMS, &namespace, asked).await {
            Ok(_) | Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure.into()),
        }
        if self.root.is_some() {
            let gone = || async { Ok(self.find(id).await?.is_none().then_some(())) };
            self.until(id, "did not go", gone).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<VolumeId>> {
        let api: Api<PersistentVolumeClaim> = self.cluster.anywhere();
        let ours = ListParams::default().labels(&self.cluster.selector());
        let listed = self
            .cluster
            .call(&LIST_CLAIMS, self.cluster.namespace(), api.list(&ours))
            .await?;
        let mut all: Vec<_> = listed.items.iter().filter_map(id_of).collect();
        all.sort();
        Ok(all)
    }
}

fn id_of(claim: &PersistentVolumeClaim) -> Option<VolumeId> {
    let label = |name: &str| claim.labels().get(name)?.parse::<i64>().ok();
    Some(VolumeId {
        account: AccountId::new(label("dbtcloud.dev/account")?),
        project: ProjectId::new(label("dbtcloud.dev/project")?),
        user: UserId::new(label("dbtcloud.dev/user")?),
    })
}

/// Takes everything out of a directory, which stays: it is mounted.
async fn empty(directory: &Path) -> std::io::Result<()> {
    let mut entries = match tokio::fs::read_dir(directory).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_type().await?.is_dir() {
            tokio::fs::remove_dir_all(entry.path()).await?;
        } else {
            tokio::fs::remove_file(entry.path()).await?;
        }
    }
    Ok(())
}
