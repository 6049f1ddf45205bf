//! What the queue in [`Runs`](dbtcloud_core::ports::Runs) means: enqueue, claim, reclaim, renew, release.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{AccountId, JobId, RunId};
use dbtcloud_core::ports::{Enqueued, Holder, Since};
use dbtcloud_core::run::{Admission, NewRun, Overrides, QueueSnapshot, RunEvent, RunStatus, Trigger};

use super::Stores;
use super::samples::{
    ACCOUNT, JOB, LATE, ODD_TEXT, STRANGER, agent, at, batch, change, claim_until, claimed, enqueue, free_run, kind,
    new_run, owner, queued, running, together,
};

cases! { $ queue_cases, queue, Stores:
    a_queued_run_is_all_that_was_asked,
    text_comes_back_as_it_went,
    text_with_a_nul_is_refused,
    one_run_per_job_and_instant,
    many_queue_one_instant_once,
    without_an_instant_every_call_queues,
    the_queue_shows_what_is_due_in_order,
    the_queue_is_cut_per_account,
    a_long_line_hides_nothing_that_could_start,
    a_look_from_somewhere_on_passes_over_the_rest,
    the_line_of_one_account_is_shown_whole,
    the_queue_shows_what_is_busy,
    queued_counts_one_account,
    a_claim_begins_an_attempt,
    a_claimed_run_is_not_claimed_again,
    a_run_that_is_not_queued_is_not_claimed,
    an_unknown_run_is_not_claimed,
    a_slot_is_held_once,
    a_slot_is_an_accounts_own,
    a_slot_is_free_after_the_end,
    one_claim_gives_a_slot_once,
    an_exclusive_job_executes_once,
    other_runs_execute_beside_an_exclusive_one,
    a_job_is_free_after_the_end,
    a_requeued_run_is_due_at_once,
}

pub(super) fn ask(run: RunId, slot: Option<u32>) -> Admission {
    Admission { run, slot }
}

async fn a_queued_run_is_all_that_was_asked(stores: Stores) {
    let new = NewRun {
        scheduled_for: Some(at(60)),
        retry_of: Some(RunId::new(1)),
        trigger: Trigger {
            github_pull_request_id: Some(12),
            overrides: Overrides {
                threads: Some(9),
                steps: Some(vec!["dbt test".into()]),
                ..Overrides::default()
            },
            ..new_run(ACCOUNT, JOB).trigger
        },
        ..new_run(ACCOUNT, JOB)
    };
    let Enqueued::Created(run) = stores.runs.enqueue(&new, at(5)).await.unwrap() else {
        panic!("expected a new run")
    };
    assert!(run.id.get() > 0);
    assert_eq!(run.new, new);
    assert_eq!((run.status, run.attempt), (RunStatus::Queued, 0));
    assert_eq!((run.created_at, run.updated_at), (at(5), at(5)));
    assert_eq!((run.dequeued_at, run.started_at, run.finished_at), (None, None, None));
    assert_eq!((run.heartbeat_at, run.cancel_requested_at), (None, None));
    assert_eq!(
        (&run.git_branch, &run.git_sha, &run.dbt_version, &run.message),
        (&None, &None, &None, &None)
    );
    assert_eq!(
        (run.artifacts_saved, run.has_docs, run.has_sources),
        (false, false, false)
    );
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), run);
}

async fn text_comes_back_as_it_went(stores: Stores) {
    let mut new = new_run(ACCOUNT, JOB);
    new.trigger.cause = ODD_TEXT.to_owned();
    new.trigger.git_branch = Some(String::new());
    new.spec.commands = vec![ODD_TEXT.to_owned(), String::new()];
    let run = enqueue(&stores, &new, at(0)).await;
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap().new, new);
}

async fn text_with_a_nul_is_refused(stores: Stores) {
    let mut by_cause = new_run(ACCOUNT, JOB);
    by_cause.trigger.cause = "a\0b".to_owned();
    let mut by_command = new_run(ACCOUNT, JOB);
    by_command.spec.commands = vec!["dbt\0build".to_owned()];
    for new in [by_cause, by_command] {
        assert_eq!(kind(stores.runs.enqueue(&new, at(0)).await), ErrorKind::Invalid);
    }
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 0);
}

