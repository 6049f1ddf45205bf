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
use dbtcloud_benches::program;
use dbtcloud_core::Timestamp;
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId};
use dbtcloud_core::ports::{Owner, RunChange, RunPatch, Runs};
use dbtcloud_core::run::{Admission, CauseCategory, NewRun, RunEvent, RunSpec, Trigger};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::Cluster;

const ROUNDS: usize = 5;
const SPAN: Duration = Duration::from_secs(4);
const WORKERS: [u64; 2] = [1, 8];

fn now() -> Timestamp {
    Timestamp::from_micros(chrono::Utc::now().timestamp_micros())
}

fn new_run(job: u64) -> NewRun {
    NewRun {
        account: AccountId::new(1),
        project: ProjectId::new(1),
        environment: EnvironmentId::new(1),
        job: JobId::new(i64::try_from(job).unwrap_or_default()),
        trigger: Trigger::new(CauseCategory::Api, "bench"),
        spec: RunSpec {
            commands: vec!["dbt build".to_owned()],
            generate_docs: false,
            source_freshness: false,
            dbt_version: "latest".to_owned(),
            threads: 4,
            target_name: "default".to_owned(),
            schema: None,
            timeout_seconds: 3600,
            git_branch: None,
            git_sha: None,
            job_type: dbtcloud_core::job::JobType::Other,
        },
        scheduled_for: None,
        exclusive: true,
        takes_slot: true,
        retry_of: None,
        due_at: now(),
    }
}

/// One run from the queue to its end: three port calls. Every worker has a job and a slot of its own.
async fn cycle(storage: &SqlStorage, worker: u64, owner: &Owner) {
    let run = storage.enqueue(&new_run(worker), now()).await.unwrap().into_run();
    let slot = u32::try_from(worker).ok();
    let until = now().plus(Duration::from_secs(30));
    let admission = [Admission { run: run.id, slot }];
    let claimed = storage.claim(owner, &admission, now(), until).await.unwrap().remove(0);
    let end = RunChange::new(claimed.run.status, RunEvent::Failed, RunPatch::default(), now()).unwrap();
    storage.change(&claimed.fence, &end).await.unwrap();
}

/// Cycles per second of so many workers.
async fn ours(storage: &SqlStorage, workers: u64) -> f64 {
    let (began, cycles) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..workers)
        .map(|worker| {
            let (storage, cycles) = (storage.clone(), cycles.clone());
            tokio::spawn(async move {
                let owner = Owner::new(format!("worker-{worker}"));
                while began.elapsed() < SPAN {
                    cycle(&storage, worker, &owner).await;
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

fn yardstick(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("yardstick").join(file)
}

/// pgbench's own figure for the same number of connections.
fn pgbench(port: u16, database: &str, workers: u64) -> f64 {
    let threads = workers.min(2).to_string();
    let text = program::said(
        Command::new(program::pgbench())
            .args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-U", "postgres"])
            .args(["-p", &port.to_string(), "-c", &workers.to_string(), "-j", &threads])
            .args(["-T", &SPAN.as_secs().to_string(), "-f"])
            .arg(yardstick("cycle.sql"))
            .arg(database),
    );
    let line = text
        .lines()
        .find(|line| line.starts_with("tps = "))
        .expect("pgbench tells tps");
    line["tps = ".len()..].split(' ').next().unwrap().parse().unwrap()
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
    let (mine, bare) = (cluster.database(), cluster.database());
    bare.ask(&std::fs::read_to_string(yardstick("queue.sql")).unwrap());
    let options = Options::new().with_pool_size(16);
    let postgres = SqlStorage::connect(&mine.url(), options).await.unwrap();
    postgres.migrate().await.unwrap();
    for workers in WORKERS {
        let (mut our, mut their) = (Figures::new(), Figures::new());
        for _ in 0..ROUNDS {
            their.add(pgbench(cluster.port(), bare.name(), workers));
            our.add(ours(&postgres, workers).await);
        }
        rows.push(row("PostgreSQL", workers, &our, &their));
    }
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
