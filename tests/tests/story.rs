//! The main job, end to end, with the real binary, real git, real dbt and real warehouses.

use std::time::Duration;

use dbtcloud_tests::api::steps;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres;
use dbtcloud_tests::project;
use serde_json::{Value, json};

/// A first run may have to install dbt.
const FIRST: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(120);

fn seen(run: &Value) -> Vec<(String, String)> {
    steps(run)
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, status)| ((*name).to_owned(), (*status).to_owned()))
        .collect()
}

#[tokio::test]
async fn the_sample_project_is_cloned_built_documented_and_kept() {
    let mut installation = Installation::new();
    installation.start().await;
    let repository = project::repository_of(&project::harbour(), &installation.path().join("origin"));
    let api = installation.api().clone();
    let job = installation.job(&repository, &["dbt build"]).await;
    let mut whole = api.get(&format!("v2/accounts/{{a}}/jobs/{job}/")).await;
    whole["generate_docs"] = json!(true);
    whole["run_generate_sources"] = json!(true);
    api.post(&format!("v2/accounts/{{a}}/jobs/{job}/"), &whole).await;

    let run = api.trigger(job).await;
    let ended = api.ended(run, FIRST).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    let names = [
        "Clone git repository",
        "Create profile from connection DuckDB",
        "Invoke dbt with `dbt deps`",
        "Invoke dbt with `dbt source freshness`",
        "Invoke dbt with `dbt build`",
        "Invoke dbt with `dbt docs generate`",
    ];
    let steps = seen(&ended);
    assert_eq!(steps.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    let failed: Vec<_> = steps.iter().filter(|(_, status)| status != "Success").collect();
    // The sources are the seeds, which a first build loads only after freshness was looked at.
    assert!(failed.iter().all(|(name, _)| name.contains("freshness")), "{failed:?}");

    let artifacts = api.get(&format!("v2/accounts/{{a}}/runs/{run}/artifacts/")).await;
    let paths: Vec<&str> = artifacts.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for path in ["manifest.json", "run_results.json", "catalog.json"] {
        assert!(paths.contains(&path), "{path} is not among {paths:?}");
    }
    assert!(paths.iter().any(|path| path.starts_with("compiled/")), "{paths:?}");
    let results = api
        .bytes(&format!(
            "v2/accounts/{{a}}/runs/{run}/artifacts/run_results.json?step=5"
        ))
        .await;
    let results: Value = serde_json::from_slice(&results).unwrap();
    assert_eq!(results["metadata"]["env"]["DBT_CLOUD_RUN_ID"], json!(run.to_string()));
    assert!(
        results["results"].as_array().unwrap().len() >= 40,
        "{}",
        results["results"]
    );

    let build = &ended["run_steps"][4];
    let log = build["logs"].as_str().unwrap();
    assert!(log.contains("Completed successfully"), "{log}");
    assert!(!build["debug_logs"].as_str().unwrap_or_default().is_empty());
    assert_eq!(ended["git_sha"].as_str().unwrap().len(), 40);
    assert!(
        ended["dbt_version"].as_str().unwrap().starts_with("1."),
        "{}",
        ended["dbt_version"]
    );

    // The second run finds everything warm and gives the same result.
    let again = api.ended(api.trigger(job).await, LIMIT).await;
    assert_eq!(again["status"], json!(10), "{again:#}");
    assert_eq!(seen(&again).len(), names.len());
    installation.stop().await;
}

#[tokio::test]
async fn on_postgres_the_password_reaches_the_warehouse_and_nothing_else() {
    const PASSWORD: &str = "s3cr3t-Pa55/word+of=the&user";
    let database = postgres::database();
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let files = [
        ("dbt_project.yml", project::dbt_project("leaky")),
        ("models/one.sql", "select 1 as id".to_owned()),
        (
            "macros/say.sql",
            format!("{{% macro say() %}}{{{{ log('the password is {PASSWORD} indeed', info=true) }}}}{{% endmacro %}}"),
        ),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let repository = project::repository(&installation.path().join("origin"), &files);
    let connection = json!({
        "name": "Warehouse", "adapter_version": "postgres_v0",
        "config": {"hostname": "127.0.0.1", "port": database.port(), "dbname": database.name()},
    });
    let credentials = json!({
        "adapter_version": "postgres_v0", "type": "postgres", "schema": "analytics", "threads": 2,
        "username": "postgres", "password": PASSWORD,
    });
    let job = installation
        .job_on(
            &repository,
            &["dbt build", "dbt run-operation say"],
            &connection,
            &credentials,
            &json!({}),
        )
        .await;
    let run = api.ended(api.trigger(job).await, FIRST).await;
    assert_eq!(run["status"], json!(10), "{run:#}");
    let log = run["run_steps"][4]["logs"].as_str().unwrap();
    assert!(log.contains("the password is ***** indeed"), "{log}");
    installation.stop().await;
    // The project itself says the password in a macro: its clone and its parse state do too.
    let found = leaks(
        installation.path(),
        PASSWORD.as_bytes(),
        &["origin", "cache/git", "cache/parse"],
    );
    assert!(found.is_empty(), "the password stands in {found:?}");
}

/// Files under `root` that contain `needle`, but for those below the folders in `known`.
fn leaks(root: &std::path::Path, needle: &[u8], known: &[&str]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if known.iter().any(|known| path.starts_with(root.join(known))) {
                continue;
            }
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if bytes.windows(needle.len()).any(|window| window == needle) {
                    found.push(path);
                }
            }
        }
    }
    found
}

