//! The agent's side of [`crate::protocol`]: one HTTP client, over a unix socket, TCP or TLS.
//!
//! It says what the control plane answered and how to wait before asking again; whether to ask again is decided by
//! whoever calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Request, Response};
use bytes::Bytes;
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind, Result, failpoint};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use rand::Rng as _;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use url::Url;

use crate::dial::{Client, Dialer};
use crate::protocol::{
    PROTOCOL_HEADER, PROTOCOL_WRITTEN, Redeem, Refusal, Report, ReportAck, RunPlan, Stored, kind_of, readable,
};

/// The longest answer that is read whole.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024 * 1024;
/// How long an answer to a report or a redemption may take.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long one transfer of a file may take.
pub const TRANSFER_LIMIT: Duration = Duration::from_secs(600);
/// How long a ticket is tried before the agent gives up.
pub const REDEEM_LIMIT: Duration = Duration::from_secs(600);
/// The first pause between two tries, and the longest.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The longest refusal that is read.
const REFUSAL_LIMIT_BYTES: usize = 64 * 1024;
/// Bytes of randomness in the agent's key.
const KEY_BYTES: usize = 32;

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A unix socket.
    Unix(PathBuf),
    /// An address, `http://host:port` or `https://host:port`, maybe with a path.
    Http(Url),
}

impl std::str::FromStr for Server {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(
                "DBTCLOUD_SERVER",
                "expected unix:/path, http://host:port or https://host:port",
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(bad())
            };
        }
        match Url::parse(text) {
            Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(Self::Http(url)),
            _ => Err(bad()),
        }
    }
}

/// Pauses that grow, with jitter, so that many agents do not come back at the same instant.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF.0)
    }
}

impl Backoff {
    pub(super) async fn pause(&mut self) {
        let span = self.0.mul_f64(rand::rng().random_range(0.5..1.0));
        self.0 = self.0.saturating_mul(2).min(BACKOFF.1);
        tokio::time::sleep(span).await;
    }
}

/// A connection to the control plane, by the agent's own key. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    client: Client,
    base: Url,
    key: Arc<Secret>,
    bearer: HeaderValue,
}

fn unreachable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("control plane did not answer").because(error)
}

fn late(_: tokio::time::error::Elapsed) -> Error {
    Error::unavailable("control plane did not answer in time")
}

impl Uplink {
    /// A client with a fresh key of its own. Nothing is sent yet. `ca` vouches for a server that speaks TLS.
    pub(super) fn new(server: &Server, ca: Option<&Path>) -> Result<Self> {
        let (dialer, base) = match server {
            Server::Unix(path) => (Dialer::unix(path), Url::parse("http://control-plane/")),
            Server::Http(url) if url.scheme() == "https" => (Dialer::secure(ca)?, Ok(url.clone())),
            Server::Http(url) => (Dialer::plain(), Ok(url.clone())),
        };
        let base = base.map_err(|e| Error::invalid("DBTCLOUD_SERVER", "expected an address").because(e))?;
        let key = Secret::new(hex::encode(rand::random::<[u8; KEY_BYTES]>()));
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
            .map_err(|e| Error::invalid("key", "expected visible characters").because(e))?;
        bearer.set_sensitive(true);
        Ok(Self {
            client: dialer.client(),
            base,
            key: Arc::new(key),
            bearer,
        })
    }

