//! The calls that an executor makes of the API server, each one a request and its answer's meaning.

use super::*;

impl Inner {
    pub(super) async fn ask_job(&self, id: ExecutionId) -> Result<Option<Arc<Job>>, Failure> {
        let api: Api<Job> = self.cluster.anywhere();
        let by_name = ListParams::default()
            .fields(&format!("metadata.name={}", self.name_of(id)))
            .labels(&self.cluster.selector());
        let listed = self.call(&LIST_JOBS, api.list(&by_name)).await?;
        let job = listed.items.into_iter().find(|job| execution(job) == Some(id));
        Ok(job.map(|job| {
            self.jobs().learn(job.clone());
            Arc::new(job)
        }))
    }

    pub(super) async fn ask_pod(&self, id: ExecutionId) -> Result<Option<Arc<Pod>>, Failure> {
        let api: Api<Pod> = self.cluster.anywhere();
        let by_label = ListParams::default().labels(&format!("{},{EXECUTION}={id}", self.cluster.selector()));
        let mut listed = self.call(&LIST_PODS, api.list(&by_label)).await?.items;
        listed.sort_by_key(|pod| (pod.creation_timestamp(), pod.uid()));
        Ok(listed.into_iter().next().map(|pod| {
            self.pods().learn(pod.clone());
            Arc::new(pod)
        }))
    }

    /// What there is now, as the API server has it.
    pub(super) async fn ask(&self, id: ExecutionId) -> Result<Found, Failure> {
        let (job, pod) = try_join!(self.ask_job(id), self.ask_pod(id))?;
        Ok(settled(Found { job, pod }))
    }

    pub(super) async fn call<T>(
        &self,
        right: &Right,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        self.cluster.call(right, self.cluster.namespace(), asked).await
    }

    pub(super) async fn make_service(&self, id: ExecutionId, pod: &Pod) -> Result<Option<Service>, Failure> {
        let service =
            pod::service(self.cluster.options(), id, pod).map_err(|error| Failure::Refused(error.to_string()))?;
        let api: Api<Service> = self.cluster.within(&namespace_of(pod));
        match self
            .call(&CREATE_SERVICES, api.create(&PostParams::default(), &service))
            .await
        {
            Ok(service) => Ok(Some(service)),
            Err(Failure::Exists) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Creates an object, once. `None` when it was there.
    pub(super) async fn create<K>(&self, right: &Right, namespace: &str, object: &K) -> Result<Option<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let api: Api<K> = self.cluster.within(namespace);
        let plain = PostParams::default();
        let mut tries = 0;
        loop {
            tries += 1;
            let asked = api.create(&plain, object);
            match self.cluster.call(right, namespace, asked).await {
                Ok(made) => return Ok(Some(made)),
                Err(Failure::Exists) => return Ok(None),
                Err(Failure::NotFound(_)) if self.cluster.options().namespace_per_account && tries == 1 => {
                    self.cluster.make_namespace(namespace).await?;
                }
                Err(Failure::NotFound(_)) => {
                    let told = format!("the cluster has no namespace {namespace}: make it, or name another");
                    return Err(Error::invalid("kubernetes_namespace", told));
                }
                Err(Failure::Refused(told)) if matches!(will_heal(&told), Heals::Within(_)) && tries < START_TRIES => {
                    tokio::time::sleep(START_PAUSE).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    pub(super) async fn patch<K>(
        &self,
        right: &Right,
        cache: &Cache<K>,
        object: &K,
        patch: &Value,
    ) -> Result<(), Failure>
    where
        K: crate::cache::Ours + Serialize,
    {
        let api: Api<K> = self.cluster.within(&namespace_of(object));
        let name = object.name_any();
        let (plain, patch) = (PatchParams::default(), Patch::Merge(patch));
        match self.call(right, api.patch(&name, &plain, &patch)).await {
            Ok(patched) => {
                cache.learn(patched);
                Ok(())
            }
            Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn delete_pod(&self, pod: &Pod, seconds: u32) -> Result<(), Failure> {
        let api: Api<Pod> = self.cluster.within(&namespace_of(pod));
        let name = pod.name_any();
        let within = DeleteParams::default().grace_period(seconds);
        match self.call(&DELETE_PODS, api.delete(&name, &within)).await {
            Ok(deleted) => {
                if let Some(deleted) = deleted.left() {
                    self.pods().learn(deleted);
                }
                Ok(())
            }
            Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn delete_job(&self, job: &Job) -> Result<(), Failure> {
        let api: Api<Job> = self.cluster.within(&namespace_of(job));
        let name = job.name_any();
        match self
            .call(&DELETE_JOBS, api.delete(&name, &DeleteParams::background()))
            .await
        {
            Ok(_) | Err(Failure::NotFound(_)) => {
                self.jobs().forget(job);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Lets a pod go that has ended: others may delete it now.
    pub(super) async fn release(&self, id: ExecutionId, pod: &Arc<Pod>, is_task: bool) -> Result<(), Failure> {
        let mut pod = Arc::clone(pod);
        for _ in 0..CHANGE_TRIES {
            let kept: Vec<_> = pod.finalizers().iter().filter(|one| *one != FINALIZER).collect();
            // The version makes sure that no finalizer of others comes back.
            let patch = json!({"metadata": {"finalizers": kept, "resourceVersion": pod.resource_version()}});
            let api: Api<Pod> = self.cluster.within(&namespace_of(pod.as_ref()));
            let name = pod.name_any();
            let (plain, patch) = (PatchParams::default(), Patch::Merge(&patch));
            match self.call(&PATCH_PODS, api.patch(&name, &plain, &patch)).await {
                Ok(_) | Err(Failure::NotFound(_)) => {
                    if !is_task {
                        self.delete_pod(&pod, 0).await?;
                    }
                    self.pods().forget(&pod);
                    return Ok(());
                }
                Err(Failure::Changed) => match self.ask_pod(id).await? {
                    Some(newer) => pod = newer,
                    None => return Ok(()),
                },
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Changed)
    }

    pub(super) async fn all<K>(&self, right: &Right) -> Result<Vec<kube::core::PartialObjectMeta<K>>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api: Api<K> = self.cluster.anywhere();
        let (mut all, mut next) = (Vec::new(), None::<String>);
        loop {
            let mut page = ListParams::default().labels(&self.cluster.selector()).limit(PAGE);
            page.continue_token = next;
            let listed = self.call(right, api.list_metadata(&page)).await?;
            all.extend(listed.items);
            next = listed.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
    }
}
