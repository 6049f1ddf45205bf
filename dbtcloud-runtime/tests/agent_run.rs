//! A run from ticket to outcome, with real processes, real git and a dbt that is a shell script.

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

use std::process::Command;
use std::time::{Duration, Instant};

use agent_support::plane::Fault;
use agent_support::{LIMIT, Stage, git};
use dbtcloud_contract::wait::until;
use dbtcloud_core::run::{RunEvent, RunStatus, StepStatus};
use dbtcloud_runtime::agent::{self, AgentExit};
use dbtcloud_runtime::protocol::StateUse;
use sha2::Digest as _;

fn statuses(stage: &Stage) -> Vec<StepStatus> {
    stage
        .plane
        .seen()
        .steps
        .values()
        .map(|states| states.last().unwrap().status)
        .collect()
}

fn running(mark: &str) -> bool {
    let out = Command::new("pgrep").args(["-f", mark]).output().unwrap();
    out.status.success()
}

const GOOD: &str = r#"
echo '{"k":"version","version":"1.11.99","invocation":"i-1"}' >&0
echo '{"k":"start","id":"model.shop.a","name":"a","type":"model"}' >&0
echo '{"k":"progress","id":"model.shop.a","index":1,"total":1}' >&0
echo "args: $*"
echo "secret: $DBT_ENV_SECRET_X and $DBT_PLAIN, target $DBT_TARGET_PATH"
echo '{"k":"finish","id":"model.shop.a","result":"success","seconds":0.1}' >&0
mkdir -p "$DBT_TARGET_PATH/compiled"
echo '{"x": "hunter2-hunter2"}' > "$DBT_TARGET_PATH/manifest.json"
echo "select 1" > "$DBT_TARGET_PATH/compiled/a.sql"
echo '{"metadata":{"invocation_id":"i-1"},"results":[{"unique_id":"model.shop.a","status":"success"}]}' > "$DBT_TARGET_PATH/run_results.json"
echo "debug hunter2-hunter2" > "$DBT_LOG_PATH/dbt.log"
"#;

#[tokio::test]
async fn a_run_succeeds_and_keeps_its_secrets() {
    let stage = Stage::new(GOOD, &["dbt build --select 'a b'"], |plan| {
        plan.variables
            .insert("DBT_ENV_SECRET_X".into(), "hunter2-hunter2".into());
        plan.variables.insert("DBT_PLAIN".into(), "plain".into());
    });
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let log = stage.plane.log(4);
    let seen = stage.plane.seen();
    assert_eq!(seen.events, [RunEvent::Started, RunEvent::Succeeded]);
    assert!(
        log.contains("args: build --select a b --target prod --profile user"),
        "{log}"
    );
    assert!(log.contains("secret: ***** and plain"), "{log}");
    assert_eq!(seen.patch.git_branch.as_deref(), Some("main"));
    assert_eq!(seen.patch.git_sha.as_deref().map(str::len), Some(40));
    assert_eq!(seen.patch.dbt_version.as_deref(), Some("1.11.99"));
    assert_eq!(
        (seen.patch.artifacts_saved, seen.patch.has_docs),
        (Some(true), Some(false))
    );
    let paths: Vec<&str> = seen.artifacts.keys().map(|(_, path)| path.as_str()).collect();
    assert_eq!(paths, ["compiled/a.sql", "manifest.json", "run_results.json"]);
    for bytes in seen
        .artifacts
        .values()
        .chain(seen.debug_logs.values())
        .chain(seen.logs.values())
    {
        assert!(!String::from_utf8_lossy(bytes).contains("hunter2"));
    }
    assert_eq!(seen.debug_logs[&4], b"debug *****\n");
    let told: Vec<&str> = seen.nodes.iter().map(|node| node.status.as_str()).collect();
    assert_eq!(told, ["started", "success"]);
    let step = seen.steps[&4].last().unwrap();
    assert_eq!((step.exit_code, step.backend.as_deref()), (Some(0), Some("cli")));
    assert_eq!(seen.steps[&4].first().unwrap().status, StepStatus::Pending);
    assert!(String::from_utf8_lossy(&seen.logs[&3]).contains("nothing to install"));
}

