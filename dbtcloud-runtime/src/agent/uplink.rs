//! The agent's side of [`crate::protocol`]: one HTTP client, over a unix socket or TCP.
//!
//! It says what the control plane answered and how to wait before asking again; whether to ask again is decided by
//! whoever calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind, Result};
use futures::StreamExt as _;
use rand::Rng as _;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use url::Url;

use crate::protocol::{Redeem, Refusal, Report, ReportAck, RunPlan, Stored, kind_of};

/// How long a connection may take to come about.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);
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
    /// An address, `http://host:port`.
    Http(Url),
}

impl std::str::FromStr for Server {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("DBTCLOUD_SERVER", "expected unix:/path or http://host:port");
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(bad())
            };
        }
        match Url::parse(text) {
            Ok(url) if url.scheme() == "http" && url.has_host() => Ok(Self::Http(url)),
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
    client: reqwest::Client,
    base: Url,
    key: Arc<Secret>,
    bearer: HeaderValue,
}

fn unreachable(error: reqwest::Error) -> Error {
    // The URL says nothing that the message does not.
    Error::unavailable("control plane did not answer").because(error.without_url())
}

impl Uplink {
    /// A client with a fresh key of its own. Nothing is sent yet.
    pub(super) fn new(server: &Server) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(Duration::from_secs(30));
        let base = match server {
            Server::Unix(path) => {
                builder = builder.unix_socket(path.as_path());
                Url::parse("http://control-plane/")
            }
            Server::Http(url) => Ok(url.clone()),
        }
        .map_err(|e| Error::invalid("DBTCLOUD_SERVER", "expected an address").because(e))?;
        let client = builder
            .build()
            .map_err(|e| Error::unavailable("HTTP client cannot be set up").because(e))?;
        let key = Secret::new(hex::encode(rand::random::<[u8; KEY_BYTES]>()));
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
            .map_err(|e| Error::invalid("key", "expected visible characters").because(e))?;
        bearer.set_sensitive(true);
        Ok(Self {
            client,
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

    /// Trades the ticket for the plan, again and again with the same key until there is an answer.
    ///
    /// # Errors
    /// `Denied`, `Fenced` or `Invalid` as the control plane says; `Unavailable` after [`REDEEM_LIMIT`].
    pub(super) async fn redeem(&self, ticket: &Secret) -> Result<RunPlan> {
        let ask = Redeem {
            ticket: ticket.expose().to_owned(),
            key: self.key.expose().to_owned(),
        };
        let url = self.url(&["redeem"])?;
        let deadline = Instant::now() + REDEEM_LIMIT;
        let mut backoff = Backoff::default();
        loop {
            let request = self.client.post(url.clone()).timeout(ANSWER_LIMIT);
            let answer = answer(request.json(&ask)).await;
            match read_json(answer, "plan").await {
                Err(error) if error.retryable() && Instant::now() < deadline => {
                    tracing::warn!(error = %error.chain(), "ticket could not be redeemed yet");
                    backoff.pause().await;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a report once.
    pub(super) async fn report(&self, frame: bytes::Bytes) -> Result<ReportAck> {
        let request = self
            .client
            .post(self.url(&["report"])?)
            .timeout(ANSWER_LIMIT)
            .header(AUTHORIZATION, self.bearer.clone())
            .body(frame);
        read_json(answer(request).await, "acknowledgement").await
    }

    /// Sends a file once, to `parts` below `/agent/v1`.
    pub(super) async fn put(&self, parts: &[&str], file: &Path) -> Result<Stored> {
        let cannot = |e: std::io::Error| Error::corrupt(format!("{} cannot be read", file.display())).because(e);
        let open = tokio::fs::File::open(file).await.map_err(cannot)?;
        let bytes = open.metadata().await.map_err(cannot)?.len();
        let stream = tokio_util::io::ReaderStream::with_capacity(open, 64 * 1024);
        let request = self
            .client
            .put(self.url(parts)?)
            .timeout(TRANSFER_LIMIT)
            .header(AUTHORIZATION, self.bearer.clone())
            .header(reqwest::header::CONTENT_LENGTH, bytes)
            .body(reqwest::Body::wrap_stream(stream));
        read_json(answer(request).await, "answer").await
    }

    /// Fetches a file of the state into `to`, once. A part of a file is never left behind.
    pub(super) async fn get_state(&self, file: &str, to: &Path) -> Result<()> {
        let request = self
            .client
            .get(self.url(&["state", file])?)
            .timeout(TRANSFER_LIMIT)
            .header(AUTHORIZATION, self.bearer.clone());
        let mut stream = answer(request).await?.bytes_stream();
        let cannot = |e: std::io::Error| Error::corrupt(format!("{} cannot be written", to.display())).because(e);
        let part = to.with_extension("part");
        let mut out = tokio::fs::File::create(&part).await.map_err(cannot)?;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(unreachable)?;
            out.write_all(&piece).await.map_err(cannot)?;
        }
        out.flush().await.map_err(cannot)?;
        tokio::fs::rename(&part, to).await.map_err(cannot)
    }
}

/// The answer to a request, if it is a success. What does not come from the control plane's own door (a load
/// balancer's page, for example) is no answer.
async fn answer(request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(piece)) = stream.next().await {
        body.extend_from_slice(&piece);
        if body.len() > REFUSAL_LIMIT_BYTES {
            break;
        }
    }
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => Err(Error::new(kind_of(status.as_u16()), refusal.message)),
        Err(_) => Err(Error::unavailable(format!(
            "control plane answered {status} without a reason"
        ))),
    }
}

async fn read_json<T: serde::de::DeserializeOwned>(answer: Result<reqwest::Response>, what: &'static str) -> Result<T> {
    let body = answer?.bytes().await.map_err(unreachable)?;
    serde_json::from_slice(&body).map_err(|e| {
        // An answer of another version, or none of ours: later there may be a better one.
        Error::new(ErrorKind::Unavailable, format!("control plane's {what} cannot be read")).because(e)
    })
}

/// A report as it goes over the wire.
pub(super) fn frame(report: &Report) -> Result<bytes::Bytes> {
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
        assert!(matches!("http://plane:8080".parse(), Ok(Server::Http(_))));
        for bad in ["unix:x", "plane:8080", "ftp://x", "https://x", ""] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_kept_in_their_place() {
        let uplink = Uplink::new(&"http://plane:8080/base/".parse().unwrap()).unwrap();
        let url = uplink.url(&["artifacts", "4", "run", "a b?#%2e.sql"]).unwrap();
        assert_eq!(
            url.as_str(),
            "http://plane:8080/base/agent/v1/artifacts/4/run/a%20b%3F%23%252e.sql"
        );
        assert!(!format!("{uplink:?}").contains(uplink.key.expose()));
    }
}
