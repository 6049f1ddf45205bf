//! Input that is wrong in every way somebody thought of: the right status, the right field, and never a 500.

use axum::body::Body;
use axum::http::{Request, header};
use dbtcloud_server::Options;
use serde_json::{Value, json};

use super::world::World;

async fn raw(world: &World, method: &str, path: &str, kind: &str, body: impl Into<Body>) -> super::world::Reply {
    let request = Request::builder()
        .method(method)
        .uri(path.replace("{a}", &world.account.to_string()))
        .header(header::AUTHORIZATION, format!("Token {}", world.token))
        .header(header::CONTENT_TYPE, kind);
    world.send(request.body(body.into()).unwrap()).await
}

#[tokio::test]
async fn bad_jobs_name_their_field() {
    let world = World::new().await;
    let made = world.made().await;
    let good = json!({"project_id": made.project, "environment_id": made.environment, "name": "J"});
    let cases: Vec<(&str, Value, &str)> = vec![
        ("no name", json!({"name": null}), "name"),
        ("empty name", json!({"name": " "}), "name"),
        ("name of another type", json!({"name": 7}), "name"),
        ("unknown project", json!({"project_id": 999}), "project_id"),
        ("project 0", json!({"project_id": 0}), "project_id"),
        ("negative environment", json!({"environment_id": -1}), "environment_id"),
        ("unknown environment", json!({"environment_id": 999}), "environment_id"),
        ("huge id", json!({"environment_id": 1e300}), "environment_id"),
        ("five fields", json!({"schedule": {"cron": "0 6 * *"}}), "schedule.cron"),
        (
            "bad minute",
            json!({"schedule": {"cron": "61 6 * * *"}}),
            "schedule.cron",
        ),
        ("never", json!({"schedule": {"cron": "0 0 31 2 *"}}), "schedule.cron"),
        (
            "zone",
            json!({"schedule": {"cron": "0 6 * * *", "time_zone": "Berlin"}}),
            "schedule.time_zone",
        ),
        (
            "date",
            json!({"schedule": {"date": {"type": "custom_cron", "cron": "x"}}}),
            "schedule.date.cron",
        ),
        ("schedule of another type", json!({"schedule": "daily"}), "schedule"),
        (
            "schedule without one",
            json!({"triggers": {"schedule": true}}),
            "schedule",
        ),
        (
            "steps of another type",
            json!({"execute_steps": "dbt build"}),
            "execute_steps",
        ),
        ("no steps", json!({"execute_steps": []}), "execute_steps"),
        ("not dbt", json!({"execute_steps": ["rm -rf /"]}), "execute_steps"),
        (
            "two lines",
            json!({"execute_steps": ["dbt build\nrm"]}),
            "execute_steps",
        ),
        ("threads", json!({"settings": {"threads": 0}}), "settings.threads"),
        (
            "negative threads",
            json!({"settings": {"threads": -4}}),
            "settings.threads",
        ),
        (
            "timeout",
            json!({"execution": {"timeout_seconds": -1}}),
            "execution.timeout_seconds",
        ),
        ("flags", json!({"run_lint": "maybe"}), "run_lint"),
        (
            "defer",
            json!({"deferring_job_definition_id": 999}),
            "deferring_job_definition_id",
        ),
        (
            "condition",
            json!({"job_completion_trigger_condition": {"condition": {"job_id": made.job, "project_id": 1, "statuses": [11]}}}),
            "job_completion_trigger_condition.condition.statuses",
        ),
        ("state", json!({"state": 3}), "state"),
    ];
    for (what, change, field) in cases {
        let mut body = good.clone();
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        if field != "state" {
            let reply = world.ask("POST", "/api/v2/accounts/{a}/jobs/", Some(body)).await;
            assert_eq!(reply.fields(), [field], "create: {what}");
        }
        if field != "name" || what == "empty name" || what == "name of another type" {
            let reply = world
                .ask(
                    "POST",
                    &format!("/api/v2/accounts/{{a}}/jobs/{}/", made.job),
                    Some(change),
                )
                .await;
            assert_eq!(reply.fields(), [field], "update: {what}");
        }
    }
}

