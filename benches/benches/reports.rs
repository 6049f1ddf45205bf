//! Reports of many agents through the port on PostgreSQL, beside `pgbench -N`, in turns: signs of life alone, and with a
//! piece of log each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_benches::pgbench;
use dbtcloud_benches::queueing::{new_run, now};
use dbtcloud_core::ports::{Batch, Fence, History, Holder, LogChunk, Owner, RunPatch, Runs};
use dbtcloud_core::run::{Admission, NewRun, RunEvent, StepKind, StepState, StepStatus};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::Cluster;

const ROUNDS: usize = 5;
const SPAN: Duration = Duration::from_secs(4);
/// Agents that report as fast as they are answered.
const AGENTS: [u64; 2] = [8, 200];
const PIECE: Bytes = Bytes::from_static(&[b'x'; 1024]);

/// What an agent says next.
fn batch(number: u64, offset: Option<u64>) -> Batch {
    let step = StepState {
        index: 1,
        name: "Invoke dbt with `dbt build`".to_owned(),
        kind: StepKind::Command,
        status: StepStatus::Running,
        started_at: Some(now()),
        finished_at: None,
        exit_code: None,
        message: None,
        backend: None,
    };
    let first = number == 1;
    let log = |offset| LogChunk {
        step: 1,
        offset,
        bytes: PIECE,
    };
    Batch {
        number,
        at: now(),
        steps: if first { vec![step] } else { Vec::new() },
        nodes: Vec::new(),
        logs: offset.filter(|_| !first).map(log).into_iter().collect(),
        event: first.then_some(RunEvent::Started),
        patch: RunPatch::default(),
    }
}

/// Reports per second of so many agents, each of a run of its own.
async fn ours(storage: &SqlStorage, agents: u64, logs: bool) -> f64 {
    let owner = Owner::new("reports");
    let until = now().plus(Duration::from_secs(3600));
    let mut fences = Vec::new();
    for agent in 0..agents {
        let new = NewRun {
            exclusive: false,
            takes_slot: false,
            ..new_run(agent)
        };
        let run = storage.enqueue(&new, now()).await.expect("queues").into_run();
        let admission = [Admission {
            run: run.id,
            slot: None,
        }];
        storage.claim(&owner, &admission, now(), until).await.expect("claims");
        let fence = Fence::issue(run.id, Holder::Agent { attempt: 1 });
        storage.report(&fence, &batch(1, None)).await.expect("begins");
        fences.push(fence);
    }
    let (began, count) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = fences
        .into_iter()
        .map(|fence| {
            let (storage, count) = (storage.clone(), count.clone());
            tokio::spawn(async move {
                let mut number = 1;
                while began.elapsed() < SPAN {
                    number += 1;
                    let offset = logs.then(|| (number - 2) * PIECE.len() as u64);
                    storage
                        .report(&fence, &batch(number, offset))
                        .await
                        .expect("is taken in");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("agent");
    }
    count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    println!(
        "reports per second, median [min–max] of {ROUNDS} pairs of {} s\n",
        SPAN.as_secs()
    );
    let cluster = Cluster::start_durable();
    let (mine, bank) = (cluster.database(), cluster.database());
    pgbench::fill(&cluster, bank.name());
    let options = Options::new().with_pool_size(16);
    let storage = SqlStorage::connect(&mine.url(), options).await.expect("connects");
    storage.migrate().await.expect("migrates");
    storage.prepare(now()).await.expect("prepares");
    let mut rows = Vec::new();
    for agents in AGENTS {
        for (what, logs) in [("a sign of life", false), ("1 KiB of log", true)] {
            let (mut our, mut commits) = (Figures::new(), Figures::new());
            for _ in 0..ROUNDS {
                commits.add(pgbench::rate(&cluster, bank.name(), 8, None, SPAN));
                our.add(ours(&storage, agents, logs).await);
            }
            rows.push(vec![
                what.to_owned(),
                agents.to_string(),
                our.to_string(),
                commits.to_string(),
                our.over(&commits).to_string(),
            ]);
        }
    }
    storage.close().await;
    table(&["report", "agents", "ours", "pgbench -N of 8", "ratio"], &rows);
}