#[tokio::test]
async fn a_failure_skips_what_comes_after_and_keeps_its_artifacts() {
    let script = r#"
mkdir -p "$DBT_TARGET_PATH"; echo '{}' > "$DBT_TARGET_PATH/run_results.json"
echo "12:00:00  Encountered an error:"; echo "12:00:01  Database Error: no hunter2-hunter2"; exit 2"#;
    let commands = ["dbt source freshness", "dbt run", "dbt test", "dbt docs generate"];
    let stage = Stage::new(script, &commands, |_| {});
    assert_eq!(stage.run().await, AgentExit::Delivered);
    use StepStatus::{Error, Skipped, Success};
    assert_eq!(
        statuses(&stage),
        [Success, Success, Success, Error, Error, Skipped, Skipped]
    );
    let seen = stage.plane.seen();
    assert_eq!(seen.events, [RunEvent::Started, RunEvent::Failed]);
    let message = seen.patch.message.clone().unwrap();
    assert!(
        message.contains("Step 5 failed") && message.contains("Database Error: no *****"),
        "{message}"
    );
    assert!(seen.artifacts.contains_key(&(5, "run_results.json".to_owned())));
}

#[tokio::test]
async fn docs_and_freshness_do_not_decide_and_warnings_do_show() {
    let script = r#"
case "$1" in docs|source) exit 1 ;; esac
echo '{"k":"finish","id":"test.shop.t","result":"warn"}' >&0"#;
    let stage = Stage::new(
        script,
        &["dbt source freshness", "dbt test", "dbt docs generate"],
        |_| {},
    );
    assert_eq!(stage.run().await, AgentExit::Delivered);
    assert_eq!(
        statuses(&stage)[3..],
        [StepStatus::Error, StepStatus::Warned, StepStatus::Error]
    );
    assert_eq!(stage.plane.seen().status, Some(RunStatus::Warned));
}

#[tokio::test]
async fn bad_commands_repositories_and_environments_are_told() {
    for (index, adjust, expected) in [
        (
            4,
            Box::new(|_: &mut _| {}) as Box<dyn FnOnce(&mut dbtcloud_runtime::protocol::RunPlan)>,
            "is not closed",
        ),
        (
            1,
            Box::new(|plan| plan.git.branch = Some("nope".into())),
            "branch 'nope' does not exist in file://",
        ),
        (
            1,
            Box::new(|plan| plan.git.subdirectory = Some("sub".into())),
            "holds no dbt_project.yml",
        ),
        (
            2,
            Box::new(|plan| plan.profile.adapter = "nosuch".into()),
            "\"nosuch\" is not supported",
        ),
    ] {
        let stage = Stage::new("exit 0", &["dbt run 'x"], adjust);
        assert_eq!(stage.run().await, AgentExit::Delivered);
        let step = stage.plane.last(index);
        assert_eq!(step.status, StepStatus::Error);
        assert!(step.message.clone().unwrap().contains(expected), "{step:?}");
        assert!(stage.plane.log(index).contains(expected));
        assert_eq!(stage.plane.seen().status, Some(RunStatus::Error));
    }
}

#[tokio::test]
async fn an_environment_that_cannot_be_had_fails_the_first_command() {
    let stage = Stage::new("exit 0", &["dbt run"], |plan| plan.dbt_version = "9.9".into());
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let message = stage.plane.last(4).message.unwrap();
    assert!(message.contains("dbt 9.9 with adapter duckdb cannot be"), "{message}");
}