async fn one_run_per_job_and_instant(stores: Stores) {
    let new = NewRun {
        scheduled_for: Some(at(60)),
        ..new_run(ACCOUNT, JOB)
    };
    let first = enqueue(&stores, &new, at(0)).await;
    assert_eq!(
        stores.runs.enqueue(&new, at(1)).await.unwrap(),
        Enqueued::Existing(first.clone())
    );
    let other_job = NewRun {
        job: JobId::new(8),
        ..new.clone()
    };
    assert_ne!(enqueue(&stores, &other_job, at(1)).await.id, first.id);
    let other_instant = NewRun {
        scheduled_for: Some(at(61)),
        ..new.clone()
    };
    assert_ne!(enqueue(&stores, &other_instant, at(1)).await.id, first.id);
    stores
        .runs
        .request_cancel(ACCOUNT, first.id, "enough", at(2))
        .await
        .unwrap();
    let again = stores.runs.enqueue(&new, at(3)).await.unwrap();
    assert!(
        matches!(&again, Enqueued::Existing(run) if run.id == first.id),
        "also when it has ended: {again:?}"
    );
}

async fn many_queue_one_instant_once(stores: Stores) {
    for round in 0..10 {
        let ids = together(8, |_| {
            let runs = stores.runs.clone();
            let new = NewRun {
                scheduled_for: Some(at(round)),
                ..new_run(ACCOUNT, JOB)
            };
            async move { runs.enqueue(&new, at(0)).await.unwrap().into_run().id }
        });
        assert_eq!(ids.await.into_iter().collect::<BTreeSet<_>>().len(), 1);
    }
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 10);
}

async fn without_an_instant_every_call_queues(stores: Stores) {
    let (first, second) = (queued(&stores).await, queued(&stores).await);
    assert!(second.id > first.id, "ids grow");
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 2);
}

async fn the_queue_shows_what_is_due_in_order(stores: Stores) {
    let due = |seconds| NewRun {
        due_at: at(seconds),
        ..new_run(ACCOUNT, JobId::new(100 + seconds))
    };
    let third = enqueue(&stores, &due(3), at(0)).await.id;
    let first = enqueue(&stores, &due(1), at(0)).await.id;
    let _not_yet = enqueue(&stores, &due(6), at(0)).await.id;
    let last = enqueue(&stores, &due(5), at(0)).await.id;
    let second = enqueue(&stores, &due(1), at(0)).await.id;
    let snapshot = stores.runs.queue(at(5), 100, None).await.unwrap();
    let order: Vec<RunId> = snapshot.waiting.iter().map(|waiting| waiting.run).collect();
    assert_eq!(
        order,
        [first, second, third, last],
        "due at the instant itself, earliest first, then by id"
    );
    let shown = &snapshot.waiting[2];
    assert_eq!(
        (shown.account, shown.job, shown.due_at),
        (ACCOUNT, JobId::new(103), at(3))
    );
    assert!(shown.exclusive && shown.takes_slot);
    assert!(snapshot.busy.is_empty());
}

async fn the_queue_is_cut_per_account(stores: Stores) {
    for index in 0..5 {
        enqueue(
            &stores,
            &NewRun {
                due_at: at(index),
                ..free_run(ACCOUNT, JOB)
            },
            at(0),
        )
        .await;
    }
    let other = enqueue(
        &stores,
        &NewRun {
            due_at: at(9),
            ..free_run(STRANGER, JobId::new(8))
        },
        at(0),
    )
    .await;
    let waiting = stores.runs.queue(at(10), 2, None).await.unwrap().waiting;
    let own: Vec<_> = waiting
        .iter()
        .filter(|waiting| waiting.account == ACCOUNT)
        .map(|w| w.due_at)
        .collect();
    assert_eq!(own, [at(0), at(1)]);
    assert!(
        waiting.iter().any(|waiting| waiting.run == other.id),
        "a long line hides nobody else"
    );
    assert_eq!(waiting.len(), 3);
}

async fn a_long_line_hides_nothing_that_could_start(stores: Stores) {
    let first = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let all = [ask(first, Some(0))];
    stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    for index in 0..5 {
        let of_busy_job = NewRun {
            due_at: at(index),
            ..new_run(ACCOUNT, JOB)
        };
        enqueue(&stores, &of_busy_job, at(0)).await;
        let without_a_slot = NewRun {
            due_at: at(index),
            ..new_run(ACCOUNT, JobId::new(20 + index))
        };
        enqueue(&stores, &without_a_slot, at(0)).await;
    }
    let free = NewRun {
        due_at: at(9),
        ..free_run(ACCOUNT, JOB)
    };
    let free = enqueue(&stores, &free, at(0)).await.id;
    let waiting = stores.runs.queue(at(10), 2, None).await.unwrap().waiting;
    let jobs: Vec<_> = waiting.iter().map(|waiting| waiting.job.get()).collect();
    assert_eq!(
        jobs,
        [20, 21, JOB.get()],
        "none of the job that is kept busy but the one that runs beside"
    );
    assert_eq!(
        waiting[2].run, free,
        "those that take a slot do not hide one that needs none"
    );
}

