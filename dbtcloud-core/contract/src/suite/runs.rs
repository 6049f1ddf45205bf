//! What reading and changing [`Runs`](dbtcloud_core::ports::Runs) means; the queue and the reports have
//! suites of their own.

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{EnvironmentId, JobId, ProjectId, RunId, StepId};
use dbtcloud_core::page::{Direction, Page};
use dbtcloud_core::ports::{Batch, Fence, Holder, RunFilter, RunPart, RunPatch, RunSort};
use dbtcloud_core::run::{NewRun, RunStatus, StepStatus};

use super::Stores;
use super::samples::{ACCOUNT, JOB, STRANGER, agent, at, batch, enqueue, free_run, kind, queued, running, step};

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
    for part in [RunPart::Logs, RunPart::Artifacts] {
        let expired = stores.history.expire(STRANGER, run.id, part, at(9)).await;
        assert_eq!(kind(expired), ErrorKind::NotFound);
    }
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
