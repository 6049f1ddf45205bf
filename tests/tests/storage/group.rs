//! SQLite's writer, of which many transactions make one commit: what was answered is there, whatever ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use dbtcloud_contract::wait;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Journal, Runs};
use dbtcloud_sql::{Options, SqlStorage};
use sqlx::Connection;

use crate::subjects::{self, ACCOUNT, at, new_run, sqlite_url};

/// Where the child process of a test finds its database.
const CHILD: &str = "DBTCLOUD_TEST_GROUP_CHILD";
const WRITERS: i64 = 8;

/// Every run that is queued has its first event, and every one that was answered is queued.
async fn assert_whole(storage: &SqlStorage, answered: &[RunId]) {
    let queued = storage.queued(ACCOUNT).await.unwrap();
    let waiting = storage.queue(at(10), 100_000, None).await.unwrap().waiting;
    assert_eq!(waiting.len() as u64, queued);
    for run in &waiting {
        assert_eq!(storage.of_run(ACCOUNT, run.run, 0, 10).await.unwrap().len(), 1);
    }
    for run in answered {
        assert!(
            waiting.iter().any(|one| one.run == *run),
            "run {run} was answered and is lost"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_that_are_dropped_among_others_leave_nothing_and_hold_nobody_up() {
    let subject = subjects::sqlite().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let storage = subject.storage.clone();
            tokio::spawn(async move {
                let mut answered = Vec::new();
                for round in 0..60 {
                    let new = new_run(writer * 1_000 + round);
                    let call = storage.enqueue(&new, at(0));
                    let patience = Duration::from_micros(u64::try_from(round).unwrap() * 50);
                    // Half of them are cut off somewhere on the way; one in eight fails by itself.
                    if writer % 2 == 0 {
                        answered.extend(call.await.map(|queued| queued.into_run().id));
                    } else if let Ok(Ok(queued)) = tokio::time::timeout(patience, call).await {
                        answered.push(queued.into_run().id);
                    }
                    let mut bad = new_run(writer);
                    bad.trigger.cause = "a\0b".to_owned();
                    storage.enqueue(&bad, at(0)).await.unwrap_err();
                }
                answered
            })
        })
        .collect();
    let mut answered = Vec::new();
    for writer in writers {
        answered.extend(writer.await.unwrap());
    }
    assert!(answered.len() >= 240, "{}", answered.len());
    // Nothing is left open: another connection gets the file's lock.
    let url = sqlite_url(subject.home.path());
    wait::until(Duration::from_secs(10), || async {
        let mut other = sqlx::SqliteConnection::connect(&url).await?;
        sqlx::raw_sql("PRAGMA busy_timeout = 0; BEGIN IMMEDIATE; ROLLBACK")
            .execute(&mut other)
            .await
    })
    .await;
    assert_whole(&subject.storage, &answered).await;
}

/// The child of the next test: queues runs and prints those that were answered, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child_of_the_killed() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let storage = SqlStorage::connect(&url, Options::new()).await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let storage = storage.clone();
            tokio::spawn(async move {
                for round in 0.. {
                    let new = new_run(writer * 1_000_000 + round);
                    println!("answered {}", storage.enqueue(&new, at(0)).await.unwrap().into_run().id);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    let storage = SqlStorage::connect(&url, Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    storage.close().await;
    let mut answered = Vec::new();
    for kill in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["group::child_of_the_killed", "--exact", "--nocapture"])
            .env(CHILD, &url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut told = lines.filter_map(|line| line.split("answered ").nth(1)?.trim().parse().ok().map(RunId::new));
        answered.extend(told.by_ref().take(40 * kill));
        child.kill().unwrap();
        child.wait().unwrap();
        answered.extend(told);
    }
    assert!(answered.len() >= 600, "{}", answered.len());
    let storage = SqlStorage::connect(&url, Options::new()).await.unwrap();
    assert_whole(&storage, &answered).await;
}
