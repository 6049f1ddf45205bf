//! What [`Dispatches`](dbtcloud_core::ports::Dispatches) means.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{NotificationId, RunId, WebhookId};
use dbtcloud_core::page::Page;
use dbtcloud_core::ports::{Addressee, Channel, Dispatch, DispatchId, DispatchState, Dispatched, Next, Try};

use super::Stores;
use super::samples::{ACCOUNT, JOB, ODD_TEXT, STRANGER, at, kind, together};

cases! { $ dispatches_cases, dispatches, Stores:
    what_is_posted_is_read_back,
    a_name_is_posted_once,
    a_nul_is_refused_and_nothing_is_posted,
    what_was_sent_and_not_settled_is_offered_again_after_its_time,
    of_an_addressee_and_run_only_the_earliest_is_offered,
    an_addressee_does_not_crowd_out_the_others,
    channels_and_those_left_out_are_not_offered,
    a_try_is_written_down_and_comes_again_when_it_should,
    an_end_is_an_end,
    last_tries_are_the_newest_first,
    an_account_sees_its_own,
    pages_are_newest_first,
    only_the_old_that_ended_are_forgotten,
    many_callers_take_each_dispatch_once,
}

const HOOK: Addressee = Addressee::Webhook(WebhookId::new(1));
const OTHER: Addressee = Addressee::Webhook(WebhookId::new(2));
const PERSON: Addressee = Addressee::Notification(NotificationId::new(1));

fn id(to: Addressee, run: i64, sequence: u64, part: u32) -> DispatchId {
    let run = RunId::new(run);
    DispatchId {
        to,
        run,
        sequence,
        part,
    }
}

/// A dispatch that is due from second 0 on.
fn dispatch(to: Addressee, run: i64, sequence: u64, part: u32) -> Dispatch {
    Dispatch {
        id: id(to, run, sequence, part),
        account: ACCOUNT,
        job: JOB,
        event: "job.run.started".to_owned(),
        body: format!("{{\"run\": {run}, \"text\": {ODD_TEXT:?}}}"),
        created_at: at(0),
    }
}

async fn post(stores: &Stores, dispatches: &[Dispatch]) {
    stores.dispatches.post(dispatches).await.unwrap();
}

/// Takes all that is due of webhooks, for ten seconds.
async fn take(stores: &Stores, seconds: i64) -> Vec<DispatchId> {
    let taken = stores
        .dispatches
        .take(Channel::Webhook, at(seconds), at(seconds + 10), 1_000, 1_000, &[])
        .await;
    taken.unwrap().into_iter().map(|taken| taken.dispatch.id).collect()
}

fn tried(seconds: i64, code: Option<u16>) -> Try {
    Try {
        at: at(seconds),
        code,
        error: code.map_or(ODD_TEXT.to_owned(), |_| String::new()),
        answer: ODD_TEXT.to_owned(),
    }
}

async fn settle(stores: &Stores, id: &DispatchId, tried: &Try, next: Next) {
    stores.dispatches.settle(id, tried, next).await.unwrap();
}

async fn one(stores: &Stores, id: &DispatchId) -> Dispatched {
    stores.dispatches.dispatch(ACCOUNT, id).await.unwrap()
}

async fn what_is_posted_is_read_back(stores: Stores) {
    let (first, second) = (dispatch(HOOK, 1, 3, 0), dispatch(PERSON, 2, 4, 1));
    post(&stores, &[first.clone(), second.clone()]).await;
    post(&stores, &[]).await;
    for posted in [first, second] {
        let found = one(&stores, &posted.id).await;
        assert_eq!(found.dispatch, posted);
        assert_eq!(
            (found.state, found.tries, found.last),
            (DispatchState::Waiting, 0, None)
        );
    }
    assert_eq!(stores.dispatches.undelivered(Channel::Webhook).await.unwrap(), 1);
    assert_eq!(stores.dispatches.undelivered(Channel::Notification).await.unwrap(), 1);
    let absent = stores.dispatches.dispatch(ACCOUNT, &id(HOOK, 1, 3, 1)).await;
    assert_eq!(kind(absent), ErrorKind::NotFound);
}

