//! The audit log: every change by a request is there, by whom, and nothing secret.

use std::time::Duration;

use serde_json::{Value, json};

use super::golden::golden;
use super::world::World;

const LOG: &str = "/api/v3/accounts/{a}/audit-logs/";

/// Event types, newest first.
fn types(log: &Value) -> Vec<&str> {
    let entries = log.as_array().unwrap().iter();
    entries.map(|entry| entry["event_type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_change_is_there_by_whom() {
    let world = World::new().await;
    let made = world.made().await;
    world.clock.advance(Duration::from_secs(60));
    let begun = "2026-01-05 10:01:00.000000+00:00";
    let robot = world.service("robot", &[("account_admin", None)], None).await;
    let robot = format!("Token {robot}");
    let job = format!("/api/v2/accounts/{{a}}/jobs/{}/", made.job);
    world
        .ask_as(&robot, "POST", &job, Some(json!({"name": "Hourly"})))
        .await
        .data();
    let run = world.post(&format!("{job}run/"), json!({"cause": "by hand"})).await;
    world
        .ask_as(
            &robot,
            "POST",
            &format!("/api/v2/accounts/{{a}}/runs/{}/cancel/", run["id"]),
            None,
        )
        .await
        .data();
    world
        .ask(
            "POST",
            &format!("/api/v2/accounts/{{a}}/runs/{}/cancel/", run["id"]),
            None,
        )
        .await
        .data();
    let variable =
        json!({"env_var": {"new_name": "DBT_ENV_SECRET_KEY", "project": "hunter2", "Production": "hunter3"}});
    let path = format!(
        "/api/v3/accounts/{{a}}/projects/{}/environment-variables/bulk/",
        made.project
    );
    world.post(&path, variable).await;
    world.ask("DELETE", &job, None).await.data();
    let start = begun.replace(' ', "%20").replace('+', "%2B");
    let log = world.get(&format!("{LOG}?logged_at_start={start}")).await;
    assert_eq!(
        types(&log),
        [
            "job_definition.Removed",
            "environment_variable.Added",
            "environment_variable.Added",
            "run.Cancelled",
            "run.Triggered",
            "job_definition.Changed",
        ],
        "a run that had ended is not cancelled again"
    );
    golden("audit_logs_v3", &log);
    let before = world.get(&format!("{LOG}?logged_at_end={start}")).await;
    let before = types(&before);
    assert_eq!(before.last(), Some(&"account_settings.Added"), "by the bootstrap");
    assert!(before.contains(&"repository.Added") && before.contains(&"credentials.Added"));
    assert!(before.contains(&"service_token.Added"));
    assert!(!before.contains(&"run.Triggered"));

    let page = world.ask("GET", &format!("{LOG}?limit=2&offset=1"), None).await.json();
    assert_eq!(page["data"].as_array().unwrap().len(), 2);
    assert_eq!(page["data"][1]["id"], log[2]["id"]);
    assert!(page["extra"]["pagination"]["total_count"].as_u64().unwrap() > 10);
    let whole = world.ask("GET", LOG, None).await;
    let text = String::from_utf8_lossy(&whole.bytes).to_string();
    for secret in ["hunter2", "hunter3", &world.token] {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn the_log_is_for_administrators_of_the_account() {
    let world = World::new().await;
    for set in ["developer", "readonly", "job_admin", "webhooks_only"] {
        let token = world.service(set, &[(set, None)], None).await;
        world
            .ask_as(&format!("Token {token}"), "GET", LOG, None)
            .await
            .refused(403);
    }
    let bad = world
        .ask("GET", &format!("{LOG}?logged_at_start=yesterday"), None)
        .await;
    assert_eq!(bad.fields(), ["logged_at_start"]);
}

#[tokio::test]
async fn a_file_has_all_that_the_pages_have() {
    let world = World::new().await;
    let made = world.made().await;
    let job = format!("/api/v2/accounts/{{a}}/jobs/{}/", made.job);
    for count in 0..120 {
        let name = format!("Orders, \"hourly\" {count}");
        world.post(&job, json!({ "name": name })).await;
    }
    let reply = world.ask("GET", &format!("{LOG}download/"), None).await;
    assert_eq!(
        (reply.status.as_u16(), reply.headers["content-type"].to_str().unwrap()),
        (200, "text/csv; charset=utf-8")
    );
    let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
    let mut lines = text.lines();
    let head = "id,logged_at,account_id,event_type,source,actor_type,actor_id,actor_name,object_type,object_id,\
        object_name,project_id";
    assert_eq!(lines.next(), Some(head));
    let mut entries = Vec::new();
    for offset in [0, 100] {
        let page = world.get(&format!("{LOG}?limit=100&offset={offset}")).await;
        entries.extend(page.as_array().unwrap().clone());
    }
    assert!(entries.len() > 120);
    let wanted: Vec<String> = entries
        .iter()
        .map(|entry| entry["id"].as_str().unwrap().to_owned())
        .collect();
    let told: Vec<&str> = lines.clone().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(told, wanted);
    let newest = lines.next().unwrap();
    let named = format!(
        ",job_definition,{},\"Orders, \"\"hourly\"\" 119\",{}",
        made.job, made.project
    );
    assert!(newest.ends_with(&named), "{newest}");

    let reader = world.service("reader", &[("job_viewer", None)], None).await;
    let reply = world
        .ask_as(&format!("Token {reader}"), "GET", &format!("{LOG}download/"), None)
        .await;
    reply.refused(403);
}
