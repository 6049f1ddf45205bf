//! Chaos on real processes: gateway, apps, schedulers, cleanup, agents, PostgreSQL and the object store are killed, paused
//! and restarted as a seed says, while many runs are due. Afterwards every run is accounted for. See `tests/CHAOS.md`.

mod audit;
mod people;
mod plan;
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plan::Dice;
use stage::{ROLES, Stage};

/// How long the storm of `make test` is; `DBTCLOUD_CHAOS_SECONDS` says otherwise.
const STORM: u64 = 20;
/// From one herd to the next.
const HERD_EVERY: Duration = Duration::from_secs(7);
/// Milliseconds between two runs that somebody of an account sets off.
const ASK_EVERY: (u64, u64) = (400, 4_000);

fn told(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn whatever_is_killed_every_run_is_accounted_for() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = told("DBTCLOUD_SEED").unwrap_or(clock.unwrap().as_secs());
    let span = Duration::from_secs(told("DBTCLOUD_CHAOS_SECONDS").unwrap_or(STORM));
    println!(
        "again: DBTCLOUD_SEED={seed} DBTCLOUD_CHAOS_SECONDS={} cargo nextest run --profile long -p dbtcloud-tests \
         --test chaos --no-capture",
        span.as_secs()
    );
    let plan = plan::plan(seed, span, &ROLES);
    let began = Instant::now();
    let mut stage = Stage::new(seed, &plan).await;
    println!("everything is up after {:.1?}", began.elapsed());
    let enough = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let (mut asking, mut herd, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    for (number, tenant) in (2_000..).zip(&stage.tenants) {
        let (api, jobs, dice) = (tenant.api.clone(), tenant.triggered.clone(), Dice::new(seed, number));
        asking.push(tokio::spawn(people::trigger(
            api,
            jobs,
            dice,
            ASK_EVERY,
            enough.clone(),
        )));
        herd.extend(&tenant.herd);
        slots.push((tenant.api.account, tenant.slots));
    }
    let herd = tokio::spawn(people::herd(stage.database.clone(), herd, HERD_EVERY, enough.clone()));
    let watched = tokio::spawn(people::watch(stage.database.clone(), slots, enough.clone()));
    stage.storm(&plan, span).await;
    let mut asked = Vec::new();
    enough.store(true, Ordering::Relaxed);
    for asking in asking {
        asked.extend(asking.await.unwrap());
    }
    let (due, looks) = (herd.await.unwrap(), watched.await.unwrap());
    let stormed = began.elapsed();
    stage.calm().await;
    let settled = began.elapsed() - stormed;
    println!(
        "settled {settled:.1?} after a storm of {stormed:.1?}; executions left to cleanup: {:?}",
        stage.left()
    );
    let found = audit::audit(&stage, &asked, &due).await;
    stage.finish().await;
    println!("| seed | storm | settled after | what | count |\n|---|---|---|---|---|");
    let faults = plan::count(&plan, &ROLES);
    let ours = [
        (
            "servers that had to wait for what they need".to_owned(),
            stage.started_again,
        ),
        ("looks at the slots".to_owned(), looks),
    ];
    for (what, count) in faults.into_iter().chain(ours).chain(found) {
        println!("| {seed} | {stormed:.0?} | {settled:.0?} | {what} | {count} |");
    }
}
