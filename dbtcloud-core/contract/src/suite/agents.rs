//! Which agent [`Runs::report`](dbtcloud_core::ports::Runs::report) listens to, and what its events do.

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Batch, EventBody, Fence, Holder, RunPatch};
use dbtcloud_core::run::{RunEvent, RunStatus, StepStatus};

use super::Stores;
use super::reports::{logging, picture, send, with_log};
use super::samples::{
    ACCOUNT, LATE, agent, at, batch, change, claim_until, claimed, kind, node, owner, queued, running, step, together,
    told,
};

cases! { $ agents_cases, agents, Stores:
    an_overtaken_agent_is_fenced,
    an_agent_without_an_attempt_is_fenced,
    a_drivers_fence_does_not_report,
    a_report_on_an_unknown_run_is_not_found,
    an_agent_is_fenced_when_others_ended_the_run,
    an_agent_goes_on_after_its_own_end,
    an_illegal_event_is_left_out_and_the_rest_counts,
    a_cancelled_run_tells_its_agent,
    a_run_that_finished_under_cancellation_keeps_its_result,
    numbers_begin_again_with_an_attempt,
    many_send_one_report_once,
    reports_and_cancellation_do_not_lose_each_other,
    each_of_many_at_once_is_judged_by_itself,
}

async fn an_overtaken_agent_is_fenced(stores: Stores) {
    let first = claimed(&stores).await;
    let requeue = change(RunStatus::Starting, RunEvent::Requeued, at(2));
    stores.runs.change(&first.fence, &requeue).await.unwrap();
    let second = claim_until(&stores, first.run.id, at(3), LATE).await;
    assert_eq!(second.run.attempt, 2);
    let start = |number| Batch {
        event: Some(RunEvent::Started),
        steps: vec![step(1, StepStatus::Running)],
        ..batch(number, at(4))
    };
    let before = picture(&stores, first.run.id).await;
    for number in [1, 2, 0] {
        assert_eq!(kind(send(&stores, &first, &start(number)).await), ErrorKind::Fenced);
    }
    assert_eq!(
        picture(&stores, first.run.id).await,
        before,
        "nothing of it was taken in"
    );
    send(&stores, &second, &start(1)).await.unwrap();
    assert_eq!(
        kind(send(&stores, &first, &start(1)).await),
        ErrorKind::Fenced,
        "the fence comes before the number"
    );
}

async fn an_agent_without_an_attempt_is_fenced(stores: Stores) {
    let run = queued(&stores).await;
    let claimed = claimed(&stores).await;
    for (run, attempt) in [(run.id, 0), (run.id, 1), (claimed.run.id, 0), (claimed.run.id, 2)] {
        let fence = Fence::issue(run, Holder::Agent { attempt });
        assert_eq!(
            kind(stores.runs.report(&fence, &batch(1, at(3))).await),
            ErrorKind::Fenced
        );
    }
}

async fn a_drivers_fence_does_not_report(stores: Stores) {
    let claimed = claimed(&stores).await;
    assert_eq!(
        kind(stores.runs.report(&claimed.fence, &batch(1, at(3))).await),
        ErrorKind::Fenced
    );
}

async fn a_report_on_an_unknown_run_is_not_found(stores: Stores) {
    let fence = Fence::issue(RunId::new(987_654), Holder::Agent { attempt: 1 });
    assert_eq!(
        kind(stores.runs.report(&fence, &batch(1, at(3))).await),
        ErrorKind::NotFound
    );
}

async fn an_agent_is_fenced_when_others_ended_the_run(stores: Stores) {
    let claimed = logging(&stores).await;
    let failed = change(RunStatus::Running, RunEvent::Failed, at(9));
    stores.runs.change(&claimed.fence, &failed).await.unwrap();
    let before = picture(&stores, claimed.run.id).await;
    for report in [
        batch(2, at(10)),
        with_log(3, 5, "x"),
        Batch {
            event: Some(RunEvent::Failed),
            ..batch(3, at(10))
        },
    ] {
        assert_eq!(kind(send(&stores, &claimed, &report).await), ErrorKind::Fenced);
    }
    assert_eq!(picture(&stores, claimed.run.id).await, before);
}

