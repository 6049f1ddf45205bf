//! Notifications: rows that clients make, read and change.

use serde_json::{Value, json};

use super::golden::golden;
use super::world::World;

const ALL: &str = "/api/v2/accounts/{a}/notifications/";

fn one(id: &Value) -> String {
    format!("{ALL}{id}/")
}

#[tokio::test]
async fn notifications_are_made_read_changed_and_deleted() {
    let world = World::new().await;
    let made = world.made().await;
    let whole = |kind: i64, more: Value| {
        let mut body = json!({
            "account_id": world.account, "user_id": 1, "type": kind, "state": 1,
            "on_success": [made.job], "on_failure": [made.job], "on_cancel": [], "on_warning": [],
        });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let person = world.post(ALL, whole(1, json!({}))).await;
    golden("notification_v2", &person);
    let outside = world
        .post(ALL, whole(4, json!({"external_email": "ops@acme.example"})))
        .await;
    assert_eq!(outside["external_email"], "ops@acme.example");
    for kind in [2, 5] {
        let slack = json!({"slack_channel_id": format!("C{kind}"), "slack_channel_name": "#dbt"});
        let slack = world.post(ALL, whole(kind, slack)).await;
        assert_eq!(
            (slack["type"].clone(), slack["slack_channel_name"].clone()),
            (json!(kind), json!("#dbt"))
        );
    }
    let count = async |query: &str| world.get(&format!("{ALL}?{query}")).await.as_array().unwrap().len();
    assert_eq!(count("").await, 4);
    assert_eq!(count("type=4").await, 1);
    assert_eq!(count("external_email=ops@acme.example").await, 1);
    assert_eq!(count("slack_channel_id=C5").await, 1);
    assert_eq!(count("user_id=1&type=1").await, 1);
    assert_eq!(count("user_id=2").await, 0);

    // The whole object back, as it was read: nothing is another.
    let read = world.get(&one(&outside["id"])).await;
    assert_eq!(world.post(&one(&outside["id"]), read.clone()).await, read);
    let changed = world
        .post(&one(&outside["id"]), json!({"on_success": [], "on_cancel": [made.job]}))
        .await;
    assert_eq!(
        (changed["on_success"].clone(), changed["on_cancel"].clone()),
        (json!([]), json!([made.job]))
    );
    let gone = world.ask("DELETE", &one(&outside["id"]), None).await.data();
    assert_eq!(gone["state"], 2);
    world.ask("GET", &one(&outside["id"]), None).await.refused(404);

    world.post("/api/v2/notifications/unsubscribe/", json!({})).await;
    assert_eq!(count("type=1").await, 0, "no more mail to this person");
    assert_eq!(count("").await, 2);
}

#[tokio::test]
async fn every_fault_of_a_notification_names_its_field() {
    let world = World::new().await;
    for (bad, field) in [
        (json!({"type": 3}), "type"),
        (json!({"type": 4}), "external_email"),
        (json!({"type": 4, "external_email": "nobody"}), "external_email"),
        (json!({"type": 2, "slack_channel_id": "C"}), "slack_channel_name"),
        (json!({"type": 1, "user_id": 99}), "user_id"),
        (json!({"type": 1, "on_failure": [424242]}), "on_failure"),
        (json!({"type": 1, "on_failure": "all"}), "on_failure"),
    ] {
        assert_eq!(
            world.ask("POST", ALL, Some(bad.clone())).await.fields(),
            [field],
            "{bad}"
        );
    }
    let viewer = world.service("viewer", &[("readonly", None)], None).await;
    let body = Some(json!({"type": 1, "user_id": 1}));
    world
        .ask_as(&format!("Token {viewer}"), "POST", ALL, body)
        .await
        .refused(403);
}
