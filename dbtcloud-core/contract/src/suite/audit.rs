//! What [`Audit`](dbtcloud_core::ports::Audit) means, and when the other ports write an entry.

use dbtcloud_core::audit::{Action, Actor, Entry, Logged, Subject};
use dbtcloud_core::catalog::{Draft, Kind};
use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{AccountId, ProjectId, TokenId, UserId};
use dbtcloud_core::page::Page;
use dbtcloud_core::ports::Firing;

use super::Stores;
use super::catalog::{draft, insert, keyed};
use super::samples::{ACCOUNT, JOB, ODD_TEXT, STRANGER, at, free_run, kind, together};

cases! { $ audit_cases, audit, Stores:
    every_change_of_a_record_is_an_entry,
    a_refused_change_is_no_entry,
    a_new_account_has_its_own_entry,
    a_run_that_somebody_sets_off_is_an_entry_once,
    what_the_clock_sets_off_is_none,
    what_is_noted_is_read_back,
    a_nul_is_refused,
    entries_are_the_newest_first_and_within_their_times,
    an_account_sees_its_own,
    only_the_old_are_forgotten,
    many_writers_lose_nothing,
}

fn ada() -> Actor {
    Actor::User {
        id: UserId::new(3),
        name: ODD_TEXT.to_owned(),
    }
}

fn robot() -> Actor {
    Actor::Service {
        id: TokenId::new(4),
        name: "robot".to_owned(),
    }
}

/// An account's entries, oldest first.
async fn log(stores: &Stores, account: AccountId) -> Vec<Logged> {
    let page = stores
        .audit
        .entries(account, None, None, Page::new(100, 0))
        .await
        .unwrap();
    assert_eq!(page.total, page.items.len() as u64);
    page.items.into_iter().rev().collect()
}

async fn entries(stores: &Stores) -> Vec<Entry> {
    log(stores, ACCOUNT)
        .await
        .into_iter()
        .map(|logged| logged.entry)
        .collect()
}

fn entry(seconds: i64, by: Actor) -> Entry {
    Entry {
        account: ACCOUNT,
        at: at(seconds),
        by,
        action: Action::Cancelled,
        subject: Subject::Run,
        id: 20_261_100_000_001,
        name: ODD_TEXT.to_owned(),
        project: Some(ProjectId::new(5)),
    }
}

async fn every_change_of_a_record_is_an_entry(stores: Stores) {
    let first = Draft {
        by: ada(),
        project: Some(ProjectId::new(9)),
        ..draft(Kind::Job, "Nightly")
    };
    let row = insert(&stores, &first).await;
    let renamed = Draft {
        name: "Hourly".to_owned(),
        by: robot(),
        at: at(2),
        ..first.clone()
    };
    stores.catalog.update(row.id, 1, renamed.clone()).await.unwrap();
    let deleted = Draft {
        deleted: true,
        by: Actor::System,
        at: at(3),
        ..renamed
    };
    stores.catalog.update(row.id, 2, deleted).await.unwrap();
    let of = |action, by, name: &str, seconds| Entry {
        account: ACCOUNT,
        at: at(seconds),
        by,
        action,
        subject: Subject::Record(Kind::Job),
        id: row.id,
        name: name.to_owned(),
        project: Some(ProjectId::new(9)),
    };
    let wanted = [
        of(Action::Added, ada(), "Nightly", 1),
        of(Action::Changed, robot(), "Hourly", 2),
        of(Action::Removed, Actor::System, "Hourly", 3),
    ];
    assert_eq!(entries(&stores).await, wanted);
}

async fn a_refused_change_is_no_entry(stores: Stores) {
    let row = insert(&stores, &keyed(Kind::Token, "k")).await;
    assert_eq!(
        kind(stores.catalog.insert(keyed(Kind::Token, "k")).await),
        ErrorKind::AlreadyExists
    );
    let again = keyed(Kind::Token, "other");
    assert_eq!(
        kind(stores.catalog.update(row.id, 7, again.clone()).await),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(stores.catalog.update(row.id + 1, 1, again).await),
        ErrorKind::NotFound
    );
    assert_eq!(entries(&stores).await.len(), 1);
}

async fn a_new_account_has_its_own_entry(stores: Stores) {
    let row = insert(&stores, &draft(Kind::Account, "Acme")).await;
    let log = log(&stores, row.account).await;
    assert_eq!(log.len(), 1);
    assert_eq!(
        (log[0].entry.subject, log[0].entry.id),
        (Subject::Record(Kind::Account), row.id)
    );
}

