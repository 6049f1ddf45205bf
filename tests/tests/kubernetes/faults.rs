//! Parts of the cluster and the server, killed while a run is on. These tests are alone on the cluster.

use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_core::ports::{Executor, Observation};
use dbtcloud_tests::cluster::{Component, LIMIT};
use dbtcloud_tests::project;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

use crate::stage::{Stage, ended, run, running, script};
use crate::world::World;

const RUN: Duration = Duration::from_secs(180);

/// A run whose dbt works for some seconds, seen in its pod.
async fn on_its_way(world: &World) -> i64 {
    let (folder, url) = world.origin("slow");
    project::slow(&folder, 4, 400_000);
    let job = world.job(&url, &["dbt build"]).await;
    let api = world.installation.api();
    let run = api.trigger(job).await;
    api.until(run, RUN, |run| {
        run["run_steps"].as_array().is_some_and(|steps| steps.len() >= 3)
    })
    .await;
    run
}

/// One Job made one pod: what was taken over was not started again.
fn one_pod(world: &World) {
    let told = [
        "get",
        "events",
        "--field-selector",
        "reason=SuccessfulCreate",
        "--output",
        "name",
    ];
    let events = world.namespace.kubectl(&told);
    assert_eq!(events.lines().count(), 1, "{events}");
}

#[tokio::test]
async fn the_api_server_dies_and_comes_back_and_the_run_does_not_notice() {
    let mut world = World::new("api-dies").await;
    world
        .installation
        .expected
        .extend(["cluster", "kubernetes", "executor"]);
    world.installation.start().await;
    let run = on_its_way(&world).await;
    let server = Component::new("apiserver");
    server.kill();
    let api = world.installation.api().clone();
    // Nobody can look: that is no answer, and no answer ends no run.
    let ended = api.ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    server.start();
    until(LIMIT, || async { world.namespace.client().apiserver_version().await }).await;
    world.empty().await;
    one_pod(&world);
    world.installation.stop().await;
}

#[tokio::test]
async fn a_run_is_triggered_while_the_api_server_is_away_and_starts_when_it_is_back() {
    let mut world = World::new("api-away").await;
    world
        .installation
        .expected
        .extend(["cluster", "kubernetes", "executor"]);
    world.installation.start().await;
    let (folder, url) = world.origin("slow");
    project::slow(&folder, 1, 1_000);
    let job = world.job(&url, &["dbt build"]).await;
    let server = Component::new("apiserver");
    server.kill();
    let api = world.installation.api().clone();
    let run = api.trigger(job).await;
    // It has been tried, and waits.
    api.until(run, RUN, |run| run["status"] == json!(2)).await;
    server.start();
    let ended = api.ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    world.empty().await;
    one_pod(&world);
    world.installation.stop().await;
}

#[tokio::test]
async fn the_kubelet_dies_and_comes_back_and_the_run_is_whole() {
    let mut world = World::new("kubelet").await;
    world.installation.start().await;
    let run = on_its_way(&world).await;
    let kubelet = Component::new("kubelet");
    kubelet.kill();
    let nodes: Api<Node> = Api::all(world.namespace.client());
    let ready = async |wanted: bool| {
        until(LIMIT, || async {
            let status = nodes.get("node").await.unwrap().status.unwrap();
            let conditions = status.conditions.unwrap();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
            if (ready.status == "True") == wanted {
                Ok(())
            } else {
                Err(ready.status.clone())
            }
        })
        .await;
    };
    ready(false).await;
    // The node is lost to the cluster, not to the run: its agent tells what happens.
    let api = world.installation.api().clone();
    let ended = api.ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    kubelet.start();
    ready(true).await;
    world.empty().await;
    one_pod(&world);
    world.installation.stop().await;
}

#[tokio::test]
async fn a_node_that_is_lost_does_not_keep_what_it_ran() {
    let stage = Stage::new("lost").await;
    let executor = stage.executor().await;
    executor.start(&script(run(1), "sleep 600")).await.unwrap();
    running(&executor, run(1)).await;
    let kubelet = Component::new("kubelet");
    kubelet.kill();
    // As the driver does with a run whose agent is silent.
    executor.cancel(run(1), Duration::from_secs(1)).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert!(
        exit.message.contains("node node does not confirm it: the node is lost"),
        "{exit:?}"
    );
    executor.remove(run(1)).await.unwrap();
    assert_eq!(executor.observe(run(1)).await.unwrap(), Observation::Absent);
    assert_eq!(
        stage.executor().await.observe(run(1)).await.unwrap(),
        Observation::Absent
    );
    assert!(executor.list().await.unwrap().is_empty());
    // When it is back, it ends what it still runs.
    kubelet.start();
    until(LIMIT, || async {
        let left = stage.pods(run(1)).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_was_killed_takes_its_pod_over() {
    let mut world = World::new("adopted").await;
    world.installation.start().await;
    let run = on_its_way(&world).await;
    world.installation.kill_server();
    world.installation.start().await;
    let api = world.installation.api().clone();
    let ended = api.ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    world.empty().await;
    one_pod(&world);
    world.installation.stop().await;
}