#[tokio::test]
async fn every_byte_arrives_once_across_outages() {
    let script =
        r#"for i in $(seq 1 60); do seq $((i * 1000)) $((i * 1000 + 999)); read -t 0.1 -u 9 9<> <(:); done; exit 0"#;
    let stage = Stage::new(script, &["dbt run"], |_| {});
    let plane = stage.plane.clone();
    let trouble = async {
        until(LIMIT, || async { (plane.log(4).len() > 1000).then_some(()).ok_or(()) }).await;
        for fault in [Fault::LoseAnswers, Fault::Refuse(503), Fault::Flaky] {
            plane.seen().fault = fault;
            let asked = plane.seen().requests;
            until(LIMIT, || async {
                (plane.seen().requests > asked + 3).then_some(()).ok_or(())
            })
            .await;
        }
        plane.seen().fault = Fault::None;
        plane.down();
        let began = Instant::now();
        until(LIMIT, || async {
            (began.elapsed() > Duration::from_secs(1)).then_some(()).ok_or(())
        })
        .await;
        plane.up();
    };
    let (exit, ()) = tokio::join!(stage.run(), trouble);
    assert_eq!(exit, AgentExit::Delivered);
    let log = stage.plane.log(4);
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(numbers, (1000..61_000).collect::<Vec<u32>>());
    assert_eq!(stage.plane.seen().status, Some(RunStatus::Success));
}

#[tokio::test]
async fn a_run_ends_while_the_control_plane_is_away() {
    let stage = Stage::new(
        "sleep 0.5; mkdir -p $DBT_TARGET_PATH; echo '{}' > $DBT_TARGET_PATH/catalog.json; echo over; echo > ../../../over",
        &["dbt run"],
        |_| {},
    );
    let plane = stage.plane.clone();
    let over = stage.dir.path().join("over");
    let trouble = async {
        until(LIMIT, || async {
            plane
                .seen()
                .steps
                .get(&4)
                .filter(|states| states.len() > 1)
                .map(|_| ())
                .ok_or(())
        })
        .await;
        plane.down();
        until(LIMIT, || async { over.exists().then_some(()).ok_or(()) }).await;
        plane.up();
    };
    let (exit, ()) = tokio::join!(stage.run(), trouble);
    assert_eq!(exit, AgentExit::Delivered);
    assert_eq!(stage.plane.seen().patch.has_docs, Some(true));
    assert!(stage.plane.log(4).contains("over\n"));
}

#[tokio::test]
async fn cancelling_interrupts_dbt_and_says_what_was_confirmed() {
    let script = r#"trap 'echo interrupted; exit 2' INT; echo begun; while :; do sleep 0.05; done"#;
    let stage = Stage::new(script, &["dbt run", "dbt test"], |_| {});
    let plane = stage.plane.clone();
    let cancel = async {
        until(LIMIT, || async {
            plane.log(4).contains("begun").then_some(()).ok_or(())
        })
        .await;
        plane.seen().status = Some(RunStatus::Cancelling);
    };
    let (exit, ()) = tokio::join!(stage.run(), cancel);
    assert_eq!(exit, AgentExit::Delivered);
    let seen = stage.plane.seen();
    assert_eq!(seen.events.last(), Some(&RunEvent::Stopped));
    let message = seen.patch.message.clone().unwrap();
    assert!(
        message.contains("dbt exited after the interrupt (exit code 2); no process of it is left"),
        "{message}"
    );
    assert!(String::from_utf8_lossy(&seen.logs[&4]).contains("interrupted"));
    drop(seen);
    assert_eq!(statuses(&stage)[3..], [StepStatus::Cancelled, StepStatus::Cancelled]);
}

#[tokio::test]
async fn a_dbt_that_does_not_listen_is_killed_with_all_its_children() {
    let mark = format!("98765{}", std::process::id());
    let script = format!("trap '' INT TERM; sleep {mark} & sleep {mark}");
    let stage = Stage::new(&script, &["dbt run"], |plan| {
        plan.timeout_seconds = 2;
        plan.grace_seconds = 1;
    });
    assert_eq!(stage.run().await, AgentExit::Delivered);
    let message = stage.plane.seen().patch.message.clone().unwrap();
    assert!(
        message.starts_with("Timed out after 2 s. Confirmed: dbt was killed after 1 s"),
        "{message}"
    );
    assert!(!running(&format!("sleep {mark}")), "nothing is left");
    assert_eq!(stage.plane.seen().status, Some(RunStatus::Cancelled));
}

