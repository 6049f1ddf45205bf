//! Limits: memory does not grow with the length of a log, and a full disk is told, not suffered.

use std::time::Duration;

use dbtcloud_tests::disk::SmallDisk;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::{processes, project};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(280);
/// What a process may use beyond what it uses when idle.
const ALLOWANCE: u64 = 150 * 1024 * 1024;
const GIB: u64 = 1_000_000_000;

/// A project whose warehouse prints as many gigabytes as it is told to on dbt's own standard output.
fn loud(installation: &Installation) -> String {
    let yaml = project::dbt_project("loud");
    let shout = "{% macro shout(gb) %}{% do run_query(\"copy (select repeat('x', 999) as line from range(\" ~ \
                 (gb * 1000000) ~ \")) to '/dev/stdout' (format csv, header false)\") %}{% endmacro %}";
    project::repository(
        &installation.path().join("origin"),
        &[
            ("dbt_project.yml", yaml.as_str()),
            ("macros/shout.sql", shout),
            ("models/one.sql", "select 1 as id"),
        ],
    )
}

#[tokio::test]
async fn a_gigabyte_of_log_is_taken_in_whole_with_flat_memory() {
    let mut installation = Installation::new();
    installation.start().await;
    let api = installation.api().clone();
    let repository = loud(&installation);
    let job = installation
        .job(&repository, &["dbt run-operation shout --args '{gb: 1}'"])
        .await;
    let (idle, _) = processes::memory(installation.pid()).unwrap();
    let run = api.trigger(job).await;
    let mut agent_highest = 0;
    let is_agent = |process: &processes::Process| process.command.get(1).is_some_and(|role| role == "agent");
    let ended = loop {
        for agent in installation.processes().iter().filter(|process| is_agent(process)) {
            agent_highest = agent_highest.max(processes::memory(agent.pid).map_or(0, |(_, highest)| highest));
        }
        let seen = api.until(run, LIMIT, |_| true).await;
        if seen["is_complete"] == json!(true) {
            break seen;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(ended["status"], json!(10), "{}", ended["status_message"]);
    let (_, server_highest) = processes::memory(installation.pid()).unwrap();
    println!("server: idle {idle}, highest {server_highest}; agent: highest {agent_highest} bytes");
    assert!(
        server_highest < idle + ALLOWANCE,
        "server: idle {idle}, highest {server_highest}"
    );
    assert!(
        agent_highest > 0 && agent_highest < ALLOWANCE,
        "agent: highest {agent_highest}"
    );

    // The log is whole: its end is there, and its length is what was printed and a few lines of dbt's and ours.
    let tail = api
        .get(&format!("v2/accounts/{{a}}/steps/{}/", ended["run_steps"][3]["id"]))
        .await;
    assert!(
        tail["logs"].as_str().unwrap().contains("[exit code 0"),
        "the end of the log is there"
    );
    let length = log_length(&installation, run).await;
    assert!((GIB..GIB + 100_000).contains(&length), "{length}");
    installation.stop().await;
}

/// The length of the fourth step's log: where the live tail ends.
async fn log_length(installation: &Installation, run: i64) -> u64 {
    // The database knows it without reading it.
    let url = format!("sqlite://{}", installation.path().join("dbtcloud.db").display());
    let storage = dbtcloud_sql::SqlStorage::connect(&url, Default::default())
        .await
        .unwrap();
    let account = dbtcloud_core::id::AccountId::new(installation.api().account);
    let steps = dbtcloud_core::ports::Runs::steps(&storage, account, dbtcloud_core::id::RunId::new(run))
        .await
        .unwrap();
    steps[3].log_bytes
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_was_stored_stays() {
    let mut installation = Installation::new();
    // The disk that fills up is the artifact store's; the database is beside it and must go on.
    let disk = SmallDisk::mount(&installation.path().join("artifacts"), 1);
    installation.expected = vec!["No space left", "no space left", "disk full", "agent request failed"];
    installation.start().await;
    let api = installation.api().clone();
    let repository = project::repository_of(&project::harbour(), &installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    let first = api.ended(api.trigger(job).await, LIMIT).await;
    assert_eq!(
        first["status"],
        json!(10),
        "a full artifact store fails no run: {first:#}"
    );
    let log = first["run_steps"][3]["logs"].as_str().unwrap();
    assert!(
        log.to_lowercase().contains("no space left"),
        "the log says what was not kept: {log}"
    );
    drop(disk);
    let second = api.ended(api.trigger(job).await, LIMIT).await;
    assert_eq!(second["status"], json!(10), "{second:#}");
    let artifacts = api
        .get(&format!("v2/accounts/{{a}}/runs/{}/artifacts/", second["id"]))
        .await;
    assert!(
        artifacts.as_array().unwrap().iter().any(|path| path == "manifest.json"),
        "{artifacts}"
    );
    installation.stop().await;
}
