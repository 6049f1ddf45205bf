//! The shapes of the wire, byte for byte. `UPDATE_GOLDEN=1` writes them anew; the difference is for a person
//! to judge.

use std::path::Path;

use dbtcloud_core::run::StepStatus;
use serde_json::{Value, json};

use super::world::World;

#[track_caller]
pub fn golden(name: &str, got: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.json"));
    let got = format!("{got:#}\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &got).unwrap();
        return;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        got,
        wanted,
        "{} differs; UPDATE_GOLDEN=1 writes it anew",
        path.display()
    );
}

#[tokio::test]
async fn catalog() {
    let world = World::new().await;
    let made = world.made().await;
    let (project, environment) = (made.project, made.environment);
    let p = format!("/api/v3/accounts/{{a}}/projects/{project}");
    golden(
        "account_v2",
        &world.ask("GET", "/api/v2/accounts/{a}/", None).await.json(),
    );
    golden(
        "accounts_list_v2",
        &world.ask("GET", "/api/v2/accounts/", None).await.json(),
    );
    golden("whoami", &world.get("/api/v2/whoami/").await);
    golden(
        "project_v3",
        &world
            .get(&format!("{p}/?include_related=[repository,connection,environments]"))
            .await,
    );
    golden(
        "project_v2",
        &world.get(&format!("/api/v2/accounts/{{a}}/projects/{project}/")).await,
    );
    golden("repository_v3", &world.get(&format!("{p}/repositories/1/")).await);
    golden(
        "environment_v3",
        &world.get(&format!("{p}/environments/{environment}/")).await,
    );
    golden(
        "environment_v2",
        &world
            .get(&format!("/api/v2/accounts/{{a}}/environments/{environment}/"))
            .await,
    );
    golden(
        "environments_list_v3",
        &world
            .ask("GET", &format!("{p}/environments/?limit=1&name=Production"), None)
            .await
            .json(),
    );
    golden("connection_v3", &world.get("/api/v3/accounts/{a}/connections/1/").await);
    golden("connection_legacy_v3", &world.get(&format!("{p}/connections/1/")).await);
    golden(
        "credentials_postgres_v3",
        &world
            .get(&format!("{p}/credentials/1/?include_related=[adapter]"))
            .await,
    );
    let duckdb = json!({
        "name": "Duck", "adapter_version": "duckdb_v0",
        "config": {"path": "/data/shop.duckdb", "motherduck_token": "s3cret"},
    });
    golden(
        "connection_duckdb_v3",
        &world.post("/api/v3/accounts/{a}/connections/", duckdb).await,
    );
    let adapter = json!({
        "type": "adapter", "adapter_version": "databricks_v0", "threads": 8, "target_name": "prod",
        "credential_details": {"fields": {
            "schema": {"value": "main", "metadata": {}},
            "token": {"value": "s3cret", "metadata": {"encrypt": true}},
        }, "field_order": []},
    });
    golden(
        "credentials_adapter_v3",
        &world.post(&format!("{p}/credentials/"), adapter).await,
    );
    let attributes = json!({"extended_attributes": {"schema": "other", "keepalives_idle": 30}});
    golden(
        "extended_attributes_v3",
        &world.post(&format!("{p}/extended-attributes/"), attributes).await,
    );
}

