//! The main job: `dbt seed`, `dbt run`, `dbt test`, `dbt docs generate` of the sample project on DuckDB, by
//! the server, beside the same four plain `dbt` commands by hand in the same dbt environment.
//!
//! What each side includes is in `benches/README.md`; the arms take turns, and every round begins with
//! another one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_benches::program;
use dbtcloud_benches::server::{self, Server};
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::{processes, project};
use serde_json::{Value, json};

const ROUNDS: usize = 5;
const COMMANDS: [&str; 4] = ["dbt seed", "dbt run", "dbt test", "dbt docs generate"];
const THREADS: u32 = 4;

/// Somebody at a terminal, with the dbt that jobs use.
struct Hand {
    dbt: PathBuf,
    folder: PathBuf,
    repository: String,
}

impl Hand {
    fn new(dbt: PathBuf, folder: PathBuf, repository: &str) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let profile = json!({"default": {"target": "prod", "outputs": {"prod": {
            "type": "duckdb", "path": folder.join("warehouse.duckdb"), "schema": "analytics", "threads": THREADS,
        }}}});
        // JSON is YAML.
        std::fs::write(folder.join("profiles.yml"), profile.to_string()).unwrap();
        Self {
            dbt,
            folder,
            repository: repository.to_owned(),
        }
    }

    fn run(&self, checkout: &Path, command: &str) -> f64 {
        let mut words = command.split(' ').skip(1);
        let mut dbt = Command::new(&self.dbt);
        // A small environment: dbt is slower in a large one.
        dbt.args(&mut words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.folder)
            .env("LANG", "C.UTF-8")
            .env("DBT_PROFILES_DIR", &self.folder)
            .env("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
            .current_dir(checkout);
        program::seconds(&mut dbt)
    }

    /// Clones and installs packages; the seconds that took.
    fn check_out(&self, checkout: &Path) -> f64 {
        let _ = std::fs::remove_dir_all(checkout);
        let began = Instant::now();
        program::said(
            Command::new("git")
                .args(["clone", "--quiet", &self.repository])
                .arg(checkout),
        );
        self.run(checkout, "dbt deps");
        began.elapsed().as_secs_f64()
    }

    fn commands(&self, checkout: &Path) -> f64 {
        COMMANDS.iter().map(|command| self.run(checkout, command)).sum()
    }
}

async fn job(installation: &Installation, repository: &str) -> i64 {
    let warehouse = installation.path().join("warehouse.duckdb").display().to_string();
    let connection = json!({"name": "DuckDB", "adapter_version": "duckdb_v0", "config": {"path": warehouse}});
    let credentials = json!({"adapter_version": "duckdb_v0", "schema": "analytics", "threads": THREADS});
    let more = json!({"settings": {"threads": THREADS, "target_name": "prod"}});
    installation
        .job_on(repository, &COMMANDS, &connection, &credentials, &more)
        .await
}

async fn succeeds(installation: &Installation, job: i64) -> (f64, i64) {
    let (run, seconds) = server::run(installation, job).await;
    if run["is_success"] != Value::Bool(true) {
        let whole = installation.api().run(run["id"].as_i64().unwrap()).await.unwrap_or(run);
        let log = std::fs::read_to_string(installation.log()).unwrap_or_default();
        panic!("the run failed: {whole:#}\n{log}");
    }
    (seconds, run["id"].as_i64().unwrap())
}

fn warm_parents(installation: &Installation) -> Vec<processes::Process> {
    let all = installation.processes().into_iter();
    all.filter(|process| process.mentions("warm_parent")).collect()
}

/// Makes the host one on which no run has been, but for the dbt environment: no warm parent, no mirror of
/// the repository, no parse state.
async fn forget(installation: &Installation) {
    while !warm_parents(installation).is_empty() {
        for parent in warm_parents(installation) {
            let _ = Command::new("kill").args(["-KILL", &parent.pid.to_string()]).status();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for entry in std::fs::read_dir(installation.path().join("cache")).unwrap() {
        let entry = entry.unwrap();
        // The dbt environments are a link to what every installation of this checkout shares.
        if entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[tokio::main]
async fn main() {
    server::build();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("repository");
    let repository = project::repository_of(&project::harbour(), &source);

    let (warm, first, plain) = (Installation::new(), Installation::new(), Installation::new());
    let (warm_server, _) = Server::start(&warm, &[]);
    let (first_server, _) = Server::start(&first, &[]);
    let (plain_server, _) = Server::start(&plain, &[("DBTCLOUD_WARM", "false".to_owned())]);
    let jobs = [
        job(&warm, &repository).await,
        job(&first, &repository).await,
        job(&plain, &repository).await,
    ];

    // Once unmeasured, for every arm: environments are built, caches of the machine are filled.
    succeeds(&warm, jobs[0]).await;
    succeeds(&first, jobs[1]).await;
    succeeds(&plain, jobs[2]).await;
    let plain_is_plain = warm_parents(&plain).is_empty();
    let hand = Hand::new(server::dbt(), folder.path().join("hand"), &repository);
    let (kept, fresh) = (hand.folder.join("kept"), hand.folder.join("fresh"));
    hand.check_out(&kept);
    hand.commands(&kept);

    let names = [
        "server, warm",
        "server, first run of a host",
        "server, never warm",
        "by hand, kept checkout: 4 commands",
        "by hand, fresh checkout: 4 commands",
        "by hand, fresh checkout: clone + deps + 4 commands",
    ];
    let mut arms = names.map(|_| Figures::new());
    let mut last_warm = 0;
    for round in 0..ROUNDS {
        for turn in 0..5 {
            match (round + turn) % 5 {
                0 => {
                    let (seconds, run) = succeeds(&warm, jobs[0]).await;
                    arms[0].add(seconds);
                    last_warm = run;
                }
                1 => {
                    forget(&first).await;
                    arms[1].add(succeeds(&first, jobs[1]).await.0);
                }
                2 if plain_is_plain => arms[2].add(succeeds(&plain, jobs[2]).await.0),
                3 => arms[3].add(hand.commands(&kept)),
                4 => {
                    let before = hand.check_out(&fresh);
                    let commands = hand.commands(&fresh);
                    arms[4].add(commands);
                    arms[5].add(before + commands);
                }
                _ => {}
            }
        }
        eprintln!("round {} of {ROUNDS}", round + 1);
    }

    println!(
        "main_job: {}; seconds, median [min–max] of {ROUNDS} rounds\n",
        COMMANDS.join(", ")
    );
    let rows: Vec<Vec<String>> = names
        .iter()
        .zip(&arms)
        .filter(|(_, arm)| arm.count() > 0)
        .map(|(name, arm)| {
            let over = |hand: &Figures| arm.over(hand).to_string();
            vec![
                (*name).to_owned(),
                arm.to_string(),
                over(&arms[3]),
                over(&arms[4]),
                over(&arms[5]),
            ]
        })
        .collect();
    table(
        &[
            "arm",
            "seconds",
            "over kept",
            "over fresh, 4 commands",
            "over fresh, all",
        ],
        &rows,
    );
    if !plain_is_plain {
        println!("\nnot measured: never warm (DBTCLOUD_WARM=false of the server does not reach its agents)");
    }

    let run = warm.api().run(last_warm).await.unwrap_or_default();
    println!("\nthe last warm run, step by step:");
    for step in run["run_steps"].as_array().into_iter().flatten() {
        println!(
            "  {} {} {}–{}",
            step["name"], step["status_humanized"], step["started_at"], step["finished_at"]
        );
    }
    for server in [warm_server, first_server, plain_server] {
        server.stop();
    }
}
