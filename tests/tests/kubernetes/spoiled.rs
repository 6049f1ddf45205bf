//! A way to the API that is slow, busy, or forgets; and what a run costs there when it is none of that.

use std::time::Duration;

use dbtcloud_tests::between::Between;
use dbtcloud_tests::{cluster, project};
use serde_json::json;

use crate::world::World;

const RUN: Duration = Duration::from_secs(180);
/// Requests that a run may cost, watches left out; 11 were measured.
const REQUESTS_LIMIT: u64 = 20;

/// A world whose server is told that the API is what stands before it.
async fn behind(topic: &str) -> (World, Between, i64) {
    let mut world = World::new(topic).await;
    let between = Between::start(cluster::client().await).await;
    let kubeconfig = world.installation.path().join("kubeconfig");
    between.kubeconfig(&kubeconfig, world.namespace.name());
    world
        .installation
        .environment
        .push(("KUBECONFIG", kubeconfig.display().to_string()));
    world.installation.start().await;
    let (folder, url) = world.origin("slow");
    project::slow(&folder, 2, 200_000);
    let job = world.job(&url, &["dbt build"]).await;
    (world, between, job)
}

async fn succeeds(world: &World, run: i64) {
    let ended = world.installation.api().ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    world.empty().await;
}

#[tokio::test]
async fn a_run_costs_few_requests() {
    let (mut world, between, job) = behind("cost").await;
    let before = between.requests();
    let run = world.installation.api().trigger(job).await;
    succeeds(&world, run).await;
    let after = between.requests();
    let cost = |name: &str| after[name] - before.get(name).copied().unwrap_or(0);
    let costs: Vec<(&String, u64)> = after.keys().map(|name| (name, cost(name))).collect();
    let sum: u64 = costs
        .iter()
        .filter(|(name, _)| !name.starts_with("WATCH"))
        .map(|(_, cost)| cost)
        .sum();
    println!("requests of a run: {sum}, {costs:?}");
    assert!(sum <= REQUESTS_LIMIT, "{costs:?}");
    world.installation.stop().await;
}

#[tokio::test]
async fn an_api_that_takes_its_time_delays_a_run_and_no_more() {
    let (mut world, between, job) = behind("slow").await;
    world
        .installation
        .expected
        .extend(["cluster", "kubernetes", "executor"]);
    between.slow(Duration::from_secs(1));
    let run = world.installation.api().trigger(job).await;
    succeeds(&world, run).await;
    world.installation.stop().await;
}

#[tokio::test]
async fn an_api_that_is_busy_is_asked_again() {
    let (mut world, between, job) = behind("busy").await;
    world
        .installation
        .expected
        .extend(["cluster", "kubernetes", "executor", "too many"]);
    between.busy(true);
    let api = world.installation.api().clone();
    let run = api.trigger(job).await;
    api.until(run, RUN, |run| run["status"] == json!(2)).await;
    between.busy(false);
    api.until(run, RUN, |run| {
        run["run_steps"].as_array().is_some_and(|steps| steps.len() >= 2)
    })
    .await;
    between.busy(true);
    let ended = api.ended(run, RUN).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    between.busy(false);
    world.empty().await;
    world.installation.stop().await;
}

#[tokio::test]
async fn watches_that_expire_are_begun_again() {
    let (mut world, between, job) = behind("expired").await;
    world
        .installation
        .expected
        .extend(["cluster", "kubernetes", "executor"]);
    let api = world.installation.api().clone();
    let run = api.trigger(job).await;
    for steps in 1..4 {
        between.expire();
        api.until(run, RUN, |run| {
            run["run_steps"].as_array().is_some_and(|seen| seen.len() >= steps)
        })
        .await;
    }
    between.expire();
    succeeds(&world, run).await;
    let watches = between.requests().get("WATCH pods").copied().unwrap_or(0);
    assert!(watches >= 2, "watched {watches} times");
    world.installation.stop().await;
}
