//! What a [`Line`] means to [`Runs`](dbtcloud_core::ports::Runs) and
//! [`Schedules`](dbtcloud_core::ports::Schedules): whose place a new run takes.

use dbtcloud_core::id::{JobId, RunId};
use dbtcloud_core::ports::{Enqueued, Fired, Firing, ScheduleEntry};
use dbtcloud_core::run::{CauseCategory, Line, NewRun, Run, RunStatus, Trigger};

use super::Stores;
use super::samples::{ACCOUNT, JOB, LATE, at, claim_until, enqueue, free_run, new_run, together, told};

cases! { $ lines_cases, lines, Stores:
    a_newer_scheduled_run_takes_the_queued_ones_place,
    a_scheduled_run_that_began_goes_on,
    runs_that_are_in_no_line_are_left_alone,
    of_merges_the_newest_stays_queued,
    a_new_commit_stops_the_older_runs_of_its_pull_request,
    a_run_that_is_being_stopped_keeps_its_message,
    a_second_queueing_of_an_instant_takes_nobodys_place,
    a_firing_takes_the_queued_ones_place,
    of_many_that_queue_at_once_one_stays,
}

/// A run of the job that was set off so.
fn by(category: CauseCategory) -> NewRun {
    let mut new = new_run(ACCOUNT, JOB);
    new.trigger = Trigger::new(category, "a case");
    new
}

/// A run for a pull request.
fn commit(pull_request: i64) -> NewRun {
    let mut new = free_run(ACCOUNT, JOB);
    new.trigger.github_pull_request_id = Some(pull_request);
    new
}

async fn status(stores: &Stores, run: RunId) -> RunStatus {
    stores.runs.get(ACCOUNT, run).await.unwrap().status
}

async fn a_newer_scheduled_run_takes_the_queued_ones_place(stores: Stores) {
    let first = enqueue(&stores, &by(CauseCategory::Scheduled), at(0)).await;
    let other_job = NewRun {
        job: JobId::new(8),
        ..by(CauseCategory::Scheduled)
    };
    let other = enqueue(&stores, &other_job, at(0)).await;
    let second = enqueue(&stores, &by(CauseCategory::Scheduled), at(5)).await;
    let first = stores.runs.get(ACCOUNT, first.id).await.unwrap();
    assert_eq!((first.status, first.finished_at), (RunStatus::Cancelled, Some(at(5))));
    assert_eq!(first.cancel_requested_at, Some(at(5)));
    assert_eq!(first.message, Some(Line::Scheduled.message(second.id)), "it says why");
    assert_eq!(told(&stores, &first).await, [RunStatus::Queued, RunStatus::Cancelled]);
    assert_eq!(status(&stores, second.id).await, RunStatus::Queued);
    assert_eq!(status(&stores, other.id).await, RunStatus::Queued, "another job's");
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 2);
}

async fn a_scheduled_run_that_began_goes_on(stores: Stores) {
    let first = enqueue(&stores, &by(CauseCategory::Scheduled), at(0)).await;
    claim_until(&stores, first.id, at(1), LATE).await;
    enqueue(&stores, &by(CauseCategory::Scheduled), at(5)).await;
    assert_eq!(status(&stores, first.id).await, RunStatus::Starting);
}

async fn runs_that_are_in_no_line_are_left_alone(stores: Stores) {
    let categories = [
        CauseCategory::Api,
        CauseCategory::Ui,
        CauseCategory::Rerun,
        CauseCategory::JobCompletion,
    ];
    let mut runs = Vec::new();
    for category in categories.into_iter().chain(categories) {
        runs.push(enqueue(&stores, &by(category), at(0)).await.id);
    }
    for new in [by(CauseCategory::Scheduled), by(CauseCategory::Merge), commit(1)] {
        enqueue(&stores, &new, at(1)).await;
    }
    for run in runs {
        assert_eq!(status(&stores, run).await, RunStatus::Queued);
    }
    assert_eq!(
        stores.runs.queued(ACCOUNT).await.unwrap(),
        8 + 3,
        "nor do lines meet each other"
    );
}

async fn of_merges_the_newest_stays_queued(stores: Stores) {
    let executing = enqueue(&stores, &by(CauseCategory::Merge), at(0)).await.id;
    claim_until(&stores, executing, at(1), LATE).await;
    let second = enqueue(&stores, &by(CauseCategory::Merge), at(2)).await.id;
    let third = enqueue(&stores, &by(CauseCategory::Merge), at(3)).await.id;
    let statuses = [
        status(&stores, executing).await,
        status(&stores, second).await,
        status(&stores, third).await,
    ];
    assert_eq!(statuses, [RunStatus::Starting, RunStatus::Cancelled, RunStatus::Queued]);
}