async fn a_look_from_somewhere_on_passes_over_the_rest(stores: Stores) {
    let mut ids = Vec::new();
    for (account, due) in [(ACCOUNT, 1), (ACCOUNT, 3), (STRANGER, 2), (STRANGER, 4)] {
        let job = JobId::new(i64::try_from(ids.len()).unwrap() + 1);
        let new = NewRun {
            due_at: at(due),
            ..free_run(account, job)
        };
        ids.push(enqueue(&stores, &new, at(0)).await.id);
    }
    let first = enqueue(&stores, &free_run(ACCOUNT, JobId::new(8)), at(0)).await.id;
    let second = enqueue(&stores, &free_run(ACCOUNT, JobId::new(9)), at(0)).await.id;
    for run in [first, second] {
        let claimed = stores
            .runs
            .claim(&owner("a"), &[ask(run, None)], at(5), LATE)
            .await
            .unwrap();
        assert_eq!(claimed.len(), 1);
    }
    let look = |since| stores.runs.queue(at(5), 10, since);
    let whole = look(None).await.unwrap();
    assert_eq!((whole.waiting.len(), whole.busy.len()), (4, 2));
    let all = Since {
        due_at: at(1),
        run: first,
    };
    assert_eq!(
        look(Some(all)).await.unwrap(),
        whole,
        "from the first on it is the whole"
    );
    let part = look(Some(Since {
        due_at: at(3),
        run: second,
    }));
    let part = part.await.unwrap();
    let waiting: Vec<RunId> = part.waiting.iter().map(|waiting| waiting.run).collect();
    let busy: Vec<RunId> = part.busy.iter().map(|busy| busy.run).collect();
    assert_eq!((waiting, busy), (vec![ids[1], ids[3]], vec![second]));
}

async fn the_line_of_one_account_is_shown_whole(stores: Stores) {
    let busy = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let all = [ask(busy, Some(0))];
    stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    let late = NewRun {
        due_at: LATE,
        ..new_run(ACCOUNT, JobId::new(9))
    };
    let late = enqueue(&stores, &late, at(0)).await.id;
    let blocked = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let stranger = enqueue(&stores, &new_run(STRANGER, JobId::new(30)), at(0)).await.id;
    stores
        .runs
        .claim(&owner("a"), &[ask(stranger, Some(0))], at(1), LATE)
        .await
        .unwrap();
    enqueue(&stores, &new_run(STRANGER, JobId::new(31)), at(0)).await;
    let line = stores.runs.queue_of(ACCOUNT, 10).await.unwrap();
    let runs: Vec<RunId> = line.waiting.iter().map(|waiting| waiting.run).collect();
    assert_eq!(runs, [blocked, late], "due or not, with those whose job is kept busy");
    assert_eq!(line.busy.iter().map(|busy| busy.run).collect::<Vec<_>>(), [busy]);
    let first = stores.runs.queue_of(ACCOUNT, 1).await.unwrap();
    assert_eq!((first.waiting.len(), first.busy.len()), (1, 1));
    assert_eq!(
        stores.runs.queue_of(AccountId::new(99), 10).await.unwrap(),
        QueueSnapshot::default()
    );
}

async fn the_queue_shows_what_is_busy(stores: Stores) {
    let run = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await;
    let all = [ask(run.id, Some(3))];
    stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    let free = claimed(&stores).await;
    let snapshot = stores.runs.queue(at(5), 100, None).await.unwrap();
    assert!(snapshot.waiting.is_empty());
    let mut busy = snapshot.busy;
    busy.sort_by_key(|busy| busy.run);
    assert_eq!(busy.len(), 2);
    assert_eq!((busy[0].run, busy[0].slot, busy[0].exclusive), (run.id, Some(3), true));
    assert_eq!((busy[0].account, busy[0].job), (ACCOUNT, JOB));
    assert_eq!(
        (busy[1].run, busy[1].slot, busy[1].exclusive),
        (free.run.id, None, false)
    );
    stores
        .runs
        .request_cancel(ACCOUNT, run.id, "stop", at(6))
        .await
        .unwrap();
    assert_eq!(
        stores.runs.queue(at(7), 100, None).await.unwrap().busy.len(),
        2,
        "what is being cancelled is busy"
    );
}

