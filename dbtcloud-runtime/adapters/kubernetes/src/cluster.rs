//! One cluster: who we are there, where our things are, and calls that end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dbtcloud_core::id::AccountId;
use dbtcloud_core::{Error, Result};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::check::{CREATE_NAMESPACES, Right};
use crate::failure::Failure;
use crate::options::{Access, Options};

/// How long a call of the API server may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the cluster may go on denying before it is believed: one that has just started knows nobody.
const DENIAL_PATIENCE: Duration = Duration::from_secs(3);

/// A cluster and what we are in it.
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
    options: Options,
    requests: AtomicU64,
    denied: Mutex<HashMap<String, Instant>>,
}

impl Cluster {
    /// Reads who we are. Nothing is sent.
    pub(crate) async fn open(options: Options) -> Result<Arc<Self>> {
        options.validate()?;
        let mut config = config(&options.access).await?;
        config.connect_timeout = Some(CONNECT_LIMIT);
        let namespace = match &options.namespace {
            Some(namespace) => namespace.clone(),
            None => config.default_namespace.clone(),
        };
        let client = Client::try_from(config)
            .map_err(|error| Error::invalid("kubernetes_context", "its credentials cannot be used").because(error))?;
        Ok(Arc::new(Self {
            client,
            namespace,
            options,
            requests: AtomicU64::new(0),
            denied: Mutex::default(),
        }))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How many calls were made so far; those of watches are not counted.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The namespace of an account's things.
    pub(crate) fn namespace_of(&self, account: AccountId) -> String {
        if self.options.namespace_per_account {
            format!("{}-{account}", self.namespace)
        } else {
            self.namespace.clone()
        }
    }

    /// Things in one namespace.
    pub(crate) fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Things wherever ours may be.
    pub(crate) fn anywhere<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if self.options.namespace_per_account {
            Api::all(self.client.clone())
        } else {
            self.within(&self.namespace)
        }
    }

    /// The selector of everything that is this installation's.
    pub(crate) fn selector(&self) -> String {
        format!(
            "app.kubernetes.io/managed-by=dbtcloud,dbtcloud.dev/installation={}",
            self.options.installation_label()
        )
    }

    /// Makes a call, which ends. A right that is missing is first an outage, for [`DENIAL_PATIENCE`].
    pub(crate) async fn call<T>(
        &self,
        right: &Right,
        namespace: &str,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        let answer = self.ask(right, namespace, asked).await;
        let key = format!("{right} {namespace}");
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Err(Failure::Denied(told)) => {
                let since = denied.entry(key).or_insert_with(Instant::now);
                if since.elapsed() < DENIAL_PATIENCE {
                    return Err(Failure::Away(told, None));
                }
                Err(Failure::Denied(told))
            }
            answer => {
                denied.remove(&key);
                answer
            }
        }
    }

    /// The same without that patience.
    pub(crate) async fn ask<T>(
        &self,
        right: &Right,
        namespace: &str,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout(CALL_LIMIT, asked).await {
            Ok(answer) => answer.map_err(|error| Failure::of(right, namespace, error)),
            Err(late) => {
                let told = format!("the cluster's API server did not answer within {CALL_LIMIT:?} ({right})");
                Err(Failure::Away(told, Some(late.into())))
            }
        }
    }

    /// Makes the namespace of an account, where every account has one.
    pub(crate) async fn make_namespace(&self, namespace: &str) -> Result<(), Failure> {
        let made: Namespace = serde_json::from_value(json!({
            "metadata": {
                "name": namespace,
                "labels": {
                    "app.kubernetes.io/managed-by": "dbtcloud",
                    "dbtcloud.dev/installation": self.options.installation_label(),
                    "pod-security.kubernetes.io/enforce": "restricted",
                },
            },
        }))
        .map_err(|error| Failure::Refused(error.to_string()))?;
        let api: Api<Namespace> = Api::all(self.client.clone());
        let plain = PostParams::default();
        let asked = api.create(&plain, &made);
        match self.call(&CREATE_NAMESPACES, namespace, asked).await {
            Ok(_) | Err(Failure::Exists) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

async fn config(access: &Access) -> Result<Config> {
    match access {
        Access::InCluster => Config::incluster().map_err(|error| {
            let told = "this process is no pod of a cluster, and no kubeconfig was named: set KUBECONFIG";
            Error::invalid("kubernetes_context", told).because(error)
        }),
        Access::Kubeconfig { path, context } => {
            let unread = |error| {
                let told = format!("the kubeconfig {} cannot be read", path.display());
                Error::invalid("kubernetes_context", told).because(error)
            };
            let file = Kubeconfig::read_from(path).map_err(unread)?;
            let wanted = context.as_ref().or(file.current_context.as_ref());
            let known: Vec<_> = file.contexts.iter().map(|context| context.name.clone()).collect();
            if wanted.is_none_or(|wanted| !known.contains(wanted)) {
                let wanted = wanted.map_or("no current context", String::as_str);
                let told = format!(
                    "{} has no context '{wanted}'; it has {}",
                    path.display(),
                    known.join(", ")
                );
                return Err(Error::invalid("kubernetes_context", told));
            }
            let options = KubeConfigOptions {
                context: context.clone(),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(file, &options).await.map_err(unread)
        }
    }
}
