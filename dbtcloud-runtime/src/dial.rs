//! How HTTP connections are opened by us: over a unix socket, over TCP, or over TLS with the authorities of a file
//! or of this machine. Agents reach the control plane so, and gateways their apps.
//!
//! It opens and knows nothing of what is said; whether to try again is decided by whoever calls.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
use tokio::net::TcpStream;
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

/// Which addresses may be reached, for URLs that people entered. It is asked of the address that is connected to, after
/// names were looked up: a name that leads elsewhere the next time gains nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The Internet alone.
    Public,
    /// Private networks too; not this machine, and not what is beside it on the wire, as clouds' metadata services are.
    Private,
    /// Every address.
    Any,
}

/// Amazon's metadata service on IPv6, which stands in a private range.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

impl Reach {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Public, Self::Private, Self::Any];

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Any => "any",
        }
    }

    /// Whether an address may be reached.
    ///
    /// ```
    /// use dbtcloud_runtime::dial::Reach;
    /// assert!(Reach::Private.allows("10.1.2.3".parse().unwrap()));
    /// assert!(!Reach::Private.allows("169.254.169.254".parse().unwrap()));
    /// ```
    pub fn allows(self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (Self::Any, _) => true,
            (_, IpAddr::V4(v4)) => {
                let [a, b, c, _] = v4.octets();
                let here = a == 0 || a == 127 || (a == 169 && b == 254) || a >= 224;
                let private = v4.is_private()
                    || (a == 100 && (64..128).contains(&b))
                    || (a == 192 && b == 0 && c == 0)
                    || (a == 198 && (18..20).contains(&b));
                !here && (self == Self::Private || !private)
            }
            (_, IpAddr::V6(v6)) => {
                let s = v6.segments();
                let embedded = |high: u16, low: u16| {
                    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
                };
                // Addresses that stand for one of the older kind: NAT64, 6to4, and compatible ones.
                match s {
                    [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return self.allows(embedded(high, low)),
                    [0x2002, high, low, ..] => return self.allows(embedded(high, low)),
                    [0, 0, 0, 0, 0, 0, high, low] if high != 0 => return self.allows(embedded(high, low)),
                    _ => {}
                }
                let here = v6.is_unspecified()
                    || v6.is_loopback()
                    || v6.is_multicast()
                    || s[0] & 0xffc0 == 0xfe80
                    || v6 == METADATA;
                let private = s[0] & 0xfe00 == 0xfc00 || s[0] & 0xffc0 == 0xfec0;
                !here && (self == Self::Private || !private)
            }
        }
    }
}

/// The connection of a request or an answer, once both sides have agreed to speak another protocol on it.
pub use hyper::upgrade::{OnUpgrade, on as upgrade};

/// Passes bytes between two connections whose sides have agreed on another protocol, until both have ended.
///
/// # Errors
/// When one of them was cut, or the protocol was not changed.
pub async fn join(asked: OnUpgrade, granted: OnUpgrade) -> io::Result<()> {
    let (asked, granted) = tokio::try_join!(asked, granted).map_err(io::Error::other)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(asked), &mut TokioIo::new(granted))
        .await
        .map(drop)
}

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
    reach: Reach,
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
            reach: Reach::Any,
        }
    }

    /// The same, to these addresses only.
    #[must_use]
    pub fn within(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// Which addresses it may reach.
    pub fn reach(&self) -> Reach {
        self.reach
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
        let tcp = if self.reach == Reach::Any {
            tower::Service::call(&mut self.tcp, uri).await?.into_inner()
        } else {
            let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
            self.within_reach(&host, port).await?
        };
        if !secure {
            return Ok(Link::new(tcp));
        }
        let tls = self.tls.ok_or("https was not set up")?;
        Ok(Link::new(tls.connect(ServerName::try_from(host)?, tcp).await?))
    }
}

impl Dialer {
    /// A connection to one of the host's addresses that may be reached.
    async fn within_reach(&self, host: &str, port: u16) -> std::result::Result<TcpStream, BoxError> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
        let allowed: Vec<SocketAddr> = found
            .iter()
            .copied()
            .filter(|address| self.reach.allows(address.ip()))
            .collect();
        if allowed.is_empty() {
            let what = format!(
                "{host} is at an address that may not be reached; only {} ones may",
                self.reach.name()
            );
            return Err(what.into());
        }
        let tcp = TcpStream::connect(&allowed[..]).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_may_be_reached() {
        for (address, public, private) in [
            ("93.184.216.34", true, true),
            ("2606:2800:220:1::1", true, true),
            ("10.0.0.1", false, true),
            ("172.31.255.255", false, true),
            ("172.32.0.1", true, true),
            ("192.168.1.1", false, true),
            ("100.64.0.1", false, true),
            ("198.18.0.1", false, true),
            ("fd12:3456::1", false, true),
            ("127.0.0.1", false, false),
            ("127.9.9.9", false, false),
            ("0.0.0.0", false, false),
            ("169.254.169.254", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
            ("::", false, false),
            ("::1", false, false),
            ("fe80::1", false, false),
            ("ff02::1", false, false),
            ("fd00:ec2::254", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("::ffff:10.0.0.1", false, true),
            ("::127.0.0.1", false, false),
            ("64:ff9b::7f00:1", false, false),
            ("64:ff9b::a00:1", false, true),
            ("2002:a9fe:a9fe::", false, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(Reach::Public.allows(address), public, "{address}");
            assert_eq!(Reach::Private.allows(address), private, "{address}");
            assert!(Reach::Any.allows(address));
        }
    }

    #[tokio::test]
    async fn what_is_out_of_reach_is_not_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = Dialer::plain().within(Reach::Private).client();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
            let error = client
                .get(format!("http://{host}:{port}/").parse().unwrap())
                .await
                .unwrap_err();
            assert!(error.is_connect(), "{host}: {error:?}");
            assert!(format!("{error:?}").contains("may not be reached"), "{host}: {error:?}");
        }
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(
            Dialer::plain()
                .within(Reach::Any)
                .client()
                .get("http://[::1]:1/".parse().unwrap())
                .await
                .is_err()
        );
    }
}
