//! The other end of a webhook: a program that is told of runs and checks who tells it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use dbtcloud_core::secret::Secret;
use dbtcloud_runtime::dispatch::Webhooks;
use serde_json::Value;
use tokio::task::JoinHandle;

/// What came, in its order.
#[derive(Default)]
pub struct Heard {
    /// Signature and body.
    pub posts: Vec<(String, Bytes)>,
    /// Whether nobody is answered.
    pub hang: bool,
}

/// An endpoint on a port of its own, which can be closed and opened again.
pub struct Endpoint {
    heard: Arc<Mutex<Heard>>,
    address: SocketAddr,
    open: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Listens.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn listen() -> Self {
        let mut endpoint = Self {
            heard: Arc::default(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            open: None,
        };
        endpoint.open().await;
        endpoint
    }

    /// Listens again where it did before.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn open(&mut self) {
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let router = Router::new().route("/", post(hear)).with_state(self.heard.clone());
        self.open = Some(tokio::spawn(
            async move { axum::serve(listener, router).await.unwrap() },
        ));
    }

    /// Listens no more: who connects is refused.
    pub async fn close(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            let _ = open.await;
        }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What came.
    ///
    /// # Panics
    /// When a look at it panicked before.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    /// The events that came, each with a signature by this secret.
    ///
    /// # Panics
    /// When a signature is wrong.
    pub fn events(&self, secret: &str) -> Vec<Value> {
        let secret = Secret::new(secret);
        let heard = self.heard();
        let event = |(signature, body): &(String, Bytes)| {
            assert_eq!(*signature, Webhooks::signature(&secret, body));
            serde_json::from_slice(body).unwrap()
        };
        heard.posts.iter().map(event).collect()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.abort();
        }
    }
}

async fn hear(State(heard): State<Arc<Mutex<Heard>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let signature = headers["authorization"].to_str().unwrap_or_default().to_owned();
    let hang = {
        let mut heard = heard.lock().unwrap();
        heard.posts.push((signature, body));
        heard.hang
    };
    if hang {
        std::future::pending::<()>().await;
    }
    StatusCode::OK
}
