//! What [`Leases`](dbtcloud_core::ports::Leases) means.

use dbtcloud_core::ports::Owner;

use super::Stores;
use super::samples::at;

cases! { $ leases_cases, leases, Stores:
    a_free_lease_is_taken,
    a_held_lease_is_nobody_elses,
    the_holder_keeps_its_term,
    an_expired_lease_changes_hands_and_term,
    a_released_lease_is_free_and_its_term_grows_on,
    only_the_holder_releases,
    names_are_apart,
    one_of_many_gets_it,
    whether_somebody_is_there_is_known_by_prefix,
    only_what_is_over_is_purged,
}

async fn a_free_lease_is_taken(stores: Stores) {
    let term = stores
        .leases
        .acquire("cleanup", &Owner::new("a"), at(0), at(10))
        .await
        .unwrap();
    assert_eq!(term, Some(1));
}

async fn a_held_lease_is_nobody_elses(stores: Stores) {
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    stores.leases.acquire("cleanup", &a, at(0), at(10)).await.unwrap();
    assert_eq!(stores.leases.acquire("cleanup", &b, at(9), at(20)).await.unwrap(), None);
}

async fn the_holder_keeps_its_term(stores: Stores) {
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    stores.leases.acquire("cleanup", &a, at(0), at(10)).await.unwrap();
    assert_eq!(
        stores.leases.acquire("cleanup", &a, at(5), at(30)).await.unwrap(),
        Some(1)
    );
    assert_eq!(
        stores.leases.acquire("cleanup", &b, at(20), at(40)).await.unwrap(),
        None,
        "it was extended"
    );
    assert_eq!(
        stores.leases.acquire("cleanup", &a, at(35), at(50)).await.unwrap(),
        Some(1),
        "expired, but its own"
    );
}

async fn an_expired_lease_changes_hands_and_term(stores: Stores) {
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    stores.leases.acquire("cleanup", &a, at(0), at(10)).await.unwrap();
    assert_eq!(
        stores.leases.acquire("cleanup", &b, at(10), at(20)).await.unwrap(),
        Some(2),
        "expired at its end"
    );
    assert_eq!(
        stores.leases.acquire("cleanup", &a, at(11), at(20)).await.unwrap(),
        None
    );
    assert_eq!(
        stores.leases.acquire("cleanup", &a, at(21), at(30)).await.unwrap(),
        Some(3)
    );
}

async fn a_released_lease_is_free_and_its_term_grows_on(stores: Stores) {
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    stores.leases.acquire("cleanup", &a, at(0), at(10)).await.unwrap();
    stores.leases.release("cleanup", &a).await.unwrap();
    assert_eq!(
        stores.leases.acquire("cleanup", &b, at(1), at(20)).await.unwrap(),
        Some(2)
    );
}

async fn only_the_holder_releases(stores: Stores) {
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    stores.leases.release("cleanup", &b).await.unwrap();
    stores.leases.acquire("cleanup", &a, at(0), at(10)).await.unwrap();
    stores.leases.release("cleanup", &b).await.unwrap();
    assert_eq!(stores.leases.acquire("cleanup", &b, at(1), at(20)).await.unwrap(), None);
}

async fn names_are_apart(stores: Stores) {
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    assert_eq!(
        stores.leases.acquire("cleanup", &a, at(0), at(10)).await.unwrap(),
        Some(1)
    );
    assert_eq!(
        stores.leases.acquire("Cleanup", &b, at(0), at(10)).await.unwrap(),
        Some(1)
    );
    assert_eq!(
        stores.leases.acquire("räumen %_\\'", &b, at(0), at(10)).await.unwrap(),
        Some(1)
    );
}

async fn one_of_many_gets_it(stores: Stores) {
    for round in 0..10 {
        let name = format!("round-{round}");
        let tasks: Vec<_> = (0..8)
            .map(|owner| {
                let (leases, name) = (stores.leases.clone(), name.clone());
                let owner = Owner::new(format!("owner-{owner}"));
                tokio::spawn(async move { leases.acquire(&name, &owner, at(0), at(10)).await.unwrap() })
            })
            .collect();
        let mut holders = 0;
        for task in tasks {
            holders += usize::from(task.await.unwrap().is_some());
        }
        assert_eq!(holders, 1);
    }
}

async fn whether_somebody_is_there_is_known_by_prefix(stores: Stores) {
    let a = Owner::new("a");
    assert!(!stores.leases.any_held("place/", at(0)).await.unwrap());
    stores.leases.acquire("other", &a, at(0), at(100)).await.unwrap();
    stores.leases.acquire("place/a", &a, at(0), at(10)).await.unwrap();
    for (prefix, seconds, held) in [
        ("place/", 9, true),
        ("place/", 10, false),
        ("place/b", 9, false),
        ("place_", 9, false),
        ("", 99, true),
    ] {
        let answer = stores.leases.any_held(prefix, at(seconds)).await.unwrap();
        assert_eq!(answer, held, "{prefix} at {seconds}");
    }
    stores.leases.release("place/a", &a).await.unwrap();
    assert!(!stores.leases.any_held("place/", at(1)).await.unwrap());
}

async fn only_what_is_over_is_purged(stores: Stores) {
    let a = Owner::new("a");
    for (name, until) in [("place/1", 10), ("place/2", 20), ("place/3", 5), ("other", 5)] {
        stores.leases.acquire(name, &a, at(0), at(until)).await.unwrap();
    }
    stores.leases.release("place/2", &a).await.unwrap();
    assert_eq!(stores.leases.over("place/", at(10)).await.unwrap(), 2);
    assert_eq!(stores.leases.purge("place/", at(10), 1).await.unwrap(), 1);
    assert_eq!(stores.leases.over("place/", at(10)).await.unwrap(), 1);
    assert_eq!(stores.leases.purge("place/", at(10), 10).await.unwrap(), 1);
    assert_eq!(stores.leases.purge("place/", at(10), 10).await.unwrap(), 0);
    assert!(stores.leases.any_held("place/1", at(9)).await.unwrap());
    let term = stores
        .leases
        .acquire("other", &Owner::new("b"), at(9), at(20))
        .await
        .unwrap();
    assert_eq!(term, Some(2), "other names are left alone");
}