async fn queued_counts_one_account(stores: Stores) {
    queued(&stores).await;
    enqueue(
        &stores,
        &NewRun {
            due_at: LATE,
            ..free_run(ACCOUNT, JOB)
        },
        at(0),
    )
    .await;
    claimed(&stores).await;
    enqueue(&stores, &free_run(STRANGER, JobId::new(8)), at(0)).await;
    assert_eq!(
        stores.runs.queued(ACCOUNT).await.unwrap(),
        2,
        "also what is not due yet"
    );
    assert_eq!(stores.runs.queued(AccountId::new(99)).await.unwrap(), 0);
}

async fn a_claim_begins_an_attempt(stores: Stores) {
    let run = queued(&stores).await;
    let claimed = claim_until(&stores, run.id, at(3), at(30)).await;
    assert_eq!((claimed.run.status, claimed.run.attempt), (RunStatus::Starting, 1));
    assert_eq!((claimed.run.dequeued_at, claimed.run.updated_at), (Some(at(3)), at(3)));
    assert_eq!(claimed.run.started_at, None);
    assert_eq!(claimed.fence.run(), run.id);
    assert!(matches!(claimed.fence.holder(), Holder::Driver { .. }));
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), claimed.run);
    assert_eq!(stores.runs.queued(ACCOUNT).await.unwrap(), 0);
}

async fn a_claimed_run_is_not_claimed_again(stores: Stores) {
    let run = queued(&stores).await.id;
    let twice = [ask(run, None), ask(run, None)];
    assert_eq!(
        stores.runs.claim(&owner("a"), &twice, at(1), LATE).await.unwrap().len(),
        1
    );
    assert_eq!(stores.runs.claim(&owner("b"), &twice, at(1), LATE).await.unwrap(), []);
}

async fn a_run_that_is_not_queued_is_not_claimed(stores: Stores) {
    let run = queued(&stores).await.id;
    stores.runs.request_cancel(ACCOUNT, run, "no", at(1)).await.unwrap();
    let started = running(&stores).await.run.id;
    let all = [ask(run, None), ask(started, None)];
    assert_eq!(stores.runs.claim(&owner("a"), &all, at(9), LATE).await.unwrap(), []);
}

async fn an_unknown_run_is_not_claimed(stores: Stores) {
    let run = queued(&stores).await.id;
    let all = [ask(RunId::new(987_654), None), ask(run, None)];
    let claimed = stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    assert_eq!(claimed.len(), 1, "the others are claimed all the same");
    assert_eq!(stores.runs.claim(&owner("a"), &[], at(1), LATE).await.unwrap(), []);
}

/// Queues `count` runs of as many jobs, all of which take a slot.
pub(super) async fn slotted(stores: &Stores, account: AccountId, jobs: std::ops::Range<i64>) -> Vec<RunId> {
    let mut ids = Vec::new();
    for job in jobs {
        ids.push(enqueue(stores, &new_run(account, JobId::new(job)), at(0)).await.id);
    }
    ids
}

async fn a_slot_is_held_once(stores: Stores) {
    let runs = slotted(&stores, ACCOUNT, 1..4).await;
    let a = stores
        .runs
        .claim(&owner("a"), &[ask(runs[0], Some(0))], at(1), LATE)
        .await
        .unwrap();
    assert_eq!(a.len(), 1);
    let all = [ask(runs[1], Some(0)), ask(runs[2], Some(1))];
    let b = stores.runs.claim(&owner("b"), &all, at(1), LATE).await.unwrap();
    assert_eq!(b.iter().map(|claimed| claimed.run.id).collect::<Vec<_>>(), [runs[2]]);
    assert_eq!(
        stores.runs.get(ACCOUNT, runs[1]).await.unwrap().status,
        RunStatus::Queued
    );
}

async fn a_slot_is_an_accounts_own(stores: Stores) {
    let (own, other) = (
        slotted(&stores, ACCOUNT, 1..2).await[0],
        slotted(&stores, STRANGER, 2..3).await[0],
    );
    let all = [ask(own, Some(0)), ask(other, Some(0))];
    assert_eq!(
        stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap().len(),
        2
    );
}

