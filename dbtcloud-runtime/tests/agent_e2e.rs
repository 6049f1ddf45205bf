//! A run from ticket to outcome with the real engine, real dbt and duckdb. Skipped where dbt cannot be had: it needs
//! `uv` and the dbt environments of the workspace's `.cache`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    reason = "tests fail loudly"
)]

mod agent_support;
mod protocol {
    pub use dbtcloud_runtime::protocol::*;
}

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_support::plane::Plane;
use agent_support::{LIMIT, config, plan, repository};
use dbtcloud_contract::wait::until;
use dbtcloud_core::run::{RunEvent, RunStatus, StepStatus};
use dbtcloud_runtime::agent::{self, AgentConfig, AgentExit};
use dbtcloud_runtime::protocol::RunPlan;
use serde_json::json;

const SECRET: &str = "sesame-open-sesame";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

struct Stage {
    dir: tempfile::TempDir,
    plane: Plane,
    config: AgentConfig,
}

/// `None` where there is no dbt.
fn stage(files: &[(&str, &str)], commands: &[&str], adjust: impl FnOnce(&mut RunPlan)) -> Option<Stage> {
    let cache = workspace().join(".cache");
    if !cache.join("dbt-envs").is_dir() {
        eprintln!("skipped: no dbt environments in {}", cache.display());
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let project = "name: shop\nversion: '1.0'\nprofile: whatever\nmodel-paths: [models]\nseed-paths: [seeds]\n";
    let mut all = vec![("dbt_project.yml", project)];
    all.extend(files);
    let repo = repository(dir.path(), &all);
    let mut made = plan(&repo, commands);
    made.dbt_version = "latest".into();
    made.secrets.push(SECRET.into());
    adjust(&mut made);
    let plane = Plane::new(dir.path(), Some(made));
    let mut config = config(dir.path(), &plane.server());
    // Its own caches, with the environments that are there.
    std::fs::create_dir_all(&config.cache_dir).unwrap();
    std::os::unix::fs::symlink(cache.join("dbt-envs"), config.cache_dir.join("dbt-envs")).unwrap();
    config.uv = Some(cache.join("tools/bin/uv"));
    Some(Stage { dir, plane, config })
}

impl Stage {
    async fn run(&self) -> AgentExit {
        let exit = tokio::time::timeout(LIMIT * 4, agent::run(self.config.clone()))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(self.plane.seen().wrong, Vec::<String>::new());
        exit
    }

    fn artifact(&self, step: u32, path: &str) -> serde_json::Value {
        serde_json::from_slice(&self.plane.seen().artifacts[&(step, path.to_owned())]).unwrap()
    }
}

#[tokio::test]
async fn a_project_is_built_documented_and_found_warm_and_parsed_the_second_time() {
    let files = [
        ("seeds/people.csv", "id,name\n1,ann\n2,bob\n"),
        (
            "models/a.sql",
            "select id, '{{ env_var('DBT_PLAIN') }}' as plain from {{ ref('people') }}",
        ),
        (
            "models/b.sql",
            "{{ log('secret: ' ~ var('s', 'none'), info=true) }} select * from {{ ref('a') }}",
        ),
        (
            "models/schema.yml",
            "models:\n  - name: b\n    columns:\n      - name: id\n        data_tests:\n          - unique\n          - accepted_values:\n              arguments: {values: [1]}\n              config: {severity: warn}\n",
        ),
    ];
    let commands = [&format!("dbt build --vars '{{s: {SECRET}}}'"), "dbt docs generate"];
    let Some(mut stage) = stage(&files, &commands, |plan| {
        plan.variables.insert("DBT_PLAIN".into(), "plain".into());
        plan.variables
            .insert("DBT_ENV_CUSTOM_ENV_DBT_CLOUD_RUN_ID".into(), "5".into());
    }) else {
        return;
    };
    // The parent leaves when this test's folder, and with it its interpreter, is gone.
    stage.config.warm = true;
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let log = stage.plane.log(4);
    assert_eq!(stage.plane.seen().status, Some(RunStatus::Warned), "{log}");
    assert_eq!(stage.plane.last(4).status, StepStatus::Warned);
    assert_eq!(
        stage.plane.last(5).status,
        StepStatus::Success,
        "{}",
        stage.plane.log(5)
    );
    assert!(log.contains("secret: *****") && !log.contains(SECRET), "{log}");
    assert_eq!(stage.plane.last(4).backend.as_deref(), Some("warm"), "{log}");
    let manifest = stage.artifact(4, "manifest.json");
    assert_eq!(manifest["metadata"]["adapter_type"], "duckdb");
    assert_eq!(manifest["metadata"]["env"]["DBT_CLOUD_RUN_ID"], "5");
    assert_eq!(
        stage.artifact(4, "run_results.json")["results"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
    assert!(stage.artifact(5, "catalog.json")["nodes"].is_object());
    {
        let seen = stage.plane.seen();
        assert!(seen.debug_logs[&4].len() > 1000);
        for bytes in seen.artifacts.values().chain(seen.debug_logs.values()) {
            assert!(!String::from_utf8_lossy(bytes).contains(SECRET));
        }
        assert_eq!(seen.patch.has_docs, Some(true));
        assert_eq!(
            seen.patch.dbt_version.as_deref().map(|version| &version[..5]),
            Some("1.11.")
        );
        let ended: Vec<&str> = seen
            .nodes
            .iter()
            .filter(|node| node.step == 4 && node.status != "started")
            .map(|node| node.name.as_str())
            .collect();
        assert_eq!(ended.len(), 5, "{ended:?}");
        assert!(
            seen.nodes
                .iter()
                .any(|node| node.status == "warn" && node.total == Some(5))
        );
    }

    // Again, by another agent of the same host: everything is there already.
    let second = Plane::new(
        tempfile::tempdir_in(stage.dir.path()).unwrap().keep().as_path(),
        stage.plane.seen().plan.clone(),
    );
    let mut config = config(stage.dir.path(), &second.server());
    config.uv = stage.config.uv.clone();
    config.warm = true;
    let began = std::time::Instant::now();
    assert_eq!(agent::run(config).await.unwrap(), AgentExit::Delivered);
    eprintln!("second run: {:?}", began.elapsed());
    let debug = String::from_utf8_lossy(&second.seen().debug_logs[&4]).into_owned();
    assert!(debug.contains("Partial parsing enabled"), "parse state was reused");
    assert!(!debug.contains("Unable to do partial parsing"), "{debug}");
}

#[tokio::test]
async fn a_failing_model_is_named_and_its_artifacts_are_kept() {
    let files = [
        ("models/good.sql", "select 1 as id"),
        ("models/bad.sql", "select * from nowhere"),
    ];
    let Some(stage) = stage(&files, &["dbt run", "dbt test"], |_| {}) else {
        return;
    };
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let seen = stage.plane.seen();
    assert_eq!(seen.events, [RunEvent::Started, RunEvent::Failed]);
    assert!(
        seen.patch
            .message
            .clone()
            .unwrap()
            .ends_with("1 of 2 nodes failed: bad"),
        "{:?}",
        seen.patch.message
    );
    assert!(seen.artifacts.contains_key(&(4, "run_results.json".into())));
    assert_eq!(seen.steps[&4].last().unwrap().exit_code, Some(1));
    assert_eq!(seen.steps[&5].last().unwrap().status, StepStatus::Skipped);
}

#[tokio::test]
async fn dbts_own_word_is_the_message() {
    let Some(stage) = stage(&[("models/a.sql", "select {{ oops( }}")], &["dbt run"], |_| {}) else {
        return;
    };
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let step = stage.plane.last(4);
    assert_eq!((step.status, step.exit_code), (StepStatus::Error, Some(2)));
    assert!(step.message.clone().unwrap().contains("Compilation Error"), "{step:?}");
}

#[tokio::test]
async fn a_long_query_is_interrupted() {
    let slow = "{{ config(materialized='table') }} select count(*) as n from range(1000000) a, range(1000000) b where a.range + b.range = 3";
    let Some(stage) = stage(&[("models/slow.sql", slow)], &["dbt run"], |plan| {
        plan.grace_seconds = 10
    }) else {
        return;
    };
    let plane = stage.plane.clone();
    let cancel = async {
        until(LIMIT, || async {
            plane
                .seen()
                .nodes
                .iter()
                .any(|node| node.status == "started")
                .then_some(())
                .ok_or(())
        })
        .await;
        plane.seen().status = Some(RunStatus::Cancelling);
    };
    let (exit, ()) = tokio::join!(stage.run(), cancel);
    assert_eq!(exit, AgentExit::Delivered);
    let seen = stage.plane.seen();
    assert_eq!(seen.status, Some(RunStatus::Cancelled));
    let message = seen.patch.message.clone().unwrap();
    assert!(
        message.contains("dbt exited after the interrupt (exit code 2)"),
        "{message}"
    );
    // duckdb tells dbt in time to call it an error.
    assert!(
        ["interrupted", "error"].contains(&seen.nodes.last().unwrap().status.as_str()),
        "{:?}",
        seen.nodes
    );
}

#[tokio::test]
async fn a_failed_run_is_deferred_to_and_retried() {
    let files = [
        ("models/a.sql", "select 1 as id"),
        (
            "models/b.sql",
            "select {{ env_var('DBT_WHAT') }} as id from {{ ref('a') }}",
        ),
    ];
    let Some(first) = stage(&files, &["dbt run"], |plan| {
        plan.variables.insert("DBT_WHAT".into(), "nothing".into());
    }) else {
        return;
    };
    assert_eq!(first.run().await, AgentExit::Delivered);
    assert_eq!(first.plane.seen().status, Some(RunStatus::Error));
    let Some(second) = stage(&files, &["dbt retry"], |plan| {
        plan.variables.insert("DBT_WHAT".into(), "1".into());
        plan.state = Some(dbtcloud_runtime::protocol::StateUse::Retry);
        plan.profile.connection = json!({"path": first.dir.path().join("dw.duckdb")})
            .as_object()
            .unwrap()
            .clone();
    }) else {
        return;
    };
    for file in ["manifest.json", "run_results.json"] {
        let bytes = first.plane.seen().artifacts[&(4, file.to_owned())].clone();
        second.plane.seen().state.insert(file.to_owned(), bytes);
    }
    assert_eq!(second.run().await, AgentExit::Delivered);
    let log = second.plane.log(4);
    assert_eq!(second.plane.seen().status, Some(RunStatus::Success), "{log}");
    let results = second.artifact(4, "run_results.json");
    let ids: Vec<&str> = results["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["unique_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["model.shop.b"], "only what had failed");
}

#[tokio::test]
async fn a_dbt_that_does_not_exist_is_told() {
    let Some(mut stage) = stage(&[("models/a.sql", "select 1 as id")], &["dbt run"], |plan| {
        plan.dbt_version = "1.11.999".into()
    }) else {
        return;
    };
    stage.config.passed_on.insert("UV_OFFLINE".into(), "1".into());
    std::fs::remove_file(stage.config.cache_dir.join("dbt-envs")).unwrap();
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let message = stage.plane.last(4).message.unwrap();
    assert!(
        message.starts_with("dbt 1.11.999 with adapter duckdb cannot be installed: "),
        "{message}"
    );
}

#[tokio::test]
async fn an_agent_that_is_killed_leaves_no_dbt() {
    let slow = "{{ config(materialized='table') }} select count(*) as n from range(1000000) a, range(1000000) b where a.range + b.range = 3";
    let Some(stage) = stage(&[("models/slow.sql", slow)], &["dbt run"], |plan| {
        plan.grace_seconds = 3
    }) else {
        return;
    };
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_agent", "--ignored"])
        .env("DBTCLOUD_TICKET", "ticket")
        .env("DBTCLOUD_SERVER", stage.plane.server())
        .env("DBTCLOUD_WORK_DIR", &stage.config.work_dir)
        .env("DBTCLOUD_CACHE_DIR", &stage.config.cache_dir)
        .env("DBTCLOUD_WARM", "false")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let plane = stage.plane.clone();
    until(LIMIT, || async {
        plane
            .seen()
            .nodes
            .iter()
            .any(|node| node.status == "started")
            .then_some(())
            .ok_or(())
    })
    .await;
    let mark = stage.config.work_dir.display().to_string();
    // dbt's variables name its work directory.
    let dbts = || {
        let of = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("environ")).ok();
        let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(of);
        all.filter(|env| String::from_utf8_lossy(env).contains(&format!("DBT_TARGET_PATH={mark}")))
            .count()
    };
    assert!(dbts() > 0);
    child.start_kill().unwrap();
    child.wait().await.unwrap();
    until(Duration::from_secs(30), || async {
        if dbts() == 0 { Ok(()) } else { Err(dbts()) }
    })
    .await;
}

#[test]
#[ignore = "started by an_agent_that_is_killed_leaves_no_dbt"]
fn child_agent() {
    let config = AgentConfig::from_environment(std::env::vars()).unwrap().unwrap();
    agent::main(config);
}
