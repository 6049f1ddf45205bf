//! Races that need a database: a reader that follows the journal, an embedder's own transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dbtcloud_core::ports::{Enqueued, Journal, Runs};
use dbtcloud_core::run::{NodeReport, RunEvent, StepStatus};
use dbtcloud_sql::SqlStorage;
use sqlx::Connection;

use crate::subjects::{self, ACCOUNT, agent, at, batch, claim, new_run, queue, sqlite_url, step};

/// Whoever reads "above the last I saw" sees every event once and in order, while others write.
async fn a_reader_misses_nothing(storage: SqlStorage) {
    let run = queue(&storage, 1).await;
    let claimed = claim(&storage, run).await;
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (storage, done) = (storage.clone(), done.clone());
        async move {
            let mut seen = Vec::new();
            loop {
                let last = done.load(Ordering::SeqCst);
                let after = seen.last().copied().unwrap_or(0);
                let more = storage.of_run(ACCOUNT, run, after, 7).await.unwrap();
                seen.extend(more.iter().map(|event| event.sequence));
                if last && more.is_empty() {
                    return seen;
                }
            }
        }
    });
    let cancel = tokio::spawn({
        let storage = storage.clone();
        async move { storage.request_cancel(ACCOUNT, run, "enough", at(5)).await.unwrap() }
    });
    for number in 1..=40 {
        let mut report = batch(number);
        report.event = (number == 1).then_some(RunEvent::Started);
        report.steps = vec![step(u32::try_from(number).unwrap(), StepStatus::Running)];
        report.nodes = (0..5).map(node).collect();
        storage.report(&agent(&claimed), &report).await.unwrap();
    }
    cancel.await.unwrap();
    done.store(true, Ordering::SeqCst);
    let seen = reader.await.unwrap();
    let all: Vec<u64> = storage
        .of_run(ACCOUNT, run, 0, 10_000)
        .await
        .unwrap()
        .iter()
        .map(|e| e.sequence)
        .collect();
    assert_eq!(seen, all);
    assert!(seen.len() >= 2 + 40 * 6 && seen.windows(2).all(|pair| pair[0] < pair[1]));
}

pub fn node(index: u32) -> NodeReport {
    NodeReport {
        step: 1,
        unique_id: format!("model.shop.m{index}"),
        resource_type: "model".to_owned(),
        name: format!("m{index}"),
        status: "success".to_owned(),
        message: None,
        execution_time: Some(0.1),
        index: Some(index),
        total: None,
        at: at(3),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_the_journal_misses_nothing_on_sqlite() {
    let subject = subjects::sqlite().await;
    a_reader_misses_nothing(subject.storage.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_the_journal_misses_nothing_on_postgresql() {
    let subject = subjects::postgres().await;
    a_reader_misses_nothing(subject.storage.clone()).await;
}

#[tokio::test]
async fn a_run_is_queued_with_the_callers_transaction_or_not_at_all() {
    let instant = dbtcloud_core::run::NewRun {
        scheduled_for: Some(at(60)),
        ..new_run(7)
    };

    let subject = subjects::postgres().await;
    let mut connection = sqlx::PgConnection::connect(&subject.home.url()).await.unwrap();
    let mut work = connection.begin().await.unwrap();
    assert!(matches!(
        SqlStorage::enqueue_in(&mut *work, &instant, at(0)).await.unwrap(),
        Enqueued::Created(_)
    ));
    work.rollback().await.unwrap();
    assert_eq!(subject.storage.queued(ACCOUNT).await.unwrap(), 0);
    let mut work = connection.begin().await.unwrap();
    let queued = SqlStorage::enqueue_in(&mut *work, &instant, at(0))
        .await
        .unwrap()
        .into_run();
    let again = SqlStorage::enqueue_in(&mut *work, &instant, at(1)).await.unwrap();
    assert_eq!(
        again,
        Enqueued::Existing(queued.clone()),
        "a second call does not spoil the transaction"
    );
    work.commit().await.unwrap();
    assert_eq!(subject.storage.get(ACCOUNT, queued.id).await.unwrap(), queued);

    let subject = subjects::sqlite().await;
    let mut connection = sqlx::SqliteConnection::connect(&sqlite_url(subject.home.path()))
        .await
        .unwrap();
    let mut work = connection.begin().await.unwrap();
    SqlStorage::enqueue_in(&mut *work, &instant, at(0)).await.unwrap();
    work.rollback().await.unwrap();
    assert_eq!(subject.storage.queued(ACCOUNT).await.unwrap(), 0);
    let mut work = connection.begin().await.unwrap();
    let queued = SqlStorage::enqueue_in(&mut *work, &instant, at(0))
        .await
        .unwrap()
        .into_run();
    work.commit().await.unwrap();
    assert_eq!(subject.storage.get(ACCOUNT, queued.id).await.unwrap(), queued);
}

/// Dropping the future of a write leaves a storage that works, on the one writer of SQLite too.
#[tokio::test]
async fn a_call_that_is_dropped_half_way_leaves_nothing() {
    let subject = subjects::sqlite().await;
    let new = new_run(1);
    for round in 0..50 {
        let call = subject.storage.enqueue(&new, at(0));
        let _ = tokio::time::timeout(std::time::Duration::from_micros(round * 20), call).await;
    }
    let queued = subject.storage.queued(ACCOUNT).await.unwrap();
    let snapshot = subject.storage.queue(at(10), 1_000, None).await.unwrap();
    assert_eq!(snapshot.waiting.len() as u64, queued);
    for waiting in snapshot.waiting {
        assert_eq!(
            subject.storage.of_run(ACCOUNT, waiting.run, 0, 10).await.unwrap().len(),
            1
        );
    }
}
