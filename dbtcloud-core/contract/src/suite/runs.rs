//! What reading and changing [`Runs`](dbtcloud_core::ports::Runs) means; the queue and the reports have
//! suites of their own.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{EnvironmentId, JobId, ProjectId, RunId, StepId};
use dbtcloud_core::page::{Direction, Page};
use dbtcloud_core::ports::{Batch, Fence, Holder, RunChange, RunFilter, RunPatch, RunSort};
use dbtcloud_core::run::{NewRun, Run, RunEvent, RunStatus, StepStatus};

use super::Stores;
use super::samples::{
    ACCOUNT, JOB, LATE, ODD_TEXT, STRANGER, agent, at, batch, change, claim_until, claimed, enqueue, free_run, kind,
    owner, queued, running, step, together, told,
};

cases! { $ runs_cases, runs, Stores:
    another_account_sees_nothing,
    states_are_told_whatever_the_account,
    pages_have_items_and_a_total,
    lists_are_ordered_by_id,
    lists_are_ordered_by_creation,
    lists_are_ordered_by_end,
    filters_by_project_environment_and_job,
    filters_by_status_and_id,
    filters_by_time,
    filters_by_what_was_kept,
    filters_hold_together,
    empty_sets_match_nothing,
    newest_is_one_per_job,
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

async fn another_account_sees_nothing(stores: Stores) {
    let run = running(&stores).await.run;
    let fence = Fence::issue(run.id, Holder::Agent { attempt: 1 });
    let report = Batch {
        steps: vec![step(1, StepStatus::Running)],
        ..batch(2, at(3))
    };
    stores.runs.report(&fence, &report).await.unwrap();
    let steps = stores.runs.steps(ACCOUNT, run.id).await.unwrap();
    assert_eq!(stores.runs.step(ACCOUNT, steps[0].id).await.unwrap(), steps[0]);

    assert_eq!(kind(stores.runs.get(STRANGER, run.id).await), ErrorKind::NotFound);
    assert_eq!(kind(stores.runs.steps(STRANGER, run.id).await), ErrorKind::NotFound);
    assert_eq!(kind(stores.runs.step(STRANGER, steps[0].id).await), ErrorKind::NotFound);
    assert_eq!(
        kind(stores.journal.of_run(STRANGER, run.id, 0, 10).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.logs.read(STRANGER, run.id, 1, 0, 10).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.logs.moved(STRANGER, run.id, 1, 0, "x").await),
        ErrorKind::NotFound
    );
    assert_eq!(stores.runs.newest(STRANGER, &[JOB]).await.unwrap(), []);
    assert_eq!(stores.runs.queued(STRANGER).await.unwrap(), 0);
    let by_id = RunFilter {
        ids: Some(vec![run.id]),
        ..RunFilter::default()
    };
    for filter in [RunFilter::default(), by_id] {
        let paged = stores.runs.list(STRANGER, &filter, Page::default()).await.unwrap();
        assert_eq!((paged.items, paged.total), (vec![], 0));
    }
    assert_eq!(
        kind(stores.runs.get(ACCOUNT, RunId::new(987_654)).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.runs.steps(ACCOUNT, RunId::new(987_654)).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.runs.step(ACCOUNT, StepId::new(987_654)).await),
        ErrorKind::NotFound
    );
}

async fn states_are_told_whatever_the_account(stores: Stores) {
    let own = running(&stores).await.run.id;
    let other = enqueue(&stores, &free_run(STRANGER, JobId::new(8)), at(0)).await.id;
    let mut states = stores.runs.states(&[own, other, RunId::new(987_654)]).await.unwrap();
    states.sort_by_key(|state| state.run);
    let states: Vec<_> = states
        .into_iter()
        .map(|state| (state.run, state.status, state.attempt))
        .collect();
    assert_eq!(states, [(own, RunStatus::Running, 1), (other, RunStatus::Queued, 0)]);
    assert_eq!(stores.runs.states(&[]).await.unwrap(), []);
}

async fn ids(stores: &Stores, filter: &RunFilter, page: Page) -> (Vec<RunId>, u64) {
    let paged = stores.runs.list(ACCOUNT, filter, page).await.unwrap();
    (paged.items.iter().map(|run| run.id).collect(), paged.total)
}

async fn all(stores: &Stores, filter: &RunFilter) -> Vec<RunId> {
    let (ids, total) = ids(stores, filter, Page::default()).await;
    assert_eq!(ids.len() as u64, total);
    ids
}

async fn pages_have_items_and_a_total(stores: Stores) {
    let mut runs = Vec::new();
    for _ in 0..7 {
        runs.push(queued(&stores).await.id);
    }
    enqueue(&stores, &free_run(STRANGER, JobId::new(8)), at(0)).await;
    let filter = RunFilter::default();
    assert_eq!(ids(&stores, &filter, Page::new(3, 0)).await, (runs[..3].to_vec(), 7));
    assert_eq!(ids(&stores, &filter, Page::new(3, 6)).await, (runs[6..].to_vec(), 7));
    assert_eq!(ids(&stores, &filter, Page::new(3, 7)).await, (vec![], 7));
    assert_eq!(ids(&stores, &filter, Page::new(3, u32::MAX)).await, (vec![], 7));
    assert_eq!(ids(&stores, &filter, Page::new(0, 0)).await, (vec![], 7));
    let whole = stores.runs.list(ACCOUNT, &filter, Page::new(1, 2)).await.unwrap();
    assert_eq!(
        whole.items,
        [stores.runs.get(ACCOUNT, runs[2]).await.unwrap()],
        "a listed run is a whole run"
    );
}

async fn lists_are_ordered_by_id(stores: Stores) {
    let mut runs = vec![
        queued(&stores).await.id,
        queued(&stores).await.id,
        queued(&stores).await.id,
    ];
    assert_eq!(all(&stores, &RunFilter::default()).await, runs);
    runs.reverse();
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                direction: Direction::Descending,
                ..RunFilter::default()
            }
        )
        .await,
        runs
    );
}

