//! What [`History`](dbtcloud_core::ports::History) means.

use std::time::Duration;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Accounts, Digest, EndedFilter, Enqueued, RunPart, TicketIssue};
use dbtcloud_core::run::{Month, NewRun, Run, RunEvent, RunStatus, StepStatus};
use dbtcloud_core::time::Timestamp;

use super::Stores;
use super::samples::{
    ACCOUNT, JOB, LATE, STRANGER, agent, at, batch, chunk, enqueue, free_run, kind, running, step, told,
};

cases! { $ history_cases, history, Stores:
    an_id_says_its_month,
    preparing_twice_changes_nothing,
    a_run_whose_month_had_no_room_moves_when_there_is,
    months_are_those_of_runs,
    what_has_ended_is_listed_by_id,
    what_has_expired_is_noted_once,
    what_executes_does_not_expire,
    what_is_forgotten_is_gone_with_all_that_hangs_on_it,
    a_forgotten_instant_is_free_again,
    what_has_not_ended_is_not_forgotten,
    forgetting_twice_is_nothing,
    a_month_with_a_live_run_is_not_dropped,
    a_month_with_a_run_that_is_still_kept_is_not_dropped,
    a_dropped_month_is_gone_and_the_others_stay,
    a_month_without_runs_drops_to_nothing,
}

const NONE: RunId = RunId::new(0);

/// So many months of 30 days and 12 hours after the time of the cases, which is in the middle of one.
fn months_later(count: i64) -> Timestamp {
    at(count * (30 * 24 + 12) * 3600)
}

async fn queued_at(stores: &Stores, now: Timestamp) -> Run {
    enqueue(stores, &free_run(ACCOUNT, JOB), now).await
}

async fn end(stores: &Stores, run: &Run) {
    let ended = stores
        .runs
        .request_cancel(run.new.account, run.id, "ended", at(5))
        .await;
    assert_eq!(ended.unwrap().status, RunStatus::Cancelled);
}

async fn an_id_says_its_month(stores: Stores) {
    let mut last = NONE;
    for now in [at(0), at(1), months_later(1), months_later(40)] {
        let run = queued_at(&stores, now).await;
        assert_eq!(Month::of_run(run.id), Some(Month::of(now)));
        assert!(run.id > last, "ids grow");
        last = run.id;
    }
}

async fn preparing_twice_changes_nothing(stores: Stores) {
    let before = queued_at(&stores, at(0)).await;
    for _ in 0..2 {
        stores.history.prepare(at(0)).await.unwrap();
    }
    stores.history.prepare(months_later(1)).await.unwrap();
    assert_eq!(stores.runs.get(ACCOUNT, before.id).await.unwrap(), before);
    let after = queued_at(&stores, months_later(1)).await;
    assert_eq!(stores.runs.get(ACCOUNT, after.id).await.unwrap(), after);
}

/// A run with a step, a log and a journal, ended by its agent.
async fn full(stores: &Stores) -> Run {
    let claimed = running(stores).await;
    let mut report = batch(2, at(4));
    report.steps = vec![step(1, StepStatus::Success)];
    report.logs = vec![chunk(1, 0, "a line\n")];
    report.event = Some(RunEvent::Succeeded);
    stores.runs.report(&agent(&claimed), &report).await.unwrap();
    stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap()
}

async fn a_run_whose_month_had_no_room_moves_when_there_is(stores: Stores) {
    let run = full(&stores).await;
    let steps = stores.runs.steps(ACCOUNT, run.id).await.unwrap();
    let story = told(&stores, &run).await;
    stores.history.prepare(at(0)).await.unwrap();
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), run);
    assert_eq!(stores.runs.steps(ACCOUNT, run.id).await.unwrap(), steps);
    assert_eq!(stores.runs.step(ACCOUNT, steps[0].id).await.unwrap(), steps[0]);
    assert_eq!(told(&stores, &run).await, story);
    let page = stores.logs.read(ACCOUNT, run.id, 1, 0, 100).await.unwrap();
    assert_eq!(&page.bytes[..], b"a line\n");
}

async fn months_are_those_of_runs(stores: Stores) {
    assert_eq!(stores.history.months().await.unwrap(), []);
    for now in [months_later(14), at(0), months_later(14), months_later(2)] {
        queued_at(&stores, now).await;
    }
    let expected = [at(0), months_later(2), months_later(14)].map(Month::of);
    assert_eq!(stores.history.months().await.unwrap(), expected);
}