    fn url(&self, parts: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Error::invalid("DBTCLOUD_SERVER", "expected an address"))?
            .pop_if_empty()
            .extend(["agent", "v1"])
            .extend(parts);
        Ok(url)
    }

    /// A request to `parts` below `/agent/v1`, with the agent's key.
    fn request(&self, method: Method, parts: &[&str], body: Body) -> Result<Request<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.url(parts)?.as_str())
            .body(body)
            .map_err(|e| Error::invalid("DBTCLOUD_SERVER", "expected an address").because(e))?;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.bearer.clone());
        headers.insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL_WRITTEN));
        Ok(request)
    }

    /// The answer to a request, if it is a success. What does not come from the control plane's own door (a load
    /// balancer's page, for example) is no answer.
    async fn answer(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let response = self.client.request(request).await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            let written = response.headers().get(PROTOCOL_HEADER);
            readable(written.map(|value| value.to_str().unwrap_or("unknown")))?;
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), REFUSAL_LIMIT_BYTES).collect().await;
        let refusal = body
            .ok()
            .and_then(|body| serde_json::from_slice::<Refusal>(&body.to_bytes()).ok());
        Err(match refusal {
            Some(refusal) if status == axum::http::StatusCode::INSUFFICIENT_STORAGE => {
                Error::unavailable(refusal.message).because(Full)
            }
            Some(refusal) => Error::new(kind_of(status.as_u16()), refusal.message),
            None => Error::unavailable(format!("control plane answered {status} without a reason")),
        })
    }

    /// Sends a request once and reads what it was answered, all within `limit`.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        request: Request<Body>,
        limit: Duration,
        what: &'static str,
    ) -> Result<T> {
        let read = async {
            let body = Limited::new(self.answer(request).await?.into_body(), ANSWER_LIMIT_BYTES);
            Ok::<_, Error>(body.collect().await.map_err(unreachable)?.to_bytes())
        };
        let body = tokio::time::timeout(limit, read).await.map_err(late)??;
        serde_json::from_slice(&body).map_err(|e| {
            // An answer of another version, or none of ours: later there may be a better one.
            Error::new(ErrorKind::Unavailable, format!("control plane's {what} cannot be read")).because(e)
        })
    }

    /// Trades the ticket for the plan, again and again with the same key until there is an answer.
    ///
    /// # Errors
    /// `Denied`, `Fenced` or `Invalid` as the control plane says; `Unavailable` after [`REDEEM_LIMIT`].
    pub(super) async fn redeem(&self, ticket: &Secret) -> Result<RunPlan> {
        let ask = Redeem {
            ticket: ticket.expose().to_owned(),
            key: self.key.expose().to_owned(),
        };
        let ask =
            serde_json::to_vec(&ask).map_err(|e| Error::invalid("ticket", "cannot be written as JSON").because(e))?;
        let deadline = Instant::now() + REDEEM_LIMIT;
        let mut backoff = Backoff::default();
        loop {
            let send = || async {
                let mut request = self.request(Method::POST, &["redeem"], ask.clone().into())?;
                let headers = request.headers_mut();
                headers.remove(AUTHORIZATION);
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                self.ask(request, ANSWER_LIMIT, "plan").await
            };
            match failpoint::call("agent", "redeem", send).await {
                Err(error) if error.retryable() && Instant::now() < deadline => {
                    tracing::warn!(error = %error.chain(), "ticket could not be redeemed yet");
                    backoff.pause().await;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a report once.
    pub(super) async fn report(&self, frame: Bytes) -> Result<ReportAck> {
        let send = || async {
            let request = self.request(Method::POST, &["report"], frame.clone().into())?;
            self.ask(request, ANSWER_LIMIT, "acknowledgement").await
        };
        failpoint::call("agent", "report", send).await
    }

    /// Sends a file once, to `parts` below `/agent/v1`.
    pub(super) async fn put(&self, parts: &[&str], file: &Path) -> Result<Stored> {
        failpoint::call("agent", "put", || self.put_once(parts, file)).await
    }

    async fn put_once(&self, parts: &[&str], file: &Path) -> Result<Stored> {
        let cannot = |e: std::io::Error| Error::corrupt(format!("{} cannot be read", file.display())).because(e);
        let open = tokio::fs::File::open(file).await.map_err(cannot)?;
        let bytes = open.metadata().await.map_err(cannot)?.len();
        let stream = tokio_util::io::ReaderStream::with_capacity(open, 64 * 1024);
        let mut request = self.request(Method::PUT, parts, Body::from_stream(stream))?;
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
        self.ask(request, TRANSFER_LIMIT, "answer").await
    }

    /// Fetches a file of the state into `to`, once. A part of a file is never left behind.
    pub(super) async fn get_state(&self, file: &str, to: &Path) -> Result<()> {
        let ask = || async {
            let request = self.request(Method::GET, &["state", file], Body::empty())?;
            self.answer(request).await
        };
        let cannot = |e: std::io::Error| Error::corrupt(format!("{} cannot be written", to.display())).because(e);
        let part = to.with_extension("part");
        let fetch = async {
            let mut body = failpoint::call("agent", "state", ask).await?.into_body();
            let mut out = tokio::fs::File::create(&part).await.map_err(cannot)?;
            while let Some(frame) = body.frame().await {
                if let Ok(piece) = frame.map_err(unreachable)?.into_data() {
                    out.write_all(&piece).await.map_err(cannot)?;
                }
            }
            out.flush().await.map_err(cannot)
        };
        tokio::time::timeout(TRANSFER_LIMIT, fetch).await.map_err(late)??;
        tokio::fs::rename(&part, to).await.map_err(cannot)
    }
}

/// The control plane's word that its store has no room.
#[derive(Debug, thiserror::Error)]
#[error("the artifact store is full")]
struct Full;

/// Whether something could not be stored for lack of room.
pub(super) fn is_full(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Full>())
}

/// A report as it goes over the wire.
pub(super) fn frame(report: &Report) -> Result<Bytes> {
    report.encode()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn servers_are_read() {
        assert_eq!(
            "unix:/run/x.sock".parse::<Server>().unwrap(),
            Server::Unix("/run/x.sock".into())
        );
        for url in ["http://plane:8080", "https://plane/behind/a/balancer"] {
            assert!(matches!(url.parse(), Ok(Server::Http(_))), "{url}");
        }
        for bad in ["unix:x", "plane:8080", "ftp://x", ""] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_kept_in_their_place() {
        let uplink = Uplink::new(&"http://plane:8080/base/".parse().unwrap(), None).unwrap();
        let url = uplink.url(&["artifacts", "4", "run", "a b?#%2e.sql"]).unwrap();
        assert_eq!(
            url.as_str(),
            "http://plane:8080/base/agent/v1/artifacts/4/run/a%20b%3F%23%252e.sql"
        );
        assert!(!format!("{uplink:?}").contains(uplink.key.expose()));
    }
}