#[tokio::test]
async fn a_fenced_agent_stops_dbt_and_says_nothing_more() {
    for (status, expected) in [(410, AgentExit::Fenced), (403, AgentExit::Refused("no".into()))] {
        let mark = format!("{status}765{}", std::process::id());
        let stage = Stage::new(&format!("echo begun; exec sleep {mark}"), &["dbt run"], |_| {});
        let plane = stage.plane.clone();
        let fence = async {
            until(LIMIT, || async {
                plane.log(4).contains("begun").then_some(()).ok_or(())
            })
            .await;
            plane.seen().fault = Fault::Refuse(status);
        };
        let (exit, ()) = tokio::join!(stage.run(), fence);
        assert_eq!(exit, expected);
        assert!(exit.code() > 1);
        assert!(!running(&format!("sleep {mark}")), "nothing is left");
        assert_eq!(stage.plane.seen().events, [RunEvent::Started]);
    }
}

#[tokio::test]
async fn a_run_that_somebody_else_ended_is_not_this_agents() {
    let stage = Stage::new("echo begun; exec sleep 100", &["dbt run"], |_| {});
    let plane = stage.plane.clone();
    let end = async {
        until(LIMIT, || async {
            plane.log(4).contains("begun").then_some(()).ok_or(())
        })
        .await;
        plane.seen().status = Some(RunStatus::Cancelled);
    };
    let (exit, ()) = tokio::join!(stage.run(), end);
    assert_eq!(exit, AgentExit::Fenced);
}

#[tokio::test]
async fn a_wrong_ticket_and_a_lost_answer() {
    let mut stage = Stage::new("exit 0", &["dbt run"], |_| {});
    let good = stage.config.ticket.clone();
    stage.config.ticket = dbtcloud_core::secret::Secret::new("other");
    let error = agent::run(stage.config.clone()).await.unwrap_err();
    assert_eq!(error.kind(), dbtcloud_core::ErrorKind::Denied);
    stage.config.ticket = good;
    stage.plane.seen().fault = Fault::LoseAnswers;
    let plane = stage.plane.clone();
    let mend = async {
        until(LIMIT, || async { (plane.seen().requests > 3).then_some(()).ok_or(()) }).await;
        plane.seen().fault = Fault::None;
    };
    let (exit, ()) = tokio::join!(stage.run(), mend);
    assert_eq!(exit, AgentExit::Delivered);
}

#[tokio::test]
async fn artifacts_that_cannot_be_saved_do_not_fail_the_run() {
    let stage = Stage::new(GOOD, &["dbt run"], |_| {});
    stage.plane.seen().refuse_artifacts = true;
    assert_eq!(stage.run().await, AgentExit::Delivered);
    assert!(
        stage
            .plane
            .log(4)
            .contains("WARN: artifact manifest.json could not be saved: no artifacts today")
    );
    let seen = stage.plane.seen();
    assert_eq!(seen.status, Some(RunStatus::Success));
    assert_eq!(seen.patch.artifacts_saved, Some(true), "the debug log was");
    assert!(seen.patch.message.clone().unwrap().contains("could not be saved"));
}

