//! What watches have seen of our Jobs and Pods. It is for looking often; what ends anything is asked afresh.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dbtcloud_core::ports::ExecutionId;
use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::check::Right;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::pod::EXECUTION;

/// How long a watch may be denied before it is told.
const DENIAL_PATIENCE: Duration = Duration::from_secs(3);
/// How long a watch that failed is in doubt: longer than it waits before it tries again.
const DOUBT: Duration = Duration::from_secs(40);

/// Something of ours that is watched.
pub(crate) trait Ours:
    Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Drops what nobody asks for, so that thousands fit.
    fn slim(&mut self);
}

impl Ours for Job {
    fn slim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(spec) = &mut self.spec {
            spec.template = Default::default();
        }
    }
}

impl Ours for Pod {
    fn slim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(spec) = &mut self.spec {
            spec.volumes = None;
            spec.tolerations = None;
            spec.affinity = None;
            for container in &mut spec.containers {
                container.env = None;
                container.volume_mounts = None;
            }
        }
    }
}

/// The execution that an object is of.
pub(crate) fn execution<K: Resource>(object: &K) -> Option<ExecutionId> {
    ExecutionId::from_str(object.labels().get(EXECUTION)?).ok()
}

struct State<K> {
    /// By execution and uid.
    known: HashMap<ExecutionId, BTreeMap<String, Arc<K>>>,
    /// What we removed, until the watch says so too.
    gone: HashSet<String>,
    /// Whether the watch has told all there is.
    live: bool,
    /// When it last failed, if nothing came since.
    failed: Option<Instant>,
    /// Since when it is denied, and what was said.
    denied: Option<(Instant, String)>,
}

impl<K> State<K> {
    fn is_live(&self) -> bool {
        self.live && self.failed.is_none_or(|at| at.elapsed() > DOUBT)
    }
}

/// Objects of one kind, as the watch last saw them.
pub(crate) struct Cache<K> {
    state: Arc<Mutex<State<K>>>,
    watch: JoinHandle<()>,
}

impl<K> Drop for Cache<K> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl<K: Ours> Cache<K> {
    /// Watches from now on.
    pub(crate) fn watch(cluster: &Arc<Cluster>, [list, watch]: [&'static Right; 2], changed: Arc<Notify>) -> Self {
        let state = Arc::new(Mutex::new(State {
            known: HashMap::new(),
            gone: HashSet::new(),
            live: false,
            failed: None,
            denied: None,
        }));
        let config = watcher::Config::default().labels(&cluster.selector());
        let mut events = watcher(cluster.anywhere::<K>(), config).default_backoff().boxed();
        let (seen, rung, namespace) = (Arc::clone(&state), Arc::clone(&changed), cluster.namespace().to_owned());
        let watch = tokio::spawn(async move {
            let mut fresh = HashMap::new();
            while let Some(event) = events.next().await {
                take(&seen, &mut fresh, event, [list, watch], &namespace);
                rung.notify_waiters();
            }
        });
        Self { state, watch }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of an execution: the oldest object, should there be several. `None` when the watch is not
    /// to be relied upon.
    pub(crate) fn get(&self, id: ExecutionId) -> Option<Option<Arc<K>>> {
        let state = self.lock();
        state.is_live().then(|| {
            let known = state.known.get(&id)?;
            known
                .values()
                .filter(|object| !state.gone.contains(&uid_of(object.as_ref())))
                .min_by_key(|object| (object.creation_timestamp(), uid_of(object.as_ref())))
                .cloned()
        })
    }

    /// Why the watch will never tell anything.
    pub(crate) fn denial(&self) -> Option<Failure> {
        let state = self.lock();
        let (since, told) = state.denied.as_ref()?;
        (since.elapsed() >= DENIAL_PATIENCE).then(|| Failure::Denied(told.clone()))
    }

    /// What a call of ours has answered: nobody shall see less than we know.
    pub(crate) fn learn(&self, object: K) {
        put(&mut self.lock().known, object);
    }

    /// An object is gone: nobody shall see it any more.
    pub(crate) fn forget(&self, object: &K) {
        self.lock().gone.insert(uid_of(object));
    }
}

fn uid_of<K: Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

fn version_of<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Takes an object in unless a later state of it is known.
fn put<K: Ours>(known: &mut HashMap<ExecutionId, BTreeMap<String, Arc<K>>>, mut object: K) {
    let Some(id) = execution(&object) else { return };
    object.slim();
    let of_it = known.entry(id).or_default();
    let uid = uid_of(&object);
    if of_it
        .get(&uid)
        .is_none_or(|there| version_of(there.as_ref()) <= version_of(&object))
    {
        of_it.insert(uid, Arc::new(object));
    }
}

fn take<K: Ours>(
    state: &Mutex<State<K>>,
    fresh: &mut HashMap<ExecutionId, BTreeMap<String, Arc<K>>>,
    event: Result<watcher::Event<K>, watcher::Error>,
    [list, watch]: [&Right; 2],
    namespace: &str,
) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
        Ok(watcher::Event::Init) => {
            fresh.clear();
            state.live = false;
        }
        Ok(watcher::Event::InitApply(object)) => put(fresh, object),
        Ok(watcher::Event::InitDone) => {
            // What we made while the list was on its way is not in it; what we know is later stays.
            let mut all = std::mem::take(fresh);
            let before = std::mem::take(&mut state.known);
            for object in before.into_values().flat_map(BTreeMap::into_values) {
                let listed = execution(object.as_ref())
                    .and_then(|id| all.get(&id)?.get(&uid_of(object.as_ref())))
                    .map(|listed| version_of(listed.as_ref()));
                if listed.is_some_and(|version| version < version_of(object.as_ref())) {
                    put(&mut all, (*object).clone());
                }
            }
            let listed: HashSet<_> = all.values().flat_map(|of_it| of_it.keys().cloned()).collect();
            state.gone.retain(|uid| listed.contains(uid));
            state.known = all;
            state.live = true;
            state.failed = None;
            state.denied = None;
        }
        Ok(watcher::Event::Apply(object)) => {
            state.failed = None;
            put(&mut state.known, object);
        }
        Ok(watcher::Event::Delete(object)) => {
            state.failed = None;
            let uid = uid_of(&object);
            state.gone.remove(&uid);
            if let Some(id) = execution(&object)
                && let Some(of_it) = state.known.get_mut(&id)
            {
                of_it.remove(&uid);
                if of_it.is_empty() {
                    state.known.remove(&id);
                }
            }
        }
        Err(error) => {
            let failure = match error {
                watcher::Error::InitialListFailed(error) => Failure::of(list, namespace, error),
                watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                    Failure::of(watch, namespace, error)
                }
                watcher::Error::WatchError(status) => Failure::of(watch, namespace, kube::Error::Api(status)),
                watcher::Error::NoResourceVersion => Failure::Changed,
            };
            let denial = match failure {
                Failure::Denied(told) => Some(told),
                _ => None,
            };
            state.failed = Some(Instant::now());
            state.denied = match (denial, state.denied.take()) {
                (Some(told), Some((since, _))) => Some((since, told)),
                (Some(told), None) => Some((Instant::now(), told)),
                (None, _) => None,
            };
        }
    }
}
