//! Queue a run, claim it, finish it: through the ports on SQLite and PostgreSQL, beside the thinnest queue
//! that each database allows (`yardstick/`), in turns.
//!
//! Ours keeps, in each of the three transactions, what the yardstick does not: fences, slots, exclusive
//! jobs, the unique instant, and the journal. Both databases flush every commit (`synchronous_commit=on`,
//! `synchronous=FULL`).

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_benches::pgbench::{self, yardstick};
use dbtcloud_benches::program;
use dbtcloud_benches::queueing::{self, new_run, now};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::{FIRE_LIMIT, Fired, Firing, History, Owner, Runs, ScheduleEntry, Schedules};
use dbtcloud_core::run::{Admission, NewRun};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::Cluster;
use futures::StreamExt;

const ROUNDS: usize = 5;
const SPAN: Duration = Duration::from_secs(4);
const WORKERS: [u64; 2] = [1, 8];

/// Cycles per second of so many workers.
async fn ours(storage: &SqlStorage, workers: u64) -> f64 {
    let (began, cycles) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..workers)
        .map(|worker| {
            let (storage, cycles) = (storage.clone(), cycles.clone());
            tokio::spawn(async move {
                while began.elapsed() < SPAN {
                    queueing::cycle(&storage, worker).await;
                    cycles.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    cycles.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

fn pgbench(cluster: &Cluster, database: &str, workers: u64, script: Option<&str>) -> f64 {
    pgbench::rate(cluster, database, workers, script, SPAN)
}

/// Runs per second that are fired by schedules and claimed, [`FIRE_LIMIT`] at a time, and runs per second that
/// are ended by eight workers.
async fn batched(storage: &SqlStorage) -> (f64, f64) {
    let jobs = FIRE_LIMIT as u64;
    let owner = Owner::new("batches");
    let mut seen = now();
    for job in 1..=jobs {
        let entry = ScheduleEntry {
            account: AccountId::new(1),
            job: new_run(job).job,
            job_version: 1,
            next_at: Some(seen),
        };
        storage.put(&entry, now()).await.unwrap();
    }
    let (mut started, mut ended, mut runs) = (Duration::ZERO, Duration::ZERO, 0);
    while started < SPAN / 2 {
        let next = seen.plus(Duration::from_secs(1));
        let firings: Vec<Firing> = (1..=jobs)
            .map(|job| Firing {
                job: new_run(job).job,
                seen,
                job_version: 1,
                next: Some(next),
                run: Some(NewRun {
                    scheduled_for: Some(seen),
                    ..new_run(job)
                }),
            })
            .collect();
        seen = next;
        let began = Instant::now();
        let fired = storage.fire(&firings, now()).await.unwrap();
        let admissions: Vec<Admission> = fired
            .iter()
            .zip(1..)
            .map(|(fired, slot)| match fired {
                Fired::Queued(run) => Admission {
                    run: run.id,
                    slot: Some(slot),
                },
                Fired::Moved | Fired::Lost => panic!("{fired:?}"),
            })
            .collect();
        let until = now().plus(Duration::from_secs(30));
        let claimed = storage.claim(&owner, &admissions, now(), until).await.unwrap();
        started += began.elapsed();
        assert_eq!(claimed.len(), FIRE_LIMIT);
        runs += claimed.len();
        let began = Instant::now();
        futures::stream::iter(&claimed)
            .for_each_concurrent(8, |claimed| queueing::end(storage, claimed))
            .await;
        ended += began.elapsed();
    }
    (runs as f64 / started.as_secs_f64(), runs as f64 / ended.as_secs_f64())
}

fn python(file: &Path) -> f64 {
    let text = program::said(
        Command::new("python3")
            .arg(yardstick("queue_sqlite.py"))
            .arg(file)
            .arg(SPAN.as_secs().to_string()),
    );
    text.trim().parse().unwrap()
}

#[tokio::main]
async fn main() {
    println!(
        "claim: enqueue → claim → finish, cycles per second, median [min–max] of {ROUNDS} pairs of {} s\n",
        SPAN.as_secs()
    );
    let directory = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();

    let sqlite = format!("sqlite://{}", directory.path().join("plane.db").display());
    let sqlite = SqlStorage::connect(&sqlite, Options::new()).await.unwrap();
    sqlite.migrate().await.unwrap();
    for workers in WORKERS {
        let (mut our, mut their) = (Figures::new(), Figures::new());
        for _ in 0..ROUNDS {
            // SQLite has one writer: its best is one connection's, however many wait.
            their.add(python(&directory.path().join("yardstick.db")));
            our.add(ours(&sqlite, workers).await);
        }
        rows.push(row("SQLite", workers, &our, &their));
    }

    let cluster = Cluster::start_durable();
    let (mine, bare, bank) = (cluster.database(), cluster.database(), cluster.database());
    bare.ask(&std::fs::read_to_string(yardstick("queue.sql")).unwrap());
    pgbench::fill(&cluster, bank.name());
    let options = Options::new().with_pool_size(16);
    let postgres = SqlStorage::connect(&mine.url(), options).await.unwrap();
    postgres.migrate().await.unwrap();
    postgres.prepare(now()).await.unwrap();
    let mut commits = Figures::new();
    for workers in WORKERS {
        let (mut our, mut their, mut bare_commits) = (Figures::new(), Figures::new(), Figures::new());
        for _ in 0..ROUNDS {
            their.add(pgbench(&cluster, bare.name(), workers, Some("cycle.sql")));
            our.add(ours(&postgres, workers).await);
            bare_commits.add(pgbench(&cluster, bank.name(), workers, None));
        }
        rows.push(row("PostgreSQL", workers, &our, &their));
        rows.push(row("PostgreSQL, over pgbench -N", workers, &our, &bare_commits));
        commits = bare_commits;
    }
    let (mut started, mut ended, mut thin) = (Figures::new(), Figures::new(), Figures::new());
    for _ in 0..ROUNDS {
        thin.add(pgbench(&cluster, bare.name(), 1, Some("batch.sql")) * FIRE_LIMIT as f64);
        let (more_started, more_ended) = batched(&postgres).await;
        started.add(more_started);
        ended.add(more_ended);
    }
    rows.push(row("PostgreSQL, fired and claimed by 200", 1, &started, &thin));
    rows.push(row("PostgreSQL, the same over pgbench -N of 8", 1, &started, &commits));
    rows.push(row("PostgreSQL, ended one by one over pgbench -N", 8, &ended, &commits));
    postgres.close().await;

    table(&["database", "workers", "ours", "yardstick", "ratio"], &rows);
}

fn row(database: &str, workers: u64, ours: &Figures, theirs: &Figures) -> Vec<String> {
    vec![
        database.to_owned(),
        workers.to_string(),
        ours.to_string(),
        theirs.to_string(),
        ours.over(theirs).to_string(),
    ]
}
