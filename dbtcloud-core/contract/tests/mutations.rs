//! The suite notices: every rule that is broken on purpose makes at least one case fail, and none of them
//! fails on the rules unbroken.

use std::sync::Arc;

use dbtcloud_contract::memory::{MemoryStorage, Mutation};
use dbtcloud_contract::suite::{Stores, Subject, model, storage_cases};

/// The names of the cases that fail on such a storage.
async fn failing(storage: impl Fn() -> MemoryStorage) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for (_, case) in storage_cases() {
        let case_run = tokio::spawn((case.run)(Stores::of(Arc::new(storage()))));
        // A broken storage can keep a case waiting for ever: that is a failure too.
        match tokio::time::timeout(std::time::Duration::from_secs(20), case_run).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                assert!(error.is_panic());
                failed.push(case.name);
            }
            Err(_) => failed.push(case.name),
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_rule_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    let mut report = String::new();
    for mutation in Mutation::ALL {
        let failed = failing(|| MemoryStorage::with_mutation(mutation)).await;
        if failed.is_empty() {
            unnoticed.push(mutation);
        }
        report.push_str(&format!("{mutation:?}: {failed:?}\n"));
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}\n{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_case_fails_on_the_rules_unbroken() {
    assert_eq!(failing(MemoryStorage::new).await, [""; 0]);
}

#[test]
fn the_model_agrees_with_itself() {
    model::agrees_with_memory(1, 200, || async { Subject::storage(MemoryStorage::new()) });
}

#[test]
fn the_model_notices_broken_rules() {
    for mutation in [
        Mutation::IgnoreFence,
        Mutation::AcceptTwice,
        Mutation::IgnoreSlots,
        Mutation::IgnoreVersions,
    ] {
        let told = std::panic::catch_unwind(|| {
            model::agrees_with_memory(1, 300, || async {
                Subject::storage(MemoryStorage::with_mutation(mutation))
            });
        });
        assert!(told.is_err(), "{mutation:?} was not noticed");
    }
}
