//! What stands between a server and the API of its cluster: counts the requests, and spoils them when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use kube::Client;
use serde_json::json;
use tokio::sync::watch;

/// A proxy on a port of the loopback, with every right, in place of the API.
#[derive(Clone)]
pub struct Between {
    url: String,
    faults: Arc<Faults>,
}

struct Faults {
    client: Client,
    requests: Mutex<BTreeMap<String, u64>>,
    delay_millis: AtomicU64,
    busy: AtomicBool,
    /// Counts up: every watch that is open then is told that it has expired.
    expired: watch::Sender<u64>,
}

impl Between {
    /// Starts it, before the cluster of this client.
    ///
    /// # Panics
    /// When there is no port for it.
    pub async fn start(client: Client) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let faults = Arc::new(Faults {
            client,
            requests: Mutex::default(),
            delay_millis: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            expired: watch::Sender::new(0),
        });
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(pass).with_state(Arc::clone(&faults));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, faults }
    }

    /// Writes a kubeconfig that leads here.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn kubeconfig(&self, path: &Path, namespace: &str) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "between",
            "clusters": [{"name": "between", "cluster": {"server": self.url}}],
            "users": [{"name": "between", "user": {}}],
            "contexts": [{"name": "between", "context": {"cluster": "between", "user": "between", "namespace": namespace}}],
        });
        std::fs::write(path, config.to_string()).unwrap();
    }

    /// Lets every request wait.
    pub fn slow(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.faults.delay_millis.store(millis, Ordering::SeqCst);
    }

    /// Answers every request with 429 while it is on.
    pub fn busy(&self, on: bool) {
        self.faults.busy.store(on, Ordering::SeqCst);
    }

    /// Ends every open watch by 410, as an API server does that has forgotten what was before.
    pub fn expire(&self) {
        self.faults.expired.send_modify(|count| *count += 1);
    }

    /// How many requests there were, by method and kind of object. Watches count once.
    ///
    /// # Panics
    /// Never, unless a request panicked.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.faults.requests.lock().unwrap().clone()
    }
}

/// `/apis/batch/v1/namespaces/n/jobs/name` is `jobs`.
fn kind(path: &str) -> &str {
    let mut parts = path.split('/').skip_while(|part| *part != "namespaces").skip(2);
    parts.next().unwrap_or(path)
}

async fn pass(State(faults): State<Arc<Faults>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let is_watch = parts.uri.query().is_some_and(|query| query.contains("watch="));
    let what = if is_watch { "WATCH" } else { parts.method.as_str() };
    let what = format!("{what} {}", kind(parts.uri.path()));
    *faults.requests.lock().unwrap().entry(what).or_default() += 1;
    let delay = Duration::from_millis(faults.delay_millis.load(Ordering::SeqCst));
    tokio::time::sleep(delay).await;
    if faults.busy.load(Ordering::SeqCst) {
        let said = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429, "reason": "TooManyRequests",
            "message": "too many requests, please try again later",
        });
        let json = (header::CONTENT_TYPE, "application/json");
        return (
            StatusCode::TOO_MANY_REQUESTS,
            [json, (header::RETRY_AFTER, "1")],
            said.to_string(),
        )
            .into_response();
    }
    let mut expired = faults.expired.subscribe();
    let body = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(bytes) => kube::client::Body::from(bytes.to_vec()),
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    // It speaks HTTP/1.1 to one host and another to the other.
    parts.headers.remove(header::HOST);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    parts.uri = path.parse().unwrap();
    match faults.client.send(Request::from_parts(parts, body)).await {
        Ok(answer) => {
            let (parts, body) = answer.into_parts();
            let body = Body::new(body);
            if !is_watch {
                return Response::from_parts(parts, body);
            }
            let gone = json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
                "message": "too old resource version",
            }});
            let last = futures::stream::once(async move { Ok(format!("{gone}\n").into()) });
            let until = Box::pin(async move { drop(expired.changed().await) });
            Response::from_parts(
                parts,
                Body::from_stream(body.into_data_stream().take_until(until).chain(last)),
            )
        }
        // As a server does that has died.
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
