//! What [`Runs::change`](dbtcloud_core::ports::Runs::change) and `request_cancel` mean.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Batch, Fence, Holder, RunChange, RunPatch};
use dbtcloud_core::run::{Run, RunEvent, RunStatus};

use super::Stores;
use super::samples::{
    ACCOUNT, LATE, ODD_TEXT, STRANGER, agent, at, batch, change, claim_until, claimed, kind, owner, queued, running,
    together, told,
};

cases! { $ changes_cases, changes, Stores:
    a_change_sets_status_and_fields,
    an_absent_field_of_a_patch_stays,
    a_patch_with_a_nul_is_refused,
    a_change_by_an_overtaken_driver_is_fenced,
    a_change_by_an_agents_fence_is_fenced,
    a_change_of_an_unknown_run_is_not_found,
    a_change_of_another_status_conflicts,
    the_fence_is_looked_at_before_the_status,
    the_same_end_twice_is_the_same_end,
    a_terminal_run_absorbs,
    a_change_without_a_new_status_is_not_told,
    one_of_many_changes_wins,
    cancelling_a_queued_run_ends_it,
    cancelling_a_live_run_is_asked_once,
    cancelling_an_ended_run_changes_nothing,
    cancelling_needs_the_account,
    cancelling_with_a_nul_is_refused,
    cancel_and_claim_agree_on_one_winner,
}

async fn a_change_sets_status_and_fields(stores: Stores) {
    let claimed = claimed(&stores).await;
    let patch = RunPatch {
        message: Some(ODD_TEXT.to_owned()),
        git_branch: Some("main".to_owned()),
        git_sha: Some("0".repeat(40)),
        dbt_version: Some("1.10.1".to_owned()),
        artifacts_saved: Some(true),
        has_docs: Some(true),
        has_sources: Some(true),
    };
    let change = RunChange::new(RunStatus::Starting, RunEvent::Failed, patch, at(5)).unwrap();
    let run = stores.runs.change(&claimed.fence, &change).await.unwrap();
    let expected = Run {
        status: RunStatus::Error,
        updated_at: at(5),
        finished_at: Some(at(5)),
        message: Some(ODD_TEXT.to_owned()),
        git_branch: Some("main".to_owned()),
        git_sha: Some("0".repeat(40)),
        dbt_version: Some("1.10.1".to_owned()),
        artifacts_saved: true,
        has_docs: true,
        has_sources: true,
        ..claimed.run
    };
    assert_eq!(run, expected);
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), expected);
}

async fn an_absent_field_of_a_patch_stays(stores: Stores) {
    let claimed = claimed(&stores).await;
    let patch = RunPatch {
        has_docs: Some(true),
        ..RunPatch::message("first")
    };
    let cancel = RunChange::new(RunStatus::Starting, RunEvent::CancelRequested, patch, at(2)).unwrap();
    let run = stores.runs.change(&claimed.fence, &cancel).await.unwrap();
    assert_eq!((run.cancel_requested_at, run.finished_at), (Some(at(2)), None));
    let stopped = change(RunStatus::Cancelling, RunEvent::Stopped, at(3));
    let run = stores.runs.change(&claimed.fence, &stopped).await.unwrap();
    assert_eq!(
        (run.status, run.message.as_deref(), run.has_docs),
        (RunStatus::Cancelled, Some("first"), true)
    );
    assert_eq!((run.cancel_requested_at, run.finished_at), (Some(at(2)), Some(at(3))));
}

async fn a_patch_with_a_nul_is_refused(stores: Stores) {
    let claimed = claimed(&stores).await;
    let change = RunChange::new(RunStatus::Starting, RunEvent::Failed, RunPatch::message("a\0b"), at(2)).unwrap();
    assert_eq!(
        kind(stores.runs.change(&claimed.fence, &change).await),
        ErrorKind::Invalid
    );
    assert_eq!(stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap(), claimed.run);
}

async fn a_change_by_an_overtaken_driver_is_fenced(stores: Stores) {
    let run = queued(&stores).await.id;
    let old = claim_until(&stores, run, at(1), at(10)).await;
    let new = stores
        .runs
        .reclaim(&owner("b"), at(11), LATE, 10)
        .await
        .unwrap()
        .remove(0);
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(12));
    assert_eq!(kind(stores.runs.change(&old.fence, &failed).await), ErrorKind::Fenced);
    assert_eq!(
        stores.runs.get(ACCOUNT, run).await.unwrap(),
        new.run,
        "nothing was written"
    );
    assert_eq!(told(&stores, &new.run).await, [RunStatus::Queued, RunStatus::Starting]);
    stores.runs.change(&new.fence, &failed).await.unwrap();
    assert_eq!(
        kind(stores.runs.change(&old.fence, &failed).await),
        ErrorKind::Fenced,
        "also after the end"
    );
}

