//! How HTTP connections are opened by us: over a unix socket, over TCP, or over TLS with the authorities of a file
//! or of this machine. Agents reach the control plane so, and gateways their apps.
//!
//! It opens and knows nothing of what is said; whether to try again is decided by whoever calls.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use dbtcloud_core::{Error, Result};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// How long a connection may take to come about, TLS included.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection that nobody uses is kept for the next request.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Idle connections that are kept to one host.
const IDLE_CONNECTIONS: usize = 64;
/// Silence after which the other machine is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What went wrong on the way to a connection.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An HTTP/1.1 client with a pool of connections. Cheap to clone.
pub type Client = hyper_util::client::legacy::Client<Dialer, axum::body::Body>;

/// Opens connections for a [`Client`].
///
/// ```
/// use dbtcloud_runtime::dial::Dialer;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let client = Dialer::plain().client();
/// assert!(client.get("http://127.0.0.1:1/".parse().unwrap()).await.unwrap_err().is_connect());
/// # }
/// ```
#[derive(Clone)]
pub struct Dialer {
    socket: Option<PathBuf>,
    tcp: HttpConnector,
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("socket", &self.socket)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// TCP alone: `https` is refused.
    pub fn plain() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        Self {
            socket: None,
            tcp,
            tls: None,
        }
    }

    /// One unix socket, whatever the URL says.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self {
            socket: Some(path.into()),
            ..Self::plain()
        }
    }

    /// TCP, and TLS for `https`: the other side is believed when an authority in the PEM file `ca` vouches for it;
    /// without a file those of this machine are asked.
    ///
    /// # Errors
    /// `Invalid` when the file holds no certificate or this machine has no authorities.
    pub fn secure(ca: Option<&Path>) -> Result<Self> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::unavailable("TLS cannot be set up").because(e))?
            .with_root_certificates(authorities(ca)?)
            .with_no_client_auth();
        Ok(Self {
            tls: Some(TlsConnector::from(Arc::new(config))),
            ..Self::plain()
        })
    }

    /// A client that opens its connections so.
    pub fn client(self) -> Client {
        hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(self)
    }

    async fn open(mut self, uri: Uri) -> std::result::Result<Link, BoxError> {
        if let Some(path) = &self.socket {
            return Ok(Link::new(tokio::net::UnixStream::connect(path).await?));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let tcp = tower::Service::call(&mut self.tcp, uri).await?.into_inner();
        if !secure {
            return Ok(Link::new(tcp));
        }
        let tls = self.tls.ok_or("https was not set up")?;
        Ok(Link::new(tls.connect(ServerName::try_from(host)?, tcp).await?))
    }
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match ca {
        Some(path) => {
            let bad = || Error::invalid("ca", format!("expected certificates in PEM in {}", path.display()));
            let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|e| bad().because(e))?;
            for certificate in certificates {
                store.add(certificate).map_err(|e| bad().because(e))?;
            }
        }
        None => {
            // One that cannot be read says nothing about the others.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(Error::invalid(
            "ca",
            "expected at least one certificate of an authority",
        ));
    }
    Ok(store)
}

impl tower::Service<Uri> for Dialer {
    type Response = Link;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Link, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT_LIMIT, dialer.open(uri))
                .await
                .map_err(|_| "no connection within the time limit")?
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection.
pub struct Link(TokioIo<Box<dyn Stream>>);

impl Link {
    fn new(stream: impl Stream + 'static) -> Self {
        Self(TokioIo::new(Box::new(stream)))
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }
}