#[tokio::test]
async fn jobs() {
    let world = World::new().await;
    let made = world.made().await;
    let job = json!({
        "project_id": made.project,
        "environment_id": made.environment,
        "name": "Hourly [[hourly]]",
        "description": "Every hour in Berlin",
        "execute_steps": ["dbt seed", "dbt build --select tag:hourly"],
        "settings": {"threads": 8, "target_name": "prod"},
        "execution": {"timeout_seconds": 900},
        "triggers": {"github_webhook": false, "git_provider_webhook": false, "schedule": true, "on_merge": false},
        "schedule": {
            "cron": "30 6 * * 1-5",
            "date": {"type": "custom_cron", "cron": "30 6 * * 1-5"},
            "time": {"type": "every_hour", "interval": 1},
            "time_zone": "Europe/Berlin",
        },
        "job_completion_trigger_condition": {
            "condition": {"job_id": made.job, "project_id": made.project, "statuses": [10, 20]},
        },
        "generate_docs": true,
        "run_generate_sources": true,
        "deferring_environment_id": made.environment,
        "run_lint": true,
        "errors_on_lint_failure": false,
        "cost_optimization_features": ["state_aware_orchestration"],
        "force_node_selection": false,
    });
    let created = world.post("/api/v2/accounts/{a}/jobs/", job).await;
    golden("job_full", &created);
    golden(
        "job_minimal",
        &world.get(&format!("/api/v2/accounts/{{a}}/jobs/{}/", made.job)).await,
    );
    let related = "include_related=['environment','most_recent_run','most_recent_completed_run']&limit=1&order_by=-id";
    golden(
        "jobs_list",
        &world
            .ask("GET", &format!("/api/v2/accounts/{{a}}/jobs/?{related}"), None)
            .await
            .json(),
    );
}

#[tokio::test]
async fn runs() {
    let world = World::new().await;
    let made = world.made().await;
    let trigger =
        json!({"cause": "by hand", "git_branch": "feature", "steps_override": ["dbt build"], "threads_override": 2});
    let run = world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{}/run/", made.job), trigger)
        .await;
    golden("run_triggered", &run);
    let id = run["id"].as_i64().unwrap();
    golden(
        "run_queued",
        &world.get(&format!("/api/v2/accounts/{{a}}/runs/{id}/")).await,
    );
    world.clock.advance(std::time::Duration::from_secs(5));
    world.whole_run(id, StepStatus::Error).await;
    world.clock.advance(std::time::Duration::from_secs(70));
    let path = format!("/api/v2/accounts/{{a}}/runs/{id}");
    golden(
        "run_with_steps",
        &world
            .get(&format!("{path}/?include_related=run_steps,trigger,job,environment"))
            .await,
    );
    golden(
        "runs_list",
        &world
            .ask("GET", "/api/v2/accounts/{a}/runs/?status__in=[20]&order_by=-id", None)
            .await
            .json(),
    );
    golden("run_failure", &world.get(&format!("{path}/retry/")).await);
    golden("run_retried", &world.post(&format!("{path}/retry/"), json!({})).await);
    golden(
        "artifacts_list",
        &world.ask("GET", &format!("{path}/artifacts/"), None).await.json(),
    );
    golden("step", &world.get("/api/v2/accounts/{a}/steps/4/").await);
}

#[tokio::test]
async fn errors() {
    let world = World::new().await;
    let made = world.made().await;
    let job = json!({"project_id": made.project, "environment_id": 999, "name": " ", "execute_steps": "dbt build"});
    golden(
        "error_400",
        &world.ask("POST", "/api/v2/accounts/{a}/jobs/", Some(job)).await.json(),
    );
    golden(
        "error_401",
        &world.ask_as("", "GET", "/api/v2/accounts/", None).await.json(),
    );
    let viewer = world.service("viewer", &[("readonly", None)], None).await;
    let denied = world
        .ask_as(
            &format!("Token {viewer}"),
            "DELETE",
            "/api/v2/accounts/{a}/jobs/1/",
            None,
        )
        .await;
    golden("error_403", &denied.json());
    golden(
        "error_404",
        &world.ask("GET", "/api/v2/accounts/{a}/jobs/999/", None).await.json(),
    );
    golden(
        "error_404_not_implemented",
        &world.ask("GET", "/api/v3/accounts/{a}/groups/", None).await.json(),
    );
    golden(
        "error_405",
        &world.ask("PUT", "/api/v2/accounts/{a}/runs/", None).await.json(),
    );
}