async fn a_slot_is_free_after_the_end(stores: Stores) {
    let runs = slotted(&stores, ACCOUNT, 1..4).await;
    let first = stores
        .runs
        .claim(&owner("a"), &[ask(runs[0], Some(0))], at(1), LATE)
        .await
        .unwrap();
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    stores.runs.change(&first[0].fence, &failed).await.unwrap();
    let second = stores
        .runs
        .claim(&owner("a"), &[ask(runs[1], Some(0))], at(3), LATE)
        .await
        .unwrap();
    assert_eq!(second.len(), 1, "after the driver's change");
    let end = |event, number| dbtcloud_core::ports::Batch {
        event: Some(event),
        ..batch(number, at(4))
    };
    stores
        .runs
        .report(&agent(&second[0]), &end(RunEvent::Started, 1))
        .await
        .unwrap();
    stores
        .runs
        .report(&agent(&second[0]), &end(RunEvent::Succeeded, 2))
        .await
        .unwrap();
    let third = stores
        .runs
        .claim(&owner("a"), &[ask(runs[2], Some(0))], at(5), LATE)
        .await
        .unwrap();
    assert_eq!(third.len(), 1, "after the agent's report");
}

async fn one_claim_gives_a_slot_once(stores: Stores) {
    let runs = slotted(&stores, ACCOUNT, 1..4).await;
    let all: Vec<_> = runs.iter().map(|run| ask(*run, Some(0))).collect();
    let claimed = stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(stores.runs.queue(at(2), 10, None).await.unwrap().busy.len(), 1);
}

async fn an_exclusive_job_executes_once(stores: Stores) {
    let first = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let second = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let all = [ask(first, Some(0)), ask(second, Some(1))];
    let claimed = stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    assert_eq!(claimed.len(), 1, "within one claim");
    let rest = if claimed[0].run.id == first { second } else { first };
    let again = stores
        .runs
        .claim(&owner("b"), &[ask(rest, Some(1))], at(1), LATE)
        .await
        .unwrap();
    assert_eq!(again, [], "and afterwards");
}

async fn other_runs_execute_beside_an_exclusive_one(stores: Stores) {
    let exclusive = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let free = enqueue(&stores, &free_run(ACCOUNT, JOB), at(0)).await.id;
    let another = enqueue(&stores, &free_run(ACCOUNT, JOB), at(0)).await.id;
    let later = enqueue(&stores, &new_run(ACCOUNT, JobId::new(8)), at(0)).await.id;
    let all = [
        ask(free, None),
        ask(exclusive, Some(0)),
        ask(another, None),
        ask(later, Some(1)),
    ];
    let claimed = stores.runs.claim(&owner("a"), &all, at(1), LATE).await.unwrap();
    assert_eq!(
        claimed.len(),
        4,
        "only exclusive runs keep exclusive runs of their job out"
    );
}

async fn a_job_is_free_after_the_end(stores: Stores) {
    let first = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let second = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let claimed = stores
        .runs
        .claim(&owner("a"), &[ask(first, Some(0))], at(1), LATE)
        .await
        .unwrap();
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    stores.runs.change(&claimed[0].fence, &failed).await.unwrap();
    let claimed = stores
        .runs
        .claim(&owner("a"), &[ask(second, Some(0))], at(3), LATE)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
}

async fn a_requeued_run_is_due_at_once(stores: Stores) {
    let run = enqueue(&stores, &new_run(ACCOUNT, JOB), at(0)).await.id;
    let first = stores
        .runs
        .claim(&owner("a"), &[ask(run, Some(0))], at(1), LATE)
        .await
        .unwrap()
        .remove(0);
    let requeue = change(RunStatus::Starting, RunEvent::Requeued, at(2));
    let requeued = stores.runs.change(&first.fence, &requeue).await.unwrap();
    assert_eq!((requeued.status, requeued.attempt), (RunStatus::Queued, 1));
    assert_eq!(requeued.dequeued_at, None, "it has not left the queue");
    let snapshot = stores.runs.queue(at(2), 10, None).await.unwrap();
    assert_eq!(
        (snapshot.waiting.len(), snapshot.busy.len()),
        (1, 0),
        "its slot and job are free"
    );
    assert_eq!(
        stores.runs.reclaim(&owner("b"), LATE, LATE, 10).await.unwrap(),
        [],
        "it has no lease"
    );
    assert_eq!(
        kind(stores.runs.report(&agent(&first), &batch(1, at(3))).await),
        ErrorKind::Fenced,
        "its agent is too late"
    );
    let second = stores
        .runs
        .claim(&owner("b"), &[ask(run, Some(0))], at(3), LATE)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(second.run.attempt, 2);
    assert_ne!(second.fence, first.fence);
    assert_eq!(
        kind(stores.runs.report(&agent(&first), &batch(1, at(4))).await),
        ErrorKind::Fenced
    );
    stores.runs.report(&agent(&second), &batch(1, at(4))).await.unwrap();
}