async fn a_run_that_somebody_sets_off_is_an_entry_once(stores: Stores) {
    let mut new = free_run(ACCOUNT, JOB);
    new.trigger.by = ada();
    new.scheduled_for = Some(at(50));
    let run = stores.runs.enqueue(&new, at(1)).await.unwrap().into_run();
    stores.runs.enqueue(&new, at(2)).await.unwrap();
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap().new.trigger.by, ada());
    let wanted = Entry {
        account: ACCOUNT,
        at: at(1),
        by: ada(),
        action: Action::Triggered,
        subject: Subject::Run,
        id: run.id.get(),
        name: new.trigger.cause.clone(),
        project: Some(new.project),
    };
    assert_eq!(entries(&stores).await, [wanted]);
}

async fn what_the_clock_sets_off_is_none(stores: Stores) {
    stores.runs.enqueue(&free_run(ACCOUNT, JOB), at(1)).await.unwrap();
    let hand = dbtcloud_core::ports::ScheduleEntry {
        account: ACCOUNT,
        job: JOB,
        job_version: 1,
        next_at: Some(at(5)),
    };
    stores.schedules.put(&hand, at(1)).await.unwrap();
    let mut run = free_run(ACCOUNT, JOB);
    run.scheduled_for = Some(at(5));
    let firing = Firing {
        job: JOB,
        seen: at(5),
        job_version: 1,
        next: None,
        run: Some(run),
    };
    stores.schedules.fire(&[firing], at(6)).await.unwrap();
    assert_eq!(entries(&stores).await, []);
}

async fn what_is_noted_is_read_back(stores: Stores) {
    let noted: Vec<_> = (1..)
        .zip([ada(), robot(), Actor::Operator, Actor::System])
        .map(|(at, by)| entry(at, by))
        .collect();
    for entry in &noted {
        stores.audit.note(entry).await.unwrap();
    }
    assert_eq!(entries(&stores).await, noted);
    let ids: Vec<_> = log(&stores, ACCOUNT).await.iter().map(|logged| logged.id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

async fn a_nul_is_refused(stores: Stores) {
    let bad = Entry {
        name: "a\0b".to_owned(),
        ..entry(1, Actor::System)
    };
    assert_eq!(kind(stores.audit.note(&bad).await), ErrorKind::Invalid);
    assert_eq!(entries(&stores).await, []);
}

async fn entries_are_the_newest_first_and_within_their_times(stores: Stores) {
    for seconds in [3, 1, 2, 5, 4, 4] {
        stores.audit.note(&entry(seconds, Actor::System)).await.unwrap();
    }
    let seconds = async |from: Option<i64>, to: Option<i64>, page: Page| {
        let found = stores
            .audit
            .entries(ACCOUNT, from.map(at), to.map(at), page)
            .await
            .unwrap();
        let seconds = found.items.iter().map(|logged| logged.entry.at.since(at(0)).as_secs());
        (found.total, seconds.collect::<Vec<_>>())
    };
    let all = Page::new(100, 0);
    assert_eq!(seconds(None, None, all).await, (6, vec![5, 4, 4, 3, 2, 1]));
    assert_eq!(
        seconds(Some(2), Some(4), all).await,
        (2, vec![3, 2]),
        "from the first, before the second"
    );
    assert_eq!(seconds(Some(4), None, Page::new(2, 1)).await, (3, vec![4, 4]));
    assert_eq!(seconds(Some(9), None, all).await, (0, vec![]));
}

async fn an_account_sees_its_own(stores: Stores) {
    stores.audit.note(&entry(1, Actor::System)).await.unwrap();
    assert_eq!(log(&stores, STRANGER).await, []);
    assert_eq!(stores.audit.forget_entries(STRANGER, at(100), 10).await.unwrap(), 0);
    assert_eq!(entries(&stores).await.len(), 1);
}

async fn only_the_old_are_forgotten(stores: Stores) {
    for seconds in [4, 2, 3, 1] {
        stores.audit.note(&entry(seconds, Actor::System)).await.unwrap();
    }
    let left = async || -> Vec<u64> {
        entries(&stores)
            .await
            .iter()
            .map(|entry| entry.at.since(at(0)).as_secs())
            .collect()
    };
    assert_eq!(stores.audit.forget_entries(ACCOUNT, at(4), 2).await.unwrap(), 2);
    assert_eq!(left().await, [3, 4], "the oldest first");
    assert_eq!(stores.audit.forget_entries(ACCOUNT, at(4), 10).await.unwrap(), 1);
    assert_eq!(stores.audit.forget_entries(ACCOUNT, at(4), 10).await.unwrap(), 0);
    assert_eq!(left().await, [4]);
}

async fn many_writers_lose_nothing(stores: Stores) {
    let writer = |_| {
        let stores = stores.clone();
        async move {
            for _ in 0..5 {
                insert(&stores, &draft(Kind::Project, "p")).await;
            }
        }
    };
    together(8, writer).await;
    assert_eq!(entries(&stores).await.len(), 40);
}