async fn what_has_ended_is_listed_by_id(stores: Stores) {
    let mut runs = Vec::new();
    for number in 0..4 {
        let account = if number == 2 { STRANGER } else { ACCOUNT };
        runs.push(enqueue(&stores, &free_run(account, JOB), at(number)).await);
    }
    for run in &runs[..3] {
        end(&stores, run).await;
    }
    let pair = |index: usize| (runs[index].new.account, runs[index].id);
    let ended = async |change: fn(&mut EndedFilter), limit| {
        let mut filter = EndedFilter::ALL;
        change(&mut filter);
        stores.history.ended(&filter, limit).await.unwrap()
    };
    assert_eq!(ended(|_| {}, 10).await, [pair(0), pair(1), pair(2)]);
    assert_eq!(
        ended(|filter| filter.accounts = Accounts::Only(ACCOUNT), 10).await,
        [pair(0), pair(1)]
    );
    assert_eq!(
        ended(|filter| filter.accounts = Accounts::AllBut(vec![ACCOUNT]), 10).await,
        [pair(2)]
    );
    assert_eq!(ended(|_| {}, 1).await, [pair(0)]);
    assert_eq!(ended(|_| {}, 0).await, []);
    assert_eq!(ended(|filter| filter.before = at(5), 10).await, []);
    assert_eq!(ended(|filter| filter.before = at(6), 10).await.len(), 3);
    let between = EndedFilter {
        after: runs[0].id,
        below: runs[2].id,
        ..EndedFilter::ALL
    };
    assert_eq!(stores.history.ended(&between, 10).await.unwrap(), [pair(1)]);
}

async fn what_has_expired_is_noted_once(stores: Stores) {
    let claimed = running(&stores).await;
    let mut report = batch(2, at(4));
    report.event = Some(RunEvent::Succeeded);
    report.patch.artifacts_saved = Some(true);
    report.patch.has_docs = Some(true);
    stores.runs.report(&agent(&claimed), &report).await.unwrap();
    let id = claimed.run.id;
    let before = stores.runs.get(ACCOUNT, id).await.unwrap();
    let with = async |part| {
        let filter = EndedFilter {
            with: Some(part),
            ..EndedFilter::ALL
        };
        stores.history.ended(&filter, 10).await.unwrap().len()
    };
    assert_eq!((with(RunPart::Logs).await, with(RunPart::Artifacts).await), (1, 1));
    for seconds in [10, 20] {
        stores
            .history
            .expire(ACCOUNT, id, RunPart::Logs, at(seconds))
            .await
            .unwrap();
        assert_eq!((with(RunPart::Logs).await, with(RunPart::Artifacts).await), (0, 1));
    }
    for seconds in [30, 40] {
        stores
            .history
            .expire(ACCOUNT, id, RunPart::Artifacts, at(seconds))
            .await
            .unwrap();
        assert_eq!(with(RunPart::Artifacts).await, 0);
    }
    let expected = Run {
        logs_expired_at: Some(at(10)),
        artifacts_expired_at: Some(at(30)),
        artifacts_saved: false,
        has_docs: false,
        ..before
    };
    assert_eq!(stores.runs.get(ACCOUNT, id).await.unwrap(), expected);
    assert_eq!(
        stores.history.ended(&EndedFilter::ALL, 10).await.unwrap(),
        [(ACCOUNT, id)]
    );
}

async fn what_executes_does_not_expire(stores: Stores) {
    let live = running(&stores).await.run;
    for part in [RunPart::Logs, RunPart::Artifacts] {
        let expired = stores.history.expire(ACCOUNT, live.id, part, at(9)).await;
        assert_eq!(kind(expired), ErrorKind::Conflict);
    }
    assert_eq!(stores.runs.get(ACCOUNT, live.id).await.unwrap(), live);
}

const TICKET: Digest = Digest([1; 32]);
const KEY: Digest = Digest([2; 32]);

async fn what_is_forgotten_is_gone_with_all_that_hangs_on_it(stores: Stores) {
    let claimed = running(&stores).await;
    let run = claimed.run.id;
    let ticket = TicketIssue {
        ticket: TICKET,
        account: ACCOUNT,
        run,
        attempt: claimed.run.attempt,
        expires_at: at(1_000),
    };
    stores.tickets.issue(&ticket).await.unwrap();
    stores.tickets.redeem(TICKET, KEY, at(3)).await.unwrap();
    let mut report = batch(2, at(4));
    report.steps = vec![step(1, StepStatus::Success)];
    report.logs = vec![chunk(1, 0, "a line\n")];
    report.event = Some(RunEvent::Succeeded);
    stores.runs.report(&agent(&claimed), &report).await.unwrap();
    let other = full(&stores).await;
    assert_eq!(stores.history.forget(&[run]).await.unwrap(), 1);
    assert_eq!(kind(stores.runs.get(ACCOUNT, run).await), ErrorKind::NotFound);
    assert_eq!(kind(stores.runs.steps(ACCOUNT, run).await), ErrorKind::NotFound);
    assert_eq!(
        kind(stores.logs.read(ACCOUNT, run, 1, 0, 10).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.journal.of_run(ACCOUNT, run, 0, 10).await),
        ErrorKind::NotFound
    );
    assert_eq!(kind(stores.tickets.authenticate(KEY).await), ErrorKind::Denied);
    assert!(!stores.tickets.redeemed(run, 1).await.unwrap());
    assert_eq!(stores.runs.states(&[run]).await.unwrap(), []);
    assert_eq!(
        stores.logs.unmoved(NONE, u64::MAX, 10).await.unwrap(),
        [(ACCOUNT, other.id)]
    );
    assert_eq!(stores.runs.get(ACCOUNT, other.id).await.unwrap(), other);
}

