//! An object store that goes away delays runs and loses nothing; one that can never work keeps the server from
//! starting, with what to do about it.

use std::time::Duration;

use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::s3::{ADMIN, READER, SeaweedFs};
use dbtcloud_tests::{postgres, project, s3};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(240);

/// What a server whose store is away has to say.
const AWAY: [&str; 4] = ["agent request failed", "not ready", "does not answer", "cleanup failed"];

async fn artifacts(installation: &Installation, run: &Value) -> Vec<String> {
    let listed = installation
        .api()
        .get(&format!("v2/accounts/{{a}}/runs/{}/artifacts/", run["id"]))
        .await;
    let mut paths: Vec<String> = serde_json::from_value(listed).unwrap();
    paths.sort();
    paths
}

/// What the server says of what it depends on.
async fn ready(installation: &Installation) -> String {
    let url = installation.api().url("");
    let base = url.split("/api").next().unwrap();
    reqwest::get(format!("{base}/readyz"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
}

/// Every step has ended and the run has not: what is left is to send its files.
fn only_files_are_left(run: &Value) -> bool {
    let steps = run["run_steps"].as_array().unwrap();
    run["is_complete"] == json!(false) && steps.len() > 3 && steps.iter().all(|step| step["status"] == json!(10))
}

#[tokio::test]
async fn a_store_that_goes_away_delays_a_run_and_loses_nothing() {
    let mut seaweedfs = SeaweedFs::start();
    let bucket = seaweedfs.bucket();
    let mut installation = Installation::with(&["--artifacts-url", &bucket.url()]);
    installation.environment = bucket.environment(ADMIN);
    installation.expected = AWAY.to_vec();
    installation.start().await;
    let api = installation.api().clone();
    let repository = project::repository_of(&project::harbour(), &installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    let first = api.ended(api.trigger(job).await, LIMIT).await;
    assert_eq!(first["status"], json!(10), "{first:#}");
    let expected = artifacts(&installation, &first).await;
    assert!(expected.contains(&"run_results.json".to_owned()), "{expected:?}");

    // Killed while the run works, and back when all that is left is to send its files.
    let run = api.trigger(job).await;
    api.until(run, LIMIT, |run| run["status"] == json!(3)).await;
    seaweedfs.kill();
    api.until(run, LIMIT, only_files_are_left).await;
    let told = ready(&installation).await;
    assert!(told.contains("cannot be reached"), "{told}");
    seaweedfs.resume();
    let killed = api.ended(run, LIMIT).await;
    assert_eq!(killed["status"], json!(10), "{killed:#}");
    assert_eq!(artifacts(&installation, &killed).await, expected);

    // Hanging: connections come about and nobody answers.
    let run = api.trigger(job).await;
    api.until(run, LIMIT, |run| run["status"] == json!(3)).await;
    seaweedfs.pause();
    let began = std::time::Instant::now();
    while !ready(&installation).await.contains("does not answer in time") {
        assert!(began.elapsed() < LIMIT, "a store that hangs is not told");
    }
    seaweedfs.unpause();
    let paused = api.ended(run, LIMIT).await;
    assert_eq!(paused["status"], json!(10), "{paused:#}");
    assert_eq!(artifacts(&installation, &paused).await, expected);
    installation.stop().await;
}

#[test]
fn a_store_that_can_never_work_is_told_at_the_start() {
    let bucket = s3::bucket();
    let secret = format!("s3://{}?secret_access_key=hunter2", bucket.name());
    let cases = [
        (
            bucket.url_of("elsewhere"),
            ADMIN,
            "does not exist; create it or correct",
        ),
        (bucket.url(), READER, "grant reading, writing, listing and deleting"),
        (
            bucket.url(),
            "nobody",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (secret, ADMIN, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (format!("{}&regoin=x", bucket.url()), ADMIN, "'regoin' is not known"),
    ];
    for (url, key, advice) in cases {
        let installation = Installation::new();
        let output = installation
            .command("serve")
            .args([
                "--listen",
                &format!("127.0.0.1:{}", postgres::closed_port()),
                "--artifacts-url",
                &url,
            ])
            .envs(bucket.environment(key))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let error = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        assert!(told.contains(advice), "{told}");
        assert!(!told.contains("hunter2"), "{error}");
    }
}
