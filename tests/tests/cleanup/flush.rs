//! Logs on their way from the database to the artifact store: nothing is lost or doubled, and a read is the same
//! before, during and after, wherever the flush dies and whatever the store does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dbtcloud_contract::faults::{Moment, Rates};
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Artifacts, Storage};
use dbtcloud_core::run::Run;
use dbtcloud_runtime::cleanup::{self, Mode};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres;

use crate::stage::{Stage, whole_log};

/// A log with lines of many lengths that no compression makes small.
fn text(bytes: usize) -> Vec<u8> {
    let mut random = 7_u64;
    let mut text = Vec::with_capacity(bytes + 200);
    while text.len() < bytes {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let width = (random >> 33) as usize % 120;
        text.extend_from_slice(format!("{} {random:0width$x}\n", text.len()).as_bytes());
    }
    text
}

async fn unmoved(stage: &Stage) -> usize {
    let left = stage.stores.logs.unmoved(RunId::new(0), u64::MAX, 10).await;
    left.unwrap().len()
}

async fn is_whole(stage: &Stage, run: &Run, expected: &[u8], when: &str) {
    let seen = whole_log(&stage.eye(), &stage.stores, run).await.unwrap();
    assert!(
        seen == expected,
        "{when}: {} bytes in place of {}",
        seen.len(),
        expected.len()
    );
}

#[tokio::test]
async fn nothing_is_lost_wherever_a_flush_dies() {
    let log = text(40_000);
    for moment in [Moment::Before, Moment::After] {
        for number in 0.. {
            let stage = Stage::new();
            let run = stage.ended(1, &log).await;
            let died = stage
                .dies_at(number, moment, stage.sweep(&["flush_logs"], Mode::Act))
                .await;
            let when = format!("after the {number}th call, {moment:?}");
            is_whole(&stage, &run, &log, &when).await;
            let others = cleanup::once(&stage.eye(), &["flush_logs".to_owned()], Mode::Act).await;
            assert!(others.unwrap()[0].error.is_none(), "{when}");
            is_whole(&stage, &run, &log, &when).await;
            assert_eq!(unmoved(&stage).await, 0, "{when}");
            let files = stage.artifacts.list(run.new.account, run.id, None).await.unwrap();
            assert_eq!(files.len(), 1, "{when}: {files:?}");
            if !died {
                assert!(number > 8, "a flush makes only {number} calls");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_and_tears_delays_and_loses_nothing() {
    let log = text(40_000);
    for seed in 0..40 {
        let stage = Stage::seeded(seed);
        let mut runs = Vec::new();
        for _ in 0..4 {
            runs.push(stage.ended(1, &log).await);
        }
        stage.outage.set(Rates {
            before: 20,
            after: 10,
            twice: 20,
        });
        for _ in 0..6 {
            stage.sweep(&["flush_logs"], Mode::Act).await;
            for run in &runs {
                is_whole(&stage, run, &log, &format!("seed {seed}")).await;
            }
        }
        stage.outage.set(Rates::CALM);
        for report in stage.sweep(&["flush_logs"], Mode::Act).await {
            assert!(report.error.is_none(), "seed {seed}: {report:?}");
        }
        assert_eq!(unmoved(&stage).await, 0, "seed {seed}");
        for run in &runs {
            is_whole(&stage, run, &log, &format!("seed {seed}, in the end")).await;
        }
    }
}

/// Readers at every place of a log that is moved, in two parts, while a second one grows.
async fn readers_race(storage: impl Storage) {
    let stage = Arc::new(Stage::told(storage, |_| {}));
    let log = Arc::new(text(20 * 1024 * 1024));
    let run = stage.ended(1, &log).await;
    let step = stage
        .stores
        .runs
        .steps(run.new.account, run.id)
        .await
        .unwrap()
        .remove(0);
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..6_u64)
        .map(|number| {
            let (plane, log, over, step) = (stage.eye(), log.clone(), over.clone(), step.clone());
            let account = run.new.account;
            tokio::spawn(async move {
                let (mut random, mut reads) = (number, 0_u64);
                loop {
                    let last = over.load(Ordering::SeqCst);
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    let from = (random >> 20) % log.len() as u64;
                    // What a client knows of the step is as old as its last look.
                    let page = plane.step_log(account, &step, from, 70_000).await.unwrap();
                    let (from, end) = (from as usize, from as usize + page.bytes.len());
                    assert_eq!(page.offset, from as u64);
                    assert!(
                        !page.bytes.is_empty() && page.bytes[..] == log[from..end],
                        "from {from}"
                    );
                    let line = log[..from].iter().filter(|byte| **byte == b'\n').count() as u64;
                    let lines = plane.step_log_lines(account, &step, line, 2).await.unwrap();
                    let begin = lines.offset as usize;
                    assert_eq!(lines.line, line);
                    assert!(lines.bytes[..] == log[begin..begin + lines.bytes.len()], "line {line}");
                    reads += 1;
                    if last {
                        return reads;
                    }
                }
            })
        })
        .collect();
    let two = || stage.sweep(&["flush_logs"], Mode::Act);
    let (first, second) = tokio::join!(two(), two());
    for report in first.iter().chain(&second) {
        assert!(report.error.is_none(), "{report:?}");
    }
    over.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    assert_eq!(unmoved(&stage).await, 0);
    is_whole(&stage, &run, &log, "in the end").await;
    let files = stage.artifacts.list(run.new.account, run.id, None).await.unwrap();
    assert_eq!(files.len(), 2, "{files:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_same_bytes_while_a_log_is_moved_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/test.db", folder.path().display());
    let storage = SqlStorage::connect(&url, Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    readers_race(storage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_same_bytes_while_a_log_is_moved_on_postgres() {
    let schema = tokio::task::spawn_blocking(postgres::schema).await.unwrap();
    let storage = SqlStorage::connect(&schema.url(), Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    readers_race(storage).await;
}
