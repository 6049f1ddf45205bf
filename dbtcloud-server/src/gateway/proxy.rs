//! A gateway in a process of its own: passes requests to the apps, and knows neither database nor token.
//!
//! An app that does not answer `/readyz` gets no requests while there is another that does. A request whose connection
//! was refused was not sent: it goes to the next app, whatever it is. One that was sent and got no answer is sent again
//! only if a second time changes nothing. Bodies pass through in both directions as they come; so does whatever the two
//! sides speak after they have agreed on another protocol (websockets).

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::Uri;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use dbtcloud_runtime::dial::{self, Client, Dialer};
use futures::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::REQUEST_ID;
use crate::forwarded::{Origin, Proxies};
use crate::health;
use crate::rest;
use crate::wire::fault::Fault;

/// How often the apps are asked whether they are ready.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long they may take to say so.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// How long an app may take to begin an answer: longer than an app itself allows, bodies of agents included.
const ANSWER_LIMIT: Duration = Duration::from_secs(660);
/// What is passed on.
const PASSED: [&str; 2] = ["/api/", "/develop/"];
/// What is passed on when agents come by this gateway.
const AGENTS: &str = "/agent/";
/// Headers that belong to one connection.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

struct Upstream {
    base: String,
    ready: AtomicBool,
}

pub(crate) struct Inner {
    apps: Vec<Upstream>,
    client: Client,
    turn: AtomicUsize,
    requests: AtomicUsize,
    agents: bool,
    trusted: Proxies,
    instance: String,
    draining: CancellationToken,
}

/// The apps behind a gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gateway(Arc<Inner>);

impl Gateway {
    pub(crate) fn new(
        apps: &[String],
        dialer: Dialer,
        agents: bool,
        trusted: Proxies,
        instance: String,
        draining: CancellationToken,
    ) -> Self {
        let upstream = |base: &String| Upstream {
            base: base.clone(),
            ready: AtomicBool::new(false),
        };
        Self(Arc::new(Inner {
            apps: apps.iter().map(upstream).collect(),
            client: dialer.client(),
            turn: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            agents,
            trusted,
            instance,
            draining,
        }))
    }

