//! Running dbt by both ways: same results, always stoppable, never orphaned.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

mod engine_support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use dbtcloud_core::secret::Secret;
use dbtcloud_runtime::engine::results::{NodeOutcome, Outcome, read_run_results, reconcile};
use dbtcloud_runtime::engine::{
    Canceller, EngineError, ExitStatus, NodeEventKind, PreparedEngine, Stopped, WarmOptions,
};
use engine_support::*;

/// A model that keeps duckdb busy for a very long time.
const SLOW: &str = "{{ config(materialized='table') }}\nselect count(*) as n from range(10000000) a, range(10000000) b where (a.range * b.range) % 7 = 3\n";

async fn both() -> [(&'static str, PreparedEngine); 2] {
    [
        ("cli", shared("duckdb", false).await),
        ("warm", shared("duckdb", true).await),
    ]
}

/// Console text without what may differ between two runs: digits, run by run, and paths.
fn shape(text: &str, project: &Project) -> String {
    let text = text.replace(&*project.dir.path().to_string_lossy(), "/P");
    let mut shape = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_digit() { '#' } else { c };
        if !(c == '#' && shape.ends_with('#')) {
            shape.push(c);
        }
    }
    shape
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_say_and_leave_the_same_as_dbt_itself() {
    // (commands, expected exit code); every list on a project of its own
    let cases: &[(&[&[&str]], i32)] = &[
        (&[&["seed"], &["run"], &["test"], &["docs", "generate"]], 0),
        (&[&["build", "--vars", "{bad: true}"]], 1),
        (&[&["run", "--select", "nothing_of_this_name"]], 0),
        (&[&["run", "--no-such-flag"]], 2),
        (&[&["compile", "--profile", "absent"]], 2),
        (&[&["list", "--output", "json"]], 0),
    ];
    let engines = both().await;
    let dbt = engines[0].1.environment().unwrap().dbt();
    for (commands, code) in cases {
        let mut seen = Vec::new();
        for (name, prepared) in &engines {
            let project = Project::duckdb();
            project.model(
                "maybe",
                "{% if var('bad', false) %}select 1/ as{% else %}select 1 as x{% endif %}\n",
            );
            let (mut text, mut nodes) = (String::new(), BTreeMap::new());
            for command in *commands {
                let said = run(prepared, &project.command(command)).await;
                let reply = said.reply.unwrap();
                assert_eq!((reply.backend, &reply.fallback_reason), (*name, &None));
                assert_eq!(
                    reply.exit.status,
                    ExitStatus::Code(*code),
                    "{command:?} {name}: {}{}",
                    said.stdout,
                    said.stderr
                );
                assert_eq!(reply.exit.bad_events, 0);
                text += &shape(&said.stdout, &project);
                text += &shape(&said.stderr, &project);
                nodes.extend(
                    said.nodes
                        .iter()
                        .filter(|node| node.kind == NodeEventKind::Finished)
                        .map(|node| (node.unique_id.clone(), node.status.clone())),
                );
                if let Ok(Some(file)) = read_run_results(&project.path("target/run_results.json")) {
                    let id = reply.exit.invocation_id.as_deref();
                    if file.invocation_id.as_deref() == id {
                        let verdict = reconcile(reply.exit.status, id, &said.nodes, Some(&file));
                        assert_eq!(verdict.outcome == Outcome::Error, *code != 0);
                        assert!(
                            verdict
                                .nodes
                                .values()
                                .all(|node| node.outcome != NodeOutcome::Interrupted)
                        );
                    }
                }
            }
            assert_eq!(
                project.path("logs/dbt.log").exists(),
                *code != 2 || commands[0].len() != 2,
                "{commands:?} {name}"
            );
            seen.push((text, nodes));
        }
        // dbt as a person would start it, with nothing of ours.
        let project = Project::duckdb();
        project.model(
            "maybe",
            "{% if var('bad', false) %}select 1/ as{% else %}select 1 as x{% endif %}\n",
        );
        let mut text = String::new();
        for command in *commands {
            let invocation = project.command(command);
            let output = Command::new(&dbt)
                .args(&invocation.argv)
                .env_clear()
                .envs(
                    invocation
                        .environment()
                        .iter()
                        .map(|(name, value)| (name, value.expose())),
                )
                .current_dir(&invocation.cwd)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(*code));
            text += &shape(&String::from_utf8(output.stdout).unwrap(), &project);
            text += &shape(&String::from_utf8(output.stderr).unwrap(), &project);
        }
        assert_eq!(seen[0].0, text, "cli and dbt: {commands:?}");
        assert_eq!(seen[1].0, text, "warm and dbt: {commands:?}");
        assert_eq!(seen[0].1, seen[1].1, "node results: {commands:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_the_story_of_each_node() {
    for (name, prepared) in &both().await {
        let project = Project::duckdb();
        let said = run(prepared, &project.command(&["build"])).await;
        let reply = said.reply.unwrap();
        assert_eq!(reply.exit.status, ExitStatus::Code(0));
        assert!(reply.exit.usage.user_us > 0 && reply.exit.usage.max_rss_kib > 10_000);
        let of = |kind| said.nodes.iter().filter(move |node| node.kind == kind);
        assert_eq!(of(NodeEventKind::Finished).count(), 14, "{name}");
        assert_eq!(of(NodeEventKind::Started).count(), 14);
        assert!(of(NodeEventKind::Progress).all(|node| node.total == Some(14) && node.index.is_some()));
        let table = of(NodeEventKind::Finished)
            .find(|node| node.unique_id == "model.tiny.customers")
            .unwrap();
        assert_eq!(
            (table.status.as_deref(), table.materialized.as_deref()),
            (Some("success"), Some("table"))
        );
        assert!(
            table.execution_time.is_some()
                && table.relation.is_some()
                && table.started_at.is_some()
                && table.finished_at.is_some()
        );
        let statuses = project.statuses();
        for node in of(NodeEventKind::Finished) {
            assert_eq!(Some(&statuses[&node.unique_id]), node.status.as_ref());
        }
        let quiet = dbtcloud_runtime::engine::Invocation {
            events: false,
            ..project.command(&["run"])
        };
        assert!(run(prepared, &quiet).await.nodes.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_the_invocations_own() {
    for (_, prepared) in &both().await {
        let project = Project::duckdb();
        write(
            &project.path("project/macros/say.sql"),
            "{% macro say() %}{{ log(env_var('DBT_WORD', 'unset') ~ ' ' ~ modules.datetime.datetime(2026, 7, 1, 12).astimezone().utcoffset(), info=True) }}{% endmacro %}",
        );
        let word = |word: &str, zone: &str| {
            project
                .command(&["run-operation", "say"])
                .with_env("DBT_WORD", Secret::new(word))
                .with_env("TZ", Secret::new(zone))
                .with_env("DBT_ENV_CUSTOM_ENV_DBT_CLOUD_RUN_ID", Secret::new("7"))
        };
        let first = run(prepared, &word("é one", "UTC")).await;
        assert!(
            first.stdout.contains("é one 0:00:00"),
            "{}{}",
            first.stdout,
            first.stderr
        );
        let second = run(prepared, &word("two", "Asia/Tokyo")).await;
        assert!(second.stdout.contains("two 9:00:00"), "{}", second.stdout);
        let third = run(prepared, &project.command(&["run-operation", "say"])).await;
        assert!(third.stdout.contains("unset "), "{}", third.stdout);
        let results = std::fs::read_to_string(project.path("target/run_results.json")).unwrap();
        assert!(!results.contains("\"DBT_CLOUD_RUN_ID\""));
        run(prepared, &word("three", "UTC")).await.reply.unwrap();
        let results = std::fs::read_to_string(project.path("target/run_results.json")).unwrap();
        assert!(results.contains("\"DBT_CLOUD_RUN_ID\": \"7\"") || results.contains("\"DBT_CLOUD_RUN_ID\":\"7\""));
        let ids: Vec<_> = [&first, &second, &third]
            .iter()
            .map(|said| said.reply.as_ref().unwrap().exit.invocation_id.clone())
            .collect();
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0].is_some());
    }
}

/// Waits until the slow query burns time: an interrupt between a node's start and its query's is lost on duckdb.
async fn busy(project: &Project) {
    let log = project.path("logs/dbt.log");
    until("the query was sent", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("range(10000000)"))
    })
    .await;
    let pids = dbt_of(project);
    let spent = || pids.iter().map(|pid| ticks(*pid)).sum::<u64>();
    let before = spent();
    until("the query runs", || spent() > before + 50).await;
}

async fn started(events: &mut tokio::sync::mpsc::Receiver<dbtcloud_runtime::engine::EngineEvent>) {
    let limit = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(event) = events.recv().await {
            if matches!(event, dbtcloud_runtime::engine::EngineEvent::Node(node) if node.kind == NodeEventKind::Started && node.unique_id == "model.tiny.slow")
            {
                return;
            }
        }
        panic!("dbt ended before the slow model started");
    });
    limit.await.expect("the slow model started");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_ends_cleanly_and_leaves_its_results() {
    for (name, prepared) in both().await {
        let project = Project::duckdb();
        project.model("slow", SLOW);
        assert_eq!(
            run(&prepared, &project.command(&["seed"]))
                .await
                .reply
                .unwrap()
                .exit
                .status,
            ExitStatus::Code(0)
        );
        let invocation = project.command(&["run"]);
        let (sink, mut events) = tokio::sync::mpsc::channel(16);
        let canceller = Canceller::new();
        let task = tokio::spawn({
            let canceller = canceller.clone();
            async move { prepared.invoke(&invocation, &sink, &canceller).await }
        });
        started(&mut events).await;
        let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
        busy(&project).await;
        let stopped = canceller
            .stop(Duration::from_secs(30), async {
                panic!("SIGINT was enough in every measurement")
            })
            .await;
        assert_eq!(stopped, Stopped::Interrupted, "{name}");
        let reply = task.await.unwrap().unwrap();
        assert_eq!(
            (reply.exit.status, reply.exit.stopped),
            (ExitStatus::Code(2), true),
            "{name}"
        );
        drain.await.unwrap();
        let file = read_run_results(&project.path("target/run_results.json"))
            .unwrap()
            .unwrap();
        assert_eq!(
            file.invocation_id, reply.exit.invocation_id,
            "run_results.json was written by the interrupted run"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_is_confirmed() {
    for (_, prepared) in both().await {
        let project = Project::duckdb();
        project.model("slow", SLOW);
        let invocation = project.command(&["run", "--select", "slow"]);
        let (sink, mut events) = tokio::sync::mpsc::channel(16);
        let canceller = Canceller::new();
        let task = tokio::spawn({
            let canceller = canceller.clone();
            async move { prepared.invoke(&invocation, &sink, &canceller).await }
        });
        started(&mut events).await;
        drop(events);
        canceller.kill();
        assert_eq!(task.await.unwrap().unwrap().exit.status, ExitStatus::Signal(9));
        canceller.ended().await;
    }
}

fn dbt_of(project: &Project) -> Vec<i32> {
    let wanted = project.path("project");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>()
            && std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == wanted)
            && alive(pid)
        {
            found.push(pid);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_left_to_ask_means_no_dbt_left() {
    for (name, prepared) in both().await {
        let project = Project::duckdb();
        project.model("slow", SLOW);
        let mut invocation = project.command(&["run", "--select", "slow"]);
        invocation.leash_grace = Duration::from_secs(5);
        let (sink, mut events) = tokio::sync::mpsc::channel(16);
        let task = tokio::spawn(async move { prepared.invoke(&invocation, &sink, &Canceller::new()).await });
        started(&mut events).await;
        let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
        busy(&project).await;
        task.abort();
        until(&format!("{name}: dbt is gone"), || dbt_of(&project).is_empty()).await;
        drain.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_meet() {
    let (prepared, _dir) = engine("duckdb", Some(warm_options())).await;
    let (a, b) = (Project::duckdb(), Project::duckdb());
    let (a_build, b_build) = (a.command(&["build"]), b.command(&["build"]));
    // No warm-up: both find no parent, one starts it, both use it.
    let (a_said, b_said) = tokio::join!(run(&prepared, &a_build), run(&prepared, &b_build));
    for said in [&a_said, &b_said] {
        let reply = said.reply.as_ref().unwrap();
        assert_eq!(
            (reply.exit.status, reply.backend),
            (ExitStatus::Code(0), "warm"),
            "{}",
            said.stdout
        );
        assert_eq!(
            said.nodes
                .iter()
                .filter(|node| node.kind == NodeEventKind::Finished)
                .count(),
            14
        );
    }
    assert_ne!(
        a_said.reply.unwrap().exit.invocation_id,
        b_said.reply.unwrap().exit.invocation_id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn any_doubt_about_the_parent_takes_the_plain_way() {
    let project = Project::duckdb();
    let list = project.command(&["list"]);
    let check = async |prepared: &PreparedEngine, invocation: &_, words: &str| {
        let said = run(prepared, invocation).await;
        let reply = said.reply.unwrap();
        assert_eq!(
            (reply.backend, reply.exit.status),
            ("cli", ExitStatus::Code(0)),
            "{}{}",
            said.stdout,
            said.stderr
        );
        assert!(said.stdout.contains("tiny.customers"));
        let reason = reply.fallback_reason.unwrap();
        assert!(reason.contains(words), "{reason}");
    };
    let script = |dir: &tempfile::TempDir| {
        let find = |dir: &std::path::Path, end: &str| {
            std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.to_string_lossy().contains(end))
                .unwrap()
        };
        find(&find(&dir.path().join("run"), "/py-"), "warm_parent")
    };

    let (prepared, dir) = engine("duckdb", Some(warm_options())).await;
    std::fs::write(script(&dir), "this is not python").unwrap();
    check(&prepared, &list, "without a word").await;

    // Healthy to look at, dead to talk to.
    let (prepared, dir) = engine("duckdb", Some(warm_options())).await;
    std::fs::write(script(&dir), "import json,sys\nprint(json.dumps({'t':'ready'}))\n").unwrap();
    check(&prepared, &list, "connecting").await;

    // A guard of the parent itself: more than one thread after its warm-up.
    let (prepared, dir) = engine("duckdb", Some(warm_options())).await;
    let path = script(&dir);
    let text = std::fs::read_to_string(&path).unwrap();
    let threaded = text.replace("        forget()\n", "        forget()\n        import threading\n        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n");
    assert_ne!(text, threaded);
    std::fs::write(&path, threaded).unwrap();
    check(&prepared, &list, "2 threads").await;

    let other = WarmOptions {
        cores: vec!["1.10.0".into()],
        ..warm_options()
    };
    let (prepared, _dir) = engine("duckdb", Some(other)).await;
    check(&prepared, &list, "was not tested").await;

    let (prepared, _dir) = engine(
        "duckdb",
        Some(WarmOptions {
            max_running: 0,
            ..warm_options()
        }),
    )
    .await;
    check(&prepared, &list, "busy").await;

    let (prepared, _dir) = engine("duckdb", Some(warm_options())).await;
    check(
        &prepared,
        &list
            .clone()
            .with_env("DBT_PACKAGE_HUB_URL", Secret::new("https://hub.invalid")),
        "before a fork",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_was_killed_is_replaced() {
    let (prepared, _dir) = engine("duckdb", Some(warm_options())).await;
    let parent = prepared.warm_parent().unwrap();
    let first = parent.connect_or_spawn().await.unwrap();
    let threads = std::fs::read_dir(format!("/proc/{}/task", first.pid)).unwrap().count();
    assert_eq!(threads, 1);
    let environ = std::fs::read(format!("/proc/{}/environ", first.pid)).unwrap();
    assert!(environ.len() < 256, "the parent inherits nothing");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the parent is dead", || !alive(first.pid)).await;
    let project = Project::duckdb();
    let reply = run(&prepared, &project.command(&["list"])).await.reply.unwrap();
    assert_eq!((reply.backend, reply.fallback_reason), ("warm", None));
    let second = parent.ping().await.unwrap();
    assert_ne!(first.pid, second.pid);
    parent.stop().await.unwrap();
    until("the parent left when told", || !alive(second.pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_leaves_when_idle_and_when_used_up() {
    let (prepared, _dir) = engine(
        "duckdb",
        Some(WarmOptions {
            idle: Duration::from_millis(300),
            ..warm_options()
        }),
    )
    .await;
    let pong = prepared.warm_parent().unwrap().connect_or_spawn().await.unwrap();
    until("the idle parent left", || !alive(pong.pid)).await;
    assert!(prepared.warm_parent().unwrap().ping().await.is_err());

    let (prepared, _dir) = engine(
        "duckdb",
        Some(WarmOptions {
            max_forks: 3,
            ..warm_options()
        }),
    )
    .await;
    let parent = prepared.warm_parent().unwrap();
    let pong = parent.connect_or_spawn().await.unwrap();
    parent.ping().await.unwrap();
    let project = Project::duckdb();
    assert_eq!(
        run(&prepared, &project.command(&["list"])).await.reply.unwrap().backend,
        "warm"
    );
    until("the used-up parent left", || !alive(pong.pid)).await;
    assert_eq!(
        run(&prepared, &project.command(&["list"])).await.reply.unwrap().backend,
        "warm",
        "another takes its place"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_the_start_runs_nothing() {
    for (_, prepared) in &both().await {
        let project = Project::duckdb();
        let canceller = Canceller::new();
        canceller.cancel();
        let said = run_with(prepared, &project.command(&["list"]), &canceller).await;
        assert!(matches!(said.reply, Err(EngineError::Cancelled)));
        canceller.ended().await;
        assert!(!project.path("logs").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_parse_state_is_parsed_again() {
    use dbtcloud_runtime::engine::parse_cache::{ParseCache, ParseInputs, ParseKey, Restored};
    let prepared = shared("duckdb", true).await;
    let project = Project::duckdb();
    let state = project.path("target/partial_parse.msgpack");
    let parse = project.command(&["parse"]);
    assert_eq!(
        run(&prepared, &parse).await.reply.unwrap().exit.status,
        ExitStatus::Code(0)
    );
    let cache = ParseCache::new(project.path("cache"));
    let env = BTreeMap::new();
    let key = ParseKey::new(&ParseInputs {
        commit: "c",
        engine: "e",
        adapter: "duckdb",
        target: "dev",
        vars: "{}",
        env: &env,
    });
    cache.store("main", &key, &state).unwrap();
    let whole = std::fs::read(&state).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", b"\xff\x00rubbish"] {
        std::fs::write(&state, damaged).unwrap();
        let said = run(&prepared, &parse).await;
        assert_eq!(said.reply.unwrap().exit.status, ExitStatus::Code(0), "{}", said.stdout);
    }
    assert_eq!(cache.restore("main", &key, &state).unwrap(), Restored::Exact);
    let said = run(&prepared, &parse).await;
    assert_eq!(said.reply.unwrap().exit.status, ExitStatus::Code(0));
    assert!(!said.stdout.contains("Unable to do partial parsing"), "{}", said.stdout);

    // State kept elsewhere is read from there, if it is there.
    std::fs::create_dir_all(project.path("kept")).unwrap();
    std::fs::rename(&state, project.path("kept/state.msgpack")).unwrap();
    for (name, partial) in [("kept/state.msgpack", true), ("kept/absent", false)] {
        std::fs::remove_file(&state).ok();
        let mut parse = project.command(&["parse"]);
        parse.partial_parse_file = Some(project.path(name));
        let said = run(&prepared, &parse).await;
        assert_eq!(said.reply.unwrap().exit.status, ExitStatus::Code(0), "{}", said.stdout);
        assert_eq!(
            !said.stdout.contains("Unable to do partial parsing"),
            partial,
            "{}",
            said.stdout
        );
    }
}
