//! From the request that triggers a job to its work beginning, on an idle server, beside the floor of
//! starting a process at all (`/bin/true`, from before the fork to its end).
//!
//! The clock starts just before the client sends the POST. Four marks follow:
//! - *claimed*: `dequeued_at`, the instant at which the scheduler took the run out of the queue;
//! - *supervised*: the executor's supervisor of the agent runs (its `started` file is there);
//! - *agent*: `started_at`, when the control plane took in the agent's first report, so its process had
//!   started, redeemed its ticket, and spoken;
//! - *work*: the first program of the run itself (`git`) has started, by a stamp it writes.
//!
//! That `git` fails on purpose, so that a run is over at once; every run is the first of an idle server. As
//! on any host in use, a warm dbt parent is up: the first run waits in `git` until it is, unmeasured.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_benches::program;
use dbtcloud_benches::server::{self, Server};
use dbtcloud_tests::installation::Installation;
use serde_json::Value;

const SAMPLES: u64 = 120;
const WARM_UP: u64 = 5;
/// Fewer runs of a job than it takes failures to be deactivated.
const RUNS_PER_JOB: u64 = 5;
const LOOK_AGAIN: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(60);

/// A `git` that says when it was started, waits while there is a file `hold`, and fails.
fn stamping_git(folder: &Path) -> PathBuf {
    let (stamp, hold) = (folder.join("stamp"), folder.join("hold"));
    let script = format!(
        "#!/bin/sh\n[ -e '{0}' ] || date +%s%N >'{0}'\nwhile [ -e '{1}' ]; do sleep 0.1; done\nexit 1\n",
        stamp.display(),
        hold.display()
    );
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("git"), script).unwrap();
    std::fs::set_permissions(bin.join("git"), std::fs::Permissions::from_mode(0o755)).unwrap();
    stamp
}

fn instant(run: &Value, field: &str) -> DateTime<Utc> {
    let text = run[field]
        .as_str()
        .unwrap_or_else(|| panic!("the run has no {field}: {run:#}"));
    let parsed = DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%:z");
    parsed.unwrap_or_else(|error| panic!("{text}: {error}")).to_utc()
}

fn millis(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).as_seconds_f64() * 1e3
}

/// Waits, on a thread of its own, until a file is there.
fn appeared(path: PathBuf) -> DateTime<Utc> {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < PATIENCE, "{} does not appear", path.display());
        std::thread::sleep(LOOK_AGAIN);
    }
    Utc::now()
}

/// Whether there is a socket somewhere below a folder.
fn has_socket(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => has_socket(&entry.path()),
        Ok(kind) => kind.is_socket(),
        Err(_) => false,
    })
}

/// Lets one run begin, and end once the warm parent that its agent starts listens.
async fn warm_up(installation: &Installation, folder: &Path) {
    let hold = folder.join("hold");
    std::fs::write(&hold, "").unwrap();
    let job = installation.job("file:///no/such/repository", &["dbt build"]).await;
    let run = installation.api().trigger(job).await;
    let began = Instant::now();
    while !has_socket(&installation.path().join("cache")) {
        assert!(began.elapsed() < PATIENCE, "there is no warm parent");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It listens; its answer to the agent that waits for it takes no longer than this.
    tokio::time::sleep(Duration::from_secs(2)).await;
    std::fs::remove_file(hold).unwrap();
    server::ended(installation, run).await;
}

#[tokio::main]
async fn main() {
    server::build();
    let folder = tempfile::tempdir().unwrap();
    let stamp = stamping_git(folder.path());
    let installation = Installation::new();
    let path = format!(
        "{}:{}",
        folder.path().join("bin").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let (server, _) = Server::start(&installation, &[("PATH", path)]);

    warm_up(&installation, folder.path()).await;
    let mut marks = [const { Vec::<f64>::new() }; 5];
    let mut job = 0;
    for n in 0..WARM_UP + SAMPLES {
        if n % RUNS_PER_JOB == 0 {
            job = installation.job("file:///no/such/repository", &["dbt build"]).await;
        }
        // Idle, and at another place of the scheduler's second each time.
        tokio::time::sleep(Duration::from_millis(300 + n * 37 % 400)).await;
        let _ = std::fs::remove_file(&stamp);

        let floor = program::seconds(&mut Command::new("/bin/true")) * 1e3;
        let began = Utc::now();
        let run = installation.api().trigger(job).await;
        let execution = installation.path().join(format!("executions/run-{run}-1"));
        let supervised = tokio::task::spawn_blocking({
            let started = execution.join("started");
            move || appeared(started)
        });
        let supervised = supervised.await.unwrap();
        let seen = server::ended(&installation, run).await;
        let nanos: i64 = std::fs::read_to_string(&stamp).unwrap().trim().parse().unwrap();
        while execution.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if n >= WARM_UP {
            let work = DateTime::from_timestamp_nanos(nanos);
            let at = |field: &str| millis(began, instant(&seen, field));
            let sample = [
                floor,
                at("dequeued_at"),
                millis(began, supervised),
                at("started_at"),
                millis(began, work),
            ];
            for (mark, value) in marks.iter_mut().zip(sample) {
                mark.push(value);
            }
        }
    }
    server.stop();

    println!("dispatch: milliseconds from the API trigger, idle server, n = {SAMPLES}\n");
    let figures = marks.map(|values| {
        values.into_iter().fold(Figures::new(), |mut all, value| {
            all.add(value);
            all
        })
    });
    let floor = &figures[0];
    let names = [
        "floor: spawn /bin/true",
        "claimed",
        "supervised",
        "agent reported",
        "work began (git)",
    ];
    let rows: Vec<Vec<String>> = names
        .iter()
        .zip(&figures)
        .map(|(name, all)| {
            let of = |share| format!("{:.2}", all.quantile(share));
            vec![
                (*name).to_owned(),
                of(0.5),
                of(0.99),
                of(0.0),
                of(1.0),
                all.over(floor).to_string(),
            ]
        })
        .collect();
    table(&["mark", "p50", "p99", "min", "max", "over the floor, pairwise"], &rows);
}
