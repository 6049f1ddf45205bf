//! The doors of dbtcloud: dbt Cloud's own REST API (v2 and v3), a live tail of runs, health and metrics, and
//! the `dbtcloud` binary.
//!
//! This crate speaks and decides nothing: what may happen is decided in `dbtcloud-core`, and it happens in
//! `dbtcloud-runtime`. Numeric codes and quirks of the wire stay in the private module `wire`.
//!
//! ```
//! # use dbtcloud_runtime::ControlPlane;
//! fn mount(plane: ControlPlane) -> axum::Router {
//!     let api = dbtcloud_server::router(plane, dbtcloud_server::Options::default());
//!     axum::Router::new().nest_service("/dbt", api)
//! }
//! ```

pub mod auth;
#[cfg(feature = "cli")]
pub mod backup;
#[cfg(feature = "cli")]
pub mod bootstrap;
#[cfg(feature = "cli")]
pub mod cleanup;
#[cfg(feature = "cli")]
pub mod compose;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "cli")]
pub mod demo;
#[cfg(feature = "cli")]
pub mod doctor;
pub mod forwarded;
pub mod health;
#[cfg(feature = "cli")]
mod kubernetes;
#[cfg(feature = "cli")]
pub mod prepare;
#[cfg(feature = "cli")]
pub mod retention;
#[cfg(feature = "cli")]
pub mod serve;
#[cfg(feature = "cli")]
pub mod telemetry;
#[cfg(feature = "cli")]
mod tls;
#[cfg(feature = "cli")]
pub mod transfer;
#[cfg(feature = "failpoints")]
pub mod twice;

mod call;
mod gateway;
mod live;
mod metrics;
mod rest;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use dbtcloud_runtime::ControlPlane;

use crate::auth::{Authenticator, SharedAuthenticator, TokenAuthenticator};
use crate::forwarded::Proxies;
use crate::metrics::HttpMetrics;

/// Connections of a process to its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Connections {
    /// Those that wait.
    pub idle: u32,
    /// Those that work.
    pub used: u32,
}

/// Tells whether this binary works with what a process depends on.
pub type Check = Arc<dyn Fn() -> futures::future::BoxFuture<'static, dbtcloud_core::Result<()>> + Send + Sync>;

/// What a server can be told. Every limit has a name here.
#[derive(Clone)]
pub struct Options {
    /// Scheme, host and prefix under which people reach this server, for the links in its answers. Where it
    /// is absent, the host by which a request came is used.
    pub public_url: Option<String>,
    /// Whose word counts about the host and the address that a request came from. Whoever mounts the router tells it the
    /// addresses of connections as axum does: `into_make_service_with_connect_info::<SocketAddr>()`.
    pub trusted_proxies: Proxies,
    /// The most bytes a request's body may have.
    pub body_limit_bytes: usize,
    /// The longest a request may take; live tails are not bounded by it.
    pub request_timeout: Duration,
    /// How often a live tail that has nothing to say says so.
    pub keep_alive: Duration,
    /// Who tells who has a token; the catalog's tokens when absent.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Once cancelled, this server is about to stop: it answers what comes, is not ready, closes each connection
    /// after its answer, and ends live tails, which go on elsewhere by `Last-Event-ID`.
    pub draining: tokio_util::sync::CancellationToken,
    /// Tells the connections to the database, for `/metrics`.
    pub connections: Option<Arc<dyn Fn() -> Connections + Send + Sync>>,
    /// Tells whether the database, which answers, can also be worked with, for `/readyz`: a newer release may have
    /// changed its schema meanwhile, or it may have become read-only.
    pub database: Option<Check>,
    /// Tells whether executions can be started, for `/readyz`; nothing is asked when absent.
    pub executor: Option<Check>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            public_url: None,
            trusted_proxies: Proxies::default(),
            body_limit_bytes: 2 * 1024 * 1024,
            request_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            authenticator: None,
            draining: tokio_util::sync::CancellationToken::new(),
            connections: None,
            database: None,
            executor: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("public_url", &self.public_url)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("body_limit_bytes", &self.body_limit_bytes)
            .field("request_timeout", &self.request_timeout)
            .field("keep_alive", &self.keep_alive)
            .finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) plane: ControlPlane,
    pub(crate) options: Options,
    pub(crate) authenticator: SharedAuthenticator,
    pub(crate) metrics: HttpMetrics,
}

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}

impl std::ops::Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Everything this crate serves, over one control plane: `/api/v2`, `/api/v3`, the status page, run pages,
/// `/healthz`, `/readyz` and `/metrics`. It can be mounted under a prefix of an embedder's own router.
///
/// The trailing slash of every path is optional, nothing is ever redirected, and a doubled slash is 404.
/// The door of agents is not here: see [`ControlPlane::agent_router`].
pub fn router(plane: ControlPlane, options: Options) -> Router {
    gateway::compose(app(plane, options), gateway::Doors::All)
}

/// Health and metrics alone, for a process that answers neither people nor programs.
pub fn probes(plane: ControlPlane, options: Options) -> Router {
    gateway::compose(app(plane, options), gateway::Doors::Probes)
}

fn app(plane: ControlPlane, options: Options) -> App {
    let authenticator = options
        .authenticator
        .clone()
        .unwrap_or_else(|| Arc::new(TokenAuthenticator::new(plane.clone())));
    App(Arc::new(Inner {
        plane,
        options,
        authenticator,
        metrics: HttpMetrics::default(),
    }))
}
