//! Webhooks: what clients send and read, what endpoints are sent, and what becomes of one that fails.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::any;
use dbtcloud_core::catalog::{CatalogExt, Kind};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::run::StepStatus;
use dbtcloud_core::secret::Secret;
use dbtcloud_core::webhook::Webhook;
use dbtcloud_runtime::dispatch::{self, Webhooks};
use dbtcloud_runtime::outbox;
use serde_json::{Value, json};

use super::golden::golden;
use super::world::World;

const SUBSCRIPTIONS: &str = "/api/v3/accounts/{a}/webhooks/subscriptions";

fn subscription(id: &str) -> String {
    format!("/api/v3/accounts/{{a}}/webhooks/subscription/{id}")
}

/// An endpoint in this process.
#[derive(Clone)]
struct Endpoint {
    heard: Arc<Mutex<Vec<(String, Bytes)>>>,
    answer: Arc<Mutex<u16>>,
    url: String,
}

impl Endpoint {
    async fn listen() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Self {
            heard: Arc::default(),
            answer: Arc::new(Mutex::new(200)),
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
        };
        let router = Router::new().route("/hook", any(hear)).with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        endpoint
    }

    fn answer(&self, status: u16) {
        *self.answer.lock().unwrap() = status;
    }

    /// What came since the last look; every signature is checked.
    fn heard(&self, secret: &Value) -> Vec<Value> {
        let secret = Secret::new(secret.as_str().unwrap());
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        heard
            .into_iter()
            .map(|(signature, body)| {
                assert_eq!(signature, Webhooks::signature(&secret, &body));
                serde_json::from_slice(&body).unwrap()
            })
            .collect()
    }
}

async fn hear(State(endpoint): State<Endpoint>, headers: HeaderMap, body: Bytes) -> (StatusCode, HeaderMap, String) {
    assert_eq!(headers["content-type"], "application/json");
    let signature = headers["authorization"].to_str().unwrap().to_owned();
    endpoint.heard.lock().unwrap().push((signature, body));
    let status = StatusCode::from_u16(*endpoint.answer.lock().unwrap()).unwrap();
    let mut more = HeaderMap::new();
    more.insert("location", "/hook".parse().unwrap());
    (status, more, "x".repeat(100_000))
}

/// Everything that follows from what happened, once.
async fn follow(world: &World) {
    while outbox::round(&world.plane).await.unwrap() > 0 {}
    while dispatch::round(&world.plane).await.unwrap() > 0 {}
}

async fn subscribed(world: &World, url: &str, events: &[&str], jobs: Value) -> Value {
    let body = json!({
        "name": "Tell us", "description": "", "client_url": url, "event_types": events, "job_ids": jobs, "active": true,
    });
    world.post(SUBSCRIPTIONS, body).await
}

/// A run of a job that ends so.
async fn played(world: &World, job: i64, end: StepStatus) -> i64 {
    let cause = json!({"cause": "by hand"});
    let run = world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{job}/run/"), cause)
        .await;
    let run = run["id"].as_i64().unwrap();
    world.whole_run(run, end).await;
    run
}

