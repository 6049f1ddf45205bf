//! What [`Journal`](dbtcloud_core::ports::Journal) means.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Batch, Event, EventBody, RunChange, RunPatch};
use dbtcloud_core::run::{RunEvent, RunStatus, StepStatus};

use super::Stores;
use super::samples::{
    ACCOUNT, JOB, LATE, ODD_TEXT, STRANGER, agent, at, batch, change, claim_until, claimed, enqueue, kind, new_run,
    node, queued, running, step,
};

cases! { $ journal_cases, journal, Stores:
    a_run_is_told_from_the_queue_to_the_end,
    messages_are_told,
    sequences_grow,
    reading_goes_on_after_a_sequence,
    an_unknown_run_is_not_found,
    runs_are_apart,
    a_report_is_told_in_the_order_it_happened,
    a_refused_change_is_not_told,
    a_takeover_is_not_told,
    a_reader_misses_nothing_while_writers_write,
}

async fn of(stores: &Stores, run: RunId) -> Vec<Event> {
    stores.journal.of_run(ACCOUNT, run, 0, 10_000).await.unwrap()
}

async fn a_run_is_told_from_the_queue_to_the_end(stores: Stores) {
    let claimed = claimed(&stores).await;
    let id = claimed.run.id;
    let requeued = change(RunStatus::Starting, RunEvent::Requeued, at(2));
    stores.runs.change(&claimed.fence, &requeued).await.unwrap();
    let claimed = claim_until(&stores, id, at(3), LATE).await;
    let report = |event, number| Batch {
        event: Some(event),
        ..batch(number, at(3 + i64::try_from(number).unwrap()))
    };
    stores
        .runs
        .report(&agent(&claimed), &report(RunEvent::Started, 1))
        .await
        .unwrap();
    stores.runs.request_cancel(ACCOUNT, id, "stop", at(5)).await.unwrap();
    stores
        .runs
        .report(&agent(&claimed), &report(RunEvent::Stopped, 3 - 1))
        .await
        .unwrap();
    let told: Vec<_> = of(&stores, id)
        .await
        .into_iter()
        .map(|event| (event.account, event.run, event.at, event.body))
        .collect();
    let status = |status, seconds, message: Option<&str>| {
        (
            ACCOUNT,
            id,
            at(seconds),
            EventBody::Run {
                status,
                message: message.map(str::to_owned),
            },
        )
    };
    let expected = [
        status(RunStatus::Queued, 0, None),
        status(RunStatus::Starting, 1, None),
        status(RunStatus::Queued, 2, None),
        status(RunStatus::Starting, 3, None),
        status(RunStatus::Running, 4, None),
        status(RunStatus::Cancelling, 5, Some("stop")),
        status(RunStatus::Cancelled, 5, None),
    ];
    assert_eq!(told, expected, "each with the message that its change brought");
}

async fn messages_are_told(stores: Stores) {
    let claimed = claimed(&stores).await;
    let patch = RunPatch::message(ODD_TEXT);
    let failed = RunChange::new(RunStatus::Starting, RunEvent::Failed, patch, at(2)).unwrap();
    stores.runs.change(&claimed.fence, &failed).await.unwrap();
    let last = of(&stores, claimed.run.id).await.pop().unwrap();
    let expected = EventBody::Run {
        status: RunStatus::Error,
        message: Some(ODD_TEXT.to_owned()),
    };
    assert_eq!((last.body, last.at), (expected, at(2)));
}