async fn a_change_by_an_agents_fence_is_fenced(stores: Stores) {
    let claimed = claimed(&stores).await;
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    assert_eq!(
        kind(stores.runs.change(&agent(&claimed), &failed).await),
        ErrorKind::Fenced
    );
}

async fn a_change_of_an_unknown_run_is_not_found(stores: Stores) {
    let fence = Fence::issue(RunId::new(987_654), Holder::Driver { epoch: 1 });
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    assert_eq!(kind(stores.runs.change(&fence, &failed).await), ErrorKind::NotFound);
}

async fn a_change_of_another_status_conflicts(stores: Stores) {
    let running = running(&stores).await;
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(5));
    assert_eq!(
        kind(stores.runs.change(&running.fence, &failed).await),
        ErrorKind::Conflict
    );
    assert_eq!(stores.runs.get(ACCOUNT, running.run.id).await.unwrap(), running.run);
    stores
        .runs
        .request_cancel(ACCOUNT, running.run.id, "stop", at(6))
        .await
        .unwrap();
    let timed_out = change(RunStatus::Running, RunEvent::CancelRequested, at(7));
    assert_eq!(
        kind(stores.runs.change(&running.fence, &timed_out).await),
        ErrorKind::Conflict
    );
}

async fn the_fence_is_looked_at_before_the_status(stores: Stores) {
    let run = queued(&stores).await.id;
    let old = claim_until(&stores, run, at(1), at(10)).await;
    let new = stores
        .runs
        .reclaim(&owner("b"), at(11), LATE, 10)
        .await
        .unwrap()
        .remove(0);
    let stale = change(RunStatus::Running, RunEvent::Failed, at(12));
    assert_eq!(kind(stores.runs.change(&old.fence, &stale).await), ErrorKind::Fenced);
    assert_eq!(kind(stores.runs.change(&new.fence, &stale).await), ErrorKind::Conflict);
}

async fn the_same_end_twice_is_the_same_end(stores: Stores) {
    let claimed = claimed(&stores).await;
    let fail = |text: &str, seconds| {
        RunChange::new(
            RunStatus::Starting,
            RunEvent::Failed,
            RunPatch::message(text),
            at(seconds),
        )
        .unwrap()
    };
    let first = stores.runs.change(&claimed.fence, &fail("first", 2)).await.unwrap();
    let second = stores.runs.change(&claimed.fence, &fail("second", 3)).await.unwrap();
    assert_eq!(second, first, "nothing changes any more");
    assert_eq!(
        told(&stores, &first).await,
        [RunStatus::Queued, RunStatus::Starting, RunStatus::Error]
    );
}

async fn a_terminal_run_absorbs(stores: Stores) {
    let claimed = claimed(&stores).await;
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    let ended = stores.runs.change(&claimed.fence, &failed).await.unwrap();
    let stopped = change(RunStatus::Starting, RunEvent::Stopped, at(3));
    assert_eq!(
        kind(stores.runs.change(&claimed.fence, &stopped).await),
        ErrorKind::Conflict
    );
    let requeued = change(RunStatus::Starting, RunEvent::Requeued, at(3));
    assert_eq!(
        kind(stores.runs.change(&claimed.fence, &requeued).await),
        ErrorKind::Conflict
    );
    assert_eq!(stores.runs.get(ACCOUNT, ended.id).await.unwrap(), ended);
    let for_the_end = RunChange::new(RunStatus::Error, RunEvent::Stopped, RunPatch::message("later"), at(4)).unwrap();
    let run = stores.runs.change(&claimed.fence, &for_the_end).await.unwrap();
    assert_eq!((run.status, run.finished_at), (RunStatus::Error, Some(at(2))));
    assert_eq!(
        run.message.as_deref(),
        Some("later"),
        "fields of a run that ended can be set, knowingly"
    );
    assert_eq!(
        told(&stores, &run).await,
        [RunStatus::Queued, RunStatus::Starting, RunStatus::Error]
    );
}

async fn a_change_without_a_new_status_is_not_told(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores
        .runs
        .request_cancel(ACCOUNT, claimed.run.id, "stop", at(2))
        .await
        .unwrap();
    let again = change(RunStatus::Cancelling, RunEvent::CancelRequested, at(3));
    let run = stores.runs.change(&claimed.fence, &again).await.unwrap();
    assert_eq!(
        (run.status, run.cancel_requested_at),
        (RunStatus::Cancelling, Some(at(2))),
        "the first request counts"
    );
    assert_eq!(
        told(&stores, &run).await,
        [RunStatus::Queued, RunStatus::Starting, RunStatus::Cancelling]
    );
}

