//! What a request that may be made again means to [`Runs`](dbtcloud_core::ports::Runs).

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::ports::{Digest, Enqueued, RunRequest};
use dbtcloud_core::run::{CauseCategory, NewRun, Run, RunStatus, Trigger};

use super::Stores;
use super::samples::{ACCOUNT, JOB, LATE, STRANGER, at, claim_until, free_run, kind, new_run, together};

cases! { $ requests_cases, requests, Stores:
    a_request_made_again_is_answered_with_its_run,
    it_is_answered_with_the_run_as_it_is_now,
    another_request_by_its_key_is_refused,
    keys_are_of_an_account,
    a_key_that_ran_out_is_free,
    what_is_refused_leaves_the_key,
    a_request_made_again_takes_nobodys_place,
    of_many_at_once_one_queues,
    a_purge_of_keys_drops_what_ran_out,
}

/// Runs out at second 100.
const fn request(key: u8, asked: u8) -> RunRequest {
    RunRequest {
        key: Digest([key; 32]),
        asked: Digest([asked; 32]),
        until: at(100),
    }
}

async fn created(stores: &Stores, new: &NewRun, request: &RunRequest, second: i64) -> Run {
    match stores.runs.enqueue_for(new, request, at(second)).await.unwrap() {
        Enqueued::Created(run) => run,
        Enqueued::Existing(run) => panic!("run {} was there before", run.id),
    }
}

async fn existing(stores: &Stores, new: &NewRun, request: &RunRequest, second: i64) -> Run {
    match stores.runs.enqueue_for(new, request, at(second)).await.unwrap() {
        Enqueued::Existing(run) => run,
        Enqueued::Created(run) => panic!("run {} is a second one", run.id),
    }
}

async fn a_request_made_again_is_answered_with_its_run(stores: Stores) {
    let (new, asked) = (free_run(ACCOUNT, JOB), request(1, 1));
    assert_eq!(stores.runs.of_request(ACCOUNT, &asked, at(0)).await.unwrap(), None);
    let run = created(&stores, &new, &asked, 0).await;
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), run);
    assert_eq!(existing(&stores, &new, &asked, 1).await, run);
    assert_eq!(
        stores.runs.of_request(ACCOUNT, &asked, at(1)).await.unwrap(),
        Some(run.clone())
    );
    let other = created(&stores, &new, &request(2, 1), 1).await;
    assert_ne!(other.id, run.id, "another key");
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 2);
}

async fn it_is_answered_with_the_run_as_it_is_now(stores: Stores) {
    let (new, asked) = (free_run(ACCOUNT, JOB), request(1, 1));
    let run = created(&stores, &new, &asked, 0).await;
    claim_until(&stores, run.id, at(1), LATE).await;
    assert_eq!(existing(&stores, &new, &asked, 2).await.status, RunStatus::Starting);
    let other = created(&stores, &new, &request(2, 1), 2).await;
    stores
        .runs
        .request_cancel(ACCOUNT, other.id, "Stopped.", at(3))
        .await
        .unwrap();
    let again = stores.runs.of_request(ACCOUNT, &request(2, 1), at(4)).await.unwrap();
    assert_eq!(again.unwrap().status, RunStatus::Cancelled);
    assert_eq!(existing(&stores, &new, &request(2, 1), 4).await.id, other.id);
}

async fn another_request_by_its_key_is_refused(stores: Stores) {
    let new = free_run(ACCOUNT, JOB);
    let run = created(&stores, &new, &request(1, 1), 0).await;
    let other = request(1, 2);
    assert_eq!(
        kind(stores.runs.enqueue_for(&new, &other, at(1)).await),
        ErrorKind::AlreadyExists
    );
    assert_eq!(
        kind(stores.runs.of_request(ACCOUNT, &other, at(1)).await),
        ErrorKind::AlreadyExists
    );
    assert_eq!(
        existing(&stores, &new, &request(1, 1), 2).await,
        run,
        "the first one stays"
    );
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 1);
}

