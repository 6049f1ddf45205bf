//! The services that a server tells: a trace collector and an OpenLineage service, in this process.

use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;

/// What came.
#[derive(Default)]
pub struct Heard {
    pub spans: Vec<Span>,
    pub events: Vec<Value>,
    pub authorization: Vec<Option<String>>,
    /// Events that are refused before one is taken.
    pub refuse: usize,
}

#[derive(Clone, Default)]
pub struct Receiver {
    heard: Arc<Mutex<Heard>>,
    pub url: String,
}

impl Receiver {
    /// Listens on a port of its own until the end of the test.
    pub async fn listen() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Self::default()
        };
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/api/v1/lineage", post(lineage))
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }
}

async fn traces(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Bytes {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let of_resources = request.resource_spans.into_iter();
    let spans = of_resources
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans);
    receiver.heard().spans.extend(spans);
    Bytes::new()
}

async fn lineage(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mut heard = receiver.heard();
    if heard.refuse > 0 {
        heard.refuse -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let key = headers.get("authorization").map(|key| key.to_str().unwrap().to_owned());
    heard.authorization.push(key);
    heard.events.push(serde_json::from_slice(&body).unwrap());
    StatusCode::CREATED
}
