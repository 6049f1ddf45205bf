//! A server from settings, until it is told to stop.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use dbtcloud_runtime::dial::Dialer;
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::compose::{self, Composed};
use crate::config::{Role, Settings};
use crate::forwarded::Peer;
use crate::gateway::proxy::Gateway;
use crate::tls::TlsListener;
use crate::{Connections, Options};

/// How long requests may take to finish once the server stops; live tails are cut then.
const DRAIN: Duration = Duration::from_secs(10);
/// How long closing the database may take after that.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Serves until `shutdown`: stops accepting, lets requests finish, stops the loops. Agents go on.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn serve(settings: &Settings, composed: Composed, shutdown: Shutdown) -> anyhow::Result<()> {
    let listener = listen(settings).await?;
    serve_on(listener, settings, &composed, shutdown).await
}

/// Opens the address of the settings.
///
/// # Errors
/// The address, and why it cannot be had.
pub async fn listen(settings: &Settings) -> anyhow::Result<TcpListener> {
    TcpListener::bind(settings.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: is another program using the port? Choose another with --listen",
            settings.listen
        )
    })
}

/// As [`serve`], on a listener that is there already.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on(
    listener: TcpListener,
    settings: &Settings,
    composed: &Composed,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (plane, storage) = (composed.plane.clone(), composed.storage.clone());
    let draining = CancellationToken::new();
    let database = storage.clone();
    let options = Options {
        draining: draining.clone(),
        public_url: settings.public_url.clone(),
        trusted_proxies: settings.trusted_proxies.clone(),
        connections: Some(Arc::new(move || {
            let (idle, used) = storage.connections();
            Connections { idle, used }
        })),
        executor: composed
            .cluster
            .clone()
            .filter(|_| settings.has(Role::Scheduler))
            .map(|cluster| {
                let check: crate::Check = Arc::new(move || {
                    let cluster = cluster.clone();
                    async move { cluster.answers().await }.boxed()
                });
                check
            }),
        database: Some(Arc::new(move || {
            let storage = database.clone();
            async move {
                storage.check().await?;
                storage.check_writable().await
            }
            .boxed()
        })),
        ..Options::default()
    };
    let doors = settings.has(Role::Gateway) || settings.has(Role::App);
    let router = if doors {
        crate::router(plane.clone(), options)
    } else {
        crate::probes(plane.clone(), options)
    };
    let router = match settings.has(Role::App) && settings.agent_url.is_some() {
        true => router.merge(plane.agent_router()),
        false => router,
    };
    let tls = match &settings.tls {
        Some(tls) => Some(TlsListener::bind(tls).await?),
        None => None,
    };
    let secure_address = tls.as_ref().map(axum::serve::Listener::local_addr).transpose()?;
    let running = plane
        .start(compose::roles(settings))
        .await
        .map_err(|error| anyhow::anyhow!("{}", error.chain()))?;
    let address = listener.local_addr()?;
    let roles: Vec<_> = settings.roles.iter().map(|role| role.name()).collect();
    if let Some(address) = secure_address {
        tracing::info!(tls_address = %address, "serving with TLS");
    }
    tracing::info!(%address, roles = roles.join(","), "serving");
    let drain = Duration::from_secs(if doors { settings.drain_seconds } else { 0 });
    let served = until_stopped(listener, tls, router, &shutdown, &draining, drain).await;
    if shutdown.at_once.is_cancelled() {
        return served;
    }
    running
        .stop()
        .await
        .map_err(|error| anyhow::anyhow!("{}", error.chain()))?;
    if let Some(otlp) = composed.otlp.clone() {
        tokio::task::spawn_blocking(move || otlp.close()).await?;
    }
    // SQLite's file is whole again when the last connection has closed. Nobody is left who would not give one back.
    if tokio::time::timeout(CLOSE_LIMIT, composed.storage.close())
        .await
        .is_err()
    {
        tracing::warn!("the database's connections were not closed within {CLOSE_LIMIT:?}");
    }
    tracing::info!("stopped");
    served
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self::new(stream.remote_addr(), false)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self::new(stream.remote_addr(), true)
    }
}

/// Serves both listeners. Asked to stop, it first says so and goes on for `drain`, so that whoever sends requests
/// here turns elsewhere; then nothing is accepted any more and what is under way may finish.
async fn until_stopped(
    listener: TcpListener,
    tls: Option<TlsListener>,
    router: axum::Router,
    shutdown: &Shutdown,
    draining: &CancellationToken,
    drain: Duration,
) -> anyhow::Result<()> {
    let closing = CancellationToken::new();
    let server = axum::serve(listener, router.clone().into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(closing.clone().cancelled_owned());
    let secure = async {
        let Some(tls) = tls else { return Ok(()) };
        axum::serve(tls, router.into_make_service_with_connect_info::<Peer>())
            .with_graceful_shutdown(closing.clone().cancelled_owned())
            .await
    };
    let late = async {
        shutdown.asked.cancelled().await;
        draining.cancel();
        tokio::time::sleep(drain).await;
        closing.cancel();
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = async { tokio::try_join!(server.into_future(), secure) } => {
            served.map(|_| ()).context("the server ended")
        }
        () = late => {
            tracing::info!("some requests did not finish in time");
            Ok(())
        }
        () = shutdown.at_once.cancelled() => {
            tracing::info!("asked twice: stopping at once");
            Ok(())
        }
    }
}

/// Serves a gateway that has its apps elsewhere.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn gateway(settings: &Settings, shutdown: Shutdown) -> anyhow::Result<()> {
    let listener = listen(settings).await?;
    let tls = match &settings.tls {
        Some(tls) => Some(TlsListener::bind(tls).await?),
        None => None,
    };
    let dialer = match settings.app_urls.iter().any(|url| url.starts_with("https:")) {
        true => Dialer::secure(settings.agent_ca.as_deref()).map_err(|error| anyhow::anyhow!("{}", error.chain()))?,
        false => Dialer::plain(),
    };
    let draining = CancellationToken::new();
    let gateway = Gateway::new(
        &settings.app_urls,
        dialer,
        settings.agent_url.is_some(),
        settings.trusted_proxies.clone(),
        compose::instance(),
        draining.clone(),
    );
    let watch = tokio::spawn(gateway.clone().watch());
    let address = listener.local_addr()?;
    tracing::info!(%address, roles = "gateway", "serving");
    let drain = Duration::from_secs(settings.drain_seconds);
    let served = until_stopped(listener, tls, gateway.router(), &shutdown, &draining, drain).await;
    watch.abort();
    tracing::info!("stopped");
    served
}

/// How a process is told to end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// It is to finish what it does and end.
    pub asked: CancellationToken,
    /// It is to end now; others take over when its leases have run out.
    pub at_once: CancellationToken,
}

/// Hears SIGTERM and SIGINT: the first asks the process to end, the second ends it at once.
///
/// # Errors
/// When signals cannot be listened for.
pub fn on_signal() -> anyhow::Result<Shutdown> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    tokio::spawn(async move {
        for token in [told.asked, told.at_once] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(shutdown)
}
