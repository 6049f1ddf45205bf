//! What years of history and a herd of schedules cost, on PostgreSQL.
//!
//! - A page of the list of runs and one claim beside ten million ended runs, over the same beside ten thousand.
//! - The claim while another session holds a snapshot open, so that no dead row can be removed, over the same without.
//! - 1,000,000 schedules of which 1 % is due: ticks of the scheduler until all have fired, over the thinnest statement
//!   that moves as many hands and queues as many rows, 1,000 a transaction (`yardstick/fire.sql`).
//!
//! `DBTCLOUD_BENCH_RUNS` sets another number of runs than ten million.

use std::path::Path;
use std::time::{Duration, Instant};

use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_benches::queueing::{self, now};
use dbtcloud_contract::memory::{ScriptedExecutor, WallClock};
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::{History, RunFilter, Runs, Schedules, Since};
use dbtcloud_core::run::Month;
use dbtcloud_core::schedule::Schedule;
use dbtcloud_core::{Direction, Page};
use dbtcloud_runtime::scheduler::Scheduler;
use dbtcloud_runtime::{AgentLaunch, Blueprint, Config, ControlPlane};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::{Cluster, Database};

const ROUNDS: usize = 5;
const RUNS: u64 = 10_000_000;
const FEW: u64 = 10_000;
/// The account that is looked at has one run of so many.
const ACCOUNTS: u64 = 10;
const PAGES: u32 = 200;
const SCHEDULES: u64 = 1_000_000;
const DUE: u64 = 10_000;
/// Cycles while a snapshot is held: each leaves dead rows behind.
const PINNED: u64 = 20_000;

/// So many ended runs of this month, beside one that is there.
fn fill(database: &Database, runs: u64) {
    let month = Month::of(now());
    let (first, start) = (month.first_id().get() + 10_000_000, month.start().as_micros());
    database.ask(&format!(
        "INSERT INTO runs (id, account_id, project_id, environment_id, job_id, cause_body, spec_body, exclusive, \
            takes_slot, due_at, status, created_at, updated_at, finished_at, last_sequence) \
         SELECT {first} + i, i % {ACCOUNTS} + 1, 1, 1, i % 5000 + 1, one.cause_body, one.spec_body, TRUE, TRUE, \
            {start} + i, 'success', {start} + i, {start} + i, {start} + i, 1 \
         FROM generate_series(1, {runs}) AS i, (SELECT * FROM runs ORDER BY id LIMIT 1) AS one"
    ));
    database.ask("VACUUM ANALYZE runs");
}

async fn plane_on(database: &Database) -> SqlStorage {
    let storage = SqlStorage::connect(&database.url(), Options::new().with_pool_size(16))
        .await
        .unwrap();
    storage.migrate().await.unwrap();
    storage.prepare(now()).await.unwrap();
    storage
}

/// Milliseconds of a page of one account's newest runs with its total, at changing places.
async fn page(storage: &SqlStorage) -> f64 {
    let filter = RunFilter {
        direction: Direction::Descending,
        ..RunFilter::default()
    };
    let began = Instant::now();
    for n in 0..PAGES {
        let page = Page::new(20, n % 10 * 20);
        let found = storage.list(AccountId::new(2), &filter, page).await.unwrap();
        assert_eq!(found.items.len(), 20);
    }
    began.elapsed().as_secs_f64() * 1e3 / f64::from(PAGES)
}

/// Milliseconds of queue, look, claim and end of a run, one after the other.
async fn cycle(storage: &SqlStorage, cycles: u64) -> f64 {
    let began = Instant::now();
    for n in 0..cycles {
        queueing::cycle(storage, n % 8).await;
    }
    began.elapsed().as_secs_f64() * 1e3 / cycles as f64
}

async fn long_history(cluster: &Cluster) -> Vec<Vec<String>> {
    let runs = std::env::var("DBTCLOUD_BENCH_RUNS").map_or(RUNS, |text| text.parse().expect("a number of runs"));
    let (few, many) = (cluster.database(), cluster.database());
    let (short, long) = (plane_on(&few).await, plane_on(&many).await);
    for storage in [&short, &long] {
        queueing::cycle(storage, 1).await;
    }
    fill(&few, FEW);
    let began = Instant::now();
    fill(&many, runs);
    println!("{runs} runs were written in {:.0} s\n", began.elapsed().as_secs_f64());
    let mut all = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        all[0].push(page(&short).await);
        all[1].push(page(&long).await);
        all[2].push(cycle(&short, 500).await);
        all[3].push(cycle(&long, 500).await);
    }
    let [page_few, page_many, cycle_few, cycle_many] = all.map(Figures::from_iter);
    short.close().await;
    long.close().await;
    vec![
        row(
            &format!("a page of 20 and the total, {runs} runs"),
            &page_many,
            &page_few,
        ),
        row(
            &format!("queue, claim and end of a run, {runs} runs"),
            &cycle_many,
            &cycle_few,
        ),
    ]
}

/// Milliseconds of a look at the queue, from somewhere on or at the whole.
async fn look(storage: &SqlStorage, since: Option<Since>) -> f64 {
    let began = Instant::now();
    for _ in 0..50 {
        storage.queue(now(), 200, since).await.unwrap();
    }
    began.elapsed().as_secs_f64() * 1e3 / 50.0
}