#[tokio::test]
async fn bad_triggers_name_their_field() {
    let world = World::new().await;
    let made = world.made().await;
    let path = format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job);
    for (body, field) in [
        (json!({"steps_override": "dbt build"}), "steps_override"),
        (json!({"steps_override": ["ls"]}), "steps_override"),
        (json!({"threads_override": 0}), "threads_override"),
        (json!({"threads_override": "x"}), "threads_override"),
        (json!({"timeout_seconds_override": -5}), "timeout_seconds_override"),
        (json!({"git_branch": "--upload-pack=x"}), "git_branch"),
        (json!({"cause": ["x"]}), "cause"),
    ] {
        assert_eq!(
            world.ask("POST", &path, Some(body.clone())).await.fields(),
            [field],
            "{body}"
        );
    }
}

#[tokio::test]
async fn bad_bodies() {
    let world = World::new().await;
    let made = world.made().await;
    let path = format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job);
    for body in [
        "{",
        "[1]",
        "7",
        "\"x\"",
        "{\"a\": }",
        "\u{0}",
        "{\"cause\": \"\\ud800\"}",
    ] {
        assert_eq!(
            raw(&world, "POST", &path, "application/json", body).await.fields(),
            ["body"],
            "{body}"
        );
    }
    let bytes = raw(&world, "POST", &path, "application/json", vec![0xff, 0xfe]).await;
    assert_eq!(bytes.fields(), ["body"]);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(
        raw(&world, "POST", &path, "application/json", deep).await.fields(),
        ["body"]
    );
    for body in [
        "",
        "null",
        "{}",
        " \n",
        "{\"unknown\": {\"deep\": [1, null]}, \"cause\": null}",
    ] {
        raw(&world, "POST", &path, "application/json", body).await.data();
    }
    let form = raw(
        &world,
        "POST",
        &path,
        "application/x-www-form-urlencoded",
        "cause=by+form&threads_override=3",
    )
    .await;
    let run = form.data();
    assert_eq!(run["trigger"]["cause"], "by form");
    assert_eq!(run["trigger"]["threads_override"], 3);
}

#[tokio::test]
async fn a_huge_body_is_refused_before_it_is_read() {
    let world = World::with(Options {
        body_limit_bytes: 1_000,
        ..Options::default()
    })
    .await;
    let path = "/api/v3/accounts/{a}/projects/";
    let body = json!({"name": "x".repeat(2_000)});
    assert!(world.ask("POST", path, Some(body)).await.refused(413).contains("1000"));
    world
        .ask("POST", path, Some(json!({"name": "x".repeat(200)})))
        .await
        .data();
}

#[tokio::test]
async fn bad_paths_are_404_and_bad_queries_400() {
    let world = World::new().await;
    let made = world.made().await;
    for path in [
        "/api/v2/accounts/{a}/jobs/999/",
        "/api/v2/accounts/{a}/jobs/-1/",
        "/api/v2/accounts/{a}/jobs/0/",
        "/api/v2/accounts/{a}/jobs/abc/",
        "/api/v2/accounts/{a}/jobs/1.5/",
        "/api/v2/accounts/{a}/jobs/99999999999999999999/",
        "/api/v2/accounts/{a}/runs/999/",
        "/api/v2/accounts/{a}/runs/999/artifacts/manifest.json",
        "/api/v2/accounts/{a}/runs/999/events/",
        "/api/v2/accounts/{a}/steps/999/",
        "/api/v2/accounts/0/jobs/",
        "/api/v2/accounts/x/",
        "/api/v3/accounts/{a}/projects/999/environments/1/",
        "/api/v3/accounts/{a}/projects/999/environment-variables/environment/",
        "/api/v2/nothing/",
        "/api/v4/accounts/1/runs/",
        "/nothing",
    ] {
        assert!(
            world.ask("GET", path, None).await.refused(404).contains("permissions"),
            "{path}"
        );
    }
    let environment = format!(
        "/api/v3/accounts/{{a}}/projects/{}/environments/{}/",
        made.project + 1,
        made.environment
    );
    world.ask("GET", &environment, None).await.refused(404);
    assert_eq!(
        world
            .ask("GET", "/api/v2/accounts/{a}/runs/1/artifacts/%ff%fe", None)
            .await
            .fields(),
        ["path"]
    );
    for (query, field) in [
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("offset=-1", "offset"),
        ("state=9", "state"),
        ("project_id=abc", "project_id"),
        ("pk__in=[1,x]", "pk__in"),
        ("triggers_schedule=often", "triggers_schedule"),
    ] {
        let reply = world
            .ask("GET", &format!("/api/v2/accounts/{{a}}/jobs/?{query}"), None)
            .await;
        assert_eq!(reply.fields(), [field], "{query}");
    }
    for (query, field) in [("status=4", "status"), ("created_at__range=[1]", "created_at__range")] {
        let reply = world
            .ask("GET", &format!("/api/v2/accounts/{{a}}/runs/?{query}"), None)
            .await;
        assert_eq!(reply.fields(), [field], "{query}");
    }
    world
        .ask("PATCH", "/api/v2/accounts/{a}/runs/", None)
        .await
        .refused(405);
}

