//! [`KubernetesExecutor`]: the executor port as Jobs and Pods.

mod calls;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dbtcloud_core::ports::{Execution, ExecutionId, ExecutionSpec, Executor, Observation, Workload};
use dbtcloud_core::{Error, Result, Timestamp};
use futures::{TryFutureExt, try_join};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cache::{Cache, execution};
use crate::check::{
    self, CREATE_JOBS, CREATE_PODS, CREATE_SERVICES, Check, DELETE_JOBS, DELETE_PODS, LIST_EVENTS, LIST_JOBS,
    LIST_PODS, LIST_SERVICES, PATCH_JOBS, PATCH_PODS, Right, WATCH_JOBS, WATCH_PODS,
};
use crate::cluster::Cluster;
use crate::explain::{self, Seen, explain, grace_of, has_ended, instant, is_leaving, is_over, unconfirmed};
use crate::failure::{Failure, Heals, will_heal};
use crate::options::Options;
use crate::pod::{self, CANCELLED, EXECUTION, FINALIZER, SERVICE_PORT, VERDICT};

/// How long a Job without a pod and a pod that does not begin wait before their events are read, and how long until
/// they are read again.
const EVENTS_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(6)];
const EVENTS_EVERY: Duration = Duration::from_secs(5);
/// How long after its grace the end of a pod may remain unconfirmed, until its node is called lost.
const LOST_PATIENCE: Duration = Duration::from_secs(30);
/// How long a removal waits for the end of what still runs.
const REMOVE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a wait for a change goes on before it looks again by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often a start is tried while a new namespace has no service account yet, and how far apart.
const START_TRIES: u32 = 10;
const START_PAUSE: Duration = Duration::from_millis(300);
/// How often a change is tried that others make at the same time.
const CHANGE_TRIES: u32 = 10;
/// How long the way to a service may take to answer, and until when it is told although it does not: whoever asks
/// may have another way.
const CONNECT_PATIENCE: Duration = Duration::from_millis(250);
const WAY_PATIENCE: Duration = Duration::from_secs(5);
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// Executions in a cluster: a task is a Job, a service a Pod with a Service before it.
///
/// Everything that is known of an execution is in the cluster, by labels; any number of instances may work
/// there. The name of the Job or Pod is the execution's, behind the installation's where it has one.
///
/// - **Start**: the creation of the Job (of the Pod) is the start; a second one of the same name is refused by
///   the API server, and that is `Ok`.
/// - **End**: the pod has the finalizer `dbtcloud.dev/outcome`, so that its end can be read whatever deletes it,
///   until `remove` takes the finalizer away.
/// - **Observation**: what waits or runs is told by watches, without a request. What ends a run (it has ended, it is
///   not there) is asked of the API server first. A run that goes well takes seven requests: two when it is looked
///   for before its start, one to start, two to confirm its end, two to remove it.
/// - **Environment**: the specification's over the image's own. `DBTCLOUD_TICKET` is in the pod's specification,
///   which whoever may read Jobs can read: it works once and expires. A service is told its port by `DBTCLOUD_PORT`.
/// - **Interrupt**: the kubelet sends the image's `STOPSIGNAL` (SIGINT for the images of this project), and SIGKILL
///   after the grace, in whole seconds, at least one.
/// - **Descendants** end with the container, whose process is the first of its pid namespace.
/// - **Exit code or signal**: codes from 129 to 192 are told as signals.
/// - **Lifetime**: `activeDeadlineSeconds`, enforced by the cluster.
/// - **Placement** is honoured whole. The environment's service account is used without its token.
/// - **Refusals** of the API server or of admission that cannot heal are told at once, as `Invalid` by `start` or as
///   an end by `observe`; what may heal is a reason to wait.
///
/// Its methods need a tokio runtime with time and I/O enabled; two tasks of it watch from the first look until the
/// last clone is dropped.
///
/// ```no_run
/// use dbtcloud_kubernetes::{Access, KubernetesExecutor, Options};
/// # async fn example() -> dbtcloud_core::Result<()> {
/// let options = Options::new(Access::InCluster, "registry.example/dbtcloud-runner:1.11");
/// let executor = KubernetesExecutor::open(options).await?;
/// assert_eq!(executor.check().await?.fault(), None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KubernetesExecutor {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for KubernetesExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesExecutor")
            .field("namespace", &self.inner.cluster.namespace())
            .finish_non_exhaustive()
    }
}

