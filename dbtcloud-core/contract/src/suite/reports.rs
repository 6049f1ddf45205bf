//! What [`Runs::report`](dbtcloud_core::ports::Runs::report) means.

use dbtcloud_core::error::{ErrorKind, Result};
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Ack, BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, Batch, Claimed, EventBody, RunPatch};
use dbtcloud_core::run::{RunEvent, RunStatus, StepKind, StepState, StepStatus};

use super::Stores;
use super::samples::{ACCOUNT, ODD_TEXT, agent, at, batch, chunk, claimed, kind, node, running, step, told};

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
}

pub(super) async fn send(stores: &Stores, claimed: &Claimed, batch: &Batch) -> Result<Ack> {
    stores.runs.report(&agent(claimed), batch).await
}

/// Everything that a report can change, to be compared.
pub(super) async fn picture(stores: &Stores, run: RunId) -> String {
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

pub(super) fn with_log(number: u64, offset: u64, text: &'static str) -> Batch {
    Batch {
        logs: vec![chunk(1, offset, text)],
        ..batch(number, at(10))
    }
}

/// A running run of which step 1 runs and has the log `hello`; report 2 was taken in.
pub(super) async fn logging(stores: &Stores) -> Claimed {
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
    assert_eq!((ack.number, ack.status), (1, RunStatus::Running));
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
    assert_eq!((ack.number, ack.status), (2, RunStatus::Running));
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
    assert!(first.taken.is_some());
    let first = Ack { taken: None, ..first };
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
        (ack.number, ack.status),
        (3, RunStatus::Success),
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
