//! What [`Runs::report`](dbtcloud_core::ports::Runs::report) means.

use dbtcloud_core::error::{ErrorKind, Result};
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{
    Ack, BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, Batch, Claimed, EventBody, Fence, Holder, RunPatch,
};
use dbtcloud_core::run::{RunEvent, RunStatus, StepKind, StepState, StepStatus};

use super::Stores;
use super::samples::{
    ACCOUNT, LATE, ODD_TEXT, agent, at, batch, change, chunk, claim_until, claimed, kind, node, owner, queued, running,
    step, together, told,
};

cases! { $ reports_cases, reports, Stores:
    a_report_is_taken_in_whole,
    a_heartbeat_is_noted,
    the_start_is_noted_once,
    a_report_twice_counts_once,
    the_same_number_with_other_content_changes_nothing,
    a_missing_number_conflicts,
    a_wrong_offset_conflicts,
    chunks_of_one_report_follow_each_other,
    a_refused_report_leaves_nothing,
    a_step_becomes_what_it_may,
    a_step_never_becomes_what_it_may_not,
    a_step_may_begin_in_any_state,
    one_report_may_move_a_step_twice,
    a_step_keeps_its_id,
    steps_come_by_index,
    a_log_of_an_unknown_step_is_refused,
    too_many_bytes_are_refused,
    too_many_items_are_refused,
    text_with_a_nul_is_refused,
    text_comes_back_as_it_went,
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
}

async fn send(stores: &Stores, claimed: &Claimed, batch: &Batch) -> Result<Ack> {
    stores.runs.report(&agent(claimed), batch).await
}

/// Everything that a report can change, to be compared.
async fn picture(stores: &Stores, run: RunId) -> String {
    let seen = stores.runs.get(ACCOUNT, run).await.unwrap();
    let steps = stores.runs.steps(ACCOUNT, run).await.unwrap();
    let events = stores.journal.of_run(ACCOUNT, run, 0, 10_000).await.unwrap();
    let mut logs = Vec::new();
    for step in &steps {
        logs.push(
            stores
                .logs
                .read(ACCOUNT, run, step.state.index, 0, 1_000_000)
                .await
                .unwrap(),
        );
    }
    format!(
        "{seen:#?}\n{steps:#?}\n{logs:?}\n{:#?}",
        events.iter().map(|event| &event.body).collect::<Vec<_>>()
    )
}

fn with_log(number: u64, offset: u64, text: &'static str) -> Batch {
    Batch {
        logs: vec![chunk(1, offset, text)],
        ..batch(number, at(10))
    }
}

/// A running run of which step 1 runs and has the log `hello`; report 2 was taken in.
async fn logging(stores: &Stores) -> Claimed {
    let claimed = running(stores).await;
    let first = Batch {
        steps: vec![step(1, StepStatus::Running)],
        ..with_log(2, 0, "hello")
    };
    assert_eq!(send(stores, &claimed, &first).await.unwrap().number, 2);
    claimed
}

async fn a_report_is_taken_in_whole(stores: Stores) {
    let claimed = claimed(&stores).await;
    let report = Batch {
        steps: vec![step(1, StepStatus::Running), step(2, StepStatus::Pending)],
        nodes: vec![node(1, "model.shop.orders"), node(1, "model.shop.orders")],
        logs: vec![chunk(1, 0, "one"), chunk(2, 0, "two")],
        event: Some(RunEvent::Started),
        patch: RunPatch {
            git_sha: Some("abc".into()),
            artifacts_saved: Some(true),
            ..RunPatch::default()
        },
        ..batch(1, at(2))
    };
    let ack = send(&stores, &claimed, &report).await.unwrap();
    assert_eq!(
        ack,
        Ack {
            number: 1,
            status: RunStatus::Running
        }
    );
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(
        (run.status, run.started_at, run.heartbeat_at),
        (RunStatus::Running, Some(at(2)), Some(at(2)))
    );
    assert_eq!(
        (run.git_sha.as_deref(), run.artifacts_saved, run.updated_at),
        (Some("abc"), true, at(2))
    );
    let steps = stores.runs.steps(ACCOUNT, run.id).await.unwrap();
    assert_eq!(
        steps.iter().map(|step| &step.state).collect::<Vec<_>>(),
        report.steps.iter().collect::<Vec<_>>()
    );
    assert!(
        steps
            .iter()
            .all(|step| step.run == run.id && step.log_bytes == 3 && step.log_object.is_none())
    );
    assert!(
        steps
            .iter()
            .all(|step| step.created_at == at(2) && step.updated_at == at(2))
    );
    let log = stores.logs.read(ACCOUNT, run.id, 2, 0, 100).await.unwrap();
    assert_eq!(&log.bytes[..], b"two");
    let events = stores.journal.of_run(ACCOUNT, run.id, 0, 100).await.unwrap();
    let nodes = events
        .iter()
        .filter(|event| matches!(&event.body, EventBody::Node { node } if node == &report.nodes[0]));
    assert_eq!(
        nodes.count(),
        2,
        "what is told of a node goes to the journal as it came"
    );
}