async fn a_name_is_posted_once(stores: Stores) {
    let first = dispatch(HOOK, 1, 3, 0);
    post(&stores, std::slice::from_ref(&first)).await;
    let again = Dispatch {
        body: "another".to_owned(),
        created_at: at(5),
        ..first.clone()
    };
    post(&stores, &[again.clone(), dispatch(HOOK, 1, 3, 1)]).await;
    assert_eq!(one(&stores, &first.id).await.dispatch, first);
    take(&stores, 1).await;
    settle(
        &stores,
        &first.id,
        &tried(2, Some(200)),
        Next::End(DispatchState::Delivered),
    )
    .await;
    post(&stores, &[again]).await;
    assert_eq!(one(&stores, &first.id).await.state, DispatchState::Delivered);
    assert_eq!(take(&stores, 2).await, [id(HOOK, 1, 3, 1)]);
}

async fn a_nul_is_refused_and_nothing_is_posted(stores: Stores) {
    let bad = Dispatch {
        body: "a\0b".to_owned(),
        ..dispatch(HOOK, 2, 1, 0)
    };
    let refused = stores.dispatches.post(&[dispatch(HOOK, 1, 1, 0), bad]).await;
    assert_eq!(kind(refused), ErrorKind::Invalid);
    assert_eq!(take(&stores, 1).await, []);
    post(&stores, &[dispatch(HOOK, 1, 1, 0)]).await;
    let bad = Try {
        answer: "\0".to_owned(),
        ..tried(1, Some(200))
    };
    let next = Next::End(DispatchState::Delivered);
    assert_eq!(
        kind(stores.dispatches.settle(&id(HOOK, 1, 1, 0), &bad, next).await),
        ErrorKind::Invalid
    );
}

async fn what_was_sent_and_not_settled_is_offered_again_after_its_time(stores: Stores) {
    post(&stores, &[dispatch(HOOK, 1, 1, 0)]).await;
    assert_eq!(take(&stores, -1).await, [], "not yet due");
    assert_eq!(take(&stores, 0).await, [id(HOOK, 1, 1, 0)]);
    assert_eq!(take(&stores, 9).await, [], "it is somebody's");
    assert_eq!(take(&stores, 10).await, [id(HOOK, 1, 1, 0)]);
    let found = one(&stores, &id(HOOK, 1, 1, 0)).await;
    assert_eq!((found.tries, found.last), (2, None));
}

async fn of_an_addressee_and_run_only_the_earliest_is_offered(stores: Stores) {
    let all = [
        dispatch(HOOK, 1, 2, 1),
        dispatch(HOOK, 1, 2, 0),
        dispatch(HOOK, 1, 1, 0),
        dispatch(OTHER, 1, 2, 0),
    ];
    post(&stores, &all).await;
    assert_eq!(take(&stores, 0).await, [id(HOOK, 1, 1, 0), id(OTHER, 1, 2, 0)]);
    assert_eq!(take(&stores, 1).await, [], "not while the first is on its way");
    settle(&stores, &id(HOOK, 1, 1, 0), &tried(1, None), Next::Again(at(60))).await;
    assert_eq!(take(&stores, 2).await, [], "nor while it waits");
    settle(
        &stores,
        &id(HOOK, 1, 1, 0),
        &tried(2, None),
        Next::End(DispatchState::Failed),
    )
    .await;
    assert_eq!(take(&stores, 3).await, [id(HOOK, 1, 2, 0)]);
    settle(
        &stores,
        &id(HOOK, 1, 2, 0),
        &tried(3, Some(200)),
        Next::End(DispatchState::Delivered),
    )
    .await;
    assert_eq!(take(&stores, 4).await, [id(HOOK, 1, 2, 1)]);
}

async fn an_addressee_does_not_crowd_out_the_others(stores: Stores) {
    let many: Vec<_> = (1..=20).map(|run| dispatch(HOOK, run, 1, 0)).collect();
    post(&stores, &many).await;
    let late = Dispatch {
        created_at: at(5),
        ..dispatch(OTHER, 1, 1, 0)
    };
    post(&stores, &[late]).await;
    let few = |limit, each| {
        stores
            .dispatches
            .take(Channel::Webhook, at(6), at(60), limit, each, &[])
    };
    let taken: Vec<_> = few(3, 10).await.unwrap();
    let names: Vec<_> = taken.iter().map(|taken| taken.dispatch.id).collect();
    let wanted = [id(HOOK, 1, 1, 0), id(HOOK, 2, 1, 0), id(OTHER, 1, 1, 0)];
    assert_eq!(names, wanted, "everybody's first comes first");
    assert!(taken.iter().all(|taken| taken.tries == 1));
    assert_eq!(few(100, 4).await.unwrap().len(), 4, "so many of one addressee");
}

