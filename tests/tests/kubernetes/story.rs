//! A run as a user has it, in a pod of the image that is built from `examples/deploy/images`.

use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_tests::api::steps;
use dbtcloud_tests::cluster::LIMIT;
use dbtcloud_tests::project;
use serde_json::{Value, json};

use crate::world::World;

/// dbt on a machine that does something else.
const RUN: Duration = Duration::from_secs(180);

#[tokio::test]
async fn the_sample_project_runs_in_a_pod_to_success() {
    let mut world = World::new("story").await;
    world.installation.start().await;
    let api = world.installation.api().clone();
    let (folder, url) = world.origin("harbour");
    project::repository_of(&project::harbour(), &folder);
    let job = world.job(&url, &["dbt build"]).await;
    let run = api.trigger(job).await;
    // No token, no right, no secret but the ticket: what a pod of a run has.
    let pod = until(LIMIT, || async { world.pods().await.pop().ok_or("no pod") }).await;
    let spec = pod.spec.unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    let ended = api.ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    assert!(steps(&ended).iter().all(|(_, status)| status == "Success"), "{ended:#}");
    let log = ended["run_steps"][3]["logs"].as_str().unwrap();
    assert!(log.contains("Completed successfully"), "{log}");
    let artifacts = api.get(&format!("v2/accounts/{{a}}/runs/{run}/artifacts/")).await;
    let paths: Vec<&str> = artifacts.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(
        paths.contains(&"manifest.json") && paths.contains(&"run_results.json"),
        "{paths:?}"
    );
    world.empty().await;
    world.installation.stop().await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_ends_dbt_and_says_so() {
    let mut world = World::new("cancel").await;
    world.installation.start().await;
    let api = world.installation.api().clone();
    let (folder, url) = world.origin("slow");
    project::slow(&folder, 20, 2_000_000);
    let job = world.job(&url, &["dbt build"]).await;
    let run = api.trigger(job).await;
    let working = |run: &Value| run["run_steps"].as_array().is_some_and(|steps| steps.len() >= 4);
    api.until(run, RUN, working).await;
    api.post(&format!("v2/accounts/{{a}}/runs/{run}/cancel/"), &json!({}))
        .await;
    let ended = api.ended(run, LIMIT).await;
    assert_eq!(ended["status"], json!(30), "{ended:#}");
    world.empty().await;
    world.installation.stop().await;
}

#[tokio::test]
async fn a_run_past_its_time_ends_and_says_so() {
    let mut world = World::new("late").await;
    world.installation.start().await;
    let api = world.installation.api().clone();
    let (folder, url) = world.origin("slow");
    project::slow(&folder, 20, 2_000_000);
    let job = world.job(&url, &["dbt build"]).await;
    let body = json!({"cause": "test", "timeout_seconds_override": 12});
    let run = api.post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &body).await;
    let ended = api.ended(run["id"].as_i64().unwrap(), RUN).await;
    assert_eq!(ended["status"], json!(30), "{ended:#}");
    let said = ended["status_message"].as_str().unwrap_or_default();
    assert!(said.contains("imed out after 12 s"), "{said}");
    world.empty().await;
    world.installation.stop().await;
}