async fn an_agent_goes_on_after_its_own_end(stores: Stores) {
    let claimed = logging(&stores).await;
    let end = Batch {
        event: Some(RunEvent::Succeeded),
        patch: RunPatch::message("done"),
        ..batch(3, at(9))
    };
    let ack = send(&stores, &claimed, &end).await.unwrap();
    assert_eq!((ack.number, ack.status), (3, RunStatus::Success));
    let taken = ack.taken.expect("what was taken in is told");
    assert_eq!(
        (taken.before, taken.run),
        (
            RunStatus::Running,
            stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap()
        )
    );
    let again = send(&stores, &claimed, &end).await.unwrap();
    assert_eq!(
        (again.number, again.status, again.taken),
        (3, RunStatus::Success, None),
        "its answer may have been lost"
    );
    let rest = Batch {
        event: Some(RunEvent::Failed),
        patch: RunPatch {
            artifacts_saved: Some(true),
            ..RunPatch::default()
        },
        ..with_log(4, 5, " world")
    };
    let ack = send(&stores, &claimed, &rest).await.unwrap();
    assert_eq!((ack.number, ack.status), (4, RunStatus::Success));
    assert_eq!(ack.taken.map(|taken| taken.before), Some(RunStatus::Success));
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(
        (run.status, run.finished_at),
        (RunStatus::Success, Some(at(9))),
        "the end stays what it was"
    );
    assert!(run.artifacts_saved);
    assert_eq!(told(&stores, &run).await.last(), Some(&RunStatus::Success));
    assert_eq!(stores.logs.read(ACCOUNT, run.id, 1, 0, 100).await.unwrap().length, 11);
}

async fn an_illegal_event_is_left_out_and_the_rest_counts(stores: Stores) {
    let claimed = claimed(&stores).await;
    let too_early = Batch {
        event: Some(RunEvent::Succeeded),
        steps: vec![step(1, StepStatus::Running)],
        patch: RunPatch {
            git_sha: Some("abc".to_owned()),
            ..RunPatch::default()
        },
        ..with_log(1, 0, "hello")
    };
    let ack = send(&stores, &claimed, &too_early).await.unwrap();
    assert_eq!((ack.number, ack.status), (1, RunStatus::Starting));
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(
        (run.status, run.git_sha.as_deref(), run.finished_at),
        (RunStatus::Starting, Some("abc"), None)
    );
    assert_eq!(stores.logs.read(ACCOUNT, run.id, 1, 0, 100).await.unwrap().length, 5);
    assert_eq!(told(&stores, &run).await, [RunStatus::Queued, RunStatus::Starting]);
}

async fn a_cancelled_run_tells_its_agent(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores
        .runs
        .request_cancel(ACCOUNT, claimed.run.id, "stop", at(2))
        .await
        .unwrap();
    let begin = Batch {
        event: Some(RunEvent::Started),
        ..batch(1, at(3))
    };
    let ack = send(&stores, &claimed, &begin).await.unwrap();
    assert_eq!((ack.number, ack.status), (1, RunStatus::Cancelling));
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(run.started_at, Some(at(3)), "its agent began all the same");
    let end = Batch {
        event: Some(RunEvent::Stopped),
        patch: RunPatch::message("confirmed"),
        ..batch(2, at(4))
    };
    let ack = send(&stores, &claimed, &end).await.unwrap();
    assert_eq!((ack.number, ack.status), (2, RunStatus::Cancelled));
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(
        (run.message.as_deref(), run.finished_at),
        (Some("stop confirmed"), Some(at(4)))
    );
    assert_eq!(run.cancel_requested_at, Some(at(2)));
}

async fn a_run_that_finished_under_cancellation_keeps_its_result(stores: Stores) {
    for (event, status) in [
        (RunEvent::Warned, RunStatus::Warned),
        (RunEvent::Failed, RunStatus::Cancelled),
    ] {
        let running = running(&stores).await;
        stores
            .runs
            .request_cancel(ACCOUNT, running.run.id, "stop", at(3))
            .await
            .unwrap();
        let end = Batch {
            event: Some(event),
            ..batch(2, at(4))
        };
        assert_eq!(send(&stores, &running, &end).await.unwrap().status, status);
    }
}

