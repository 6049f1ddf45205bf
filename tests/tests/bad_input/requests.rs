//! From people: each gets an error that names the field or the step.

use std::time::Duration;

use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres::{self, GUARDED_ROLE};
use dbtcloud_tests::project;
use reqwest::Method;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(240);

const FINE: &[(&str, &str)] = &[
    ("dbt_project.yml", "name: fine\nversion: '1.0.0'\nprofile: default\n"),
    ("models/one.sql", "select 1 as id"),
];

/// The name, status and log of the first step that failed.
fn culprit(run: &Value) -> (String, String) {
    let step = run["run_steps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|step| step["status"] == json!(20));
    let step = step.unwrap_or_else(|| panic!("no step failed: {run:#}"));
    let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
    (
        text("name"),
        format!(
            "{}\n{}",
            text("logs"),
            run["status_message"].as_str().unwrap_or_default()
        ),
    )
}

#[tokio::test]
async fn requests_that_cannot_be_right_name_the_field() {
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let repository = project::repository(&installation.path().join("origin"), FINE);
    let job = installation.job(&repository, &["dbt build"]).await;
    let whole = api.get(&format!("v2/accounts/{{a}}/jobs/{job}/")).await;
    let changed = |change: Value| {
        let mut body = whole.clone();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let scheduled = |schedule: Value| changed(json!({"triggers": {"schedule": true}, "schedule": schedule}));
    let cron = |cron: &str| json!({"date": {"type": "custom_cron", "cron": cron}, "time": {"type": "every_hour", "interval": 1}});
    let mut zoned = cron("0 6 * * *");
    zoned["time_zone"] = json!("Europe/Atlantis");
    let path = format!("v2/accounts/{{a}}/jobs/{job}/");
    let run = format!("v2/accounts/{{a}}/jobs/{job}/run/");
    for (path, body, field) in [
        (path.as_str(), scheduled(cron("61 * * * *")), "cron"),
        (path.as_str(), scheduled(cron("0 6 31 2 *")), "cron"),
        (path.as_str(), scheduled(zoned), "zone"),
        (path.as_str(), changed(json!({"execute_steps": []})), "execute_steps"),
        (
            path.as_str(),
            changed(json!({"execute_steps": ["rm -rf /"]})),
            "execute_steps",
        ),
        (
            path.as_str(),
            changed(json!({"settings": {"threads": 0, "target_name": "x"}})),
            "threads",
        ),
        (
            path.as_str(),
            changed(json!({"environment_id": 999_999})),
            "environment_id",
        ),
        (
            run.as_str(),
            json!({"cause": "x", "steps_override": ["ls"]}),
            "steps_override",
        ),
        (
            run.as_str(),
            json!({"cause": "x", "threads_override": 0}),
            "threads_override",
        ),
    ] {
        let (status, answer) = api.send(Method::POST, path, Some(&body)).await.unwrap();
        assert_eq!(status, 400, "{path} {field}: {answer}");
        assert!(answer.to_string().contains(field), "{field} is not named: {answer}");
    }
    let (status, answer) = api
        .send(
            Method::POST,
            "v2/accounts/{a}/jobs/999999/run/",
            Some(&json!({"cause": "x"})),
        )
        .await
        .unwrap();
    assert_eq!(status, 404, "{answer}");
    assert_eq!(
        api.get(&path).await["execute_steps"],
        json!(["dbt build"]),
        "nothing was changed"
    );
    installation.stop().await;
}

#[tokio::test]
async fn runs_that_cannot_succeed_name_the_step_and_the_reason() {
    let database = postgres::database();
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let fine = project::repository(&installation.path().join("fine"), FINE);
    let good = installation.job(&fine, &["dbt build"]).await;
    let broken = [
        ("dbt_project.yml", "name: broken\nversion: [\nprofile: default\n"),
        ("models/one.sql", "select 1"),
    ];
    let broken = project::repository(&installation.path().join("broken"), &broken);
    let empty = project::repository(&installation.path().join("empty"), &[("README.md", "no project here")]);

    let run_with = async |job: i64, body: Value| {
        let run = api.post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &body).await["id"]
            .as_i64()
            .unwrap();
        let run = api.ended(run, LIMIT).await;
        assert_eq!(run["status"], json!(20), "{run:#}");
        culprit(&run)
    };
    let (step, said) = run_with(good, json!({"cause": "x", "git_branch": "no-such-branch"})).await;
    assert_eq!(step, "Clone git repository");
    assert!(said.contains("no-such-branch"), "{said}");

    let (step, said) = run_with(
        good,
        json!({"cause": "x", "git_sha": "0123456789012345678901234567890123456789"}),
    )
    .await;
    assert_eq!(step, "Clone git repository");
    assert!(said.contains("0123456789012345678901234567890123456789"), "{said}");

    let (step, said) = run_with(good, json!({"cause": "x", "dbt_version_override": "9.9.9"})).await;
    assert!(
        step.starts_with("Invoke dbt with") || step.starts_with("Create profile"),
        "{step}"
    );
    assert!(said.contains("9.9.9"), "{said}");

    let (step, said) = run_with(installation.job(&broken, &["dbt build"]).await, json!({"cause": "x"})).await;
    assert!(step.starts_with("Invoke dbt with"), "{step}");
    assert!(said.contains("Syntax error near line 4"), "{said}");

    let (step, said) = run_with(installation.job(&empty, &["dbt build"]).await, json!({"cause": "x"})).await;
    assert_eq!(step, "Clone git repository");
    assert!(said.contains("dbt_project.yml"), "{said}");

    let connection = json!({
        "name": "Warehouse", "adapter_version": "postgres_v0",
        "config": {"hostname": "127.0.0.1", "port": database.port(), "dbname": database.name()},
    });
    let credentials = json!({
        "adapter_version": "postgres_v0", "type": "postgres", "schema": "public", "threads": 1,
        "username": GUARDED_ROLE, "password": "wr0ng-password",
    });
    let job = installation
        .job_on(&fine, &["dbt build"], &connection, &credentials, &json!({}))
        .await;
    let (step, said) = run_with(job, json!({"cause": "x"})).await;
    assert_eq!(step, "Invoke dbt with `dbt build`");
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(!said.contains("wr0ng-password"), "{said}");

    // A parse cache that was cut short is read as no cache.
    let first = api.ended(api.trigger(good).await, LIMIT).await;
    assert_eq!(first["status"], json!(10), "nothing else is disturbed: {first:#}");
    let truncated = truncate_caches(&installation.path().join("cache"));
    assert!(truncated > 0, "a run leaves a parse cache");
    let second = api.ended(api.trigger(good).await, LIMIT).await;
    assert_eq!(second["status"], json!(10), "{second:#}");
    installation.stop().await;
}

/// Cuts every parse cache below a folder in half. How many there were.
fn truncate_caches(folder: &std::path::Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            count += truncate_caches(&path);
        } else if path.extension().is_some_and(|extension| extension == "msgpack") {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            count += 1;
        }
    }
    count
}