async fn channels_and_those_left_out_are_not_offered(stores: Stores) {
    post(
        &stores,
        &[
            dispatch(HOOK, 1, 1, 0),
            dispatch(OTHER, 1, 1, 0),
            dispatch(PERSON, 1, 1, 0),
        ],
    )
    .await;
    let taken = |channel, except| stores.dispatches.take(channel, at(1), at(20), 10, 10, except);
    let one = taken(Channel::Webhook, &[HOOK, PERSON]).await.unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].dispatch.id.to, OTHER);
    let of_people = taken(Channel::Notification, &[HOOK]).await.unwrap();
    assert_eq!(of_people.len(), 1);
    assert_eq!(of_people[0].dispatch.id.to, PERSON);
    assert_eq!(take(&stores, 1).await, [id(HOOK, 1, 1, 0)]);
}

async fn a_try_is_written_down_and_comes_again_when_it_should(stores: Stores) {
    post(&stores, &[dispatch(HOOK, 1, 1, 0)]).await;
    take(&stores, 0).await;
    let failed = tried(3, Some(503));
    settle(&stores, &id(HOOK, 1, 1, 0), &failed, Next::Again(at(30))).await;
    let found = one(&stores, &id(HOOK, 1, 1, 0)).await;
    assert_eq!(
        (found.state, found.tries, found.last),
        (DispatchState::Waiting, 1, Some(failed))
    );
    assert_eq!(take(&stores, 29).await, [], "neither before");
    assert_eq!(take(&stores, 30).await, [id(HOOK, 1, 1, 0)], "nor later");
    let silent = tried(31, None);
    settle(&stores, &id(HOOK, 1, 1, 0), &silent, Next::Again(at(32))).await;
    let found = one(&stores, &id(HOOK, 1, 1, 0)).await;
    assert_eq!((found.tries, found.last), (2, Some(silent)));
    settle(&stores, &id(OTHER, 9, 9, 9), &tried(1, None), Next::Again(at(1))).await;
}

async fn an_end_is_an_end(stores: Stores) {
    for (run, state) in (1..).zip([DispatchState::Delivered, DispatchState::Failed, DispatchState::Dropped]) {
        post(&stores, &[dispatch(HOOK, run, 1, 0)]).await;
        let (name, last) = (id(HOOK, run, 1, 0), tried(run, Some(200)));
        settle(&stores, &name, &last, Next::End(state)).await;
        settle(&stores, &name, &tried(9, None), Next::Again(at(9))).await;
        settle(&stores, &name, &tried(9, None), Next::End(DispatchState::Failed)).await;
        let found = one(&stores, &name).await;
        assert_eq!((found.state, found.last), (state, Some(last)));
        assert_eq!(take(&stores, 100).await, []);
    }
    assert_eq!(stores.dispatches.undelivered(Channel::Webhook).await.unwrap(), 0);
}

async fn last_tries_are_the_newest_first(stores: Stores) {
    let all: Vec<_> = (1..=5).map(|run| dispatch(HOOK, run, 1, 0)).collect();
    post(&stores, &all).await;
    post(&stores, &[dispatch(OTHER, 1, 1, 0)]).await;
    let end = |state| Next::End(state);
    for (run, seconds, next) in [
        (1, 9, end(DispatchState::Failed)),
        (2, 8, Next::Again(at(100))),
        (3, 7, end(DispatchState::Dropped)),
        (4, 6, end(DispatchState::Delivered)),
    ] {
        settle(&stores, &id(HOOK, run, 1, 0), &tried(seconds, Some(500)), next).await;
    }
    settle(
        &stores,
        &id(OTHER, 1, 1, 0),
        &tried(20, Some(500)),
        end(DispatchState::Failed),
    )
    .await;
    let runs = |found: Vec<Dispatched>| -> Vec<i64> { found.iter().map(|sent| sent.dispatch.id.run.get()).collect() };
    let last = |ended, limit| stores.dispatches.last_tries(HOOK, ended, limit);
    assert_eq!(
        runs(last(false, 10).await.unwrap()),
        [1, 2, 3, 4],
        "run 5 was not tried"
    );
    assert_eq!(runs(last(false, 1).await.unwrap()), [1]);
    assert_eq!(runs(last(true, 10).await.unwrap()), [1, 4]);
}

