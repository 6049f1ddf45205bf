//! What [`Wakeups`](dbtcloud_core::ports::Wakeups) means.

use std::collections::BTreeSet;
use std::time::Duration;

use dbtcloud_core::ports::{Bell, BellStream};
use futures::StreamExt;

use super::Stores;
use super::samples::together;

cases! { $ wakeups_cases, wakeups, Stores:
    a_bell_is_heard,
    a_bell_is_heard_as_itself,
    a_bell_that_is_rung_again_is_heard_again,
    every_listener_hears,
    a_bell_without_a_listener_is_fine,
    a_listener_that_left_is_no_hindrance,
    many_who_ring_are_heard,
}

/// How long a bell may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

async fn next(bells: &mut BellStream) -> Bell {
    let heard = tokio::time::timeout(LIMIT, bells.next()).await;
    heard.expect("a bell in time").expect("a bell").expect("a bell")
}

async fn a_bell_is_heard(stores: Stores) {
    let mut bells = stores.wakeups.listen().await.unwrap();
    stores.wakeups.ring(Bell::Queue).await.unwrap();
    assert_eq!(next(&mut bells).await, Bell::Queue);
}

async fn a_bell_is_heard_as_itself(stores: Stores) {
    for bell in Bell::ALL {
        assert_eq!(Bell::from_name(bell.name()), Some(bell));
        let mut bells = stores.wakeups.listen().await.unwrap();
        stores.wakeups.ring(bell).await.unwrap();
        assert_eq!(next(&mut bells).await, bell, "and no other before it");
    }
    let mut bells = stores.wakeups.listen().await.unwrap();
    for bell in Bell::ALL {
        stores.wakeups.ring(bell).await.unwrap();
    }
    let mut heard = BTreeSet::new();
    while heard.len() < Bell::ALL.len() {
        heard.insert(next(&mut bells).await);
    }
}

async fn a_bell_that_is_rung_again_is_heard_again(stores: Stores) {
    let mut bells = stores.wakeups.listen().await.unwrap();
    for _ in 0..20 {
        stores.wakeups.ring(Bell::Outbox).await.unwrap();
        assert_eq!(next(&mut bells).await, Bell::Outbox);
    }
}

async fn every_listener_hears(stores: Stores) {
    let mut listeners = Vec::new();
    for _ in 0..4 {
        listeners.push(stores.wakeups.listen().await.unwrap());
    }
    stores.wakeups.ring(Bell::Reports).await.unwrap();
    for bells in &mut listeners {
        assert_eq!(next(bells).await, Bell::Reports);
    }
}

async fn a_bell_without_a_listener_is_fine(stores: Stores) {
    for bell in Bell::ALL {
        stores.wakeups.ring(bell).await.unwrap();
    }
}

async fn a_listener_that_left_is_no_hindrance(stores: Stores) {
    let left = stores.wakeups.listen().await.unwrap();
    let mut stays = stores.wakeups.listen().await.unwrap();
    drop(left);
    stores.wakeups.ring(Bell::Queue).await.unwrap();
    assert_eq!(next(&mut stays).await, Bell::Queue);
}

async fn many_who_ring_are_heard(stores: Stores) {
    let mut bells = stores.wakeups.listen().await.unwrap();
    together(4, |_| {
        let wakeups = stores.wakeups.clone();
        async move {
            for _ in 0..50 {
                wakeups.ring(Bell::Queue).await.unwrap();
            }
        }
    })
    .await;
    stores.wakeups.ring(Bell::Reports).await.unwrap();
    let mut queue = 0;
    while next(&mut bells).await == Bell::Queue {
        queue += 1;
    }
    assert!((1..=200).contains(&queue), "heard {queue} times");
}