async fn keys_are_of_an_account(stores: Stores) {
    let run = created(&stores, &free_run(ACCOUNT, JOB), &request(1, 1), 0).await;
    assert_eq!(
        stores.runs.of_request(STRANGER, &request(1, 2), at(1)).await.unwrap(),
        None
    );
    let other = created(&stores, &free_run(STRANGER, JOB), &request(1, 2), 1).await;
    assert_ne!(run.id, other.id);
    let again = stores.runs.of_request(ACCOUNT, &request(1, 1), at(2)).await.unwrap();
    assert_eq!(again.map(|run| run.id), Some(run.id));
}

async fn a_key_that_ran_out_is_free(stores: Stores) {
    let (new, asked) = (free_run(ACCOUNT, JOB), request(1, 1));
    let run = created(&stores, &new, &asked, 0).await;
    assert_eq!(existing(&stores, &new, &asked, 99).await.id, run.id);
    let later = RunRequest {
        until: at(200),
        ..request(1, 2)
    };
    assert_eq!(stores.runs.of_request(ACCOUNT, &later, at(100)).await.unwrap(), None);
    let other = created(&stores, &new, &later, 100).await;
    assert_ne!(other.id, run.id);
    assert_eq!(existing(&stores, &new, &later, 199).await.id, other.id);
}

async fn what_is_refused_leaves_the_key(stores: Stores) {
    let mut bad = free_run(ACCOUNT, JOB);
    bad.trigger = Trigger::new(CauseCategory::Api, "a\0b");
    let asked = request(1, 1);
    assert_eq!(
        kind(stores.runs.enqueue_for(&bad, &asked, at(0)).await),
        ErrorKind::Invalid
    );
    created(&stores, &free_run(ACCOUNT, JOB), &asked, 1).await;
}

async fn a_request_made_again_takes_nobodys_place(stores: Stores) {
    let mut merge = new_run(ACCOUNT, JOB);
    merge.trigger = Trigger::new(CauseCategory::Merge, "a case");
    let first = created(&stores, &merge, &request(1, 1), 0).await;
    let second = created(&stores, &merge, &request(2, 1), 1).await;
    assert_eq!(
        existing(&stores, &merge, &request(1, 1), 2).await.status,
        RunStatus::Cancelled
    );
    assert_eq!(existing(&stores, &merge, &request(1, 1), 2).await.id, first.id);
    let second = stores.runs.get(ACCOUNT, second.id).await.unwrap();
    assert_eq!(second.status, RunStatus::Queued);
}

async fn of_many_at_once_one_queues(stores: Stores) {
    for category in [CauseCategory::Api, CauseCategory::Merge] {
        let mut new = new_run(ACCOUNT, JOB);
        new.trigger = Trigger::new(category, "a case");
        let key = category as u8 + 1;
        let answers = together(8, |_| {
            let (runs, new) = (stores.runs.clone(), new.clone());
            async move { runs.enqueue_for(&new, &request(key, 1), at(1)).await.unwrap() }
        });
        let answers = answers.await;
        let made = answers.iter().filter(|answer| matches!(answer, Enqueued::Created(_)));
        assert_eq!(made.count(), 1);
        let mut runs: Vec<_> = answers.into_iter().map(|answer| answer.into_run().id).collect();
        runs.dedup();
        assert_eq!(runs.len(), 1, "{runs:?}");
    }
}

async fn a_purge_of_keys_drops_what_ran_out(stores: Stores) {
    let new = free_run(ACCOUNT, JOB);
    for key in 1..=3 {
        created(&stores, &new, &request(key, 1), 0).await;
    }
    let kept = RunRequest {
        until: at(300),
        ..request(4, 1)
    };
    let run = created(&stores, &new, &kept, 0).await;
    assert_eq!(
        stores.runs.purge_requests(at(100), 10).await.unwrap(),
        0,
        "at that instant, not before"
    );
    assert_eq!(stores.runs.old_requests(at(101)).await.unwrap(), 3);
    assert_eq!(stores.runs.purge_requests(at(101), 2).await.unwrap(), 2);
    assert_eq!(stores.runs.purge_requests(at(101), 10).await.unwrap(), 1);
    assert_eq!(stores.runs.old_requests(at(101)).await.unwrap(), 0);
    assert_eq!(existing(&stores, &new, &kept, 102).await.id, run.id);
}