async fn one_of_many_changes_wins(stores: Stores) {
    for _ in 0..10 {
        let claimed = claimed(&stores).await;
        let events = [
            RunEvent::Failed,
            RunEvent::Stopped,
            RunEvent::Requeued,
            RunEvent::CancelRequested,
        ];
        let results = together(8, |index| {
            let (runs, fence) = (stores.runs.clone(), claimed.fence);
            let change = change(RunStatus::Starting, events[index % 4], at(2));
            async move {
                runs.change(&fence, &change)
                    .await
                    .map(|run| run.status)
                    .map_err(|error| error.kind())
            }
        });
        let results = results.await;
        let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
        for result in results {
            match result {
                Ok(status) => assert_eq!(status, run.status, "who is told Ok is told the truth"),
                Err(kind) => assert_eq!(kind, ErrorKind::Conflict),
            }
        }
        assert_eq!(told(&stores, &run).await.len(), 3, "one change was told");
    }
}

async fn cancelling_a_queued_run_ends_it(stores: Stores) {
    let run = queued(&stores).await;
    let cancelled = stores
        .runs
        .request_cancel(ACCOUNT, run.id, ODD_TEXT, at(4))
        .await
        .unwrap();
    let expected = Run {
        status: RunStatus::Cancelled,
        updated_at: at(4),
        finished_at: Some(at(4)),
        cancel_requested_at: Some(at(4)),
        message: Some(ODD_TEXT.to_owned()),
        ..run
    };
    assert_eq!(cancelled, expected);
    assert_eq!(stores.runs.get(ACCOUNT, expected.id).await.unwrap(), expected);
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 0);
    assert_eq!(
        told(&stores, &expected).await,
        [RunStatus::Queued, RunStatus::Cancelled]
    );
}

async fn cancelling_a_live_run_is_asked_once(stores: Stores) {
    for claimed in [claimed(&stores).await, running(&stores).await] {
        let id = claimed.run.id;
        let first = stores.runs.request_cancel(ACCOUNT, id, "first", at(4)).await.unwrap();
        assert_eq!((first.status, first.finished_at), (RunStatus::Cancelling, None));
        assert_eq!(
            (first.cancel_requested_at, first.message.as_deref()),
            (Some(at(4)), Some("first"))
        );
        let second = stores.runs.request_cancel(ACCOUNT, id, "second", at(5)).await.unwrap();
        assert_eq!(second, first);
        let told = told(&stores, &first).await;
        assert_eq!(
            told.iter().filter(|status| **status == RunStatus::Cancelling).count(),
            1
        );
        let stopped = change(RunStatus::Cancelling, RunEvent::Stopped, at(6));
        let end = stores.runs.change(&claimed.fence, &stopped).await.unwrap();
        assert_eq!(
            (end.status, end.cancel_requested_at),
            (RunStatus::Cancelled, Some(at(4)))
        );
    }
}

async fn cancelling_an_ended_run_changes_nothing(stores: Stores) {
    let running = running(&stores).await;
    let end = Batch {
        event: Some(RunEvent::Succeeded),
        ..batch(2, at(3))
    };
    stores.runs.report(&agent(&running), &end).await.unwrap();
    let ended = stores.runs.get(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!(
        stores
            .runs
            .request_cancel(ACCOUNT, ended.id, "late", at(9))
            .await
            .unwrap(),
        ended
    );
    assert_eq!(stores.runs.get(ACCOUNT, ended.id).await.unwrap(), ended);
}

async fn cancelling_needs_the_account(stores: Stores) {
    let run = queued(&stores).await;
    assert_eq!(
        kind(stores.runs.request_cancel(STRANGER, run.id, "x", at(1)).await),
        ErrorKind::NotFound
    );
    let unknown = stores
        .runs
        .request_cancel(ACCOUNT, RunId::new(987_654), "x", at(1))
        .await;
    assert_eq!(kind(unknown), ErrorKind::NotFound);
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), run);
}

async fn cancelling_with_a_nul_is_refused(stores: Stores) {
    let run = queued(&stores).await;
    assert_eq!(
        kind(stores.runs.request_cancel(ACCOUNT, run.id, "a\0b", at(1)).await),
        ErrorKind::Invalid
    );
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), run);
}

async fn cancel_and_claim_agree_on_one_winner(stores: Stores) {
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let run = queued(&stores).await;
        let (runs, id) = (stores.runs.clone(), run.id);
        let cancel = tokio::spawn(async move { runs.request_cancel(ACCOUNT, id, "stop", at(1)).await.unwrap() });
        let admission = [dbtcloud_core::run::Admission { run: id, slot: None }];
        let claimed = stores.runs.claim(&owner("a"), &admission, at(1), LATE).await.unwrap();
        let cancelled = cancel.await.unwrap();
        let now = stores.runs.get(ACCOUNT, id).await.unwrap();
        let expected = if claimed.is_empty() {
            RunStatus::Cancelled
        } else {
            RunStatus::Cancelling
        };
        assert_eq!((cancelled.status, now.status), (expected, expected));
        seen.insert(told(&stores, &run).await.len());
    }
    assert!(seen.iter().all(|events| [2, 3].contains(events)), "{seen:?}");
}
