//! HTTP to an object store: rustls with ring, as everywhere in the binary, and the machine's root certificates.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opendal::raw::{parse_content_encoding, parse_content_length};
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection that nobody uses is kept.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// A client with connections of its own. Redirects are told as they are: a store that sends its clients
/// elsewhere is at another endpoint than the URL says.
#[derive(Debug)]
pub(crate) struct Transport(Client<HttpsConnector<HttpConnector>, Full<Buffer>>);

impl Transport {
    pub(crate) fn new() -> dbtcloud_core::Result<Self> {
        let mut roots = RootCertStore::empty();
        // A machine without certificates can still speak to a store beside it.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| dbtcloud_core::Error::unavailable("TLS cannot be set up").because(error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_LIMIT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self(client))
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: http::Request<Buffer>) -> opendal::Result<http::Response<HttpBody>> {
        let is_head = request.method() == http::Method::HEAD;
        let uri = request.uri().clone();
        let answer = self.0.request(request.map(Full::new)).await;
        let (mut parts, body) = answer.map_err(|error| broken("no connection", error))?.into_parts();
        let length = if is_head || parse_content_encoding(&parts.headers)?.is_some() {
            None
        } else {
            parse_content_length(&parts.headers)?
        };
        parts.extensions.insert(uri);
        let body = body
            .into_data_stream()
            .map_ok(Buffer::from)
            .map_err(|error| broken("the connection was lost", error));
        Ok(http::Response::from_parts(parts, HttpBody::new(body, length)))
    }
}

fn broken(what: &'static str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unexpected, what)
        .set_source(Broken(error.into()))
        .set_temporary()
}

/// A connection that did not come about or did not last. [`crate::failure`] looks for it.
#[derive(Debug)]
pub(crate) struct Broken(Box<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