#[tokio::test]
async fn subscriptions_are_made_read_changed_and_deleted() {
    let world = World::new().await;
    let made = world.made().await;
    let body = json!({
        "name": "Tell us", "description": "what happens", "client_url": "https://hooks.example/dbt",
        "event_types": ["job.run.started", "job.run.completed"], "job_ids": [made.job], "active": true,
    });
    let mut created = world.ask("POST", SUBSCRIPTIONS, Some(body)).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let secret = created.data()["hmac_secret"].as_str().unwrap().to_owned();
    assert_eq!(secret.len(), 64);
    created.bytes = String::from_utf8_lossy(&created.bytes)
        .replace(&secret, "SECRET")
        .into();
    golden("webhook_created_v3", &created.json());
    let id = created.data()["id"].as_str().unwrap().to_owned();
    golden("webhook_v3", &world.ask("GET", &subscription(&id), None).await.json());
    golden("webhooks_list_v3", &world.ask("GET", SUBSCRIPTIONS, None).await.json());
    let row = world
        .storage
        .fetch::<Webhook>(AccountId::new(world.account), 1)
        .await
        .unwrap();
    assert_ne!(row.secret.envelope(), secret);

    // The whole object back, as it was read: nothing is another.
    let whole = world.get(&subscription(&id)).await;
    assert_eq!(
        world.ask("PUT", &subscription(&id), Some(whole.clone())).await.data(),
        whole
    );
    let off = world
        .ask("PUT", &subscription(&id), Some(json!({"active": false, "job_ids": []})))
        .await;
    assert_eq!(
        (off.data()["active"].clone(), off.data()["job_ids"].clone()),
        (json!(false), json!([]))
    );
    let after = world
        .storage
        .fetch::<Webhook>(AccountId::new(world.account), 1)
        .await
        .unwrap();
    assert_eq!(after.secret, row.secret, "a change leaves the secret");

    let deleted = world.ask("DELETE", &subscription(&id), None).await;
    golden("webhook_deleted_v3", &deleted.json());
    for (method, path) in [
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("GET", "/test"),
        ("GET", "/events"),
    ] {
        let path = subscription(&id) + path;
        world.ask(method, &path, Some(json!({}))).await.refused(404);
    }
    for _ in 0..11 {
        subscribed(&world, "https://hooks.example/", &["job.run.errored"], json!([])).await;
    }
    let page = world.ask("GET", SUBSCRIPTIONS, None).await.json();
    assert_eq!(page["data"].as_array().unwrap().len(), 10, "ten on a page");
    assert_eq!(page["extra"]["pagination"]["total_count"], 11);
    let rest = world
        .ask("GET", &format!("{SUBSCRIPTIONS}?limit=100&offset=10"), None)
        .await;
    assert_eq!(rest.data().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn every_fault_of_a_subscription_names_its_field() {
    let world = World::new().await;
    let good =
        json!({"name": "n", "client_url": "https://h.example/", "event_types": ["job.run.completed"], "active": true});
    for (field, bad) in [
        ("name", json!(" ")),
        ("name", json!(null)),
        ("client_url", json!("ftp://h.example/")),
        ("client_url", json!("not a URL")),
        ("client_url", json!("https://user:hunter2@h.example/")),
        ("event_types", json!([])),
        ("event_types", json!(["job.run.paused"])),
        ("event_types", json!("job.run.started")),
        ("job_ids", json!([424242])),
        ("job_ids", json!(["x"])),
        ("active", json!("perhaps")),
    ] {
        let mut body = good.clone();
        body[field] = bad.clone();
        let refused = world.ask("POST", SUBSCRIPTIONS, Some(body)).await;
        assert_eq!(refused.fields(), [field], "{bad}");
        assert!(!refused.json().to_string().contains("hunter2"));
    }
    assert_eq!(world.storage.scan_all().await, 0);
    for id in ["wsu_0", "wsu_x", "999", "wsu_999999999999999999999"] {
        let message = world.ask("GET", &subscription(id), None).await.refused(404);
        assert!(message.contains("permissions"), "{message}");
    }
}

#[tokio::test]
async fn webhooks_are_for_those_who_may() {
    let world = World::new().await;
    subscribed(&world, "https://hooks.example/", &["job.run.errored"], json!([])).await;
    let as_set = async |set: &str, method: &str, path: &str| {
        let token = world
            .service(&format!("{set}{method}{}", path.len()), &[(set, None)], None)
            .await;
        world
            .ask_as(&format!("Token {token}"), method, path, Some(json!({})))
            .await
    };
    for set in ["webhooks_only", "developer", "account_admin"] {
        as_set(set, "GET", SUBSCRIPTIONS).await.data();
        as_set(set, "PUT", &subscription("wsu_1")).await.data();
    }
    for set in ["readonly", "job_admin", "job_runner"] {
        as_set(set, "GET", SUBSCRIPTIONS).await.refused(403);
        as_set(set, "POST", SUBSCRIPTIONS).await.refused(403);
        as_set(set, "DELETE", &subscription("wsu_1")).await.refused(403);
    }
    as_set("webhooks_only", "GET", "/api/v2/accounts/{a}/jobs/")
        .await
        .refused(403);
}

#[tokio::test]
async fn endpoints_are_told_in_dbt_clouds_words() {
    let world = World::new().await;
    let made = world.made().await;
    let (endpoint, other) = (Endpoint::listen().await, Endpoint::listen().await);
    let all = ["job.run.completed", "job.run.started", "job.run.errored"];
    let told = subscribed(&world, &endpoint.url, &all, json!([made.job.to_string()])).await;
    let elsewhere = subscribed(&world, &other.url, &["job.run.errored"], json!([])).await;
    let job = json!({"project_id": made.project, "environment_id": made.environment, "name": "Other"});
    let job = world.post("/api/v2/accounts/{a}/jobs/", job).await["id"]
        .as_i64()
        .unwrap();

    played(&world, made.job, StepStatus::Success).await;
    follow(&world).await;
    let heard = endpoint.heard(&told["hmac_secret"]);
    golden("webhook_payload_succeeded", &Value::Array(heard));
    assert_eq!(other.heard(&elsewhere["hmac_secret"]), Vec::<Value>::new());

    played(&world, made.job, StepStatus::Error).await;
    follow(&world).await;
    let heard = endpoint.heard(&told["hmac_secret"]);
    let types: Vec<_> = heard.iter().map(|event| event["eventType"].as_str().unwrap()).collect();
    assert_eq!(
        types,
        ["job.run.started", "job.run.errored", "job.run.completed"],
        "in order"
    );
    golden("webhook_payload_errored", &Value::Array(heard));
    assert_eq!(other.heard(&elsewhere["hmac_secret"]).len(), 1);

    // Another job's: only who asked for all jobs is told. A cancelled run completes.
    played(&world, job, StepStatus::Error).await;
    let run = world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job), json!({}))
        .await;
    world
        .post(&format!("/api/v2/accounts/{{a}}/runs/{}/cancel/", run["id"]), json!({}))
        .await;
    follow(&world).await;
    let heard = endpoint.heard(&told["hmac_secret"]);
    assert_eq!(heard.len(), 1, "{heard:#?}");
    assert_eq!(heard[0]["eventType"], "job.run.completed");
    assert_eq!(heard[0]["data"]["runStatus"], "Cancelled");
    assert_eq!(heard[0]["data"]["runStatusCode"], 30);
    assert_eq!(other.heard(&elsewhere["hmac_secret"]).len(), 1);

    let id = told["id"].as_str().unwrap();
    let seen = world.get(&subscription(id)).await;
    assert_eq!(seen["http_status_code"], "200");
    assert!(seen["dispatched_at"].as_str().unwrap().parse::<i64>().unwrap() > 1_700_000_000_000_000);
    let events = world
        .ask("GET", &format!("{}/events?limit=1&offset=1", subscription(id)), None)
        .await
        .json();
    assert_eq!(events["extra"]["pagination"]["total_count"], 6);
    let event = events["data"][0]["id"].as_str().unwrap();
    golden("webhook_event", &events["data"][0]);
    let receipt = world.get(&format!("{}/event/{event}/receipt", subscription(id))).await;
    assert_eq!(
        receipt[0]["response_body"].as_str().unwrap().len(),
        4096,
        "the beginning of an answer"
    );
    let mut receipt = receipt[0].clone();
    receipt["response_body"] = json!("");
    golden("webhook_receipt", &receipt);
    for wrong in ["wev_2_1_1_0", "wev_x", "nothing"] {
        let path = format!("{}/event/{wrong}/receipt", subscription(id));
        world.ask("GET", &path, None).await.refused(404);
    }
}

