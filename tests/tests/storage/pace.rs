//! How fast: generous bounds that only a wrong plan or a lost batch would break. Figures are printed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use dbtcloud_core::ports::{BATCH_LIMIT_BYTES, Firing, LogChunk, RunFilter, Runs, ScheduleEntry, Schedules};
use dbtcloud_core::run::{Limits, NewRun, RunEvent, StepStatus, admit};
use dbtcloud_core::{Direction, Page};
use dbtcloud_sql::SqlStorage;

use crate::subjects::{self, ACCOUNT, agent, at, batch, claim, new_run, owner, queue, step};

const JOBS: i64 = 1_000;

/// 1,000 jobs due at one instant, four schedulers that all fire and claim: each runs once.
async fn the_top_of_the_hour(storage: SqlStorage, engine: &str) {
    for job in 1..=JOBS {
        let entry = ScheduleEntry {
            account: ACCOUNT,
            job: job.into(),
            job_version: 1,
            next_at: Some(at(0)),
        };
        storage.put(&entry, at(0)).await.unwrap();
    }
    let begin = Instant::now();
    let schedulers: Vec<_> = (0..4)
        .map(|number| {
            let storage = storage.clone();
            tokio::spawn(async move { schedule(storage, number).await })
        })
        .collect();
    let (mut fired, mut claimed) = (0, Vec::new());
    for scheduler in schedulers {
        let (more, runs) = scheduler.await.unwrap();
        fired += more;
        claimed.extend(runs);
    }
    let took = begin.elapsed();
    println!("{engine}: {JOBS} due jobs fired and claimed by 4 schedulers in {took:?}");
    claimed.sort_unstable();
    claimed.dedup();
    assert_eq!((fired, claimed.len() as i64), (JOBS, JOBS));
    assert!(took < Duration::from_secs(30), "{took:?}");
}

