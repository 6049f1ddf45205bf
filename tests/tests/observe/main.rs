//! One real server, one run that ends well, one that fails and one that is cancelled: what can be seen of them.

mod lineage;
mod lines;
mod names;
mod numbers;
mod receiver;
mod stage;
mod traces;

use dbtcloud_tests::scrape::Scrape;
use stage::Stage;

#[tokio::test]
async fn a_success_a_failure_and_a_cancellation_are_seen_in_every_way() {
    let mut stage = Stage::new().await;
    let base = stage.base();
    numbers::before(&Scrape::of(&base).await);
    let runs = stage.play().await;
    numbers::after(&Scrape::of(&base).await, &runs);
    names::check(&Scrape::of(&base).await);
    traces::check(&stage.receiver, &runs).await;
    lineage::check(&stage.receiver, stage.installation.api().account, &runs).await;
    stage.installation.stop().await;
    let account = stage.installation.api().account;
    lines::check(&stage.installation.log(), account, &runs);
}

#[tokio::test]
async fn a_collector_that_is_away_disturbs_no_run() {
    let mut stage = Stage::with(&["--otlp-endpoint", "http://127.0.0.1:9"]).await;
    stage.installation.expected = vec!["the trace collector cannot be used"];
    let run = stage.play_one().await;
    assert_eq!(run["status"], serde_json::json!(10), "{run:#}");
    stage.installation.stop().await;
    let log = std::fs::read_to_string(stage.installation.log()).unwrap();
    let told = log.matches("the trace collector cannot be used").count();
    assert_eq!(told, 1, "once, not with every batch: {log}");
}
