//! Webhooks of the real server, told to real endpoints: what is down, slow, far away or untrusted on the other end, and
//! a server that dies between sending and writing down that it sent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails loudly at the first surprise"
)]

mod mail;
mod secure;

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use dbtcloud_contract::wait::until;
use dbtcloud_tests::fake;
use dbtcloud_tests::hooks::Endpoint;
use dbtcloud_tests::installation::Installation;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
const SUBSCRIPTIONS: &str = "v3/accounts/{a}/webhooks/subscriptions";

/// An installation whose webhooks may lead anywhere, with a quick job.
async fn installation(environment: Vec<(&'static str, String)>) -> (Installation, i64) {
    let mut installation = Installation::with(&["--webhook-targets", "any"]);
    installation.environment = environment;
    fake::install(installation.path());
    installation.start().await;
    let repository = fake::repository(&installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    (installation, job)
}

async fn subscribe(installation: &Installation, url: &str, events: &[&str]) -> Value {
    let body = json!({"name": "Tell us", "client_url": url, "event_types": events, "active": true});
    installation.api().post(SUBSCRIPTIONS, &body).await
}

fn secret(subscription: &Value) -> &str {
    subscription["hmac_secret"].as_str().unwrap()
}

/// Waits until so many events came.
async fn heard(endpoint: &Endpoint, subscription: &Value, count: usize) -> Vec<Value> {
    until(LIMIT, || async {
        let events = endpoint.events(secret(subscription));
        if events.len() >= count { Ok(events) } else { Err(events) }
    })
    .await
}

/// What the API says of what a webhook was sent: state and tries, the newest first.
async fn sent(installation: &Installation, subscription: &Value) -> Vec<(String, u64)> {
    let id = subscription["id"].as_str().unwrap();
    let events = installation
        .api()
        .get(&format!("v3/accounts/{{a}}/webhooks/subscription/{id}/events"))
        .await;
    let seen = |event: &Value| {
        (
            event["status"].as_str().unwrap().to_owned(),
            event["tries"].as_u64().unwrap(),
        )
    };
    events.as_array().unwrap().iter().map(seen).collect()
}

/// Lets what waits come due at once, as time alone would.
async fn let_time_pass(installation: &Installation) {
    let path = installation.path().join("dbtcloud.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = options.connect().await.unwrap();
    sqlx::query("UPDATE dispatches SET due_at = 1 WHERE state = 'waiting'")
        .execute(&mut connection)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_endpoint_that_was_down_is_told_when_it_is_up() {
    let (mut installation, job) = installation(Vec::new()).await;
    let mut endpoint = Endpoint::listen().await;
    let told = subscribe(
        &installation,
        &endpoint.url(),
        &["job.run.started", "job.run.completed"],
    )
    .await;
    let run = installation.api().trigger(job).await;
    let first = heard(&endpoint, &told, 2).await;
    let types: Vec<_> = first.iter().map(|event| event["eventType"].as_str().unwrap()).collect();
    assert_eq!(types, ["job.run.started", "job.run.completed"]);
    assert!(
        first
            .iter()
            .all(|event| event["data"]["runId"] == json!(run.to_string()))
    );
    assert_eq!(first[1]["data"]["runStatus"], "Success");

    endpoint.close().await;
    let run = installation.api().trigger(job).await;
    installation.api().ended(run, LIMIT).await;
    until(LIMIT, || async {
        let seen = sent(&installation, &told).await;
        let waits = seen[0] == ("waiting".to_owned(), 0) && seen[1].0 == "waiting" && seen[1].1 > 0;
        if waits { Ok(()) } else { Err(seen) }
    })
    .await;
    endpoint.open().await;
    let_time_pass(&installation).await;
    let all = heard(&endpoint, &told, 4).await;
    let types: Vec<_> = all[2..]
        .iter()
        .map(|event| event["eventType"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["job.run.started", "job.run.completed"], "in order all the same");
    installation.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_hangs_holds_up_nobody_else() {
    let (mut installation, job) = installation(Vec::new()).await;
    let (slow, quick) = (Endpoint::listen().await, Endpoint::listen().await);
    slow.heard().hang = true;
    let to_slow = subscribe(&installation, &slow.url(), &["job.run.completed"]).await;
    let to_quick = subscribe(&installation, &quick.url(), &["job.run.completed"]).await;
    for count in 1..=4 {
        let run = installation.api().trigger(job).await;
        installation.api().ended(run, LIMIT).await;
        heard(&quick, &to_quick, count).await;
    }
    let waits = sent(&installation, &to_slow).await;
    assert!(waits.iter().all(|(state, _)| state == "waiting"), "{waits:?}");
    assert!(!slow.heard().posts.is_empty());
    // Nor does it hold up the end of the server for long.
    let began = Instant::now();
    installation.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_dies_after_sending_sends_the_same_again() {
    let point = ("DBTCLOUD_FAILPOINT", "dispatch.webhook.after_send".to_owned());
    let (mut installation, job) = installation(vec![point]).await;
    installation.expected = vec!["agent request failed", "tried again", "upload broke off", "lease"];
    let endpoint = Endpoint::listen().await;
    let told = subscribe(
        &installation,
        &endpoint.url(),
        &["job.run.started", "job.run.completed"],
    )
    .await;
    let run = installation.api().trigger(job).await;
    let began = Instant::now();
    let ended = loop {
        if let Some(ended) = installation.ended() {
            break ended;
        }
        assert!(began.elapsed() < LIMIT, "the server lives");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended.signal(), Some(9));
    installation.environment.clear();
    installation.start().await;
    let_time_pass(&installation).await;
    installation.api().ended(run, LIMIT).await;
    let events = heard(&endpoint, &told, 3).await;
    assert_eq!(events[0]["eventType"], "job.run.started");
    assert_eq!(events[0], events[1], "the same event, to be known by its id");
    assert_eq!(events[2]["eventType"], "job.run.completed");
    until(LIMIT, || async {
        let seen = sent(&installation, &told).await;
        let wanted = [("delivered".to_owned(), 1), ("delivered".to_owned(), 2)];
        if seen == wanted { Ok(()) } else { Err(seen) }
    })
    .await;
    installation.stop().await;
}

#[tokio::test]
async fn this_machine_is_out_of_reach_unless_the_operator_says_so() {
    let mut installation = Installation::new();
    installation.start().await;
    for url in [
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://[::1]/",
        "http://169.254.169.254/latest",
    ] {
        let body = json!({"name": "n", "client_url": url, "event_types": ["job.run.completed"], "active": true});
        let api = installation.api();
        let (status, answer) = api.send(Method::POST, SUBSCRIPTIONS, Some(&body)).await.unwrap();
        assert_eq!(status.as_u16(), 400, "{url}");
        let told = answer["data"]["client_url"].as_str().unwrap();
        assert!(told.contains("webhook_targets"), "{told}");
    }
    installation.stop().await;
}
