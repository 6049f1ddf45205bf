//! What [`Catalog`](dbtcloud_core::ports::Catalog) means.

use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt, Draft, Kind, Query, Row};
use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{AccountId, ProjectId};
use dbtcloud_core::page::Page;
use serde_json::json;

use super::Stores;
use super::samples::{ACCOUNT, ODD_TEXT, STRANGER, at, kind, together};

cases! { $ catalog_cases, catalog, Stores:
    a_record_is_stored_as_drafted,
    every_kind_has_ids_of_its_own,
    ids_grow_and_are_never_used_twice,
    an_account_is_its_own,
    text_and_json_come_back_as_they_went,
    names_and_lookups_with_a_nul_are_refused,
    another_account_sees_nothing,
    a_deleted_record_is_still_there,
    lookups_are_found_over_all_accounts,
    lookups_are_unique_per_kind,
    a_deleted_record_frees_its_lookup,
    an_update_may_not_take_a_lookup,
    an_update_keeps_its_own_lookup,
    many_insert_one_lookup_once,
    an_update_writes_over_all_but_identity,
    an_update_of_an_old_version_conflicts,
    an_update_in_another_account_is_not_found,
    one_of_many_updates_wins,
    counting_together_loses_nothing,
    the_typed_view_round_trips,
}

pub(super) fn draft(kind: Kind, name: &str) -> Draft {
    Draft {
        kind,
        account: ACCOUNT,
        project: None,
        parent: None,
        name: name.to_owned(),
        lookup: None,
        deleted: false,
        body: json!({ "name": name }),
        at: at(1),
        by: Actor::System,
    }
}

pub(super) fn keyed(kind: Kind, lookup: &str) -> Draft {
    Draft {
        lookup: Some(lookup.to_owned()),
        ..draft(kind, "keyed")
    }
}

pub(super) async fn insert(stores: &Stores, draft: &Draft) -> Row {
    stores.catalog.insert(draft.clone()).await.unwrap()
}

async fn a_record_is_stored_as_drafted(stores: Stores) {
    let draft = Draft {
        project: Some(ProjectId::new(3)),
        parent: Some(4),
        ..keyed(Kind::Job, "k")
    };
    let row = insert(&stores, &draft).await;
    let expected = Row {
        kind: Kind::Job,
        id: row.id,
        account: ACCOUNT,
        project: Some(ProjectId::new(3)),
        parent: Some(4),
        name: "keyed".to_owned(),
        lookup: Some("k".to_owned()),
        deleted: false,
        version: 1,
        created_at: at(1),
        updated_at: at(1),
        body: json!({ "name": "keyed" }),
    };
    assert_eq!(row, expected);
    assert!(row.id > 0);
    assert_eq!(stores.catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap(), expected);
    let again = insert(&stores, &Draft { lookup: None, ..draft }).await;
    assert_ne!(again.id, row.id, "a second call makes a second record");
}

async fn every_kind_has_ids_of_its_own(stores: Stores) {
    for kind in Kind::ALL {
        let row = insert(&stores, &draft(kind, "one")).await;
        assert_eq!(stores.catalog.get(kind, row.account, row.id).await.unwrap(), row);
        assert_eq!(stores.catalog.scan(kind, 0, 10).await.unwrap(), [row]);
    }
}

async fn ids_grow_and_are_never_used_twice(stores: Stores) {
    let mut last = 0;
    for _ in 0..5 {
        let row = insert(&stores, &draft(Kind::Job, "a")).await;
        assert!(row.id > last);
        last = row.id;
        stores
            .catalog
            .update(
                row.id,
                1,
                Draft {
                    deleted: true,
                    ..draft(Kind::Job, "a")
                },
            )
            .await
            .unwrap();
    }
}

