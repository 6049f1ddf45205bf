//! Executions as real processes: what the contract asks for, with the processes killed that can be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dbtcloud_core::ErrorKind;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Exit, Observation, Workload, WorkloadLimits};
use dbtcloud_core::secret::Secret;
use dbtcloud_local::LocalExecutor;

/// Longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);

struct Fixture {
    executor: LocalExecutor,
    root: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self {
            executor: LocalExecutor::new(root.path().join("executions")).unwrap(),
            root,
        }
    }

    fn directory(&self, id: ExecutionId) -> PathBuf {
        self.root.path().join("executions").join(id.to_string())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    async fn exit(&self, id: ExecutionId) -> Exit {
        eventually("it ends", || async {
            match self.executor.observe(id).await.unwrap() {
                Observation::Exited(exit) => Some(exit),
                _ => None,
            }
        })
        .await
    }

    async fn pid_in(&self, name: &str) -> i32 {
        let path = self.file(name);
        eventually("a pid is written", || async {
            fs::read_to_string(&path).ok()?.strip_suffix('\n')?.parse().ok()
        })
        .await
    }
}

impl Drop for Fixture {
    /// No test leaves a process, also when it fails.
    fn drop(&mut self) {
        for pid in pids() {
            if environment_of(pid)
                .iter()
                .any(|line| line.contains(self.root.path().to_str().unwrap()))
            {
                kill(pid, "-KILL");
            }
        }
    }
}

