//! Many runs at once, and one beside what it costs without the platform. These tests are alone on the cluster.

use std::time::{Duration, Instant};

use dbtcloud_tests::cluster::{self, Namespace};
use dbtcloud_tests::{fake, project};
use serde_json::json;

use crate::world::World;

const RUNS: i64 = 100;
const LIMIT: Duration = Duration::from_secs(280);
/// Starts of each kind.
const STARTS: usize = 5;
/// How much longer than a bare Job a run may take to start.
const RATIO_LIMIT: f64 = 3.0;

#[tokio::test]
async fn a_hundred_runs_at_once_all_end_well() {
    let mut world = World::new("hundred").await;
    // The agent, git, the protocol and the pods are real; dbt is one that costs nothing, brought by a ConfigMap.
    let files = fake::environment();
    let data: serde_json::Map<_, _> = files
        .iter()
        .enumerate()
        .map(|(at, (_, text))| (format!("file-{at}"), json!(text)))
        .collect();
    let items: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(at, (path, _))| json!({"key": format!("file-{at}"), "path": path}))
        .collect();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fake"}, "data": data});
    let file = world.installation.path().join("map.json");
    std::fs::write(&file, map.to_string()).unwrap();
    world
        .namespace
        .kubectl(&["create", "--filename", file.to_str().unwrap()]);
    let overlay = json!({"spec": {
        "containers": [{
            "name": "main",
            "volumeMounts": [{"name": "fake", "mountPath": "/opt/dbtcloud/dbt-envs"}],
        }],
        "volumes": [{"name": "fake", "configMap": {"name": "fake", "defaultMode": 0o755, "items": items}}],
    }});
    let file = world.installation.path().join("overlay.json");
    std::fs::write(&file, overlay.to_string()).unwrap();
    world.installation.environment.extend([
        ("DBTCLOUD_KUBERNETES_POD_OVERLAY_FILE", file.display().to_string()),
        ("DBTCLOUD_RUN_CAPACITY", RUNS.to_string()),
    ]);
    world.installation.start().await;
    let (folder, url) = world.origin("fake");
    fake::repository(&folder);
    let job = world.job(&url, &["dbt build"]).await;
    let api = world.installation.api().clone();
    let began = Instant::now();
    let mut runs = Vec::new();
    for request in 1..=RUNS {
        // Runs of pull requests take no slot and go side by side.
        let body = json!({"cause": "test", "github_pull_request_id": request});
        let run = api.post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &body).await;
        runs.push(run["id"].as_i64().unwrap());
    }
    for run in runs {
        let ended = api.ended(run, LIMIT.saturating_sub(began.elapsed())).await;
        assert_eq!(ended["status"], json!(10), "{ended:#}");
    }
    println!("{RUNS} runs took {:.1} s", began.elapsed().as_secs_f64());
    world.empty().await;
    world.installation.stop().await;
}

#[tokio::test]
async fn a_run_starts_not_much_later_than_a_bare_job() {
    let mut world = World::new("start").await;
    // A bare Job says nothing of security.
    let plain = Namespace::new("bare").await;
    world.installation.start().await;
    let (folder, url) = world.origin("slow");
    project::slow(&folder, 1, 1_000);
    let job = world.job(&url, &["dbt build"]).await;
    let api = world.installation.api().clone();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for n in 0..STARTS {
        let image = format!("--image={}", cluster::runner());
        let began = Instant::now();
        plain.kubectl(&["create", "job", &format!("bare-{n}"), &image, "--", "true"]);
        seen.push(plain.started(&seen).await);
        bare.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let run = api.trigger(job).await;
        seen.push(world.namespace.started(&seen).await);
        ours.push(began.elapsed().as_secs_f64());
        api.ended(run, LIMIT).await;
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (ours, bare) = (median(ours), median(bare));
    let ratio = ours / bare;
    println!("trigger to container: {ours:.2} s; kubectl create job: {bare:.2} s; ratio {ratio:.2}");
    assert!(ratio < RATIO_LIMIT, "{ratio}");
    world.installation.stop().await;
}