#[tokio::test]
async fn one_that_fails_is_tried_again_and_then_stopped() {
    let world = World::new().await;
    let made = world.made().await;
    let endpoint = Endpoint::listen().await;
    let told = subscribed(&world, &endpoint.url, &["job.run.completed"], json!([])).await;
    let (id, secret) = (told["id"].as_str().unwrap(), &told["hmac_secret"]);
    endpoint.answer(302);
    played(&world, made.job, StepStatus::Success).await;
    follow(&world).await;
    let first = endpoint.heard(secret);
    assert_eq!(first.len(), 1, "a redirect is not followed");
    for pause in [2, 8, 32, 128, 512] {
        world.clock.advance(Duration::from_secs(pause - 1));
        follow(&world).await;
        assert_eq!(endpoint.heard(secret).len(), 0, "not before {pause} s");
        world.clock.advance(Duration::from_secs(1));
        follow(&world).await;
        assert_eq!(endpoint.heard(secret), first, "the same event again");
    }
    world.clock.advance(Duration::from_secs(10_000));
    follow(&world).await;
    assert_eq!(endpoint.heard(secret).len(), 0, "six tries");
    assert_eq!(world.get(&subscription(id)).await["http_status_code"], "302");
    let event = world.get(&format!("{}/events", subscription(id))).await;
    assert_eq!(
        (event[0]["status"].clone(), event[0]["tries"].clone()),
        (json!("failed"), json!(6))
    );

    // One that arrives begins the count anew; five failures in a row end it.
    endpoint.answer(204);
    played(&world, made.job, StepStatus::Success).await;
    follow(&world).await;
    endpoint.answer(500);
    for count in 1..=5 {
        assert_eq!(world.get(&subscription(id)).await["active"], true, "after {count}");
        played(&world, made.job, StepStatus::Success).await;
        for _ in 0..6 {
            follow(&world).await;
            world.clock.advance(Duration::from_secs(512));
        }
    }
    let stopped = world.get(&subscription(id)).await;
    assert_eq!(stopped["active"], false);
    let reason = stopped["deactivate_reason"].as_str().unwrap();
    assert!(
        reason.contains("5 failed deliveries") && reason.contains("500"),
        "{reason}"
    );
    endpoint.heard(secret);
    played(&world, made.job, StepStatus::Success).await;
    follow(&world).await;
    assert_eq!(endpoint.heard(secret).len(), 0, "it is told no more");

    // Active again, it is told again, and one failure does not stop it.
    let again = world
        .ask("PUT", &subscription(id), Some(json!({"active": true})))
        .await
        .data();
    assert_eq!(
        (again["active"].clone(), again["deactivate_reason"].clone()),
        (json!(true), json!(""))
    );
    played(&world, made.job, StepStatus::Success).await;
    for _ in 0..6 {
        follow(&world).await;
        world.clock.advance(Duration::from_secs(512));
    }
    assert_eq!(world.get(&subscription(id)).await["active"], true);
    assert_eq!(endpoint.heard(secret).len(), 6);
}

