//! What [`Catalog::list`](dbtcloud_core::ports::Catalog::list) and `scan` mean.

use std::collections::BTreeSet;

use dbtcloud_core::catalog::{Draft, Kind, Query, SortKey};
use dbtcloud_core::id::{AccountId, ProjectId};
use dbtcloud_core::page::{Direction, Page};

use super::Stores;
use super::catalog::{draft, insert};
use super::samples::{ACCOUNT, ODD_TEXT, STRANGER, at};

cases! { $ listing_cases, listing, Stores:
    pages_have_items_and_a_total,
    filters_by_kind_account_project_and_parent,
    filters_by_ids,
    filters_by_name,
    name_contains_is_literal,
    name_contains_ignores_ascii_case_only,
    filters_by_deletion,
    filters_hold_together,
    lists_are_ordered_by_every_key,
    a_descending_list_is_the_other_way_round,
    scan_sees_all_accounts_by_id,
}

async fn ids(stores: &Stores, query: &Query, page: Page) -> (Vec<i64>, u64) {
    let paged = stores.catalog.list(query, page).await.unwrap();
    (paged.items.iter().map(|row| row.id).collect(), paged.total)
}

async fn all(stores: &Stores, query: &Query) -> Vec<i64> {
    let (ids, total) = ids(stores, query, Page::default()).await;
    assert_eq!(ids.len() as u64, total);
    ids
}

fn jobs() -> Query {
    Query::new(Kind::Job, ACCOUNT)
}

async fn named(stores: &Stores, names: &[&str]) -> Vec<i64> {
    let mut ids = Vec::new();
    for name in names {
        ids.push(insert(stores, &draft(Kind::Job, name)).await.id);
    }
    ids
}

async fn pages_have_items_and_a_total(stores: Stores) {
    let rows = named(&stores, &["a", "b", "c", "d", "e"]).await;
    insert(
        &stores,
        &Draft {
            account: STRANGER,
            ..draft(Kind::Job, "x")
        },
    )
    .await;
    assert_eq!(ids(&stores, &jobs(), Page::new(2, 0)).await, (rows[..2].to_vec(), 5));
    assert_eq!(ids(&stores, &jobs(), Page::new(2, 4)).await, (rows[4..].to_vec(), 5));
    assert_eq!(ids(&stores, &jobs(), Page::new(2, 5)).await, (vec![], 5));
    assert_eq!(ids(&stores, &jobs(), Page::new(2, u32::MAX)).await, (vec![], 5));
    assert_eq!(ids(&stores, &jobs(), Page::new(0, 0)).await, (vec![], 5));
    let whole = stores.catalog.list(&jobs(), Page::new(1, 1)).await.unwrap().items;
    assert_eq!(whole, [stores.catalog.get(Kind::Job, ACCOUNT, rows[1]).await.unwrap()]);
}

async fn filters_by_kind_account_project_and_parent(stores: Stores) {
    let of = |project, parent| Draft {
        project: Some(ProjectId::new(project)),
        parent,
        ..draft(Kind::Job, "a")
    };
    let a = insert(&stores, &of(1, Some(7))).await.id;
    let b = insert(&stores, &of(2, Some(8))).await.id;
    let c = insert(&stores, &of(1, None)).await.id;
    let none = insert(&stores, &draft(Kind::Job, "a")).await.id;
    insert(
        &stores,
        &Draft {
            account: STRANGER,
            ..of(1, Some(7))
        },
    )
    .await;
    insert(
        &stores,
        &Draft {
            kind: Kind::Environment,
            ..of(1, Some(7))
        },
    )
    .await;
    assert_eq!(all(&stores, &jobs()).await, [a, b, c, none]);
    assert_eq!(all(&stores, &jobs().in_project(ProjectId::new(1))).await, [a, c]);
    let both = Query {
        projects: Some(vec![ProjectId::new(2), ProjectId::new(1)]),
        ..jobs()
    };
    assert_eq!(all(&stores, &both).await, [a, b, c]);
    assert_eq!(
        all(
            &stores,
            &Query {
                projects: Some(vec![]),
                ..jobs()
            }
        )
        .await,
        [0; 0]
    );
    assert_eq!(all(&stores, &jobs().under(8)).await, [b]);
    assert_eq!(
        all(&stores, &jobs().under(8).in_project(ProjectId::new(1))).await,
        [0; 0]
    );
}