#[tokio::test]
async fn bad_catalog_objects_name_their_field() {
    let world = World::new().await;
    let made = world.made().await;
    let p = format!("/api/v3/accounts/{{a}}/projects/{}", made.project);
    let other = world.made().await;
    let foreign = world
        .get(&format!(
            "/api/v3/accounts/{{a}}/projects/{}/credentials/",
            other.project
        ))
        .await;
    for (path, body, field) in [
        ("/api/v3/accounts/{a}/projects/".to_owned(), json!({}), "name"),
        (
            "/api/v3/accounts/{a}/projects/".to_owned(),
            json!({"name": "x", "connection_id": 99}),
            "connection_id",
        ),
        (
            "/api/v3/accounts/{a}/projects/".to_owned(),
            json!({"name": "x", "dbt_project_subdirectory": "../x"}),
            "dbt_project_subdirectory",
        ),
        (
            "/api/v3/accounts/{a}/connections/".to_owned(),
            json!({"name": "x"}),
            "adapter_version",
        ),
        (
            "/api/v3/accounts/{a}/connections/".to_owned(),
            json!({"name": "x", "adapter_version": "db2_v0"}),
            "adapter_version",
        ),
        (
            "/api/v3/accounts/{a}/connections/".to_owned(),
            json!({"name": "x", "adapter_version": "postgres_v0", "config": {"port": 70000}}),
            "config.port",
        ),
        (
            "/api/v3/accounts/{a}/connections/1/".to_owned(),
            json!({"adapter_version": "duckdb_v0"}),
            "adapter_version",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "type": "odd"}),
            "type",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "deployment_type": "odd"}),
            "deployment_type",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "use_custom_branch": true}),
            "custom_branch",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "execution": {"imge": "x"}}),
            "execution.imge",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "execution": {"resources": {"limits": {"memory": "much"}}}}),
            "execution.resources.limits.memory",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "execution": {"pod_overlay": {"spec": {"hostNetwork": true}}}}),
            "execution.pod_overlay.spec.hostNetwork",
        ),
        (
            format!("{p}/environments/"),
            json!({"name": "x", "credentials_id": foreign[0]["id"]}),
            "credentials_id",
        ),
        (format!("{p}/credentials/"), json!({"type": "odd"}), "adapter_version"),
        (
            format!("{p}/credentials/"),
            json!({"type": "postgres", "password": 7}),
            "credential_details.password",
        ),
        (format!("{p}/repositories/"), json!({"remote_url": ""}), "remote_url"),
        (
            format!("{p}/repositories/"),
            json!({"remote_url": "--upload-pack=x"}),
            "remote_url",
        ),
        (
            format!("{p}/repositories/"),
            json!({"remote_url": "https://u:p@host/x"}),
            "remote_url",
        ),
        (
            format!("{p}/repositories/"),
            json!({"remote_url": "x", "git_clone_strategy": "odd"}),
            "git_clone_strategy",
        ),
        (
            format!("{p}/extended-attributes/"),
            json!({"extended_attributes": []}),
            "extended_attributes",
        ),
        (
            format!("{p}/environment-variables/"),
            json!({"name": "X", "type": "project", "raw_value": "x"}),
            "name",
        ),
        (
            format!("{p}/environment-variables/"),
            json!({"name": "DBT_X", "type": "odd", "raw_value": "x"}),
            "type",
        ),
        (
            format!("{p}/environment-variables/"),
            json!({"name": "DBT_X", "type": "job", "raw_value": "x"}),
            "job_definition_id",
        ),
        (
            format!("{p}/environment-variables/"),
            json!({"name": "DBT_X"}),
            "raw_value",
        ),
        (
            format!("{p}/environment-variables/"),
            json!({"name": "DBT_X", "type": "environment", "raw_value": "x", "environment_id": other.environment}),
            "environment_id",
        ),
    ] {
        let reply = world.ask("POST", &path, Some(body.clone())).await;
        assert_eq!(reply.fields(), [field], "{path} {body}");
    }
}
