//! Every call of an executor and every request of an agent, each made twice by the real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use dbtcloud_tests::{api, fake, project};
use serde_json::{Value, json};

use crate::stage::{Base, LIMIT, Stage};

/// How they are made (see the module `failpoint` of the core), and what then becomes of each.
const WAYS: [(&str, &str); 3] = [("answered", "twice"), ("together", "twice"), ("lost", "lost")];
/// What servers say of answers that are lost to them; agents say it in logs of their own.
const LOST: &str = "a test lost the answer";
/// Sources that make calls to the outside.
const SOURCES: [&str; 2] = ["dbtcloud-server/src/twice.rs", "dbtcloud-runtime/src/agent/uplink.rs"];
/// What a command leaves as its results.
const RESULTS: &[u8] = b"{\"metadata\": {}, \"results\": []}\n";

/// The names of all such calls, read from the sources.
fn calls() -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for source in SOURCES {
        let source = std::fs::read_to_string(project::workspace().join(source)).unwrap();
        for rest in source.split("failpoint::call(").skip(1) {
            let names: Vec<&str> = rest.split('"').skip(1).step_by(2).take(2).collect();
            calls.insert(names.join("."));
        }
    }
    assert!(calls.len() >= 9, "too few to be all: {calls:?}");
    calls
}

/// Jobs beside those of the stage.
struct Jobs {
    /// Writes down what it does.
    marking: i64,
    /// Fails, and is retried.
    failing: i64,
}

/// The workload in each way, on one installation.
pub async fn each_way(base: Base) {
    let mut stage = Stage::new(base).await;
    let root: PathBuf = stage.installation.path().to_owned();
    let marks = root.join("marks");
    stage.installation.expected.push(LOST);
    stage.installation.start().await;
    let marking = fake::marking(&root.join("marking"), &marks);
    let failing = fake::repository(&root.join("failing"));
    let jobs = Jobs {
        marking: stage.installation.job(&marking, &["dbt run"]).await,
        failing: stage.installation.job(&failing, &["dbt test"]).await,
    };
    stage.installation.stop().await;
    for (way, moment) in WAYS {
        let began = Instant::now();
        let seen = root.join(format!("seen-{way}"));
        stage.installation.environment = vec![
            ("DBTCLOUD_CALLS", way.to_owned()),
            ("DBTCLOUD_FAILPOINTS_SEEN", seen.display().to_string()),
        ];
        stage.work().await;
        stage.let_time_pass().await;
        let retried = more(&mut stage, &jobs, &seen).await;
        stage.settle(way).await;
        let seen = std::fs::read_to_string(&seen).unwrap();
        let seen: BTreeSet<&str> = seen.lines().collect();
        let missed: Vec<_> = calls()
            .into_iter()
            .filter(|call| !seen.contains(format!("{call}.{moment}").as_str()))
            .collect();
        assert_eq!(missed, [""; 0], "{way}: calls that the workload does not make");
        check(&mut stage, way, retried, &marks).await;
        println!("{way}: {:?}", began.elapsed());
    }
    stage.finish().await;
}

/// What the stage's own work leaves out: a run that says what it did, one that is retried, and one that is stopped
/// before its agent could say a word, so that the executor has to. The retry.
async fn more(stage: &mut Stage, jobs: &Jobs, seen: &Path) -> i64 {
    stage.installation.start().await;
    stage.stop_sleepers().await;
    for _ in 0..2 {
        stage.trigger(jobs.marking).await.unwrap();
    }
    let failed = stage.trigger(jobs.failing).await.unwrap();
    stage.until_idle().await;
    let retried = stage
        .post(&format!("v2/accounts/{{a}}/runs/{failed}/retry/"), &json!({}))
        .await;
    let retried = retried.expect("a failed run can be retried")["id"].as_i64().unwrap();
    stage.until_idle().await;

    let began = Instant::now();
    while !std::fs::read_to_string(seen).unwrap().contains("executor.cancel.") {
        assert!(
            began.elapsed() < LIMIT,
            "every agent was quicker than who stopped its run"
        );
        let run = stage.trigger(jobs.marking).await.unwrap();
        while stage.installation.api().run(run).await.unwrap()["status"] == json!(1) {
            tokio::task::yield_now().await;
        }
        let path = format!("v2/accounts/{{a}}/runs/{run}/cancel/");
        stage.post(&path, &json!({})).await.unwrap();
        stage.until_idle().await;
    }
    stage.installation.stop().await;
    retried
}

/// One execution for each attempt, all of what it printed once, and its files whole.
async fn check(stage: &mut Stage, way: &str, retried: i64, marks: &Path) {
    let marks = std::fs::read_to_string(marks).unwrap();
    let mut happened: BTreeMap<(&str, &str, &str), u32> = BTreeMap::new();
    for mark in marks.lines() {
        let words: Vec<&str> = mark.split(' ').collect();
        *happened.entry((words[2], words[3], words[1])).or_default() += 1;
    }
    let again: Vec<_> = happened.iter().filter(|(_, count)| **count != 1).collect();
    assert!(again.is_empty(), "{way}: not done once: {again:?}");
    assert!(happened.len() >= 4, "{way}: nothing was done: {happened:?}");

    let statement = "SELECT CAST(id AS TEXT) FROM runs WHERE status = 'success' ORDER BY id DESC LIMIT 8";
    let well: Vec<i64> = stage
        .ask(statement)
        .await
        .iter()
        .map(|id| id.parse().unwrap())
        .collect();
    assert!(well.len() >= 4, "{way}: few runs went well: {well:?}");
    stage.installation.start().await;
    let mut marked = 0;
    for run in well.iter().chain([&retried]) {
        let seen = stage.installation.api().run(*run).await.unwrap();
        assert_eq!(
            seen["status_humanized"],
            json!("Success"),
            "{way}: {:?}",
            api::steps(&seen)
        );
        let command = step_of(&seen);
        let log = command["logs"].as_str().unwrap_or_default();
        if log.contains(" says ") {
            let said: String = log
                .lines()
                .filter(|line| line.contains(" says "))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(
                said,
                fake::said(&format!("run-{run}-1"), "run"),
                "{way}: log of run {run}"
            );
            marked += 1;
        } else {
            assert!(fake::is_whole(log), "{way}: log of run {run}: {log}");
        }
        let path = format!("v2/accounts/{{a}}/runs/{run}/artifacts/run_results.json");
        let results = stage.installation.api().bytes(&path).await;
        assert_eq!(results, RESULTS, "{way}: results of run {run}");
    }
    assert!(
        marked >= 2,
        "{way}: the runs that say what they do are not among {well:?}"
    );
    stage.installation.stop().await;
}

/// The step of the run's last command.
fn step_of(run: &Value) -> &Value {
    run["run_steps"].as_array().unwrap().last().unwrap()
}