async fn filters_by_ids(stores: Stores) {
    let rows = named(&stores, &["a", "b", "c"]).await;
    let some = Query {
        ids: Some(vec![rows[2], rows[0], 987_654, rows[0]]),
        ..jobs()
    };
    assert_eq!(all(&stores, &some).await, [rows[0], rows[2]]);
    assert_eq!(
        all(
            &stores,
            &Query {
                ids: Some(vec![]),
                ..jobs()
            }
        )
        .await,
        [0; 0]
    );
    assert_eq!(
        all(
            &stores,
            &Query {
                id_above: Some(rows[0]),
                ..jobs()
            }
        )
        .await,
        rows[1..]
    );
    assert_eq!(
        all(
            &stores,
            &Query {
                id_above: Some(rows[2]),
                ..jobs()
            }
        )
        .await,
        [0; 0]
    );
}

async fn filters_by_name(stores: Stores) {
    let rows = named(&stores, &["orders", "Orders", "orders ", "order%", ODD_TEXT]).await;
    let name = |name: &str| Query {
        name: Some(name.to_owned()),
        ..jobs()
    };
    assert_eq!(
        all(&stores, &name("orders")).await,
        [rows[0]],
        "the case and every blank count"
    );
    assert_eq!(all(&stores, &name("order%")).await, [rows[3]]);
    assert_eq!(all(&stores, &name(ODD_TEXT)).await, [rows[4]]);
    assert_eq!(all(&stores, &name("")).await, [0; 0]);
}

fn containing(part: &str) -> Query {
    Query {
        name_contains: Some(part.to_owned()),
        ..jobs()
    }
}

async fn name_contains_is_literal(stores: Stores) {
    let rows = named(
        &stores,
        &["100%", "100x", "a_b", "axb", "back\\slash", "quo'te", "[a]*?"],
    )
    .await;
    assert_eq!(all(&stores, &containing("0%")).await, [rows[0]]);
    assert_eq!(all(&stores, &containing("%")).await, [rows[0]]);
    assert_eq!(all(&stores, &containing("a_b")).await, [rows[2]]);
    assert_eq!(all(&stores, &containing("_")).await, [rows[2]]);
    assert_eq!(all(&stores, &containing("\\")).await, [rows[4]]);
    assert_eq!(all(&stores, &containing("k\\s")).await, [rows[4]]);
    assert_eq!(all(&stores, &containing("o't")).await, [rows[5]]);
    assert_eq!(all(&stores, &containing("]*?")).await, [rows[6]]);
    assert_eq!(all(&stores, &containing("%0")).await, [0; 0]);
    assert_eq!(all(&stores, &containing("")).await, rows, "everything contains nothing");
}

async fn name_contains_ignores_ascii_case_only(stores: Stores) {
    let rows = named(&stores, &["Daily ORDERS", "orders", "ÉTÉ", "été"]).await;
    assert_eq!(all(&stores, &containing("oRdErS")).await, rows[..2]);
    assert_eq!(all(&stores, &containing("été")).await, [rows[3]]);
    assert_eq!(all(&stores, &containing("tÉ")).await, [rows[2]], "T is t, É is not é");
}

async fn filters_by_deletion(stores: Stores) {
    let rows = named(&stores, &["a", "b"]).await;
    stores
        .catalog
        .update(
            rows[0],
            1,
            Draft {
                deleted: true,
                ..draft(Kind::Job, "a")
            },
        )
        .await
        .unwrap();
    assert_eq!(all(&stores, &jobs()).await, [rows[1]]);
    assert_eq!(
        all(
            &stores,
            &Query {
                deleted: Some(true),
                ..jobs()
            }
        )
        .await,
        [rows[0]]
    );
    assert_eq!(
        all(
            &stores,
            &Query {
                deleted: None,
                ..jobs()
            }
        )
        .await,
        rows
    );
}

