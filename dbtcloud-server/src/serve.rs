//! A server from settings, until it is told to stop.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::compose::{self, Composed};
use crate::config::{Role, Settings};
use crate::tls::TlsListener;
use crate::{Connections, Options};

/// How long requests may take to finish once the server stops; live tails are cut then.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves until `shutdown`: stops accepting, lets requests finish, stops the loops. Agents go on.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn serve(settings: &Settings, composed: Composed, shutdown: CancellationToken) -> anyhow::Result<()> {
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
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (plane, storage) = (composed.plane.clone(), composed.storage.clone());
    let options = Options {
        public_url: settings.public_url.clone(),
        connections: Some(Arc::new(move || {
            let (idle, used) = storage.connections();
            Connections { idle, used }
        })),
        ..Options::default()
    };
    let doors = settings.has(Role::Gateway) || settings.has(Role::App);
    let router = if doors {
        crate::router(plane.clone(), options)
    } else {
        crate::probes(plane.clone(), options)
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
    let server = axum::serve(listener, router.clone()).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let secure = async {
        let Some(tls) = tls else { return Ok(()) };
        axum::serve(tls, router)
            .with_graceful_shutdown(shutdown.clone().cancelled_owned())
            .await
    };
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let served = tokio::select! {
        served = async { tokio::try_join!(server.into_future(), secure) } => {
            served.map(|_| ()).context("the server ended")
        }
        () = late => {
            tracing::info!("some requests did not finish in time");
            Ok(())
        }
    };
    running
        .stop()
        .await
        .map_err(|error| anyhow::anyhow!("{}", error.chain()))?;
    if let Some(otlp) = composed.otlp.clone() {
        tokio::task::spawn_blocking(move || otlp.close()).await?;
    }
    tracing::info!("stopped");
    served
}

/// Resolves when the process is asked to end: SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be listened for.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let asked = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    Ok(token)
}
