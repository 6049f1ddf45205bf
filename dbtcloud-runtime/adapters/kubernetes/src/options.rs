//! What an installation says about its cluster.

use std::path::PathBuf;

use dbtcloud_core::environment::{image_reference, object_name, overlay};
use dbtcloud_core::{Error, Result};
use serde_json::Value;

/// The longest name of an installation: names of Jobs are made of it, and they have 63 characters.
const INSTALLATION_LIMIT_BYTES: usize = 20;

/// Which cluster, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The cluster that this process is a pod of, as its service account.
    InCluster,
    /// The cluster of a kubeconfig's context; its current one when none is named.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The context.
        context: Option<String>,
    },
}

/// Where executions and volumes are made, and how.
///
/// ```
/// use dbtcloud_kubernetes::{Access, Options};
/// let options = Options::new(Access::InCluster, "registry.example/dbtcloud-runner:1.11")
///     .with_namespace("runs")
///     .with_storage_class("efs");
/// options.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub(crate) access: Access,
    pub(crate) image: String,
    pub(crate) namespace: Option<String>,
    pub(crate) installation: Option<String>,
    pub(crate) service_account: Option<String>,
    pub(crate) storage_class: Option<String>,
    pub(crate) volume_size: String,
    pub(crate) overlay: Option<Value>,
    pub(crate) namespace_per_account: bool,
}

impl Options {
    /// Executions of this image in the namespace of the pod or the context.
    pub fn new(access: Access, image: impl Into<String>) -> Self {
        Self {
            access,
            image: image.into(),
            namespace: None,
            installation: None,
            service_account: None,
            storage_class: None,
            volume_size: "10Gi".to_owned(),
            overlay: None,
            namespace_per_account: false,
        }
    }

    /// In this namespace.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// With names that begin so, and labels that say so: installations that share a namespace need one each.
    #[must_use]
    pub fn with_installation(mut self, name: impl Into<String>) -> Self {
        self.installation = Some(name.into());
        self
    }

    /// As this service account, where an environment names none.
    #[must_use]
    pub fn with_service_account(mut self, name: impl Into<String>) -> Self {
        self.service_account = Some(name.into());
        self
    }

    /// With volumes of this StorageClass in place of the cluster's default.
    #[must_use]
    pub fn with_storage_class(mut self, name: impl Into<String>) -> Self {
        self.storage_class = Some(name.into());
        self
    }

    /// With volumes of this size in place of `10Gi`.
    #[must_use]
    pub fn with_volume_size(mut self, size: impl Into<String>) -> Self {
        self.volume_size = size.into();
        self
    }

    /// With part of a pod template, merged over every pod before an environment's own.
    #[must_use]
    pub fn with_overlay(mut self, overlay: Value) -> Self {
        self.overlay = Some(overlay);
        self
    }

    /// With a namespace for each account, `<namespace>-<account>`. Rights are needed in all of them.
    #[must_use]
    pub const fn with_namespace_per_account(mut self) -> Self {
        self.namespace_per_account = true;
        self
    }

    /// Whether this can be meant.
    ///
    /// # Errors
    /// `Invalid`, naming the server's setting.
    pub fn validate(&self) -> Result<()> {
        image_reference("kubernetes_image", &self.image)?;
        let names = [
            ("kubernetes_namespace", &self.namespace),
            ("kubernetes_installation", &self.installation),
            ("kubernetes_service_account", &self.service_account),
            ("kubernetes_storage_class", &self.storage_class),
        ];
        for (field, name) in names {
            if let Some(name) = name {
                object_name(field, name)?;
            }
        }
        if let Some(name) = &self.installation
            && (name.len() > INSTALLATION_LIMIT_BYTES || name.contains('.'))
        {
            let told = format!("expected at most {INSTALLATION_LIMIT_BYTES} characters without a dot");
            return Err(Error::invalid("kubernetes_installation", told));
        }
        match &self.overlay {
            Some(part) => overlay::validate("kubernetes_pod_overlay_file", part),
            None => Ok(()),
        }
    }

    /// The installation as labels have it.
    pub(crate) fn installation_label(&self) -> &str {
        self.installation.as_deref().unwrap_or("dbtcloud")
    }

    /// The name of an object of ours.
    pub(crate) fn name_of(&self, what: &str) -> String {
        match &self.installation {
            Some(installation) => format!("{installation}-{what}"),
            None => what.to_owned(),
        }
    }
}