async fn filters_hold_together(stores: Stores) {
    let full = |name: &str| Draft {
        project: Some(ProjectId::new(1)),
        parent: Some(2),
        ..draft(Kind::Job, name)
    };
    let mut rows = Vec::new();
    for name in ["x orders", "orders", "y orders", "orders y"] {
        rows.push(insert(&stores, &full(name)).await.id);
    }
    let query = Query {
        projects: Some(vec![ProjectId::new(1)]),
        parent: Some(2),
        ids: Some(rows.clone()),
        id_above: Some(rows[0]),
        name_contains: Some("Y".to_owned()),
        sort: SortKey::Name,
        direction: Direction::Descending,
        ..jobs()
    };
    assert_eq!(ids(&stores, &query, Page::new(1, 0)).await, (vec![rows[2]], 2));
    assert_eq!(ids(&stores, &query, Page::new(1, 1)).await, (vec![rows[3]], 2));
}

/// Four rows whose four orders are four different ones.
async fn four(stores: &Stores) -> Vec<i64> {
    let mut rows = Vec::new();
    for (name, created) in [("b", 3), ("a", 4), ("B", 1), ("b", 2)] {
        rows.push(
            insert(
                stores,
                &Draft {
                    at: at(created),
                    ..draft(Kind::Job, name)
                },
            )
            .await
            .id,
        );
    }
    for (index, name, changed) in [(0, "b", 11), (1, "a", 13), (2, "B", 13), (3, "b", 12)] {
        stores
            .catalog
            .update(
                rows[index],
                1,
                Draft {
                    at: at(changed),
                    ..draft(Kind::Job, name)
                },
            )
            .await
            .unwrap();
    }
    rows
}

async fn lists_are_ordered_by_every_key(stores: Stores) {
    let rows = four(&stores).await;
    for (sort, order) in [
        (SortKey::Id, [0, 1, 2, 3]),
        (SortKey::Name, [2, 1, 0, 3]),
        (SortKey::CreatedAt, [2, 3, 0, 1]),
        (SortKey::UpdatedAt, [0, 3, 1, 2]),
    ] {
        let expected = order.map(|index: usize| rows[index]);
        assert_eq!(
            all(&stores, &Query { sort, ..jobs() }).await,
            expected,
            "{sort:?}: by bytes, then by id"
        );
    }
}

async fn a_descending_list_is_the_other_way_round(stores: Stores) {
    four(&stores).await;
    for sort in [SortKey::Id, SortKey::Name, SortKey::CreatedAt, SortKey::UpdatedAt] {
        let mut expected = all(&stores, &Query { sort, ..jobs() }).await;
        expected.reverse();
        let query = Query {
            sort,
            direction: Direction::Descending,
            ..jobs()
        };
        assert_eq!(all(&stores, &query).await, expected, "{sort:?}");
    }
}

async fn scan_sees_all_accounts_by_id(stores: Stores) {
    let mut rows = Vec::new();
    for index in 0..6 {
        let account = AccountId::new(1 + index % 2);
        rows.push(
            insert(
                &stores,
                &Draft {
                    account,
                    ..draft(Kind::Job, "a")
                },
            )
            .await,
        );
    }
    let gone = rows.remove(2);
    let deleted = Draft {
        account: gone.account,
        deleted: true,
        ..draft(Kind::Job, "a")
    };
    stores.catalog.update(gone.id, 1, deleted).await.unwrap();
    insert(&stores, &draft(Kind::Project, "a")).await;
    assert_eq!(stores.catalog.scan(Kind::Job, 0, 100).await.unwrap(), rows);
    assert_eq!(stores.catalog.scan(Kind::Job, 0, 2).await.unwrap(), rows[..2]);
    assert_eq!(stores.catalog.scan(Kind::Job, rows[1].id, 2).await.unwrap(), rows[2..4]);
    assert_eq!(stores.catalog.scan(Kind::Job, rows[4].id, 2).await.unwrap(), []);
    let ids: BTreeSet<_> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), 5);
}