async fn schedule(storage: SqlStorage, number: usize) -> (i64, Vec<i64>) {
    let me = owner(&format!("scheduler-{number}"));
    let (mut fired, mut claimed) = (0, Vec::new());
    loop {
        let due = storage.due(at(1), 250).await.unwrap();
        for entry in &due {
            let seen = entry.next_at.unwrap();
            let new = NewRun {
                job: entry.job,
                scheduled_for: Some(seen),
                ..new_run(1)
            };
            let firing = Firing {
                job: entry.job,
                seen,
                job_version: 1,
                next: Some(at(3_600)),
                run: Some(new),
            };
            if matches!(
                storage.fire(&[firing], at(1)).await.unwrap()[..],
                [dbtcloud_core::ports::Fired::Queued(_)]
            ) {
                fired += 1;
            }
        }
        let snapshot = storage.queue(at(1), 250, None).await.unwrap();
        let decision = admit(
            &snapshot,
            &Limits {
                slots: Default::default(),
                capacity: 250,
                ..Limits::default()
            },
        );
        let runs = storage.claim(&me, &decision.admitted, at(1), at(60)).await.unwrap();
        claimed.extend(runs.iter().map(|claimed| claimed.run.id.get()));
        if due.is_empty() && snapshot.waiting.is_empty() {
            return (fired, claimed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_jobs_on_sqlite() {
    let subject = subjects::sqlite().await;
    the_top_of_the_hour(subject.storage.clone(), "sqlite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_jobs_on_postgresql() {
    let subject = subjects::postgres().await;
    the_top_of_the_hour(subject.storage.clone(), "postgresql").await;
}

/// Reports of the largest size, one after the other.
async fn full_reports(storage: SqlStorage, engine: &str) {
    let run = queue(&storage, 1).await;
    let claimed = claim(&storage, run).await;
    let fence = agent(&claimed);
    let mut first = batch(1);
    first.event = Some(RunEvent::Started);
    first.steps = vec![step(1, StepStatus::Running)];
    storage.report(&fence, &first).await.unwrap();
    let text = Bytes::from("12:00:01  1 of 10 OK created sql table model main.orders\n".repeat(20_000));
    let mut times = Vec::new();
    for number in 2..=11 {
        let mut report = batch(number);
        let size = BATCH_LIMIT_BYTES / 1_000;
        let begin = (number - 2) * 1_000 * size as u64;
        report.logs = (0..1_000)
            .map(|part| LogChunk {
                step: 1,
                offset: begin + part * size as u64,
                bytes: text.slice(..size),
            })
            .collect();
        report.nodes = (0..900).map(crate::races::node).collect();
        let at = Instant::now();
        storage.report(&fence, &report).await.unwrap();
        times.push(at.elapsed());
    }
    times.sort();
    println!(
        "{engine}: a report of 1 MiB in 1,000 chunks with 900 nodes: median {:?}",
        times[times.len() / 2]
    );
    assert!(times[times.len() / 2] < Duration::from_secs(2), "{times:?}");
}

#[tokio::test]
async fn full_reports_on_sqlite() {
    let subject = subjects::sqlite().await;
    full_reports(subject.storage.clone(), "sqlite").await;
}

#[tokio::test]
async fn full_reports_on_postgresql() {
    let subject = subjects::postgres().await;
    full_reports(subject.storage.clone(), "postgresql").await;
}

/// Fills tables as years would: many runs that ended, many that wait, in many accounts.
const HISTORY: i64 = 100_000;
const WAITING: i64 = 20_000;
const BULK: &str = "
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120000)
    INSERT INTO runs (id, account_id, project_id, environment_id, job_id, cause_body, spec_body, exclusive, takes_slot,
        due_at, status, created_at, updated_at, finished_at, last_sequence)
    SELECT one.id + i, i % 50 + 1, 1, 1, i % 500 + 1, one.cause_body, one.spec_body, 1 = 1, 1 = 0, i, CASE WHEN i <= 100000 THEN 'success' ELSE 'queued' END,
        i, i, CASE WHEN i <= 100000 THEN i END, 1 FROM n CROSS JOIN runs one;
    INSERT INTO run_queue (run_id, account_id, job_id, exclusive, takes_slot, state, due_at, epoch, attempt)
    SELECT id, account_id, job_id, exclusive, takes_slot, 'queued', due_at, 0, 0 FROM runs
        WHERE status = 'queued' AND id > (SELECT min(id) FROM runs)
";

/// Queue, claim, lease and end cost the same however long history and queue are.
async fn a_long_history(storage: SqlStorage, engine: &str) {
    let begin = Instant::now();
    let snapshot = storage.queue(at(1), 10, None).await.unwrap();
    let look = begin.elapsed();
    assert_eq!(snapshot.waiting.len(), 500);
    let decision = admit(
        &snapshot,
        &Limits {
            slots: Default::default(),
            capacity: 100,
            ..Limits::default()
        },
    );
    let begin = Instant::now();
    let ids: Vec<_> = decision.admitted.iter().map(|admission| admission.run).collect();
    assert_eq!(storage.states(&ids).await.unwrap().len(), 100);
    let states = begin.elapsed();
    let begin = Instant::now();
    assert_eq!(storage.reclaim(&owner("me"), at(1), at(9), 100).await.unwrap().len(), 0);
    let reclaim = begin.elapsed();
    let begin = Instant::now();
    let claimed = storage
        .claim(&owner("me"), &decision.admitted, at(1), at(9))
        .await
        .unwrap();
    let claim = begin.elapsed();
    assert_eq!(claimed.len(), 100);
    let fences: Vec<_> = claimed.iter().map(|claimed| claimed.fence).collect();
    let begin = Instant::now();
    assert_eq!(storage.renew(&fences, at(20)).await.unwrap().len(), 100);
    let renew = begin.elapsed();
    let begin = Instant::now();
    let filter = RunFilter {
        job: Some(7.into()),
        direction: Direction::Descending,
        ..RunFilter::default()
    };
    let newest = storage.newest(7.into(), &[6.into(), 7.into()]).await.unwrap().len();
    let page = storage
        .list(7.into(), &filter, Page::new(10, 0))
        .await
        .unwrap()
        .items
        .len();
    let lists = begin.elapsed();
    println!(
        "{engine}: {HISTORY} ended, {WAITING} waiting: queue {look:?}, states {states:?}, reclaim {reclaim:?}, claim {claim:?}, renew {renew:?}, \
         lists {lists:?} ({newest}, {page})"
    );
    for took in [look, states, reclaim, claim, renew, lists] {
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn a_long_history_on_sqlite() {
    let subject = subjects::sqlite().await;
    queue(&subject.storage, 1).await;
    let url = subjects::sqlite_url(subject.home.path());
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    sqlx::raw_sql(BULK).execute(&mut connection).await.unwrap();
    a_long_history(subject.storage.clone(), "sqlite").await;
}

#[tokio::test]
async fn a_long_history_on_postgresql() {
    let subject = subjects::postgres().await;
    queue(&subject.storage, 1).await;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&subject.home.url())
        .await
        .unwrap();
    sqlx::raw_sql(BULK).execute(&mut connection).await.unwrap();
    a_long_history(subject.storage.clone(), "postgresql").await;
}
