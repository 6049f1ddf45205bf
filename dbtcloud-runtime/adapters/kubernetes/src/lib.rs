//! dbtcloud on Kubernetes: [`KubernetesExecutor`] runs tasks as Jobs and services as Pods, [`KubernetesVolume`]
//! keeps volumes as persistent volume claims.
//!
//! This room touches the cluster's API and decides nothing about runs. It keeps nothing that matters in
//! memory: what is known of an execution is in the cluster, so that any instance finds, explains and ends it.

mod cache;
mod check;
mod cluster;
mod executor;
mod explain;
mod failure;
mod options;
mod pod;
mod volume;

pub use check::{Answer, Check, RIGHTS, Right};
pub use executor::KubernetesExecutor;
pub use options::{Access, Options};
pub use volume::KubernetesVolume;