async fn lists_are_ordered_by_creation(stores: Stores) {
    let mut runs = Vec::new();
    for seconds in [5, 1, 5, 3] {
        runs.push(enqueue(&stores, &free_run(ACCOUNT, JOB), at(seconds)).await.id);
    }
    let mut order = vec![runs[1], runs[3], runs[0], runs[2]];
    let filter = RunFilter {
        sort: RunSort::CreatedAt,
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &filter).await, order);
    order.reverse();
    let filter = RunFilter {
        direction: Direction::Descending,
        ..filter
    };
    assert_eq!(
        all(&stores, &filter).await,
        order,
        "a descending list is the ascending one from its end"
    );
}

/// Five runs: two that go on, and three that ended at seconds 9, 5 and 9.
async fn ended(stores: &Stores) -> Vec<RunId> {
    let mut runs = Vec::new();
    for seconds in [None, Some(9), Some(5), None, Some(9)] {
        let run = queued(stores).await.id;
        if let Some(seconds) = seconds {
            stores
                .runs
                .request_cancel(ACCOUNT, run, "end", at(seconds))
                .await
                .unwrap();
        }
        runs.push(run);
    }
    runs
}

async fn lists_are_ordered_by_end(stores: Stores) {
    let runs = ended(&stores).await;
    let mut order = vec![runs[2], runs[1], runs[4], runs[0], runs[3]];
    let filter = RunFilter {
        sort: RunSort::FinishedAt,
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &filter).await, order);
    order.reverse();
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                direction: Direction::Descending,
                ..filter.clone()
            }
        )
        .await,
        order
    );
    assert_eq!(
        ids(&stores, &filter, Page::new(2, 1)).await,
        (vec![runs[1], runs[4]], 5)
    );
}

async fn filters_by_project_environment_and_job(stores: Stores) {
    let of = |project, environment, job| NewRun {
        project: ProjectId::new(project),
        environment: EnvironmentId::new(environment),
        ..free_run(ACCOUNT, JobId::new(job))
    };
    let a = enqueue(&stores, &of(1, 1, 1), at(0)).await.id;
    let b = enqueue(&stores, &of(1, 2, 2), at(0)).await.id;
    let c = enqueue(&stores, &of(2, 3, 3), at(0)).await.id;
    let projects = |list: &[i64]| RunFilter {
        projects: Some(list.iter().copied().map(ProjectId::new).collect()),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &projects(&[1])).await, [a, b]);
    assert_eq!(all(&stores, &projects(&[2, 1, 77])).await, [a, b, c]);
    assert_eq!(all(&stores, &projects(&[77])).await, []);
    let environment = RunFilter {
        environment: Some(EnvironmentId::new(2)),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &environment).await, [b]);
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                job: Some(JobId::new(3)),
                ..RunFilter::default()
            }
        )
        .await,
        [c]
    );
}

async fn filters_by_status_and_id(stores: Stores) {
    let waiting = queued(&stores).await.id;
    let started = running(&stores).await.run.id;
    let cancelled = queued(&stores).await.id;
    stores
        .runs
        .request_cancel(ACCOUNT, cancelled, "end", at(9))
        .await
        .unwrap();
    let statuses = |list: &[RunStatus]| RunFilter {
        statuses: Some(list.to_vec()),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &statuses(&[RunStatus::Queued])).await, [waiting]);
    assert_eq!(
        all(&stores, &statuses(&[RunStatus::Cancelled, RunStatus::Running])).await,
        [started, cancelled]
    );
    assert_eq!(all(&stores, &statuses(&[RunStatus::Success])).await, []);
    let some = RunFilter {
        ids: Some(vec![cancelled, waiting, RunId::new(987_654)]),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &some).await, [waiting, cancelled]);
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                id_above: Some(waiting),
                ..RunFilter::default()
            }
        )
        .await,
        [started, cancelled]
    );
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                id_above: Some(cancelled),
                ..RunFilter::default()
            }
        )
        .await,
        []
    );
}