async fn an_account_sees_its_own(stores: Stores) {
    let foreign = Dispatch {
        account: STRANGER,
        ..dispatch(HOOK, 1, 1, 0)
    };
    post(&stores, &[foreign, dispatch(HOOK, 2, 1, 0)]).await;
    assert_eq!(
        kind(stores.dispatches.dispatch(ACCOUNT, &id(HOOK, 1, 1, 0)).await),
        ErrorKind::NotFound
    );
    let page = stores
        .dispatches
        .dispatches(ACCOUNT, HOOK, Page::new(10, 0))
        .await
        .unwrap();
    assert_eq!((page.total, page.items.len()), (1, 1));
    assert_eq!(page.items[0].dispatch.id, id(HOOK, 2, 1, 0));
}

async fn pages_are_newest_first(stores: Stores) {
    for run in 1..=5 {
        let posted = Dispatch {
            created_at: at(run),
            ..dispatch(HOOK, run, 1, 0)
        };
        post(&stores, &[posted, dispatch(OTHER, run, 1, 0)]).await;
    }
    let page = stores
        .dispatches
        .dispatches(ACCOUNT, HOOK, Page::new(2, 1))
        .await
        .unwrap();
    let runs: Vec<_> = page.items.iter().map(|sent| sent.dispatch.id.run.get()).collect();
    assert_eq!((page.total, runs), (5, vec![4, 3]));
}

async fn only_the_old_that_ended_are_forgotten(stores: Stores) {
    for run in 1..=4 {
        let posted = Dispatch {
            created_at: at(run),
            ..dispatch(HOOK, run, 1, 0)
        };
        post(&stores, &[posted]).await;
    }
    for run in [1, 2, 4] {
        let end = Next::End(DispatchState::Delivered);
        settle(&stores, &id(HOOK, run, 1, 0), &tried(5, Some(200)), end).await;
    }
    assert_eq!(stores.dispatches.old_dispatches(at(4)).await.unwrap(), 2);
    assert_eq!(stores.dispatches.forget_dispatches(at(4), 1).await.unwrap(), 1);
    assert_eq!(stores.dispatches.forget_dispatches(at(4), 10).await.unwrap(), 1);
    assert_eq!(stores.dispatches.forget_dispatches(at(4), 10).await.unwrap(), 0);
    let page = stores
        .dispatches
        .dispatches(ACCOUNT, HOOK, Page::new(10, 0))
        .await
        .unwrap();
    let runs: Vec<_> = page.items.iter().map(|sent| sent.dispatch.id.run.get()).collect();
    assert_eq!(runs, [4, 3], "one is not old, one waits");
}

async fn many_callers_take_each_dispatch_once(stores: Stores) {
    let all: Vec<_> = (1..=40)
        .map(|run| dispatch(if run % 2 == 0 { HOOK } else { OTHER }, run, 1, 0))
        .collect();
    post(&stores, &all).await;
    let callers = |_| {
        let stores = stores.clone();
        async move {
            let mut mine = Vec::new();
            // Whoever is offered more than there is has been offered something twice.
            while mine.len() <= 40 {
                let taken = stores
                    .dispatches
                    .take(Channel::Webhook, at(1), at(1_000), 3, 2, &[])
                    .await
                    .unwrap();
                if taken.is_empty() {
                    break;
                }
                mine.extend(taken.into_iter().map(|taken| taken.dispatch.id));
            }
            mine
        }
    };
    let mut taken: Vec<_> = together(8, callers).await.into_iter().flatten().collect();
    // A caller may have been told of nothing while others held what it was about to take.
    taken.extend(take(&stores, 1).await);
    let unique: BTreeSet<_> = taken.iter().copied().collect();
    assert_eq!((taken.len(), unique.len()), (40, 40));
}