async fn a_forgotten_instant_is_free_again(stores: Stores) {
    let new = NewRun {
        scheduled_for: Some(at(9)),
        ..free_run(ACCOUNT, JOB)
    };
    let run = enqueue(&stores, &new, at(9)).await;
    end(&stores, &run).await;
    assert_eq!(stores.history.forget(&[run.id]).await.unwrap(), 1);
    let again = stores.runs.enqueue(&new, at(10)).await.unwrap();
    assert!(matches!(&again, Enqueued::Created(created) if created.id > run.id));
}

async fn what_has_not_ended_is_not_forgotten(stores: Stores) {
    let waiting = queued_at(&stores, at(0)).await;
    let live = running(&stores).await.run;
    assert_eq!(stores.history.forget(&[waiting.id, live.id]).await.unwrap(), 0);
    assert_eq!(stores.runs.get(ACCOUNT, waiting.id).await.unwrap(), waiting);
    assert_eq!(stores.runs.get(ACCOUNT, live.id).await.unwrap(), live);
    let snapshot = stores.runs.queue(at(10), 10, None).await.unwrap();
    assert_eq!((snapshot.waiting.len(), snapshot.busy.len()), (1, 1));
}

async fn forgetting_twice_is_nothing(stores: Stores) {
    let run = full(&stores).await;
    assert_eq!(stores.history.forget(&[run.id, RunId::new(12)]).await.unwrap(), 1);
    assert_eq!(stores.history.forget(&[run.id]).await.unwrap(), 0);
    assert_eq!(stores.history.forget(&[]).await.unwrap(), 0);
}

async fn a_month_with_a_live_run_is_not_dropped(stores: Stores) {
    let month = Month::of(at(0));
    let ended = full(&stores).await;
    let waiting = queued_at(&stores, at(0)).await;
    assert_eq!(kind(stores.history.drop_month(month, LATE).await), ErrorKind::Conflict);
    assert_eq!(stores.runs.get(ACCOUNT, ended.id).await.unwrap(), ended);
    end(&stores, &waiting).await;
    stores.history.drop_month(month, LATE).await.unwrap();
    assert_eq!(kind(stores.runs.get(ACCOUNT, ended.id).await), ErrorKind::NotFound);
    assert_eq!(kind(stores.runs.get(ACCOUNT, waiting.id).await), ErrorKind::NotFound);
}

async fn a_month_with_a_run_that_is_still_kept_is_not_dropped(stores: Stores) {
    let month = Month::of(at(0));
    let early = full(&stores).await;
    let late = queued_at(&stores, at(0)).await;
    end(&stores, &late).await;
    let dropped = stores.history.drop_month(month, at(5)).await;
    assert_eq!(kind(dropped), ErrorKind::Conflict);
    assert_eq!(stores.runs.get(ACCOUNT, early.id).await.unwrap(), early);
    stores.history.drop_month(month, at(6)).await.unwrap();
    assert_eq!(stores.history.months().await.unwrap(), []);
}

async fn a_dropped_month_is_gone_and_the_others_stay(stores: Stores) {
    for prepared in [true, false] {
        let early = full(&stores).await;
        let instant = NewRun {
            scheduled_for: Some(at(9)),
            ..free_run(ACCOUNT, JOB)
        };
        let fired = enqueue(&stores, &instant, at(9)).await;
        end(&stores, &fired).await;
        let late = queued_at(&stores, months_later(2)).await;
        if prepared {
            stores.history.prepare(at(0)).await.unwrap();
        }
        stores.history.drop_month(Month::of(at(0)), LATE).await.unwrap();
        assert_eq!(kind(stores.runs.get(ACCOUNT, early.id).await), ErrorKind::NotFound);
        assert_eq!(
            kind(stores.journal.of_run(ACCOUNT, early.id, 0, 9).await),
            ErrorKind::NotFound
        );
        assert_eq!(
            kind(stores.logs.read(ACCOUNT, early.id, 1, 0, 9).await),
            ErrorKind::NotFound
        );
        assert_eq!(stores.logs.unmoved(NONE, u64::MAX, 10).await.unwrap(), []);
        assert_eq!(stores.history.months().await.unwrap(), [Month::of(months_later(2))]);
        assert_eq!(stores.runs.get(ACCOUNT, late.id).await.unwrap(), late);
        // The month can be used again, by a clock that was set back.
        let again = enqueue(&stores, &instant, at(9).plus(Duration::from_secs(1))).await;
        assert_ne!(again.id, fired.id);
        end(&stores, &again).await;
        stores.history.drop_month(Month::of(at(0)), LATE).await.unwrap();
    }
}

async fn a_month_without_runs_drops_to_nothing(stores: Stores) {
    let run = queued_at(&stores, at(0)).await;
    stores
        .history
        .drop_month(Month::of(months_later(7)), LATE)
        .await
        .unwrap();
    stores
        .history
        .drop_month(Month::of(months_later(-7)), LATE)
        .await
        .unwrap();
    assert_eq!(stores.runs.get(ACCOUNT, run.id).await.unwrap(), run);
}