async fn a_new_commit_stops_the_older_runs_of_its_pull_request(stores: Stores) {
    let live = enqueue(&stores, &commit(1), at(0)).await;
    claim_until(&stores, live.id, at(1), LATE).await;
    let other = enqueue(&stores, &commit(2), at(0)).await;
    claim_until(&stores, other.id, at(1), LATE).await;
    let second = enqueue(&stores, &commit(1), at(2)).await;
    let stopped = stores.runs.get(ACCOUNT, live.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.cancel_requested_at),
        (RunStatus::Cancelling, Some(at(2))),
        "what executes is stopped"
    );
    let line = second.new.trigger.line().unwrap();
    assert_eq!(stopped.message, Some(line.message(second.id)));
    assert_eq!(
        status(&stores, other.id).await,
        RunStatus::Starting,
        "another pull request's"
    );
    claim_until(&stores, second.id, at(3), LATE).await;
    let third = enqueue(&stores, &commit(1), at(4)).await;
    assert_eq!(
        status(&stores, second.id).await,
        RunStatus::Cancelling,
        "it ran beside the first"
    );
    let fourth = enqueue(&stores, &commit(1), at(5)).await;
    assert_eq!(
        status(&stores, third.id).await,
        RunStatus::Cancelled,
        "what is queued is cancelled"
    );
    assert_eq!(status(&stores, fourth.id).await, RunStatus::Queued);
}

async fn a_run_that_is_being_stopped_keeps_its_message(stores: Stores) {
    let first = enqueue(&stores, &commit(1), at(0)).await;
    claim_until(&stores, first.id, at(1), LATE).await;
    stores
        .runs
        .request_cancel(ACCOUNT, first.id, "enough", at(2))
        .await
        .unwrap();
    enqueue(&stores, &commit(1), at(3)).await;
    let first = stores.runs.get(ACCOUNT, first.id).await.unwrap();
    assert_eq!((first.message.as_deref(), first.updated_at), (Some("enough"), at(2)));
}

async fn a_second_queueing_of_an_instant_takes_nobodys_place(stores: Stores) {
    let instant = |seconds| NewRun {
        scheduled_for: Some(at(seconds)),
        ..by(CauseCategory::Scheduled)
    };
    let first = enqueue(&stores, &instant(60), at(60)).await.id;
    let second = enqueue(&stores, &instant(120), at(120)).await.id;
    let again = stores.runs.enqueue(&instant(60), at(121)).await.unwrap();
    assert!(
        matches!(&again, Enqueued::Existing(run) if run.id == first),
        "{again:?}"
    );
    let again = stores.runs.enqueue(&instant(120), at(121)).await.unwrap();
    assert!(
        matches!(&again, Enqueued::Existing(run) if run.id == second),
        "{again:?}"
    );
    assert_eq!(status(&stores, first).await, RunStatus::Cancelled);
    assert_eq!(status(&stores, second).await, RunStatus::Queued);
}

async fn a_firing_takes_the_queued_ones_place(stores: Stores) {
    let entry = ScheduleEntry {
        account: ACCOUNT,
        job: JOB,
        job_version: 1,
        next_at: Some(at(60)),
    };
    stores.schedules.put(&entry, at(0)).await.unwrap();
    let mut queued: Vec<Run> = Vec::new();
    for minute in 1..4 {
        let run = NewRun {
            scheduled_for: Some(at(60 * minute)),
            ..by(CauseCategory::Scheduled)
        };
        let firing = Firing {
            job: JOB,
            seen: at(60 * minute),
            job_version: 1,
            next: Some(at(60 * (minute + 1))),
            run: Some(run),
        };
        let mut fired = stores.schedules.fire(&[firing], at(60 * minute)).await.unwrap();
        match fired.remove(0) {
            Fired::Queued(run) => queued.push(*run),
            other => panic!("expected a run, got {other:?}"),
        }
    }
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 1);
    assert_eq!(status(&stores, queued[2].id).await, RunStatus::Queued);
}

async fn of_many_that_queue_at_once_one_stays(stores: Stores) {
    for (round, new) in [by(CauseCategory::Scheduled), by(CauseCategory::Merge), commit(7)]
        .into_iter()
        .enumerate()
    {
        let runs = together(8, |_| {
            let (runs, new) = (stores.runs.clone(), new.clone());
            async move { runs.enqueue(&new, at(1)).await.unwrap().into_run().id }
        });
        runs.await;
        assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), round as u64 + 1);
    }
}
