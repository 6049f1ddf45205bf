//! What is killed without warning, and what is left of a run afterwards.

use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::project;
use nix::sys::signal::Signal;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(240);
/// Lines that the counting project prints.
const LINES: u32 = 30_000;

fn counting(installation: &Installation) -> String {
    let yaml = project::dbt_project("counting");
    let count =
        "{% macro count(n) %}{% for i in range(n) %}{{ log('counted ' ~ i, info=true) }}{% endfor %}{% endmacro %}";
    project::repository(
        &installation.path().join("origin"),
        &[
            ("dbt_project.yml", yaml.as_str()),
            ("macros/count.sql", count),
            ("models/one.sql", "select 1 as id"),
        ],
    )
}

fn agents(installation: &Installation) -> usize {
    installation
        .processes()
        .iter()
        .filter(|process| process.is_agent())
        .count()
}

/// Every number exactly once, in order.
fn assert_counted(log: &str) {
    let numbers: Vec<u32> = log
        .lines()
        .filter_map(|line| line.split("counted ").nth(1))
        .map(|number| number.trim().parse().unwrap())
        .collect();
    assert_eq!(numbers.len(), LINES as usize, "lines lost or doubled");
    assert!(numbers.iter().copied().eq(0..LINES), "lines out of order");
}

#[tokio::test]
async fn a_server_killed_ten_times_loses_no_byte_of_a_run_and_starts_no_second_dbt() {
    let seed = u64::from(std::process::id()) * 2_654_435_761;
    println!("seed {seed}");
    let mut state = seed;
    let mut installation = Installation::new();
    // A server that comes back may find a request of the agent cut off in the middle.
    installation.expected = vec!["agent request failed"];
    installation.start().await;
    let repository = counting(&installation);
    let api = installation.api().clone();
    let count = format!("dbt run-operation count --args '{{n: {LINES}}}'");
    let job = installation.job(&repository, &["dbt build", &count]).await;
    let run = api.trigger(job).await;
    for kill in 0..10 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The moment is random by intent: this is not a wait for anything.
        tokio::time::sleep(Duration::from_millis(50 + (state >> 33) % 700)).await;
        installation.kill_server();
        assert!(agents(&installation) <= 1, "two agents after kill {kill}");
        installation.start().await;
    }
    let ended = api.ended(run, LIMIT).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    let step = ended["run_steps"][4]["id"].as_i64().unwrap();
    let step = api.get(&format!("v2/accounts/{{a}}/steps/{step}/")).await;
    assert_counted(step["logs"].as_str().unwrap());
    let executions = std::fs::read_dir(installation.path().join("executions"))
        .unwrap()
        .flatten();
    let names: Vec<_> = executions
        .map(|one| one.file_name())
        .filter(|name| *name != *format!("run-{run}-1"))
        .collect();
    assert!(
        names.iter().all(|name| !name.to_string_lossy().starts_with("run-")),
        "{names:?}"
    );
    installation.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_ends_its_run_as_an_error_that_says_so_and_leaves_no_dbt() {
    let mut installation = Installation::new();
    installation.start().await;
    let slow = project::slow(&installation.path().join("slow"), 4, 400_000_000);
    let api = installation.api().clone();
    let job = installation.job(&slow, &["dbt run"]).await;
    let run = api.trigger(job).await;
    api.until(run, LIMIT, |run| run["run_steps"][3]["status"] == json!(3))
        .await;
    let agent = installation
        .processes()
        .into_iter()
        .find(|process| process.command.get(1).is_some_and(|role| role == "agent"))
        .expect("an agent is at work");
    agent.signal(Signal::SIGKILL);
    // One lease is 15 s.
    let ended = api.ended(run, Duration::from_secs(15)).await;
    assert_eq!(ended["status"], json!(20), "{ended:#}");
    let message = ended["status_message"].as_str().unwrap();
    assert!(message.contains("signal 9") || message.contains("137"), "{message}");
    let folder = installation.path().join("work").join(format!("run-{run}-1"));
    until(Duration::from_secs(30), || async {
        let left = installation.processes();
        left.iter()
            .all(|process| !process.mentions(&folder.display().to_string()))
            .then_some(())
            .ok_or(left)
    })
    .await;
    // The next run of the job is not held up by anything that was left.
    let next = api
        .post(
            &format!("v2/accounts/{{a}}/jobs/{job}/run/"),
            &json!({"steps_override": ["dbt ls"]}),
        )
        .await;
    let next = api.ended(next["id"].as_i64().unwrap(), LIMIT).await;
    assert_eq!(next["status"], json!(10), "{next:#}");
    installation.stop().await;
}

#[tokio::test]
async fn a_run_finishes_while_the_server_is_away() {
    let mut installation = Installation::new();
    installation.expected = vec!["agent request failed"];
    installation.start().await;
    let repository = counting(&installation);
    let api = installation.api().clone();
    let count = format!("dbt run-operation count --args '{{n: {LINES}}}'");
    let job = installation.job(&repository, &[&count]).await;
    let run = api.trigger(job).await;
    api.until(run, LIMIT, |run| run["run_steps"][3]["status"] == json!(3))
        .await;
    installation.kill_server();
    // dbt works on; its results wait with the agent.
    let results = installation.path().join("work").join(format!("run-{run}-1"));
    until(LIMIT, || async {
        let dbt_done = !installation
            .processes()
            .iter()
            .any(|process| process.mentions("run-operation"));
        (dbt_done || !results.exists()).then_some(()).ok_or("dbt works")
    })
    .await;
    installation.start().await;
    let ended = api.ended(run, LIMIT).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    let step = ended["run_steps"][3]["id"].as_i64().unwrap();
    let step = api.get(&format!("v2/accounts/{{a}}/steps/{step}/")).await;
    assert_counted(step["logs"].as_str().unwrap());
    installation.stop().await;
}