#[tokio::test]
async fn a_failed_run_keeps_its_artifacts_and_is_retried_from_where_it_failed() {
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let origin = installation.path().join("origin");
    let fine = "select 1 as id";
    let broken = "select * from {{ ref('first') }} where {{ var('fail', 'no_such_column') }} = 1";
    let files = [
        ("dbt_project.yml", project::dbt_project("retried")),
        ("models/first.sql", fine.to_owned()),
        ("models/second.sql", broken.to_owned()),
        ("models/third.sql", "select * from {{ ref('second') }}".to_owned()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let repository = project::repository(&origin, &files);
    let job = installation.job(&repository, &["dbt build", "dbt ls"]).await;
    let first = api.ended(api.trigger(job).await, FIRST).await;
    assert_eq!(first["status"], json!(20), "{first:#}");
    let run = first["id"].as_i64().unwrap();
    assert_eq!(
        seen(&first)[2..],
        named(&[
            ("Invoke dbt with `dbt deps`", "Success"),
            ("Invoke dbt with `dbt build`", "Error"),
            ("Invoke dbt with `dbt ls`", "Cancelled"),
        ])
    );
    let results = api
        .bytes(&format!("v2/accounts/{{a}}/runs/{run}/artifacts/run_results.json"))
        .await;
    assert!(String::from_utf8_lossy(&results).contains("no_such_column"));

    let retry = api
        .post(&format!("v2/accounts/{{a}}/runs/{run}/retry/"), &json!({}))
        .await;
    let retry = api.ended(retry["id"].as_i64().unwrap(), LIMIT).await;
    assert_eq!(retry["status"], json!(20), "the cause is still there: {retry:#}");
    let results = api
        .bytes(&format!(
            "v2/accounts/{{a}}/runs/{}/artifacts/run_results.json",
            retry["id"]
        ))
        .await;
    let results: Value = serde_json::from_slice(&results).unwrap();
    let ids: Vec<&str> = results["results"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|result| result["unique_id"].as_str())
        .collect();
    assert_eq!(
        ids,
        ["model.retried.second", "model.retried.third"],
        "what had passed is not run again"
    );
    installation.stop().await;
}

#[tokio::test]
async fn cancelling_interrupts_the_query_in_the_warehouse() {
    let database = postgres::database();
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let yaml = project::dbt_project("sleeper");
    let files = [
        ("dbt_project.yml", yaml.as_str()),
        (
            "models/nap.sql",
            "{{ config(materialized='table') }} select pg_sleep(600)::text as nap",
        ),
    ];
    let repository = project::repository(&installation.path().join("origin"), &files);
    let connection = json!({
        "name": "Warehouse", "adapter_version": "postgres_v0",
        "config": {"hostname": "127.0.0.1", "port": database.port(), "dbname": database.name()},
    });
    let credentials = json!({
        "adapter_version": "postgres_v0", "type": "postgres", "schema": "public", "threads": 1,
        "username": "postgres", "password": "not-asked-for",
    });
    let job = installation
        .job_on(&repository, &["dbt run"], &connection, &credentials, &json!({}))
        .await;
    let run = api.trigger(job).await;
    let sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and state = 'active' \
                    and pid <> pg_backend_pid()";
    dbtcloud_contract::wait::until(FIRST, || async {
        (database.ask(sleeping) == "1").then_some(()).ok_or("not asleep")
    })
    .await;
    let application = database.ask("select distinct application_name from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()");
    assert_eq!(application, format!("dbtcloud_run_{run}"));
    api.post(&format!("v2/accounts/{{a}}/runs/{run}/cancel/"), &json!({}))
        .await;
    let ended = api.ended(run, LIMIT).await;
    assert_eq!(ended["status"], json!(30), "{ended:#}");
    assert!(
        ended["status_message"].as_str().unwrap().starts_with("Cancelled by"),
        "{}",
        ended["status_message"]
    );
    assert_eq!(database.ask(sleeping), "0", "nothing runs on in the warehouse");
    installation.stop().await;
}

#[tokio::test]
async fn a_warning_is_a_success_on_the_wire_and_a_time_out_is_a_cancellation() {
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let yaml = project::dbt_project("warned");
    let properties = "models:\n  - name: one\n    columns:\n      - name: id\n        data_tests:\n          - not_null:\n              config: {severity: warn}\n";
    let files = [
        ("dbt_project.yml", yaml.as_str()),
        ("models/one.sql", "select cast(null as integer) as id"),
        ("models/properties.yml", properties),
    ];
    let repository = project::repository(&installation.path().join("origin"), &files);
    let job = installation.job(&repository, &["dbt build"]).await;
    let run = api.ended(api.trigger(job).await, FIRST).await;
    assert_eq!(run["status"], json!(10), "{run:#}");
    assert!(run["run_steps"][3]["logs"].as_str().unwrap().contains("WARN=1"));

    let slow = project::slow(&installation.path().join("slow"), 4, 40_000_000);
    let job = installation.job(&slow, &["dbt run"]).await;
    let body = json!({"cause": "test", "timeout_seconds_override": 3});
    let run = api.post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &body).await["id"]
        .as_i64()
        .unwrap();
    let run = api.ended(run, LIMIT).await;
    assert_eq!(run["status"], json!(30), "{run:#}");
    let message = run["status_message"].as_str().unwrap();
    assert!(message.to_lowercase().contains("timed out after 3 s"), "{message}");
    installation.stop().await;
}