async fn numbers_begin_again_with_an_attempt(stores: Stores) {
    let first = claimed(&stores).await;
    send(&stores, &first, &batch(1, at(2))).await.unwrap();
    send(&stores, &first, &batch(2, at(2))).await.unwrap();
    let requeue = change(RunStatus::Starting, RunEvent::Requeued, at(3));
    stores.runs.change(&first.fence, &requeue).await.unwrap();
    let second = claim_until(&stores, first.run.id, at(4), LATE).await;
    assert_eq!(
        kind(send(&stores, &second, &batch(3, at(5))).await),
        ErrorKind::Conflict
    );
    assert_eq!(send(&stores, &second, &batch(1, at(5))).await.unwrap().number, 1);
    let taken = stores.runs.reclaim(&owner("b"), LATE, LATE, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(
        send(&stores, &second, &batch(2, at(6))).await.unwrap().number,
        2,
        "a new driver is no new attempt"
    );
}

async fn many_send_one_report_once(stores: Stores) {
    let claimed = logging(&stores).await;
    for number in 3..13 {
        let acks = together(4, |_| {
            let (runs, fence) = (stores.runs.clone(), agent(&claimed));
            let report = Batch {
                nodes: vec![node(1, &format!("model.shop.n{number}"))],
                ..with_log(number, 5 + (number - 3), "x")
            };
            async move { runs.report(&fence, &report).await }
        });
        for ack in acks.await {
            assert_eq!(ack.unwrap().number, number);
        }
    }
    assert_eq!(
        stores
            .logs
            .read(ACCOUNT, claimed.run.id, 1, 0, 100)
            .await
            .unwrap()
            .length,
        15
    );
    let events = stores.journal.of_run(ACCOUNT, claimed.run.id, 0, 100).await.unwrap();
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event.body, EventBody::Node { .. }))
            .count(),
        10
    );
}

async fn reports_and_cancellation_do_not_lose_each_other(stores: Stores) {
    for _ in 0..10 {
        let running = running(&stores).await;
        let id = running.run.id;
        let runs = stores.runs.clone();
        let cancel = tokio::spawn(async move { runs.request_cancel(ACCOUNT, id, "stop", at(3)).await.unwrap() });
        for number in 2..6 {
            let patch = RunPatch {
                git_sha: Some(number.to_string()),
                ..RunPatch::default()
            };
            send(
                &stores,
                &running,
                &Batch {
                    patch,
                    ..batch(number, at(4))
                },
            )
            .await
            .unwrap();
        }
        cancel.await.unwrap();
        let run = stores.runs.get(ACCOUNT, id).await.unwrap();
        assert_eq!((run.status, run.git_sha.as_deref()), (RunStatus::Cancelling, Some("5")));
        assert_eq!(
            (run.cancel_requested_at, run.message.as_deref()),
            (Some(at(3)), Some("stop"))
        );
    }
}

async fn each_of_many_at_once_is_judged_by_itself(stores: Stores) {
    let mut fences = Vec::new();
    for _ in 0..30 {
        fences.push(agent(&logging(&stores).await));
    }
    // A sign of life; a log; an end; and what is refused: one too early, one from the middle, another agent's.
    let report = |number: usize| match number / 2 % 6 {
        3 => batch(4, at(9)),
        1 => with_log(3, 5, " world"),
        2 => Batch {
            event: Some(RunEvent::Succeeded),
            ..with_log(3, 5, " end")
        },
        4 => with_log(3, 4, "o"),
        _ => batch(3, at(9)),
    };
    // Each twice, as when an answer was lost.
    let answers = together(60, |number| {
        let (runs, fence) = (stores.runs.clone(), fences[number / 2]);
        let other = Fence::issue(fence.run(), Holder::Agent { attempt: 2 });
        let fence = if number / 2 % 6 == 5 { other } else { fence };
        async move { runs.report(&fence, &report(number)).await }
    });
    let mut answers = answers.await.into_iter();
    for (place, fence) in fences.iter().enumerate() {
        let both = [answers.next().unwrap(), answers.next().unwrap()];
        let kinds = both
            .iter()
            .map(|answer| answer.as_ref().err().map(dbtcloud_core::Error::kind));
        let kinds: Vec<_> = kinds.collect();
        let (expected, log) = match place % 6 {
            0 => (None, "hello"),
            1 => (None, "hello world"),
            2 => (None, "hello end"),
            3 | 4 => (Some(ErrorKind::Conflict), "hello"),
            _ => (Some(ErrorKind::Fenced), "hello"),
        };
        assert_eq!(kinds, [expected, expected], "{place}");
        let taken = both.iter().flatten().filter(|ack| ack.taken.is_some()).count();
        assert_eq!(taken, usize::from(expected.is_none()), "{place}");
        let run = stores.runs.get(ACCOUNT, fence.run()).await.unwrap();
        let ended = if place % 6 == 2 {
            RunStatus::Success
        } else {
            RunStatus::Running
        };
        assert_eq!(run.status, ended, "{place}");
        let at_nine = (place % 6 == 0).then_some(at(9));
        assert!(
            at_nine.is_none() || run.heartbeat_at == at_nine,
            "{place}: {:?}",
            run.heartbeat_at
        );
        let read = stores.logs.read(ACCOUNT, run.id, 1, 0, 100).await.unwrap();
        assert_eq!(read.bytes, log.as_bytes(), "{place}");
    }
}