/// The same cycle and the look at the queue while a snapshot is held.
async fn pinned(cluster: &Cluster) -> Vec<Vec<String>> {
    let database = cluster.database();
    let storage = plane_on(&database).await;
    cycle(&storage, 500).await;
    let (mut free, mut held) = (Figures::new(), Figures::new());
    let mut looks = [const { Figures::new() }; 3];
    for _ in 0..ROUNDS {
        database.ask("VACUUM run_queue");
        free.add(cycle(&storage, 500).await);
        database.ask("VACUUM run_queue");
        looks[0].add(look(&storage, None).await);
    }
    let mut pin = cluster.hold_snapshot(&database);
    cycle(&storage, PINNED).await;
    for _ in 0..ROUNDS {
        let run = storage.enqueue(&queueing::new_run(9), now()).await.unwrap().into_run();
        let since = Since {
            due_at: run.new.due_at,
            run: run.id,
        };
        looks[1].add(look(&storage, Some(since)).await);
        looks[2].add(look(&storage, None).await);
        held.add(cycle(&storage, 200).await);
    }
    pin.kill().unwrap();
    pin.wait().unwrap();
    storage.close().await;
    vec![row(
        &format!("the same, {PINNED} runs after a snapshot was pinned"),
        &held,
        &free,
    )]
}

/// Runs per second that come of due schedules.
async fn herd(cluster: &Cluster) -> Vec<Vec<String>> {
    let (mine, bare) = (cluster.database(), cluster.database());
    let storage = plane_on(&mine).await;
    let directory = tempfile::tempdir().unwrap();
    let agent = AgentLaunch::local(vec!["/bin/true".to_owned()], directory.path(), std::iter::empty());
    let mut config = Config::new("herd", agent);
    // It fires and drives nothing.
    config.run_capacity = 0;
    let executor = ScriptedExecutor::new(WallClock);
    let plane = ControlPlane::builder(storage.clone(), executor, config).build();
    let blueprint = Blueprint::new("herd", "file:///no/such/repository", "duckdb");
    let mut job = plane.install(&blueprint).await.unwrap();
    job.body.triggers.schedule = true;
    job.body.schedule = Some(Schedule::cron("0 * * * *", "UTC").unwrap());
    let job = plane.catalog().save(&job, now()).await.unwrap();
    let (id, start) = (job.id.get(), now().as_micros());
    mine.ask(&format!(
        "INSERT INTO jobs OVERRIDING SYSTEM VALUE SELECT (jsonb_populate_record(j, jsonb_build_object('id', {id} + i))).* \
            FROM jobs j, generate_series(1, {SCHEDULES}) AS i WHERE j.id = {id}; \
         INSERT INTO schedules (job_id, account_id, job_version, next_at, updated_at) \
         SELECT id, account_id, version, {start} + 3600000000, 0 FROM jobs WHERE id > {id}"
    ));
    bare.ask(&std::fs::read_to_string(yardstick("fire_schema.sql")).unwrap());
    for database in [&mine, &bare] {
        database.ask("VACUUM ANALYZE");
    }
    let mut scheduler = Scheduler::new(plane);
    let (mut ours, mut theirs) = (Figures::new(), Figures::new());
    for round in 0..3 {
        let from = id + 1 + i64::try_from(round * DUE).unwrap();
        let to = from + i64::try_from(DUE).unwrap();
        let due = now().as_micros();
        mine.ask(&format!(
            "UPDATE schedules SET next_at = {due} WHERE job_id >= {from} AND job_id < {to}"
        ));
        let began = Instant::now();
        let mut fired = 0;
        while fired < DUE as usize {
            assert!(began.elapsed() < Duration::from_secs(300), "{fired} of {DUE} fired");
            fired += scheduler.tick().await.unwrap().fired;
        }
        ours.add(DUE as f64 / began.elapsed().as_secs_f64());

        bare.ask(&format!(
            "UPDATE schedules SET next_at = now() WHERE job_id > {} AND job_id <= {}",
            round * DUE,
            (round + 1) * DUE
        ));
        let began = Instant::now();
        for _ in 0..DUE / 1_000 {
            bare.ask(&std::fs::read_to_string(yardstick("fire.sql")).unwrap());
        }
        theirs.add(DUE as f64 / began.elapsed().as_secs_f64());
    }
    assert!(storage.next().await.unwrap().is_some());
    storage.close().await;
    vec![row(
        &format!("runs per second of {DUE} due of {SCHEDULES} schedules"),
        &ours,
        &theirs,
    )]
}

fn yardstick(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("yardstick").join(file)
}

fn row(what: &str, ours: &Figures, theirs: &Figures) -> Vec<String> {
    vec![
        what.to_owned(),
        ours.to_string(),
        theirs.to_string(),
        ours.over(theirs).to_string(),
    ]
}

#[tokio::main]
async fn main() {
    let cluster = Cluster::start_durable();
    let mut rows = herd(&cluster).await;
    rows.extend(pinned(&cluster).await);
    rows.extend(long_history(&cluster).await);
    println!("history: PostgreSQL, median [min–max] of {ROUNDS} rounds; milliseconds unless it says otherwise\n");
    table(&["what", "ours", "yardstick", "ratio"], &rows);
}