#[tokio::test]
async fn what_waits_for_one_that_was_deleted_is_dropped() {
    let world = World::new().await;
    let made = world.made().await;
    let endpoint = Endpoint::listen().await;
    let told = subscribed(&world, &endpoint.url, &["job.run.completed"], json!([])).await;
    played(&world, made.job, StepStatus::Success).await;
    while outbox::round(&world.plane).await.unwrap() > 0 {}
    world
        .ask("DELETE", &subscription(told["id"].as_str().unwrap()), None)
        .await
        .data();
    follow(&world).await;
    assert_eq!(endpoint.heard(&told["hmac_secret"]).len(), 0);
    let waiting = dbtcloud_core::ports::Channel::Webhook;
    assert_eq!(world.plane.dispatches().undelivered(waiting).await.unwrap(), 0);
}

#[tokio::test]
async fn one_can_be_tried_out() {
    let world = World::new().await;
    let endpoint = Endpoint::listen().await;
    let told = subscribed(&world, &endpoint.url, &["job.run.errored"], json!([])).await;
    let path = format!("{}/test", subscription(told["id"].as_str().unwrap()));
    golden("webhook_test_v3", &world.ask("GET", &path, None).await.json());
    let heard = endpoint.heard(&told["hmac_secret"]);
    golden("webhook_payload_test", &heard[0]);
    endpoint.answer(401);
    let refused = world.get(&path).await;
    assert_eq!(refused["verification_status_code"], "401");
    assert!(refused["verification_error"].as_str().unwrap().contains("401"));
    let events = world
        .get(&format!("{}/events", subscription(told["id"].as_str().unwrap())))
        .await;
    assert_eq!(events, json!([]), "a try is no event");
}

/// How many webhooks there are.
trait Scan {
    async fn scan_all(&self) -> usize;
}

impl Scan for dbtcloud_contract::memory::MemoryStorage {
    async fn scan_all(&self) -> usize {
        dbtcloud_core::ports::Catalog::scan(self, Kind::Webhook, 0, 10)
            .await
            .unwrap()
            .len()
    }
}
