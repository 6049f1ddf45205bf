//! Under a prefix of somebody else's router, and with somebody else's identities.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use dbtcloud_core::Result;
use dbtcloud_core::id::{AccountId, UserId};
use dbtcloud_server::Options;
use dbtcloud_server::auth::{Actor, Authenticator, Granted, Identity, Right};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::world::World;

async fn status(router: &Router, path: &str, token: &str) -> u16 {
    let request = Request::builder()
        .uri(path)
        .header("authorization", format!("Token {token}"))
        .header("host", "h:1");
    let response = router
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

#[tokio::test]
async fn everything_works_under_a_prefix() {
    let world = World::new().await;
    // `nest` is enough for the API; `nest_service` also answers `/dbt/` itself.
    let nested = Router::new().nest("/dbt", world.router.clone());
    for path in ["/dbt", "/dbt/api/v2/accounts", "/dbt/api/v2/accounts/"] {
        assert_eq!(status(&nested, path, &world.token).await, 200, "{path}");
    }
    let router = Router::new().nest_service("/dbt", world.router.clone());
    for path in [
        "/dbt",
        "/dbt/",
        "/dbt/healthz",
        "/dbt/readyz/",
        "/dbt/metrics",
        "/dbt/api/v2/accounts",
        "/dbt/api/v2/accounts/",
    ] {
        assert_eq!(status(&router, path, &world.token).await, 200, "{path}");
    }
    assert_eq!(status(&router, "/dbt/api//v2/accounts/", &world.token).await, 404);
}

struct OneUser(AccountId);

#[async_trait]
impl Authenticator for OneUser {
    async fn authenticate(&self, token: &str) -> Result<Option<Identity>> {
        assert_ne!(token, "panic", "an authenticator that panics");
        Ok((token == "let me in").then(|| Identity {
            account: self.0,
            actor: Actor::User(UserId::new(1)),
            name: "somebody".to_owned(),
            grants: vec![Granted {
                project: None,
                rights: vec![Right::Read],
            }],
        }))
    }
}

#[tokio::test]
async fn an_embedder_brings_identities_and_a_panic_is_a_500() {
    let world = World::new().await;
    let authenticator = Arc::new(OneUser(AccountId::new(world.account)));
    let options = Options {
        authenticator: Some(authenticator),
        ..Options::default()
    };
    let router = dbtcloud_server::router(world.plane.clone(), options);
    let path = format!("/api/v2/accounts/{}/jobs/", world.account);
    assert_eq!(status(&router, &path, "let me in").await, 200);
    assert_eq!(status(&router, &path, &world.token).await, 401);
    assert_eq!(status(&router, &path, "panic").await, 500);
    assert_eq!(status(&router, &path, "let me in").await, 200);
}

/// The start of the links in an answer to somebody who comes from this address and says that it comes through a proxy.
async fn link(world: &World, trusted: &str, peer: Option<&str>, public_url: Option<&str>) -> String {
    let options = Options {
        trusted_proxies: trusted.parse().unwrap(),
        public_url: public_url.map(str::to_owned),
        ..Options::default()
    };
    let router = dbtcloud_server::router(world.plane.clone(), options);
    let mut request = Request::builder()
        .uri(format!("/api/v2/accounts/{}/runs/", world.account))
        .header("authorization", format!("Token {}", world.token))
        .header("host", "inside:8080")
        .header("x-forwarded-host", "dbt.acme.example")
        .header("x-forwarded-proto", "https");
    if let Some(peer) = peer {
        request = request.extension(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
    }
    let answer = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let href = json["data"][0]["href"].as_str().unwrap();
    href.split("/deploy/").next().unwrap().to_owned()
}

#[tokio::test]
async fn links_have_the_name_that_a_trusted_proxy_says() {
    let world = World::new().await;
    let made = world.made().await;
    let run = format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job);
    world.post(&run, serde_json::json!({"cause": "test"})).await;
    let peer = Some("10.0.0.1:4711");
    let (outside, inside) = ("https://dbt.acme.example", "http://inside:8080");
    assert_eq!(link(&world, "10.0.0.0/8", peer, None).await, outside);
    assert_eq!(link(&world, "10.0.0.2", peer, None).await, inside);
    assert_eq!(link(&world, "", peer, None).await, inside);
    assert_eq!(
        link(&world, "0.0.0.0/0", None, None).await,
        inside,
        "nobody knows from where"
    );
    let public = "https://public.example";
    assert_eq!(link(&world, "10.0.0.0/8", peer, Some(public)).await, public);
}

#[tokio::test]
async fn health_and_metrics_need_no_token_and_name_no_run() {
    let world = World::new().await;
    world.made().await;
    let ready = world.ask_as("", "GET", "/readyz", None).await;
    assert_eq!(ready.json()["ready"], true);
    let metrics = world.ask_as("", "GET", "/metrics", None).await;
    let text = String::from_utf8(metrics.bytes.to_vec()).unwrap();
    for name in [
        "dbtcloud_runs_in_progress 0",
        "# TYPE dbtcloud_run_queue_depth gauge",
        "dbtcloud_http_request_duration_seconds_count{method=\"POST\",route=\"/api/v2/accounts/{account}/jobs\",status=\"2xx\"} 1",
        "dbtcloud_scheduler_last_tick_timestamp_seconds",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    let probes = dbtcloud_server::probes(world.plane.clone(), Options::default());
    assert_eq!(status(&probes, "/healthz", "").await, 200);
    assert_eq!(status(&probes, "/api/v2/accounts/", &world.token).await, 404);
}

#[tokio::test]
async fn a_request_keeps_its_id() {
    let world = World::new().await;
    for (sent, kept) in [("abc-1", true), ("a\tb", false), ("", false)] {
        let request = Request::builder()
            .uri("/healthz")
            .header("x-request-id", sent)
            .body(Body::empty())
            .unwrap();
        let reply = world.send(request).await;
        assert_eq!(reply.headers["x-request-id"] == sent, kept, "{sent:?}");
        assert!(!reply.headers["x-request-id"].is_empty());
    }
}