#[tokio::test]
async fn state_is_fetched_for_deferral_and_retry() {
    let script =
        r#"echo "args: $*"; prev=; for a in "$@"; do [ "$prev" = --state ] && cat $a/*.json; prev=$a; done; exit 0"#;
    for (state, command, expected) in [
        (StateUse::Defer, "dbt build -s state:modified+", "--defer --state"),
        (StateUse::Retry, "dbt retry", "--profile user --state"),
    ] {
        let stage = Stage::new(script, &[command], |plan| plan.state = Some(state));
        stage
            .plane
            .seen()
            .state
            .insert("manifest.json".into(), b"{\"m\": 1}".to_vec());
        stage
            .plane
            .seen()
            .state
            .insert("run_results.json".into(), b"{\"r\": 1}".to_vec());
        assert_eq!(stage.run().await, AgentExit::Delivered);
        let log = stage.plane.log(4);
        assert!(log.contains(expected) && log.contains("{\"m\": 1}"), "{log}");
        assert_eq!(log.contains("{\"r\": 1}"), state == StateUse::Retry);
    }
    let stage = Stage::new(script, &["dbt build"], |plan| plan.state = Some(StateUse::Defer));
    assert_eq!(stage.run().await, AgentExit::Delivered);
    assert!(stage.plane.log(2).contains("WARN: nothing to defer to"));
    assert!(!stage.plane.log(4).contains("--defer"));
}

#[tokio::test]
async fn packages_are_installed_where_there_are_some() {
    let stage = Stage::new("echo \"args: $*\"", &["dbt run"], |_| {});
    let repo = stage.dir.path().join("repo");
    std::fs::write(repo.join("packages.yml"), "packages: []\n").unwrap();
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "--quiet", "-m", "packages"]);
    assert_eq!(stage.run().await, AgentExit::Delivered);
    assert!(stage.plane.log(3).contains("args: deps --target prod --profile user"));
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs as a process of its own, so that its memory is its own: see `memory_stays_flat`.
#[test]
#[ignore = "started by memory_stays_flat"]
fn child_agent() {
    let config = agent::AgentConfig::from_environment(std::env::vars()).unwrap().unwrap();
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let exit = runtime.block_on(agent::run(config)).unwrap();
    println!(
        "agent: {exit:?} in {:?}, peak {} MiB",
        began.elapsed(),
        resident_kib() / 1024
    );
    assert_eq!(exit, AgentExit::Delivered);
    assert!(resident_kib() < 64 * 1024, "{} KiB", resident_kib());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat() {
    const LINES: u64 = 2_500_000;
    let line = "12:00:01  1 of 28 START sql table model main.orders and what else there is [RUN]\n";
    let script = format!("yes '{}' | head -n {LINES}", line.trim_end());
    let stage = Stage::new(&script, &["dbt run"], |_| {});
    stage.plane.seen().digest_only = true;
    let config = &stage.config;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_agent", "--ignored", "--nocapture"])
        .env("DBTCLOUD_TICKET", "ticket")
        .env("DBTCLOUD_SERVER", stage.plane.server())
        .env("DBTCLOUD_WORK_DIR", &config.work_dir)
        .env("DBTCLOUD_CACHE_DIR", &config.cache_dir)
        .env("DBTCLOUD_WARM", "false")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The control plane leaves for a while in the middle of it.
    let plane = stage.plane.clone();
    until(LIMIT, || async {
        plane
            .seen()
            .digests
            .get(&4)
            .filter(|log| log.0 > 20 << 20)
            .map(|_| ())
            .ok_or(())
    })
    .await;
    plane.down();
    let began = Instant::now();
    until(LIMIT, || async {
        (began.elapsed() > Duration::from_secs(2)).then_some(()).ok_or(())
    })
    .await;
    plane.up();
    let status = tokio::time::timeout(LIMIT * 3, child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    let mut expected = sha2::Sha256::new();
    let first = "$ dbt run --target prod --profile user\n";
    expected.update(first);
    for _ in 0..LINES {
        expected.update(line);
    }
    let seen = stage.plane.seen();
    assert_eq!(seen.wrong, Vec::<String>::new());
    // What dbt cost stands in the last line and depends on the machine.
    let tail = String::from_utf8(seen.logs[&4].clone()).unwrap();
    let last = tail.lines().last().unwrap();
    assert!(last.starts_with("[exit code 0, CPU"), "{last}");
    expected.update(last);
    expected.update("\n");
    assert_eq!(seen.digests[&4].1.clone().finalize(), expected.finalize());
    assert!(seen.largest <= (1 << 20) + (64 << 10));
}
