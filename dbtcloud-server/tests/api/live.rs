//! The live tail: everything once and in order, also across a reconnection.

use axum::body::Body;
use axum::http::Request;
use dbtcloud_core::run::StepStatus;
use serde_json::{Value, json};

use super::world::World;

/// One event: its name, id and data.
type Event = (String, String, Value);

fn parse(text: &str) -> Vec<Event> {
    let field = |block: &str, name: &str| {
        let value = block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_default().to_owned()
    };
    text.split("\n\n")
        .filter(|block| block.contains("event:"))
        .map(|block| {
            (
                field(block, "event"),
                field(block, "id"),
                serde_json::from_str(&field(block, "data")).unwrap(),
            )
        })
        .collect()
}

async fn follow(world: &World, run: i64, header: Option<&str>, query: &str) -> Vec<Event> {
    let mut request = Request::builder()
        .uri(format!("/api/v2/accounts/{}/runs/{run}/events/{query}", world.account))
        .header("authorization", format!("Bearer {}", world.token));
    if let Some(id) = header {
        request = request.header("last-event-id", id);
    }
    let reply = world.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    parse(std::str::from_utf8(&reply.bytes).unwrap())
}

#[tokio::test]
async fn a_follower_that_comes_back_misses_nothing_and_sees_nothing_twice() {
    let world = World::new().await;
    let made = world.made().await;
    let run = world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job), json!({}))
        .await;
    let run = run["id"].as_i64().unwrap();
    world.whole_run(run, StepStatus::Success).await;
    let all = follow(&world, run, None, "").await;
    let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _, _)| name.as_str()).collect();
    assert!(
        ["run", "step", "log", "end"].iter().all(|name| names.contains(name)),
        "{names:?}"
    );
    assert_eq!(all.last().unwrap().0, "end");
    let logs: Vec<_> = all
        .iter()
        .filter(|(name, _, _)| name == "log")
        .map(|(_, _, data)| data.clone())
        .collect();
    assert_eq!(logs[0], json!({"step": 1, "offset": 0, "text": "log of step 1\n"}));
    assert_eq!(logs.len(), 4);
    let statuses: Vec<_> = all
        .iter()
        .filter(|(name, _, _)| name == "run")
        .map(|(_, _, data)| data["status"].clone())
        .collect();
    assert_eq!(statuses.first(), Some(&json!(1)));
    assert_eq!(statuses.last(), Some(&json!(10)));
    for cut in 0..all.len() - 1 {
        let (_, id, _) = &all[cut];
        let rest = follow(&world, run, Some(id), "").await;
        assert_eq!(rest, all[cut + 1..], "after {id}");
    }
    let (_, id, _) = &all[2];
    let query = format!("?last_event_id={}", id.replace(';', "%3B").replace(':', "%3A"));
    assert_eq!(follow(&world, run, None, &query).await, all[3..]);
}

#[tokio::test]
async fn a_bad_cursor_is_400() {
    let world = World::new().await;
    let made = world.made().await;
    let run = world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job), json!({}))
        .await["id"]
        .clone();
    let path = format!("/api/v2/accounts/{{a}}/runs/{run}/events/?last_event_id=x");
    let reply = world.ask("GET", &path, None).await;
    assert_eq!(reply.fields(), ["last_event_id"]);
}
