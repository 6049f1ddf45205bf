//! One real server, one run that ends well, one that fails and one that is cancelled: what can be seen of them.

mod numbers;
mod stage;

use dbtcloud_tests::scrape::Scrape;
use stage::Stage;

#[tokio::test]
async fn a_success_a_failure_and_a_cancellation_are_seen_in_every_way() {
    let mut stage = Stage::new().await;
    let base = stage.base();
    numbers::before(&Scrape::of(&base).await);
    let runs = stage.play().await;
    numbers::after(&Scrape::of(&base).await, &runs);
    stage.installation.stop().await;
}