struct Inner {
    cluster: Arc<Cluster>,
    /// From the first look on: whoever starts nothing watches nothing.
    watches: OnceLock<(Cache<Job>, Cache<Pod>)>,
    changed: Arc<Notify>,
    waits: Mutex<HashMap<ExecutionId, Wait>>,
    addresses: Mutex<HashMap<ExecutionId, Address>>,
}

/// Where a service answers.
#[derive(Clone)]
struct Address {
    text: String,
    since: Instant,
    answers: bool,
}

/// What is remembered of an execution that has not begun. Forgetting it costs patience, nothing else.
struct Wait {
    since: Instant,
    /// Since when it is in a state that is given some time.
    trouble: Option<Instant>,
    asked: Option<Instant>,
    note: Option<String>,
}

/// What there is of an execution.
#[derive(Clone, Default)]
struct Found {
    job: Option<Arc<Job>>,
    pod: Option<Arc<Pod>>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.job.is_none() && self.pod.is_none()
    }

    fn explain(&self, note: Option<&str>) -> Seen {
        explain(self.job.as_deref(), self.pod.as_deref(), note)
    }
}

impl KubernetesExecutor {
    /// Opens the executions of a cluster. Nothing is asked of it yet, and it need not answer.
    ///
    /// # Errors
    /// `Invalid` for options that cannot be meant and credentials that cannot be read.
    pub async fn open(options: Options) -> Result<Self> {
        let cluster = Cluster::open(options).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                watches: OnceLock::new(),
                cluster,
                changed: Arc::new(Notify::new()),
                waits: Mutex::default(),
                addresses: Mutex::default(),
            }),
        })
    }

    /// Asks about every right that is needed, the StorageClass and the image. Changes nothing.
    ///
    /// # Errors
    /// `Unavailable` when the API server does not answer; `Denied` when it does not believe who asks.
    pub async fn check(&self) -> Result<Check> {
        check::check(&self.inner.cluster).await
    }

    /// Asks whether the API server answers, in one request, and whether the watches are allowed.
    ///
    /// # Errors
    /// `Unavailable` when it does not; `Denied`, naming the verb that is missing.
    pub async fn answers(&self) -> Result<()> {
        self.inner.denial()?;
        check::answers(&self.inner.cluster).await.map(|_| ())
    }

    /// How many requests were made so far; watches are not counted.
    pub fn requests(&self) -> u64 {
        self.inner.cluster.requests()
    }
}

impl Inner {
    fn watches(&self) -> &(Cache<Job>, Cache<Pod>) {
        self.watches.get_or_init(|| {
            let changed = || Arc::clone(&self.changed);
            (
                Cache::watch(&self.cluster, [&LIST_JOBS, &WATCH_JOBS], changed()),
                Cache::watch(&self.cluster, [&LIST_PODS, &WATCH_PODS], changed()),
            )
        })
    }

    fn jobs(&self) -> &Cache<Job> {
        &self.watches().0
    }

    fn pods(&self) -> &Cache<Pod> {
        &self.watches().1
    }