async fn sequences_grow(stores: Stores) {
    let (a, b) = (running(&stores).await, running(&stores).await);
    for number in 2..6 {
        for claimed in [&a, &b] {
            let report = Batch {
                nodes: vec![node(1, "m.a.b"), node(1, "m.a.c")],
                ..batch(number, at(4))
            };
            stores.runs.report(&agent(claimed), &report).await.unwrap();
        }
    }
    for run in [a.run.id, b.run.id] {
        let events = of(&stores, run).await;
        assert_eq!(events.len(), 11);
        assert!(events[0].sequence > 0, "so that reading after 0 reads all");
        assert!(events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    }
}

async fn reading_goes_on_after_a_sequence(stores: Stores) {
    let running = running(&stores).await;
    let report = Batch {
        nodes: (0..20).map(|index| node(1, &format!("m.a.n{index}"))).collect(),
        ..batch(2, at(4))
    };
    stores.runs.report(&agent(&running), &report).await.unwrap();
    let whole = of(&stores, running.run.id).await;
    let (mut read, mut after) = (Vec::new(), 0);
    loop {
        let page = stores.journal.of_run(ACCOUNT, running.run.id, after, 4).await.unwrap();
        assert!(page.len() <= 4);
        let Some(last) = page.last() else { break };
        after = last.sequence;
        read.extend(page);
    }
    assert_eq!(read, whole);
    assert_eq!(
        stores
            .journal
            .of_run(ACCOUNT, running.run.id, u64::MAX >> 1, 4)
            .await
            .unwrap(),
        []
    );
}

async fn an_unknown_run_is_not_found(stores: Stores) {
    let run = queued(&stores).await.id;
    assert_eq!(
        kind(stores.journal.of_run(STRANGER, run, 0, 10).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(stores.journal.of_run(ACCOUNT, RunId::new(987_654), 0, 10).await),
        ErrorKind::NotFound
    );
}

async fn runs_are_apart(stores: Stores) {
    let (a, b) = (queued(&stores).await.id, queued(&stores).await.id);
    enqueue(&stores, &new_run(STRANGER, JOB), at(0)).await;
    for run in [a, b] {
        let events = of(&stores, run).await;
        assert_eq!(events.len(), 1);
        assert!(events.iter().all(|event| event.run == run && event.account == ACCOUNT));
    }
}

async fn a_report_is_told_in_the_order_it_happened(stores: Stores) {
    let claimed = claimed(&stores).await;
    let begin = Batch {
        event: Some(RunEvent::Started),
        steps: vec![step(1, StepStatus::Running), step(2, StepStatus::Pending)],
        nodes: vec![node(1, "m.a.first"), node(1, "m.a.second")],
        ..batch(1, at(2))
    };
    stores.runs.report(&agent(&claimed), &begin).await.unwrap();
    let end = Batch {
        event: Some(RunEvent::Failed),
        steps: vec![step(1, StepStatus::Error), step(2, StepStatus::Skipped)],
        nodes: vec![node(1, "m.a.third")],
        ..batch(2, at(3))
    };
    stores.runs.report(&agent(&claimed), &end).await.unwrap();
    let words: Vec<String> = of(&stores, claimed.run.id)
        .await
        .into_iter()
        .map(|event| match event.body {
            EventBody::Run { status, .. } => status.name().to_owned(),
            EventBody::Step { step } => format!("{}:{}", step.index, step.status.name()),
            EventBody::Node { node } => node.unique_id,
        })
        .collect();
    let expected = [
        "queued",
        "starting",
        "running",
        "1:running",
        "2:pending",
        "m.a.first",
        "m.a.second",
        "1:error",
        "2:skipped",
        "m.a.third",
        "error",
    ];
    assert_eq!(
        words, expected,
        "a start before what followed, an end after what led to it"
    );
}

async fn a_refused_change_is_not_told(stores: Stores) {
    let running = running(&stores).await;
    let before = of(&stores, running.run.id).await;
    let stale = change(RunStatus::Starting, RunEvent::Failed, at(3));
    assert_eq!(
        kind(stores.runs.change(&running.fence, &stale).await),
        ErrorKind::Conflict
    );
    let gap = Batch {
        event: Some(RunEvent::Failed),
        nodes: vec![node(1, "m.a.b")],
        ..batch(9, at(3))
    };
    assert_eq!(
        kind(stores.runs.report(&agent(&running), &gap).await),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(stores.runs.request_cancel(STRANGER, running.run.id, "x", at(3)).await),
        ErrorKind::NotFound
    );
    assert_eq!(of(&stores, running.run.id).await, before);
}

async fn a_takeover_is_not_told(stores: Stores) {
    let run = queued(&stores).await.id;
    let claimed = claim_until(&stores, run, at(1), at(10)).await;
    let before = of(&stores, run).await;
    stores.runs.renew(&[claimed.fence], at(11)).await.unwrap();
    stores
        .runs
        .reclaim(&super::samples::owner("b"), at(12), LATE, 10)
        .await
        .unwrap();
    assert_eq!(of(&stores, run).await, before);
}

/// The trap: a sequence is drawn before its transaction commits, so that a higher one can be seen first
/// and a reader who goes on after it never sees the lower one.
async fn a_reader_misses_nothing_while_writers_write(stores: Stores) {
    let mut runs = Vec::new();
    for _ in 0..4 {
        runs.push(running(&stores).await);
    }
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = runs
        .iter()
        .map(|claimed| {
            let (journal, run, done) = (stores.journal.clone(), claimed.run.id, done.clone());
            tokio::spawn(async move {
                let (mut read, mut after) = (Vec::new(), 0);
                loop {
                    // Asked first: what is written before this is seen by the read after it.
                    let last_look = done.load(Ordering::SeqCst);
                    let page = journal.of_run(ACCOUNT, run, after, 3).await.unwrap();
                    after = page.last().map_or(after, |event| event.sequence);
                    let empty = page.is_empty();
                    read.extend(page);
                    if empty && last_look {
                        return read;
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut writers = Vec::new();
    for claimed in &runs {
        let (store, fence) = (stores.runs.clone(), agent(claimed));
        writers.push(tokio::spawn(async move {
            for number in 2..22 {
                let report = Batch {
                    nodes: vec![node(1, "m.a.b"), node(1, "m.a.c")],
                    ..batch(number, at(4))
                };
                store.report(&fence, &report).await.unwrap();
            }
        }));
        let (store, run) = (stores.runs.clone(), claimed.run.id);
        writers.push(tokio::spawn(async move {
            store.request_cancel(ACCOUNT, run, "stop", at(5)).await.unwrap();
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    for (claimed, reader) in runs.iter().zip(readers) {
        let read = reader.await.unwrap();
        assert_eq!(read.len(), 3 + 40 + 1);
        assert_eq!(read, of(&stores, claimed.run.id).await);
    }
}