async fn an_account_is_its_own(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Account, "Acme")).await;
    assert_eq!(row.account, AccountId::new(row.id));
    let own = Draft {
        account: row.account,
        ..draft(Kind::Account, "Acme Ltd")
    };
    let row = stores.catalog.update(row.id, 1, own).await.unwrap();
    assert_eq!((row.account.get(), row.name.as_str()), (row.id, "Acme Ltd"));
    let other = insert(&stores, &draft(Kind::Account, "Other")).await;
    let listed = stores
        .catalog
        .list(&Query::new(Kind::Account, other.account), Page::default())
        .await
        .unwrap();
    assert_eq!(listed.items, std::slice::from_ref(&other));
    assert_eq!(
        kind(stores.catalog.get(Kind::Account, other.account, row.id).await),
        ErrorKind::NotFound
    );
}

async fn text_and_json_come_back_as_they_went(stores: Stores) {
    let body = json!({
        "text": ODD_TEXT, "": "", "deep": [[[{"a": null}]], [], {}], "key 'ü'\"": true,
        "max": u64::MAX, "min": i64::MIN, "small": 0.1, "exponent": 1.5e300, "one": 1.0, "zero": 0,
    });
    let draft = Draft {
        lookup: Some(ODD_TEXT.to_owned()),
        body,
        ..draft(Kind::User, ODD_TEXT)
    };
    let row = insert(&stores, &draft).await;
    let stored = stores.catalog.get(Kind::User, ACCOUNT, row.id).await.unwrap();
    assert_eq!(
        (stored.name, stored.lookup, stored.body),
        (draft.name, draft.lookup, draft.body)
    );
    assert_eq!(
        stores
            .catalog
            .find(Kind::User, ODD_TEXT)
            .await
            .unwrap()
            .map(|row| row.id),
        Some(row.id)
    );
    let empty = insert(
        &stores,
        &Draft {
            body: json!(null),
            ..self::draft(Kind::Job, "")
        },
    )
    .await;
    assert_eq!(stores.catalog.get(Kind::Job, ACCOUNT, empty.id).await.unwrap(), empty);
}

async fn names_and_lookups_with_a_nul_are_refused(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Job, "fine")).await;
    for bad in [draft(Kind::Job, "a\0b"), keyed(Kind::Job, "a\0b")] {
        assert_eq!(kind(stores.catalog.insert(bad.clone()).await), ErrorKind::Invalid);
        assert_eq!(kind(stores.catalog.update(row.id, 1, bad).await), ErrorKind::Invalid);
    }
    assert_eq!(stores.catalog.scan(Kind::Job, 0, 10).await.unwrap(), [row]);
}

async fn another_account_sees_nothing(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Job, "mine")).await;
    assert_eq!(
        kind(stores.catalog.get(Kind::Job, STRANGER, row.id).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.catalog.get(Kind::Job, ACCOUNT, 987_654).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.catalog.get(Kind::Project, ACCOUNT, row.id).await),
        ErrorKind::NotFound
    );
    let query = Query {
        ids: Some(vec![row.id]),
        deleted: None,
        ..Query::new(Kind::Job, STRANGER)
    };
    let paged = stores.catalog.list(&query, Page::default()).await.unwrap();
    assert_eq!((paged.items, paged.total), (vec![], 0));
}

async fn a_deleted_record_is_still_there(stores: Stores) {
    let row = insert(&stores, &keyed(Kind::Job, "k")).await;
    let deleted = Draft {
        deleted: true,
        at: at(2),
        ..keyed(Kind::Job, "k")
    };
    let row = stores.catalog.update(row.id, 1, deleted).await.unwrap();
    assert!(row.deleted);
    assert_eq!(stores.catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap(), row);
    assert_eq!(stores.catalog.find(Kind::Job, "k").await.unwrap(), None);
    assert_eq!(stores.catalog.scan(Kind::Job, 0, 10).await.unwrap(), []);
}

async fn lookups_are_found_over_all_accounts(stores: Stores) {
    let own = insert(&stores, &keyed(Kind::Token, "a")).await;
    let other = insert(
        &stores,
        &Draft {
            account: STRANGER,
            ..keyed(Kind::Token, "b")
        },
    )
    .await;
    assert_eq!(stores.catalog.find(Kind::Token, "a").await.unwrap(), Some(own));
    assert_eq!(stores.catalog.find(Kind::Token, "b").await.unwrap(), Some(other));
    for absent in ["A", "c", "", "%", "_"] {
        assert_eq!(
            stores.catalog.find(Kind::Token, absent).await.unwrap(),
            None,
            "{absent}"
        );
    }
    assert_eq!(stores.catalog.find(Kind::User, "a").await.unwrap(), None);
}