    fn denial(&self) -> Result<()> {
        match self.jobs().denial().or_else(|| self.pods().denial()) {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<ExecutionId, Wait>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<ExecutionId, Address>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name_of(&self, id: ExecutionId) -> String {
        self.cluster.options().name_of(&id.to_string())
    }

    /// What the watches know; nothing when they are not to be relied upon.
    fn cached(&self, id: ExecutionId) -> Option<Found> {
        Some(Found {
            job: self.jobs().get(id)?,
            pod: self.pods().get(id)?,
        })
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        self.denial()?;
        let found = match self.cached(id).filter(|found| !found.is_empty()) {
            // What ends a run is asked, not remembered.
            Some(found) if matches!(found.explain(None), Seen::Exited(_)) => self.ask(id).await?,
            // A Job that is over has had a pod.
            Some(found) if found.pod.is_none() && found.job.as_deref().is_some_and(is_over) => self.ask(id).await?,
            Some(found) => found,
            None => self.ask(id).await?,
        };
        if found.is_empty() {
            return Ok(Observation::Absent);
        }
        match found.explain(None) {
            Seen::Exited(exit) => Ok(Observation::Exited(exit)),
            Seen::Running { ready } => {
                if let Some(pod) = found.pod.as_deref().filter(|pod| is_leaving(pod)) {
                    let heals = Heals::Within(grace_of(pod).saturating_add(LOST_PATIENCE));
                    return match self.wait(id, &found, unconfirmed(pod), heals).await? {
                        Observation::Pending { .. } => Ok(Observation::Running { address: None }),
                        lost => Ok(lost),
                    };
                }
                self.waits().remove(&id);
                let address = match &found.pod {
                    Some(pod) if ready && found.job.is_none() => self.address(id, pod).await?,
                    _ => None,
                };
                Ok(Observation::Running { address })
            }
            Seen::Pending { ask, .. } => {
                let note = if ask { self.note(id, &found).await? } else { None };
                match found.explain(note.as_deref()) {
                    Seen::Pending { reason, heals, .. } => self.wait(id, &found, reason, heals).await,
                    other => Err(Error::unavailable(format!(
                        "{id} changed while it was looked at ({other:?})"
                    ))),
                }
            }
        }
    }

    /// The newest warning about something that does not begin, read now and then.
    async fn note(&self, id: ExecutionId, found: &Found) -> Result<Option<String>> {
        let now = Instant::now();
        {
            let mut waits = self.waits();
            let wait = waits.entry(id).or_insert(Wait {
                since: now,
                trouble: None,
                asked: None,
                note: None,
            });
            let due = wait
                .asked
                .map_or(EVENTS_AFTER[usize::from(found.pod.is_some())], |asked| {
                    asked.duration_since(wait.since) + EVENTS_EVERY
                });
            if now.duration_since(wait.since) < due {
                return Ok(wait.note.clone());
            }
            wait.asked = Some(now);
        }
        let meta = match (&found.pod, &found.job) {
            (Some(pod), _) => pod.meta(),
            (None, Some(job)) => job.meta(),
            (None, None) => return Ok(None),
        };
        let api: Api<Event> = self.cluster.within(meta.namespace.as_deref().unwrap_or_default());
        let about = format!(
            "involvedObject.uid={},type=Warning",
            meta.uid.as_deref().unwrap_or_default()
        );
        let listed = self
            .call(&LIST_EVENTS, api.list(&ListParams::default().fields(&about)))
            .await?;
        let newest = listed.items.into_iter().max_by_key(seen_at);
        let note = newest.and_then(|event| event.message);
        if let Some(wait) = self.waits().get_mut(&id) {
            wait.note.clone_from(&note);
        }
        Ok(note)
    }

    /// Goes on waiting, or no more.
    async fn wait(&self, id: ExecutionId, found: &Found, reason: String, heals: Heals) -> Result<Observation> {
        let now = Instant::now();
        let (since, hopeless) = {
            let mut waits = self.waits();
            let wait = waits.entry(id).or_insert(Wait {
                since: now,
                trouble: None,
                asked: None,
                note: None,
            });
            let hopeless = match heals {
                Heals::Never => true,
                Heals::Perhaps => {
                    wait.trouble = None;
                    false
                }
                Heals::Within(patience) => wait.trouble.get_or_insert(now).elapsed() >= patience,
            };
            (wait.since, hopeless)
        };
        if !hopeless {
            return Ok(Observation::Pending { reason });
        }
        // Times are the cluster's: when it was made or told to end, and how long we have waited since we first saw it.
        let made = match found {
            Found { pod: Some(pod), .. } if is_leaving(pod) => instant(pod.metadata.deletion_timestamp.as_ref()),
            Found { job: Some(job), .. } => instant(job.metadata.creation_timestamp.as_ref()),
            Found { pod: Some(pod), .. } => instant(pod.metadata.creation_timestamp.as_ref()),
            _ => Timestamp::EPOCH,
        };
        let verdict = explain::write_verdict(made.plus(since.elapsed()), &reason);
        self.settle(found, &verdict).await?;
        match self.ask(id).await?.explain(None) {
            Seen::Exited(exit) => Ok(Observation::Exited(exit)),
            _ => Ok(Observation::Pending { reason }),
        }
    }

    /// Writes down that it is over, because it will never begin or is never told to have ended, and sees to it.
    async fn settle(&self, found: &Found, verdict: &str) -> Result<(), Failure> {
        let annotated = json!({"metadata": {"annotations": {VERDICT: verdict}}});
        if let Some(job) = &found.job {
            let mut suspended = annotated;
            suspended["spec"] = json!({"suspend": true});
            self.patch(&PATCH_JOBS, self.jobs(), job.as_ref(), &suspended).await?;
        } else if let Some(pod) = &found.pod {
            self.patch(&PATCH_PODS, self.pods(), pod.as_ref(), &annotated).await?;
        }
        match &found.pod {
            Some(pod) => self.delete_pod(pod, 1).await,
            None => Ok(()),
        }
    }

    /// The address of a service that is ready. Its Service is made good should it be missing.
    async fn address(&self, id: ExecutionId, pod: &Pod) -> Result<Option<String>, Failure> {
        let known = self.addresses().get(&id).cloned();
        let address = match known {
            Some(address) if address.answers => return Ok(Some(address.text)),
            Some(address) => address,
            None => match self.find_address(id, pod).await? {
                Some(text) => Address {
                    text,
                    since: Instant::now(),
                    answers: false,
                },
                None => return Ok(None),
            },
        };
        // A pod that is ready is not reached at once: the nodes have to learn the way.
        let answers = address.since.elapsed() > WAY_PATIENCE || answers(&address.text).await;
        let told = answers.then(|| address.text.clone());
        self.addresses().insert(id, Address { answers, ..address });
        Ok(told)
    }

    async fn find_address(&self, id: ExecutionId, pod: &Pod) -> Result<Option<String>, Failure> {
        let api: Api<Service> = self.cluster.within(&namespace_of(pod));
        let by_name = ListParams::default().fields(&format!("metadata.name={}", self.name_of(id)));
        let listed = self.call(&LIST_SERVICES, api.list(&by_name)).await?;
        let service = match listed.items.into_iter().next() {
            Some(service) => Some(service),
            None => self.make_service(id, pod).await?,
        };
        let ip = service.and_then(|service| service.spec?.cluster_ip);
        Ok(ip.map(|ip| format!("{ip}:{SERVICE_PORT}")))
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<(), Failure> {
        let seconds = grace.as_millis().div_ceil(1000).max(1);
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        // Looked at twice where there is no pod yet: one may be made at the same time.
        for last in [false, true] {
            let found = self.ask(id).await?;
            if matches!(found.explain(None), Seen::Exited(_)) {
                return Ok(());
            }
            if let Some(pod) = &found.pod {
                if !pod.annotations().contains_key(CANCELLED) {
                    let mark = json!({"metadata": {"annotations": {CANCELLED: "true"}}});
                    self.patch(&PATCH_PODS, self.pods(), pod.as_ref(), &mark).await?;
                }
                return self.delete_pod(pod, seconds).await;
            }
            let Some(job) = found.job.filter(|_| !last) else {
                return Ok(());
            };
            let mark = json!({"metadata": {"annotations": {CANCELLED: "true"}}, "spec": {"suspend": true}});
            self.patch(&PATCH_JOBS, self.jobs(), job.as_ref(), &mark).await?;
        }
        Ok(())
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        let begin = Instant::now();
        let mut told = false;
        let mut found = match self.cached(id).filter(|found| found.pod.is_some()) {
            Some(found) => found,
            None => self.ask(id).await?,
        };
        loop {
            let changed = self.changed.notified();
            let Some(pod) = &found.pod else { break };
            // Also one that is not told to have ended, on a node that is lost.
            if matches!(found.explain(None), Seen::Exited(_)) {
                let is_task = pod.labels().contains_key("batch.kubernetes.io/job-name");
                self.release(id, pod, is_task).await?;
                break;
            }
            if !told {
                self.delete_pod(pod, 1).await?;
                told = true;
            } else if begin.elapsed() > REMOVE_PATIENCE {
                return Err(Error::unavailable(format!("{id}: {}", unconfirmed(pod))));
            }
            // Whoever waits for a watch that does not work looks by himself.
            let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
            found = match self.cached(id).filter(|found| found.pod.is_some()) {
                Some(found) => found,
                None => self.ask(id).await?,
            };
        }
        if let Some(job) = &found.job {
            self.delete_job(job).await?;
        }
        self.waits().remove(&id);
        self.addresses().remove(&id);
        Ok(())
    }
}

/// A pod whose Job is gone and that nobody keeps is as good as gone.
fn settled(mut found: Found) -> Found {
    let kept = |pod: &Pod| pod.finalizers().iter().any(|one| one == FINALIZER) || !has_ended(pod) && !is_leaving(pod);
    if found.job.is_none() {
        found.pod = found.pod.filter(|pod| kept(pod));
    }
    found
}

fn namespace_of<K: Resource>(object: &K) -> String {
    object.meta().namespace.clone().unwrap_or_default()
}

async fn answers(address: &str) -> bool {
    let connected = tokio::time::timeout(CONNECT_PATIENCE, tokio::net::TcpStream::connect(address));
    connected.await.is_ok_and(|connected| connected.is_ok())
}

fn seen_at(event: &Event) -> i64 {
    let at = event.last_timestamp.as_ref().map(|time| time.0.as_microsecond());
    let at = at.or_else(|| event.event_time.as_ref().map(|time| time.0.as_microsecond()));
    at.unwrap_or(0)
}

#[async_trait]
impl Executor for KubernetesExecutor {
    async fn start(&self, spec: &ExecutionSpec) -> Result<()> {
        let inner = &self.inner;
        let (options, namespace) = (inner.cluster.options(), inner.cluster.namespace_of(spec.account));
        match spec.workload {
            Workload::Task => {
                let job = pod::job(options, spec)?;
                if let Some(job) = inner.create(&CREATE_JOBS, &namespace, &job).await? {
                    inner.jobs().learn(job);
                }
            }
            Workload::Service => {
                let pod = pod::service_pod(options, spec)?;
                if let Some(pod) = inner.create(&CREATE_PODS, &namespace, &pod).await? {
                    inner.make_service(spec.id, &pod).await?;
                    inner.pods().learn(pod);
                }
            }
        }
        Ok(())
    }

    async fn observe(&self, id: ExecutionId) -> Result<Observation> {
        self.inner.observe(id).await
    }

    async fn cancel(&self, id: ExecutionId, grace: Duration) -> Result<()> {
        self.inner.cancel(id, grace).map_err(Error::from).await
    }

    async fn remove(&self, id: ExecutionId) -> Result<()> {
        self.inner.remove(id).await
    }

    async fn list(&self) -> Result<Vec<Execution>> {
        let inner = &self.inner;
        let (jobs, pods) = try_join!(inner.all::<Job>(&LIST_JOBS), inner.all::<Pod>(&LIST_PODS))?;
        let mut all = BTreeMap::new();
        for job in &jobs {
            if let Some(id) = execution(job) {
                all.insert(id, instant(job.metadata.creation_timestamp.as_ref()));
            }
        }
        for pod in &pods {
            // Pods without our finalizer were let go: their Job, which is deleted last, tells of them.
            let kept = pod.finalizers().iter().any(|one| one == FINALIZER);
            if let Some(id) = execution(pod).filter(|_| kept) {
                all.entry(id)
                    .or_insert(instant(pod.metadata.creation_timestamp.as_ref()));
            }
        }
        let listed = all.into_iter().map(|(id, started_at)| Execution { id, started_at });
        Ok(listed.collect())
    }
}