async fn eventually<T, F, Fut>(what: &str, mut look: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let begin = Instant::now();
    loop {
        if let Some(answer) = look().await {
            return answer;
        }
        assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn id(run: i64) -> ExecutionId {
    ExecutionId::Run {
        run: RunId::new(run),
        attempt: 1,
    }
}

fn script(run: i64, text: &str) -> ExecutionSpec {
    ExecutionSpec {
        id: id(run),
        account: AccountId::new(1),
        workload: Workload::Task,
        command: vec!["sh".into(), "-c".into(), text.into()],
        environment: BTreeMap::from([("PATH".into(), std::env::var("PATH").unwrap())]),
        ticket: None,
        mounts: Vec::new(),
        limits: WorkloadLimits::default(),
    }
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn environment_of(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

fn argv_of(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// Neither gone nor a zombie.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn kill(pid: i32, signal: &str) {
    let _ = Command::new("kill")
        .args([signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

fn supervisor_of(id: ExecutionId) -> i32 {
    let name = format!("dbtcloud-supervisor {id}\0");
    *pids()
        .iter()
        .find(|pid| argv_of(**pid).starts_with(&name) && is_session_leader(**pid))
        .unwrap()
}

fn is_session_leader(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let session = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(3)?.parse().ok());
    session == Some(pid)
}

// --- A starter in a process of its own, to be killed.

/// This is no test: [`Starter`] runs this binary again with these variables.
#[tokio::test]
async fn starter_process() {
    let Ok(directory) = std::env::var("STARTER_DIRECTORY") else {
        return;
    };
    let executor = LocalExecutor::new(directory).unwrap();
    let text = std::env::var("STARTER_SCRIPT").unwrap();
    let (first, last) = (number("STARTER_FIRST"), number("STARTER_LAST"));
    for run in first..=last {
        let mut spec = script(run, &text);
        spec.environment.insert("RUN".into(), run.to_string());
        executor.start(&spec).await.unwrap();
        eprintln!("started {run}");
    }
    // Until it is killed, or its test is.
    let _ = std::io::stdin().read(&mut [0]);
}

fn number(name: &str) -> i64 {
    std::env::var(name).unwrap().parse().unwrap()
}

struct Starter {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
}

impl Starter {
    fn new(fixture: &Fixture, first: i64, last: i64, text: &str) -> Self {
        Self::by(
            Command::new(std::env::current_exe().unwrap()),
            fixture,
            first,
            last,
            text,
        )
    }

    fn by(mut command: Command, fixture: &Fixture, first: i64, last: i64, text: &str) -> Self {
        let mut child = command
            .args(["starter_process", "--exact", "--nocapture"])
            .env("STARTER_DIRECTORY", fixture.file("executions"))
            .env("STARTER_SCRIPT", text)
            .env("STARTER_FIRST", first.to_string())
            .env("STARTER_LAST", last.to_string())
            .env("SECRET_OF_THE_SERVER", "hunter2")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Self { child, lines }
    }

    fn wait_until_started(&mut self, run: i64) {
        let wanted = format!("started {run}\n");
        let mut line = String::new();
        while line != wanted {
            line.clear();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "the starter ended before '{wanted}'"
            );
        }
    }

    fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// --- Ends.

#[tokio::test]
async fn tells_codes_and_signals_apart() {
    let fixture = Fixture::new();
    for (run, (text, code, signal)) in [
        ("exit 0", Some(0), None),
        ("echo what went wrong >&2; exit 3", Some(3), None),
        ("exit 137", Some(137), None),
        ("exit 200", Some(200), None),
        ("kill -KILL $$", None, Some(9)),
        ("kill -TERM $$", None, Some(15)),
        ("kill -INT $$", None, Some(2)),
        ("kill -SEGV $$", None, Some(11)),
    ]
    .into_iter()
    .enumerate()
    {
        let run = i64::try_from(run).unwrap();
        fixture.executor.start(&script(run, text)).await.unwrap();
        let exit = fixture.exit(id(run)).await;
        assert_eq!(
            (exit.code, exit.signal, exit.out_of_memory),
            (code, signal, false),
            "{text}: {exit:?}"
        );
        assert_eq!(exit.message.contains("what went wrong"), code == Some(3), "{exit:?}");
        // Told until it is removed, also to another instance; a second start changes nothing.
        fixture.executor.start(&script(run, "exit 9")).await.unwrap();
        let other = LocalExecutor::new(fixture.file("executions")).unwrap();
        assert_eq!(other.observe(id(run)).await.unwrap(), Observation::Exited(exit.clone()));
        assert!(exit.at >= other.list().await.unwrap().last().unwrap().started_at);
        fixture.executor.remove(id(run)).await.unwrap();
        assert_eq!(fixture.executor.observe(id(run)).await.unwrap(), Observation::Absent);
        fixture.executor.remove(id(run)).await.unwrap();
    }
    assert!(fixture.executor.list().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(fixture.file("executions")).unwrap().count(), 0);
}

#[tokio::test]
async fn environment_is_the_specs_and_the_ticket_is_nowhere_else() {
    let fixture = Fixture::new();
    let ticket = "ticket-7d1f";
    let mut spec = script(1, "env -0 >\"$OUT\"; echo $$ >\"$PID\"; exec sleep 600");
    spec.environment
        .insert("OUT".into(), fixture.file("env").to_str().unwrap().into());
    spec.environment
        .insert("PID".into(), fixture.file("pid").to_str().unwrap().into());
    spec.environment
        .insert("ODD".into(), "a 'b' \"c\" $(d) `e` \\ é\nf=g\n".into());
    spec.environment.insert("environment".into(), "x".into());
    spec.environment.insert("setsid".into(), "y".into());
    spec.ticket = Some(Secret::new(ticket));
    // Not by sh, which adds PWD of its own.
    spec.command = vec![
        "env".into(),
        "-u".into(),
        "NOTHING".into(),
        "sh".into(),
        "-c".into(),
        spec.command[2].clone(),
    ];
    fixture.executor.start(&spec).await.unwrap();
    let main = fixture.pid_in("pid").await;
    let mut expected = spec.environment.clone();
    expected.insert("DBTCLOUD_TICKET".into(), ticket.into());
    expected.insert(
        "DBTCLOUD_EXECUTION".into(),
        fixture.directory(id(1)).to_str().unwrap().into(),
    );
    let text = fs::read_to_string(fixture.file("env")).unwrap();
    let mut seen: BTreeMap<String, String> = text
        .split_terminator('\0')
        .map(|line| {
            line.split_once('=')
                .map(|(name, value)| (name.into(), value.into()))
                .unwrap()
        })
        .collect();
    seen.remove("PWD");
    assert_eq!(seen, expected);

    for pid in pids() {
        assert!(!argv_of(pid).contains(ticket), "argv of {pid}");
        assert!(
            pid == main || !environment_of(pid).iter().any(|line| line.contains(ticket)),
            "environment of {pid}"
        );
    }
    for entry in fs::read_dir(fixture.directory(id(1))).unwrap() {
        let path = entry.unwrap().path();
        let regular = path.metadata().unwrap().is_file();
        assert!(
            !regular || !String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(ticket),
            "{path:?}"
        );
    }
    assert_eq!(
        fs::metadata(fixture.directory(id(1))).unwrap().permissions().mode() & 0o077,
        0
    );
    eventually("it holds nothing open but the three", || async {
        (fs::read_dir(format!("/proc/{main}/fd")).unwrap().count() == 3).then_some(())
    })
    .await;
    fixture.executor.remove(id(1)).await.unwrap();
    assert!(!lives(main));
}

#[tokio::test]
async fn a_service_tells_its_address() {
    let fixture = Fixture::new();
    let mut spec = script(
        1,
        "read x <\"$GO\"; echo http://127.0.0.1:4711 >\"$DBTCLOUD_ADDRESS_FILE\"; exec sleep 600",
    );
    spec.workload = Workload::Service;
    spec.environment
        .insert("GO".into(), fixture.file("go").to_str().unwrap().into());
    assert!(
        Command::new("mkfifo")
            .arg(fixture.file("go"))
            .status()
            .unwrap()
            .success()
    );
    fixture.executor.start(&spec).await.unwrap();
    assert_eq!(
        fixture.executor.observe(id(1)).await.unwrap(),
        Observation::Running { address: None }
    );
    fs::write(fixture.file("go"), "\n").unwrap();
    let address = eventually("it answers", || async {
        match fixture.executor.observe(id(1)).await.unwrap() {
            Observation::Running { address } => address,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(address.await, "http://127.0.0.1:4711");
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(2));
}

// --- Cancellation.

/// Says on `trapped` that it is ready, and ends by itself when it is interrupted.
const POLITE: &str = "trap 'exit 42' INT; echo $$ >\"$OUT\"; while :; do sleep 0.05; done";
/// Counts interrupts and goes on.
const DEAF: &str = "trap 'echo x >>\"$OUT.interrupts\"' INT; echo $$ >\"$OUT\"; while :; do sleep 0.05; done";

fn with_out(fixture: &Fixture, mut spec: ExecutionSpec) -> ExecutionSpec {
    spec.environment
        .insert("OUT".into(), fixture.file("out").to_str().unwrap().into());
    spec
}

#[tokio::test]
async fn cancel_interrupts_and_waits() {
    let fixture = Fixture::new();
    fixture.executor.cancel(id(1), Duration::ZERO).await.unwrap();
    fixture
        .executor
        .start(&with_out(&fixture, script(1, POLITE)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    let exit = fixture.exit(id(1)).await;
    assert_eq!((exit.code, exit.signal), (Some(42), None));
    fixture.executor.cancel(id(1), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn cancel_escalates_after_the_grace_and_not_before() {
    let fixture = Fixture::new();
    fixture
        .executor
        .start(&with_out(&fixture, script(1, DEAF)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    let begin = Instant::now();
    let grace = Duration::from_millis(700);
    fixture.executor.cancel(id(1), grace).await.unwrap();
    let exit = fixture.exit(id(1)).await;
    assert!(begin.elapsed() >= grace);
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    assert!(exit.message.contains("grace") && !exit.out_of_memory, "{exit:?}");
    assert_eq!(fs::read_to_string(fixture.file("out.interrupts")).unwrap(), "x\n");
}

#[tokio::test]
async fn a_shorter_grace_shortens_and_a_longer_one_does_not_lengthen() {
    let fixture = Fixture::new();
    fixture
        .executor
        .start(&with_out(&fixture, script(1, DEAF)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    for grace in [LONG, Duration::from_millis(100), LONG] {
        fixture.executor.cancel(id(1), grace).await.unwrap();
    }
    assert_eq!(fixture.exit(id(1)).await.signal, Some(9));
    // One interrupt, however often it is asked: a second one means something else to most programs.
    assert_eq!(fs::read_to_string(fixture.file("out.interrupts")).unwrap(), "x\n");
}

#[tokio::test]
async fn the_grace_is_kept_after_the_caller_was_killed() {
    let fixture = Fixture::new();
    let out = fixture.file("out");
    let mut starter = Starter::new(&fixture, 1, 1, &DEAF.replace("$OUT", out.to_str().unwrap()));
    starter.wait_until_started(1);
    let main = fixture.pid_in("out").await;
    starter.kill_9();
    assert!(lives(main));
    let begin = Instant::now();
    // The caller is a whole process that is gone before the grace is.
    let control = fixture.directory(id(1)).join("control");
    let cancelled = Command::new("sh")
        .args(["-c", "echo 'cancel 0.400' >\"$0\""])
        .arg(control)
        .status();
    assert!(cancelled.unwrap().success());
    eventually("it is killed", || async { (!lives(main)).then_some(()) }).await;
    assert!(begin.elapsed() >= Duration::from_millis(400));
    assert_eq!(fixture.exit(id(1)).await.signal, Some(9));
}

#[tokio::test]
async fn a_lifetime_ends_it_without_any_caller() {
    let fixture = Fixture::new();
    let mut spec = script(1, "trap '' INT TERM; exec sleep 600");
    spec.limits.lifetime = Some(Duration::from_millis(300));
    fixture.executor.start(&spec).await.unwrap();
    let exit = fixture.exit(id(1)).await;
    assert_eq!(exit.signal, Some(9));
    assert!(exit.message.contains("lifetime"), "{exit:?}");
}

#[tokio::test]
async fn a_server_that_ignores_interrupts_does_not_pass_that_on() {
    let fixture = Fixture::new();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' INT HUP TERM QUIT; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap());
    let mut starter = Starter::by(command, &fixture, 1, 1, "exec sleep 600");
    starter.wait_until_started(1);
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(2));
}

// --- Everything it starts belongs to it.

/// A grandchild in a session of its own whose parent has gone, with an empty environment.
const ESCAPE: &str = "setsid env -i sh -c 'sleep 600 & echo $! >\"$0\"' \"$OUT\" &";

#[tokio::test]
async fn what_daemonizes_ends_with_it() {
    let fixture = Fixture::new();
    for (run, rest) in [
        (1, "while [ ! -s \"$OUT\" ]; do sleep 0.01; done; exit 5"),
        (2, "exec sleep 600"),
    ] {
        let _ = fs::remove_file(fixture.file("out"));
        fixture
            .executor
            .start(&with_out(&fixture, script(run, &format!("{ESCAPE} {rest}"))))
            .await
            .unwrap();
        let escaped = fixture.pid_in("out").await;
        if run == 2 {
            assert!(lives(escaped));
            fixture.executor.cancel(id(run), Duration::ZERO).await.unwrap();
        }
        let exit = fixture.exit(id(run)).await;
        assert_eq!(exit.code, (run == 1).then_some(5), "{exit:?}");
        assert!(!lives(escaped), "told as ended while something of it lives");
    }
}

#[tokio::test]
async fn what_is_detached_stays() {
    let fixture = Fixture::new();
    let text = "DBTCLOUD_DETACHED=1 setsid sh -c 'echo $$ >\"$OUT\"; exec sleep 600' & \
        while [ ! -s \"$OUT\" ]; do sleep 0.01; done; sleep 600 & exit 0";
    fixture
        .executor
        .start(&with_out(&fixture, script(1, text)))
        .await
        .unwrap();
    let daemon = fixture.pid_in("out").await;
    assert_eq!(fixture.exit(id(1)).await.code, Some(0));
    fixture.executor.remove(id(1)).await.unwrap();
    assert!(lives(daemon));
    let left = pids().into_iter().filter(|pid| {
        environment_of(*pid)
            .iter()
            .any(|line| line.starts_with("DBTCLOUD_EXECUTION=") && line.contains(fixture.root.path().to_str().unwrap()))
    });
    assert_eq!(left.collect::<Vec<_>>(), [daemon]);
}

#[tokio::test]
async fn remove_ends_first() {
    let fixture = Fixture::new();
    let text = format!("{ESCAPE} trap '' INT TERM; sleep 600 & wait");
    fixture
        .executor
        .start(&with_out(&fixture, script(1, &text)))
        .await
        .unwrap();
    let escaped = fixture.pid_in("out").await;
    fixture.executor.remove(id(1)).await.unwrap();
    assert!(!lives(escaped));
    assert!(!fixture.directory(id(1)).exists());
    // The name is free again.
    fixture.executor.start(&script(1, "exit 1")).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.code, Some(1));
}

#[tokio::test]
async fn a_killed_supervisor_takes_everything_with_it_and_is_explained() {
    let fixture = Fixture::new();
    fixture
        .executor
        .start(&with_out(
            &fixture,
            script(1, "echo $$ >\"$OUT\"; setsid sleep 600 & exec sleep 600"),
        ))
        .await
        .unwrap();
    let main = fixture.pid_in("out").await;
    kill(supervisor_of(id(1)), "-KILL");
    let exit = fixture.exit(id(1)).await;
    assert_eq!((exit.code, exit.signal), (None, None));
    assert!(exit.message.contains("supervisor"), "{exit:?}");
    assert!(!lives(main));
    // Told the same way again, and never started twice.
    fixture.executor.start(&script(1, "exit 0")).await.unwrap();
    assert_eq!(
        fixture.executor.observe(id(1)).await.unwrap(),
        Observation::Exited(exit)
    );
    fixture.executor.remove(id(1)).await.unwrap();
}

#[tokio::test]
async fn signals_to_a_group_do_not_reach_the_supervisor() {
    let fixture = Fixture::new();
    fixture.executor.start(&script(1, "kill -KILL 0")).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(9));
    fixture
        .executor
        .start(&with_out(&fixture, script(2, POLITE)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    let supervisor = supervisor_of(id(2));
    for signal in ["-INT", "-TERM", "-HUP", "-QUIT"] {
        assert!(
            Command::new("kill")
                .args([signal, "--", &format!("-{supervisor}")])
                .status()
                .unwrap()
                .success()
        );
    }
    fixture.executor.cancel(id(2), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(2)).await.code, Some(42));
}

// --- Starting, and dying while starting.

#[tokio::test]
async fn outlives_the_process_that_started_it() {
    let fixture = Fixture::new();
    let mut starter = Starter::new(&fixture, 1, 2, "[ \"$RUN\" = 2 ] || exec sleep 600; exit 7");
    starter.wait_until_started(2);
    starter.kill_9();
    assert_eq!(fixture.exit(id(2)).await.code, Some(7));
    assert_eq!(
        fixture.executor.observe(id(1)).await.unwrap(),
        Observation::Running { address: None }
    );
    let listed: Vec<_> = fixture
        .executor
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(listed, [id(1), id(2)]);
    assert!(
        !environment_of(supervisor_of(id(1)))
            .iter()
            .any(|line| line.contains("hunter2"))
    );
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(2));
}

#[tokio::test]
async fn a_starter_killed_at_any_moment_leaves_zero_or_one() {
    let fixture = Fixture::new();
    let text = format!("echo x >>{}/$RUN", fixture.root.path().display());
    let mut next = 1;
    for round in 0..12_u64 {
        let mut starter = Starter::new(&fixture, next, next + 10_000, &text);
        starter.wait_until_started(next);
        // A different moment every round, on purpose: it is the starter that is cut off, not we who wait.
        tokio::time::sleep(Duration::from_micros(round * 1_137)).await;
        starter.kill_9();
        let mut run = next;
        loop {
            let seen = fixture.executor.observe(id(run)).await.unwrap();
            let mut spec = script(run, &text);
            spec.environment.insert("RUN".into(), run.to_string());
            fixture.executor.start(&spec).await.unwrap();
            assert_eq!(fixture.exit(id(run)).await.code, Some(0));
            assert_eq!(
                fs::read_to_string(fixture.file(&run.to_string())).unwrap(),
                "x\n",
                "run {run} was {seen:?}"
            );
            run += 1;
            if seen == Observation::Absent {
                break;
            }
        }
        next = run;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_most_one_is_started_by_many() {
    let fixture = Fixture::new();
    let text = format!("echo x >>{}/$RUN", fixture.root.path().display());
    let runs = 20;
    let mut others: Vec<_> = (0..2).map(|_| Starter::new(&fixture, 1, runs, &text)).collect();
    for run in 1..=runs {
        let starts = (0..4).map(|_| {
            let (executor, mut spec) = (fixture.executor.clone(), script(run, &text));
            spec.environment.insert("RUN".into(), run.to_string());
            tokio::spawn(async move { executor.start(&spec).await.unwrap() })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap();
        }
        assert_ne!(fixture.executor.observe(id(run)).await.unwrap(), Observation::Absent);
    }
    others.iter_mut().for_each(|other| other.wait_until_started(runs));
    for run in 1..=runs {
        assert_eq!(fixture.exit(id(run)).await.code, Some(0));
        assert_eq!(
            fs::read_to_string(fixture.file(&run.to_string())).unwrap(),
            "x\n",
            "run {run}"
        );
    }
}

#[tokio::test]
async fn what_a_crash_in_the_middle_of_a_start_leaves_can_be_started_and_removed() {
    let fixture = Fixture::new();
    // The states between the steps: nothing in it; a lock; everything laid out but no supervisor.
    let states: [&[&str]; 4] = [
        &[],
        &["lock"],
        &["lock", "ending", "output.log"],
        &["lock", "ending", "work/stray", "address"],
    ];
    for (run, files) in states.into_iter().enumerate() {
        let run = i64::try_from(run).unwrap();
        let lay_out = || {
            fs::create_dir_all(fixture.directory(id(run)).join("work")).unwrap();
            for file in files {
                fs::write(fixture.directory(id(run)).join(file), "").unwrap();
            }
        };
        lay_out();
        assert_eq!(fixture.executor.observe(id(run)).await.unwrap(), Observation::Absent);
        assert!(fixture.executor.list().await.unwrap().is_empty());
        fixture.executor.cancel(id(run), Duration::ZERO).await.unwrap();
        fixture.executor.remove(id(run)).await.unwrap();
        assert!(!fixture.directory(id(run)).exists());
        lay_out();
        fixture
            .executor
            .start(&script(run, "[ ! -e stray ] && exit 6"))
            .await
            .unwrap();
        assert_eq!(fixture.exit(id(run)).await.code, Some(6));
        fixture.executor.remove(id(run)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remove_and_start_at_once_leave_one_or_none() {
    let fixture = Fixture::new();
    for round in 0..20 {
        let (one, two) = (fixture.executor.clone(), fixture.executor.clone());
        let start = tokio::spawn(async move { one.start(&script(1, "exec sleep 600")).await });
        let remove = tokio::spawn(async move { two.remove(id(1)).await });
        start.await.unwrap().unwrap();
        remove.await.unwrap().unwrap();
        let seen = fixture.executor.observe(id(1)).await.unwrap();
        let ours = format!("DBTCLOUD_EXECUTION={}", fixture.directory(id(1)).display());
        let alive = pids().iter().any(|pid| environment_of(*pid).contains(&ours));
        assert_eq!(alive, seen != Observation::Absent, "round {round}: {seen:?}");
        fixture.executor.remove(id(1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once() {
    let fixture = Fixture::new();
    let begin = Instant::now();
    let starts: Vec<_> = (1..=200)
        .map(|run| {
            let executor = fixture.executor.clone();
            tokio::spawn(async move { executor.start(&script(run, "exec sleep 600")).await })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let started = begin.elapsed();
    assert_eq!(fixture.executor.list().await.unwrap().len(), 200);
    for run in 1..=200 {
        fixture.executor.cancel(id(run), LONG).await.unwrap();
    }
    for run in 1..=200 {
        assert_eq!(fixture.exit(id(run)).await.signal, Some(2));
        fixture.executor.remove(id(run)).await.unwrap();
    }
    eprintln!(
        "200 started in {started:?}, ended and removed in {:?}",
        begin.elapsed() - started
    );
    assert!(fixture.executor.list().await.unwrap().is_empty());
    eventually("no zombies of ours", || async {
        let us = std::process::id().to_string();
        let ours = pids().into_iter().filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with("Z ") && rest.split(' ').nth(1) == Some(&us))
        });
        (ours.count() == 0).then_some(())
    })
    .await;
}

// --- What cannot be.

#[tokio::test]
async fn errors_name_the_thing() {
    let fixture = Fixture::new();
    let mut spec = script(1, "");
    spec.command = vec!["no-such-program".into()];
    let error = fixture.executor.start(&spec).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some("command")));
    assert_eq!(fixture.executor.observe(id(1)).await.unwrap(), Observation::Absent);

    fs::write(fixture.file("file"), "").unwrap();
    let error = LocalExecutor::new(fixture.file("file")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("/file"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_then_works_again() {
    let fixture = Fixture::new();
    let Some(small) = SmallDisk::new(&fixture.file("small")) else {
        return;
    };
    let executor = LocalExecutor::new(small.0.join("executions")).unwrap();
    executor.start(&script(1, "read x; exec sleep 600")).await.unwrap();
    let mut fillers = 0;
    for content in [&[0; 4096][..], &[]] {
        while fs::write(small.0.join(format!("filler{fillers}")), content).is_ok() {
            fillers += 1;
        }
    }
    let error = executor.start(&script(2, "exit 0")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("No space left") && error.to_string().contains("run-2-1"),
        "{error}"
    );
    // What runs there already can end.
    executor.cancel(id(1), LONG).await.unwrap();
    eventually("it ends", || async {
        matches!(executor.observe(id(1)).await.unwrap(), Observation::Exited(_)).then_some(())
    })
    .await;
    (0..fillers).for_each(|n| fs::remove_file(small.0.join(format!("filler{n}"))).unwrap());
    executor.start(&script(2, "exit 0")).await.unwrap();
    executor.remove(id(1)).await.unwrap();
    executor.remove(id(2)).await.unwrap();
}

/// A file system of its own that is soon full; only root can have one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k,nr_inodes=64", "none"])
            .arg(path)
            .output();
        mount
            .is_ok_and(|done| done.status.success())
            .then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