async fn filters_by_time(stores: Stores) {
    let mut runs = Vec::new();
    for seconds in 1..=4 {
        let run = enqueue(&stores, &free_run(ACCOUNT, JOB), at(seconds)).await.id;
        if seconds > 1 {
            stores
                .runs
                .request_cancel(ACCOUNT, run, "end", at(10 + seconds))
                .await
                .unwrap();
        }
        runs.push(run);
    }
    let created = |from, to| RunFilter {
        created_within: Some((at(from), at(to))),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &created(2, 3)).await, runs[1..3], "both ends belong to it");
    assert_eq!(all(&stores, &created(3, 2)).await, []);
    let finished = |from, to| RunFilter {
        finished_within: Some((at(from), at(to))),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &finished(13, 14)).await, runs[2..4]);
    assert_eq!(
        all(&stores, &finished(0, 100)).await,
        runs[1..4],
        "what has not ended did not end within"
    );
}

async fn filters_by_what_was_kept(stores: Stores) {
    let plain = running(&stores).await;
    let (docs, sources) = (running(&stores).await, running(&stores).await);
    let patch = RunPatch {
        has_docs: Some(true),
        ..RunPatch::default()
    };
    stores
        .runs
        .report(
            &agent(&docs),
            &Batch {
                patch,
                ..batch(2, at(3))
            },
        )
        .await
        .unwrap();
    let patch = RunPatch {
        has_sources: Some(true),
        ..RunPatch::default()
    };
    stores
        .runs
        .report(
            &agent(&sources),
            &Batch {
                patch,
                ..batch(2, at(3))
            },
        )
        .await
        .unwrap();
    let (plain, docs, sources) = (plain.run.id, docs.run.id, sources.run.id);
    let by_docs = |has| RunFilter {
        has_docs: Some(has),
        ..RunFilter::default()
    };
    let by_sources = |has| RunFilter {
        has_sources: Some(has),
        ..RunFilter::default()
    };
    assert_eq!(all(&stores, &by_docs(true)).await, [docs]);
    assert_eq!(all(&stores, &by_docs(false)).await, [plain, sources]);
    assert_eq!(all(&stores, &by_sources(true)).await, [sources]);
    assert_eq!(all(&stores, &by_sources(false)).await, [plain, docs]);
}

async fn filters_hold_together(stores: Stores) {
    let runs = ended(&stores).await;
    let filter = RunFilter {
        projects: Some(vec![ProjectId::new(10)]),
        environment: Some(EnvironmentId::new(20)),
        job: Some(JOB),
        statuses: Some(vec![RunStatus::Cancelled]),
        ids: Some(runs[1..].to_vec()),
        id_above: Some(runs[1]),
        created_within: Some((at(0), at(0))),
        finished_within: Some((at(5), at(9))),
        has_docs: Some(false),
        has_sources: Some(false),
        sort: RunSort::FinishedAt,
        direction: Direction::Descending,
    };
    assert_eq!(ids(&stores, &filter, Page::new(1, 0)).await, (vec![runs[4]], 2));
    assert_eq!(ids(&stores, &filter, Page::new(1, 1)).await, (vec![runs[2]], 2));
}

async fn empty_sets_match_nothing(stores: Stores) {
    queued(&stores).await;
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                projects: Some(vec![]),
                ..RunFilter::default()
            }
        )
        .await,
        []
    );
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                statuses: Some(vec![]),
                ..RunFilter::default()
            }
        )
        .await,
        []
    );
    assert_eq!(
        all(
            &stores,
            &RunFilter {
                ids: Some(vec![]),
                ..RunFilter::default()
            }
        )
        .await,
        []
    );
}

async fn newest_is_one_per_job(stores: Stores) {
    enqueue(&stores, &free_run(ACCOUNT, JobId::new(1)), at(0)).await;
    let a = enqueue(&stores, &free_run(ACCOUNT, JobId::new(1)), at(1)).await;
    let b = enqueue(&stores, &free_run(ACCOUNT, JobId::new(2)), at(2)).await;
    enqueue(&stores, &free_run(ACCOUNT, JobId::new(3)), at(3)).await;
    let jobs = [JobId::new(1), JobId::new(2), JobId::new(99), JobId::new(1)];
    let mut newest = stores.runs.newest(ACCOUNT, &jobs).await.unwrap();
    newest.sort_by_key(|run| run.id);
    assert_eq!(newest, [a, b]);
    assert_eq!(stores.runs.newest(ACCOUNT, &[]).await.unwrap(), []);
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