async fn a_heartbeat_is_noted(stores: Stores) {
    let running = running(&stores).await;
    let ack = send(&stores, &running, &batch(2, at(77))).await.unwrap();
    assert_eq!(
        ack,
        Ack {
            number: 2,
            status: RunStatus::Running
        }
    );
    let run = stores.runs.get(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!((run.heartbeat_at, run.status), (Some(at(77)), RunStatus::Running));
    assert_eq!(told(&stores, &run).await.len(), 3, "a heartbeat is not an event");
}

async fn the_start_is_noted_once(stores: Stores) {
    let running = running(&stores).await;
    let again = Batch {
        event: Some(RunEvent::Started),
        ..batch(2, at(9))
    };
    send(&stores, &running, &again).await.unwrap();
    let run = stores.runs.get(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!(run.started_at, Some(at(2)));
    assert_eq!(
        told(&stores, &run).await,
        [RunStatus::Queued, RunStatus::Starting, RunStatus::Running]
    );
}

async fn a_report_twice_counts_once(stores: Stores) {
    let claimed = logging(&stores).await;
    let report = Batch {
        nodes: vec![node(1, "model.shop.orders")],
        ..with_log(3, 5, " world")
    };
    let first = send(&stores, &claimed, &report).await.unwrap();
    let before = picture(&stores, claimed.run.id).await;
    assert_eq!(send(&stores, &claimed, &report).await.unwrap(), first);
    assert_eq!(
        send(&stores, &claimed, &batch(1, at(99))).await.unwrap(),
        first,
        "any number below too"
    );
    assert_eq!(picture(&stores, claimed.run.id).await, before);
    let log = stores.logs.read(ACCOUNT, claimed.run.id, 1, 0, 100).await.unwrap();
    assert_eq!(&log.bytes[..], b"hello world");
}

async fn the_same_number_with_other_content_changes_nothing(stores: Stores) {
    let claimed = logging(&stores).await;
    let before = picture(&stores, claimed.run.id).await;
    let other = Batch {
        event: Some(RunEvent::Failed),
        patch: RunPatch::message("no"),
        ..with_log(2, 5, "no")
    };
    assert_eq!(send(&stores, &claimed, &other).await.unwrap().number, 2);
    assert_eq!(picture(&stores, claimed.run.id).await, before);
}

async fn a_missing_number_conflicts(stores: Stores) {
    let claimed = logging(&stores).await;
    let before = picture(&stores, claimed.run.id).await;
    let error = send(&stores, &claimed, &with_log(4, 5, "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.to_string().contains('3'),
        "the message says what was expected: {error}"
    );
    assert_eq!(picture(&stores, claimed.run.id).await, before);
    send(&stores, &claimed, &with_log(3, 5, "x")).await.unwrap();
}

async fn a_wrong_offset_conflicts(stores: Stores) {
    let claimed = logging(&stores).await;
    let before = picture(&stores, claimed.run.id).await;
    for offset in [0, 4, 6, u64::from(u32::MAX) * 4] {
        let error = send(&stores, &claimed, &with_log(3, offset, "x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(
            error.to_string().contains('5'),
            "the message says what was expected: {error}"
        );
    }
    assert_eq!(picture(&stores, claimed.run.id).await, before);
}

async fn chunks_of_one_report_follow_each_other(stores: Stores) {
    let claimed = logging(&stores).await;
    let report = Batch {
        logs: vec![chunk(1, 5, " "), chunk(1, 6, ""), chunk(1, 6, "world")],
        ..batch(3, at(5))
    };
    send(&stores, &claimed, &report).await.unwrap();
    let page = stores.logs.read(ACCOUNT, claimed.run.id, 1, 0, 100).await.unwrap();
    assert_eq!((&page.bytes[..], page.length), (&b"hello world"[..], 11));
    let gap = Batch {
        logs: vec![chunk(1, 11, "!"), chunk(1, 13, "!")],
        ..batch(4, at(5))
    };
    assert_eq!(kind(send(&stores, &claimed, &gap).await), ErrorKind::Conflict);
    assert_eq!(
        stores.logs.read(ACCOUNT, claimed.run.id, 1, 0, 100).await.unwrap(),
        page
    );
}

async fn a_refused_report_leaves_nothing(stores: Stores) {
    let claimed = logging(&stores).await;
    let before = picture(&stores, claimed.run.id).await;
    let whole = || Batch {
        steps: vec![step(2, StepStatus::Running)],
        nodes: vec![node(1, "model.shop.orders")],
        event: Some(RunEvent::Succeeded),
        patch: RunPatch {
            has_docs: Some(true),
            ..RunPatch::message("done")
        },
        ..with_log(3, 5, " world")
    };
    let mut bad_offset = whole();
    bad_offset.logs.push(chunk(1, 99, "x"));
    assert_eq!(kind(send(&stores, &claimed, &bad_offset).await), ErrorKind::Conflict);
    let mut bad_step = whole();
    bad_step.steps.push(step(1, StepStatus::Pending));
    assert_eq!(kind(send(&stores, &claimed, &bad_step).await), ErrorKind::Invalid);
    assert_eq!(picture(&stores, claimed.run.id).await, before);
    let ack = send(&stores, &claimed, &whole()).await.unwrap();
    assert_eq!(
        ack,
        Ack {
            number: 3,
            status: RunStatus::Success
        },
        "its number was not used up"
    );
}

async fn a_step_becomes_what_it_may(stores: Stores) {
    let running = running(&stores).await;
    let path = [
        StepStatus::Pending,
        StepStatus::Running,
        StepStatus::Running,
        StepStatus::Warned,
    ];
    for (number, status) in (2..).zip(path) {
        let report = Batch {
            steps: vec![step(1, status)],
            ..batch(number, at(3))
        };
        send(&stores, &running, &report).await.unwrap();
        assert_eq!(
            stores.runs.steps(ACCOUNT, running.run.id).await.unwrap()[0].state,
            step(1, status)
        );
    }
    let events = stores.journal.of_run(ACCOUNT, running.run.id, 0, 100).await.unwrap();
    let told: Vec<_> = events
        .into_iter()
        .filter_map(|event| {
            if let EventBody::Step { step } = event.body {
                Some(step.status)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(
        told,
        [StepStatus::Pending, StepStatus::Running, StepStatus::Warned],
        "an unchanged step is no event"
    );
}

async fn a_step_never_becomes_what_it_may_not(stores: Stores) {
    for from in StepStatus::ALL {
        let running = running(&stores).await;
        send(
            &stores,
            &running,
            &Batch {
                steps: vec![step(1, from)],
                ..batch(2, at(3))
            },
        )
        .await
        .unwrap();
        for to in StepStatus::ALL.into_iter().filter(|to| !from.may_become(*to)) {
            let report = Batch {
                steps: vec![step(1, to)],
                ..batch(3, at(4))
            };
            assert_eq!(
                kind(send(&stores, &running, &report).await),
                ErrorKind::Invalid,
                "{from:?} to {to:?}"
            );
        }
        assert_eq!(
            stores.runs.steps(ACCOUNT, running.run.id).await.unwrap()[0].state,
            step(1, from)
        );
    }
}

async fn a_step_may_begin_in_any_state(stores: Stores) {
    let running = running(&stores).await;
    let steps: Vec<StepState> = (1..)
        .zip(StepStatus::ALL)
        .map(|(index, status)| step(index, status))
        .collect();
    send(
        &stores,
        &running,
        &Batch {
            steps: steps.clone(),
            ..batch(2, at(3))
        },
    )
    .await
    .unwrap();
    let stored = stores.runs.steps(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!(stored.into_iter().map(|step| step.state).collect::<Vec<_>>(), steps);
}

async fn one_report_may_move_a_step_twice(stores: Stores) {
    let running = running(&stores).await;
    let steps = vec![
        step(1, StepStatus::Pending),
        step(1, StepStatus::Running),
        step(1, StepStatus::Error),
    ];
    send(
        &stores,
        &running,
        &Batch {
            steps,
            ..batch(2, at(3))
        },
    )
    .await
    .unwrap();
    let stored = stores.runs.steps(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!(
        stored.iter().map(|step| step.state.status).collect::<Vec<_>>(),
        [StepStatus::Error]
    );
    let back = Batch {
        steps: vec![step(2, StepStatus::Success), step(2, StepStatus::Running)],
        ..batch(3, at(4))
    };
    assert_eq!(kind(send(&stores, &running, &back).await), ErrorKind::Invalid);
}

async fn a_step_keeps_its_id(stores: Stores) {
    let running = running(&stores).await;
    send(
        &stores,
        &running,
        &Batch {
            steps: vec![step(1, StepStatus::Pending)],
            ..batch(2, at(3))
        },
    )
    .await
    .unwrap();
    let first = stores.runs.steps(ACCOUNT, running.run.id).await.unwrap().remove(0);
    send(
        &stores,
        &running,
        &Batch {
            steps: vec![step(1, StepStatus::Running)],
            ..batch(3, at(9))
        },
    )
    .await
    .unwrap();
    let second = stores.runs.step(ACCOUNT, first.id).await.unwrap();
    assert_eq!(
        (second.id, second.created_at, second.updated_at),
        (first.id, at(3), at(9))
    );
    assert_eq!(second.state.status, StepStatus::Running);
}

async fn steps_come_by_index(stores: Stores) {
    let running = running(&stores).await;
    let kinds = StepKind::ALL.into_iter().zip([11, 2, 1, 30, 7, 3]);
    let steps = kinds.map(|(kind, index)| StepState {
        kind,
        ..step(index, StepStatus::Pending)
    });
    send(
        &stores,
        &running,
        &Batch {
            steps: steps.collect(),
            ..batch(2, at(3))
        },
    )
    .await
    .unwrap();
    let stored = stores.runs.steps(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!(
        stored.iter().map(|step| step.state.index).collect::<Vec<_>>(),
        [1, 2, 3, 7, 11, 30]
    );
    assert_eq!(stored[0].state.kind, StepKind::Deps);
}

async fn a_log_of_an_unknown_step_is_refused(stores: Stores) {
    let running = running(&stores).await;
    assert_eq!(
        kind(send(&stores, &running, &with_log(2, 0, "x")).await),
        ErrorKind::Invalid
    );
}

async fn too_many_bytes_are_refused(stores: Stores) {
    let claimed = logging(&stores).await;
    let full = vec![0_u8; BATCH_LIMIT_BYTES];
    let more = Batch {
        logs: vec![chunk(1, 5, full.clone()), chunk(1, 5, "x")],
        ..batch(3, at(4))
    };
    assert_eq!(kind(send(&stores, &claimed, &more).await), ErrorKind::Invalid);
    send(
        &stores,
        &claimed,
        &Batch {
            logs: vec![chunk(1, 5, full)],
            ..batch(3, at(4))
        },
    )
    .await
    .unwrap();
}

async fn too_many_items_are_refused(stores: Stores) {
    let claimed = logging(&stores).await;
    let nodes = |count| {
        (0..count)
            .map(|index| node(1, &format!("model.shop.n{index}")))
            .collect::<Vec<_>>()
    };
    let full = |count| Batch {
        nodes: nodes(count),
        steps: vec![step(2, StepStatus::Pending)],
        ..with_log(3, 5, "x")
    };
    assert_eq!(
        kind(send(&stores, &claimed, &full(BATCH_LIMIT_ITEMS - 1)).await),
        ErrorKind::Invalid
    );
    send(&stores, &claimed, &full(BATCH_LIMIT_ITEMS - 2)).await.unwrap();
}

async fn text_with_a_nul_is_refused(stores: Stores) {
    let claimed = logging(&stores).await;
    let before = picture(&stores, claimed.run.id).await;
    let bad_step = StepState {
        message: Some("a\0b".to_owned()),
        ..step(2, StepStatus::Running)
    };
    let bad_node = dbtcloud_core::run::NodeReport {
        message: Some("a\0b".to_owned()),
        ..node(1, "model.shop.orders")
    };
    for report in [
        Batch {
            steps: vec![bad_step],
            ..batch(3, at(4))
        },
        Batch {
            nodes: vec![bad_node],
            ..batch(3, at(4))
        },
        Batch {
            patch: RunPatch::message("a\0b"),
            ..batch(3, at(4))
        },
    ] {
        assert_eq!(kind(send(&stores, &claimed, &report).await), ErrorKind::Invalid);
    }
    assert_eq!(picture(&stores, claimed.run.id).await, before);
}

async fn text_comes_back_as_it_went(stores: Stores) {
    let running = running(&stores).await;
    let odd = StepState {
        name: ODD_TEXT.to_owned(),
        message: Some(ODD_TEXT.repeat(500)),
        backend: Some(String::new()),
        exit_code: Some(i32::MIN),
        ..step(1, StepStatus::Error)
    };
    let mut odd_node = node(1, ODD_TEXT);
    odd_node.execution_time = Some(0.1 + 0.2);
    odd_node.total = Some(u32::MAX);
    let patch = RunPatch {
        git_branch: Some(ODD_TEXT.to_owned()),
        ..RunPatch::message("")
    };
    let report = Batch {
        steps: vec![odd.clone()],
        nodes: vec![odd_node.clone()],
        patch,
        ..batch(2, at(3))
    };
    send(&stores, &running, &report).await.unwrap();
    assert_eq!(stores.runs.steps(ACCOUNT, running.run.id).await.unwrap()[0].state, odd);
    let run = stores.runs.get(ACCOUNT, running.run.id).await.unwrap();
    assert_eq!(
        (run.git_branch.as_deref(), run.message.as_deref()),
        (Some(ODD_TEXT), Some(""))
    );
    let events = stores.journal.of_run(ACCOUNT, run.id, 0, 100).await.unwrap();
    assert!(
        events
            .iter()
            .any(|event| event.body == EventBody::Node { node: odd_node.clone() })
    );
    assert!(
        events
            .iter()
            .any(|event| event.body == EventBody::Step { step: odd.clone() })
    );
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
    let ack = Ack {
        number: 3,
        status: RunStatus::Success,
    };
    assert_eq!(send(&stores, &claimed, &end).await.unwrap(), ack);
    assert_eq!(
        send(&stores, &claimed, &end).await.unwrap(),
        ack,
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
    assert_eq!(send(&stores, &claimed, &rest).await.unwrap(), Ack { number: 4, ..ack });
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
    assert_eq!(
        ack,
        Ack {
            number: 1,
            status: RunStatus::Starting
        }
    );
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
    assert_eq!(
        ack,
        Ack {
            number: 1,
            status: RunStatus::Cancelling
        }
    );
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(run.started_at, Some(at(3)), "its agent began all the same");
    let end = Batch {
        event: Some(RunEvent::Stopped),
        patch: RunPatch::message("confirmed"),
        ..batch(2, at(4))
    };
    let ack = send(&stores, &claimed, &end).await.unwrap();
    assert_eq!(
        ack,
        Ack {
            number: 2,
            status: RunStatus::Cancelled
        }
    );
    let run = stores.runs.get(ACCOUNT, claimed.run.id).await.unwrap();
    assert_eq!(
        (run.message.as_deref(), run.finished_at),
        (Some("confirmed"), Some(at(4)))
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
