//! What [`Clock`] means, for clocks that run by themselves.

use std::sync::Arc;
use std::time::Duration;

use dbtcloud_core::ports::Clock;

cases! { $ clock_cases, clock, Arc<dyn Clock>:
    it_shows_a_time_of_our_era,
    a_sleep_takes_its_span_at_least,
    a_sleep_of_nothing_returns,
    a_dropped_sleep_is_gone,
}

async fn it_shows_a_time_of_our_era(clock: Arc<dyn Clock>) {
    let years = clock.now().as_micros() / (365 * 24 * 3600 * 1_000_000);
    assert!((50..200).contains(&years), "microseconds since 1970: {}", clock.now());
}

async fn a_sleep_takes_its_span_at_least(clock: Arc<dyn Clock>) {
    let before = clock.now();
    clock.sleep(Duration::from_millis(30)).await;
    // The clock may be corrected meanwhile, but not by much.
    assert!(clock.now().since(before) >= Duration::from_millis(20));
}

async fn a_sleep_of_nothing_returns(clock: Arc<dyn Clock>) {
    clock.sleep(Duration::ZERO).await;
}

async fn a_dropped_sleep_is_gone(clock: Arc<dyn Clock>) {
    let sleep = clock.sleep(Duration::from_secs(3600));
    assert!(tokio::time::timeout(Duration::from_millis(5), sleep).await.is_err());
}