    /// Asks the apps again and again whether they are ready, until dropped.
    pub(crate) async fn watch(self) {
        loop {
            let look = self.0.apps.iter().map(|app| async {
                let uri = format!("{}/readyz", app.base).parse::<Uri>();
                let ready = match uri {
                    Ok(uri) => tokio::time::timeout(READY_LIMIT, self.0.client.get(uri))
                        .await
                        .is_ok_and(|answer| answer.is_ok_and(|answer| answer.status().is_success())),
                    Err(_) => false,
                };
                if app.ready.swap(ready, Ordering::Relaxed) != ready {
                    tracing::info!(app = app.base, ready, "an app changed");
                }
            });
            futures::future::join_all(look).await;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The routes.
    pub(crate) fn router(self) -> Router {
        let instance = self.0.instance.clone();
        Router::new()
            .route("/", get(move || async move { super::pages::status_of(&instance) }))
            .route("/deploy/{account}/projects/{project}/runs/{id}", get(super::pages::run))
            .route("/healthz", get(health::alive))
            .route("/readyz", get(ready))
            .fallback(pass)
            .with_state(self)
    }

    /// The apps in the order in which they are tried: those that are ready first, each time another one.
    fn order(&self) -> Vec<&Upstream> {
        let apps = &self.0.apps;
        let first = self.0.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<_> = (0..apps.len()).map(|at| &apps[(first + at) % apps.len()]).collect();
        order.sort_by_key(|app| !app.ready.load(Ordering::Relaxed));
        order
    }

    async fn forward(&self, mut request: Request) -> Response {
        let protocol = asked_protocol(request.headers());
        let asked = protocol.is_some().then(|| dial::upgrade(&mut request));
        let (mut parts, body) = request.into_parts();
        let origin = Origin::of(&parts.headers, &parts.extensions, &self.0.trusted);
        origin.write(&mut parts.headers);
        let id = self.prepare(&mut parts.headers);
        let client = origin.client;
        if let Some(protocol) = &protocol {
            change_to(protocol, &mut parts.headers);
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let repeatable = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&parts.method);
        let body = Once::new(body);
        let mut said = String::new();
        for app in self.order() {
            let mut request = Request::new(body.lend());
            *request.method_mut() = parts.method.clone();
            *request.headers_mut() = parts.headers.clone();
            let Ok(uri) = format!("{}{path}", app.base).parse::<Uri>() else {
                return Fault::field("path", "expected a URL").into_response();
            };
            *request.uri_mut() = uri;
            match tokio::time::timeout(ANSWER_LIMIT, self.0.client.request(request)).await {
                Ok(Ok(mut answer)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    let Some((asked, protocol)) = asked.zip(answer.headers().get(header::UPGRADE).cloned()) else {
                        break;
                    };
                    self.join(asked, dial::upgrade(&mut answer), &id);
                    let mut answer = self.answer(answer.map(Body::new), &id, client);
                    change_to(&protocol, answer.headers_mut());
                    return answer;
                }
                Ok(Ok(answer)) => return self.answer(answer.map(Body::new), &id, client),
                Ok(Err(error)) => {
                    let again = error.is_connect() || repeatable;
                    said = error.to_string();
                    app.ready.store(false, Ordering::Relaxed);
                    tracing::info!(app = app.base, request_id = %id, error = said, again, "an app did not answer");
                    if !again || !body.is_whole() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        tracing::warn!(request_id = %id, path = parts.uri.path(), error = said, "no app answered");
        Fault::new(
            StatusCode::BAD_GATEWAY,
            "No app answered. What was asked may have been done: look before asking again.",
        )
        .into_response()
    }

    /// Passes on what both sides say from here on. A gateway that stops cuts it: whoever speaks so begins again.
    fn join(&self, asked: dial::OnUpgrade, granted: dial::OnUpgrade, id: &str) {
        let (draining, id) = (self.0.draining.clone(), id.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = draining.cancelled() => {}
                ended = dial::join(asked, granted) => {
                    if let Err(error) = ended {
                        tracing::debug!(request_id = id, %error, "a connection was cut");
                    }
                }
            }
        });
    }

    /// Takes off what belongs to the connection, and says who is asking. The request's id.
    fn prepare(&self, headers: &mut axum::http::HeaderMap) -> String {
        for name in HOP {
            headers.remove(name);
        }
        if let Some(id) = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()) {
            return id.to_owned();
        }
        let count = self.0.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let id = format!("{}-{count:x}", self.0.instance);
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert(REQUEST_ID, value);
        }
        id
    }

    fn answer(&self, answer: Response, id: &str, client: Option<IpAddr>) -> Response {
        let (mut parts, body) = answer.into_parts();
        for name in HOP {
            parts.headers.remove(name);
        }
        let tail = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let (status, client) = (parts.status.as_u16(), client.map(tracing::field::display));
        tracing::info!(target: "dbtcloud::access", request_id = id, client, status, "passed on");
        if self.0.draining.is_cancelled() {
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // A live tail goes on elsewhere by `Last-Event-ID`.
        let body = if tail {
            let draining = self.0.draining.clone().cancelled_owned();
            Body::from_stream(body.into_data_stream().take_until(draining))
        } else {
            body
        };
        Response::from_parts(parts, body)
    }
}

/// The protocol that a request would change to on its connection.
fn asked_protocol(headers: &axum::http::HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    let asks = connection
        .split(',')
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

fn change_to(protocol: &HeaderValue, headers: &mut axum::http::HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol.clone());
}

/// A body that is lent to one try after the other, as long as none has begun to read it.
#[derive(Clone)]
struct Once(Arc<Mutex<Option<Body>>>, bool);

impl Once {
    fn new(body: Body) -> Self {
        let none = axum::body::HttpBody::is_end_stream(&body);
        Self(Arc::new(Mutex::new(Some(body))), none)
    }

    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_whole(&self) -> bool {
        self.1 || self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn lend(&self) -> Body {
        if self.1 {
            return Body::empty();
        }
        let this = self.clone();
        let stream = futures::stream::once(async move { this.take().unwrap_or_else(Body::empty).into_data_stream() });
        Body::from_stream(stream.flatten())
    }
}

async fn pass(State(gateway): State<Gateway>, request: Request) -> Response {
    let path = request.uri().path();
    let passed = PASSED.iter().any(|prefix| path.starts_with(prefix));
    if passed || (gateway.0.agents && path.starts_with(AGENTS)) {
        return gateway.forward(request).await;
    }
    rest::not_implemented(request.method().clone(), request.uri().clone())
        .await
        .into_response()
}

/// 200 while an app is ready, 503 with what is known of each otherwise.
async fn ready(State(gateway): State<Gateway>) -> Response {
    let apps: serde_json::Map<String, serde_json::Value> = gateway
        .0
        .apps
        .iter()
        .map(|app| {
            let ready = app.ready.load(Ordering::Relaxed);
            (app.base.clone(), if ready { "ok" } else { "not ready" }.into())
        })
        .collect();
    let draining = gateway.0.draining.is_cancelled();
    let ready = !draining && apps.values().any(|app| app == "ok");
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({"ready": ready, "draining": draining, "components": apps})),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn app(name: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = move |body: String| async move { format!("{name} {body}") };
        let router = Router::new()
            .route("/readyz", get(|| async { "ok" }))
            .route("/api/echo", axum::routing::post(echo));
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    async fn ask(router: &Router, path: &str) -> (u16, String) {
        let request = Request::post(path).body(Body::from("hello")).unwrap();
        let answer = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn what_was_refused_goes_to_the_next_app_with_its_body() {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone_url = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let apps = [gone_url.clone(), app("second").await];
        let gateway = |apps: &[String]| {
            Gateway::new(
                apps,
                Dialer::plain(),
                false,
                Proxies::default(),
                "test".to_owned(),
                CancellationToken::new(),
            )
            .router()
        };
        let router = gateway(&apps);
        for _ in 0..4 {
            assert_eq!(ask(&router, "/api/echo").await, (200, "second hello".to_owned()));
        }
        assert_eq!(ask(&gateway(&[gone_url]), "/api/echo").await.0, 502);
        assert_eq!(ask(&router, "/agent/v1/report").await.0, 404);
        assert_eq!(ask(&router, "/metrics").await.0, 404);
    }

    /// An app that grants another protocol: it says every line back, louder.
    async fn shouting() -> String {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let (mut head, mut line) = (String::new(), String::new());
                    while stream.read_line(&mut head).await.unwrap() > 2 {}
                    let granted = head.to_lowercase().contains("upgrade: shout\r\n");
                    let answer = match granted {
                        true => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n",
                        false => "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n",
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    while granted && stream.read_line(&mut line).await.unwrap_or(0) > 0 {
                        stream.write_all(line.to_uppercase().as_bytes()).await.unwrap();
                        line.clear();
                    }
                });
            }
        });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn another_protocol_passes_both_ways_until_one_side_ends() {
        use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
        let draining = CancellationToken::new();
        let gateway = Gateway::new(
            &[shouting().await],
            Dialer::plain(),
            false,
            Proxies::default(),
            "test".to_owned(),
            draining.clone(),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, gateway.router()).await });
        let open = async |headers: &str| {
            let mut stream = BufReader::new(tokio::net::TcpStream::connect(address).await.unwrap());
            let ask = format!("GET /develop/terminal HTTP/1.1\r\nhost: gateway\r\n{headers}\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut head = String::new();
            while stream.read_line(&mut head).await.unwrap() > 2 {}
            (stream, head.to_lowercase())
        };
        let changing = "connection: keep-alive, Upgrade\r\nupgrade: shout\r\n";
        let (mut first, head) = open(changing).await;
        assert!(
            head.contains("101 switching protocols") && head.contains("upgrade: shout"),
            "{head}"
        );
        let mut heard = String::new();
        for word in ["one\n", "two\n"] {
            first.write_all(word.as_bytes()).await.unwrap();
            first.read_line(&mut heard).await.unwrap();
        }
        assert_eq!(heard, "ONE\nTWO\n");
        let (_, head) = open("upgrade: shout\r\n").await;
        assert!(head.contains("426 upgrade required"), "it was not asked for: {head}");
        // A gateway that stops cuts it.
        draining.cancel();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), first.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty());
    }

    #[tokio::test]
    async fn what_was_sent_is_not_sent_again() {
        use tokio::io::AsyncReadExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cuts = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(AtomicUsize::new(0));
        let count = heard.clone();
        tokio::spawn(async move {
            // Reads the request and hangs up.
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 4096]).await;
            }
        });
        let apps = [cuts.clone(), cuts];
        let gateway = Gateway::new(
            &apps,
            Dialer::plain(),
            false,
            Proxies::default(),
            "test".to_owned(),
            CancellationToken::new(),
        );
        assert_eq!(ask(&gateway.router(), "/api/echo").await.0, 502);
        assert_eq!(heard.load(Ordering::Relaxed), 1);
    }
}