async fn lookups_are_unique_per_kind(stores: Stores) {
    let row = insert(&stores, &keyed(Kind::Token, "a")).await;
    let other_account = Draft {
        account: STRANGER,
        ..keyed(Kind::Token, "a")
    };
    for draft in [keyed(Kind::Token, "a"), other_account] {
        assert_eq!(kind(stores.catalog.insert(draft).await), ErrorKind::AlreadyExists);
    }
    insert(&stores, &keyed(Kind::User, "a")).await;
    insert(&stores, &keyed(Kind::Token, "A")).await;
    insert(&stores, &draft(Kind::Token, "without")).await;
    insert(&stores, &draft(Kind::Token, "without")).await;
    assert_eq!(stores.catalog.find(Kind::Token, "a").await.unwrap(), Some(row));
}

async fn a_deleted_record_frees_its_lookup(stores: Stores) {
    let first = insert(&stores, &keyed(Kind::User, "a@b")).await;
    stores
        .catalog
        .update(
            first.id,
            1,
            Draft {
                deleted: true,
                ..keyed(Kind::User, "a@b")
            },
        )
        .await
        .unwrap();
    let second = insert(&stores, &keyed(Kind::User, "a@b")).await;
    assert_eq!(stores.catalog.find(Kind::User, "a@b").await.unwrap(), Some(second));
    let back = stores.catalog.update(first.id, 2, keyed(Kind::User, "a@b")).await;
    assert_eq!(
        kind(back),
        ErrorKind::AlreadyExists,
        "it cannot come back beside its successor"
    );
    insert(
        &stores,
        &Draft {
            deleted: true,
            ..keyed(Kind::User, "a@b")
        },
    )
    .await;
}

async fn an_update_may_not_take_a_lookup(stores: Stores) {
    insert(&stores, &keyed(Kind::User, "a")).await;
    let row = insert(&stores, &keyed(Kind::User, "b")).await;
    let taken = stores.catalog.update(row.id, 1, keyed(Kind::User, "a")).await;
    assert_eq!(kind(taken), ErrorKind::AlreadyExists);
    assert_eq!(stores.catalog.get(Kind::User, ACCOUNT, row.id).await.unwrap(), row);
}

async fn an_update_keeps_its_own_lookup(stores: Stores) {
    let row = insert(&stores, &keyed(Kind::User, "a")).await;
    let row = stores.catalog.update(row.id, 1, keyed(Kind::User, "a")).await.unwrap();
    let row = stores.catalog.update(row.id, 2, keyed(Kind::User, "b")).await.unwrap();
    assert_eq!(stores.catalog.find(Kind::User, "a").await.unwrap(), None);
    assert_eq!(stores.catalog.find(Kind::User, "b").await.unwrap(), Some(row));
}

async fn many_insert_one_lookup_once(stores: Stores) {
    for round in 0..10 {
        let inserted = together(8, |_| {
            let catalog = stores.catalog.clone();
            let draft = keyed(Kind::User, &format!("user-{round}"));
            async move { catalog.insert(draft).await.map_err(|error| error.kind()) }
        });
        let inserted = inserted.await;
        assert_eq!(inserted.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(
            inserted
                .iter()
                .flat_map(|result| result.as_ref().err())
                .all(|kind| *kind == ErrorKind::AlreadyExists)
        );
    }
}

async fn an_update_writes_over_all_but_identity(stores: Stores) {
    let row = insert(
        &stores,
        &Draft {
            project: Some(ProjectId::new(3)),
            parent: Some(4),
            ..keyed(Kind::Job, "k")
        },
    )
    .await;
    let draft = Draft {
        at: at(9),
        body: json!({"new": 1}),
        ..draft(Kind::Job, "renamed")
    };
    let updated = stores.catalog.update(row.id, 1, draft).await.unwrap();
    let expected = Row {
        project: None,
        parent: None,
        name: "renamed".to_owned(),
        lookup: None,
        version: 2,
        updated_at: at(9),
        body: json!({"new": 1}),
        ..row
    };
    assert_eq!(updated, expected);
    assert_eq!(
        stores.catalog.get(Kind::Job, ACCOUNT, updated.id).await.unwrap(),
        expected
    );
}

async fn an_update_of_an_old_version_conflicts(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Job, "a")).await;
    let row = stores.catalog.update(row.id, 1, draft(Kind::Job, "b")).await.unwrap();
    for version in [0, 1, 3] {
        let stale = stores.catalog.update(row.id, version, draft(Kind::Job, "c")).await;
        assert_eq!(kind(stale), ErrorKind::Conflict);
    }
    assert_eq!(stores.catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap(), row);
}

async fn an_update_in_another_account_is_not_found(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Job, "a")).await;
    let theirs = Draft {
        account: STRANGER,
        ..draft(Kind::Job, "stolen")
    };
    assert_eq!(
        kind(stores.catalog.update(row.id, 1, theirs).await),
        ErrorKind::NotFound
    );
    let unknown = stores.catalog.update(987_654, 1, draft(Kind::Job, "a")).await;
    assert_eq!(kind(unknown), ErrorKind::NotFound);
    let other_kind = stores.catalog.update(row.id, 1, draft(Kind::Project, "a")).await;
    assert_eq!(kind(other_kind), ErrorKind::NotFound);
    assert_eq!(stores.catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap(), row);
}

async fn one_of_many_updates_wins(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Job, "start")).await;
    for version in 1..11 {
        let won = together(8, |writer| {
            let (catalog, draft) = (stores.catalog.clone(), draft(Kind::Job, &format!("writer {writer}")));
            async move {
                catalog
                    .update(row.id, version, draft)
                    .await
                    .map_err(|error| error.kind())
            }
        });
        let mut won = won.await;
        assert!(
            won.iter()
                .flat_map(|result| result.as_ref().err())
                .all(|kind| *kind == ErrorKind::Conflict)
        );
        won.retain(Result::is_ok);
        assert_eq!(won, [Ok(stores.catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap())]);
    }
}

async fn counting_together_loses_nothing(stores: Stores) {
    let row = insert(
        &stores,
        &Draft {
            body: json!(0),
            ..draft(Kind::Job, "counter")
        },
    )
    .await;
    together(4, |_| {
        let catalog = stores.catalog.clone();
        async move {
            let mut counted = 0;
            while counted < 10 {
                let row = catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap();
                let body = json!(row.body.as_i64().unwrap() + 1);
                match catalog
                    .update(
                        row.id,
                        row.version,
                        Draft {
                            body,
                            ..draft(Kind::Job, "counter")
                        },
                    )
                    .await
                {
                    Ok(_) => counted += 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
                }
            }
        }
    })
    .await;
    let row = stores.catalog.get(Kind::Job, ACCOUNT, row.id).await.unwrap();
    assert_eq!((row.body, row.version), (json!(40), 41));
}

async fn the_typed_view_round_trips(stores: Stores) {
    use dbtcloud_core::account::{Account, User};
    let account = stores
        .catalog
        .create(AccountId::new(0), &Account::new("Acme"), at(1))
        .await
        .unwrap();
    let user = User {
        email: "a@b.c".into(),
        first_name: "Zoë".into(),
        last_name: String::new(),
        is_admin: true,
    };
    let mut user = stores.catalog.create(account.id, &user, at(2)).await.unwrap();
    user.body.first_name = "Chloé".to_owned();
    let saved = stores.catalog.save(&user, at(3)).await.unwrap();
    assert_eq!((saved.version, saved.updated_at, saved.created_at), (2, at(3), at(2)));
    assert_eq!(stores.catalog.fetch::<User>(account.id, user.id).await.unwrap(), saved);
    assert_eq!(kind(stores.catalog.save(&user, at(4)).await), ErrorKind::Conflict);
    let mut gone = saved.clone();
    gone.deleted = true;
    stores.catalog.save(&gone, at(5)).await.unwrap();
    assert_eq!(
        kind(stores.catalog.fetch::<User>(account.id, user.id).await),
        ErrorKind::NotFound
    );
}
