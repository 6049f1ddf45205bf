//! What the cases share: an executor of their own, scripts, a look at processes, and a starter to be killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Exit, Observation, Workload, WorkloadLimits};
use dbtcloud_local::LocalExecutor;
/// Longer than anything takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) struct Fixture {
    pub(crate) executor: LocalExecutor,
    pub(crate) root: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self {
            executor: LocalExecutor::new(root.path().join("executions")).unwrap(),
            root,
        }
    }

    pub(crate) fn directory(&self, id: ExecutionId) -> PathBuf {
        self.root.path().join("executions").join(id.to_string())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) async fn exit(&self, id: ExecutionId) -> Exit {
        eventually("it ends", || async {
            match self.executor.observe(id).await.unwrap() {
                Observation::Exited(exit) => Some(exit),
                _ => None,
            }
        })
        .await
    }

    pub(crate) async fn pid_in(&self, name: &str) -> i32 {
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

pub(crate) async fn eventually<T, F, Fut>(what: &str, mut look: F) -> T
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

pub(crate) fn id(run: i64) -> ExecutionId {
    ExecutionId::Run {
        run: RunId::new(run),
        attempt: 1,
    }
}

pub(crate) fn script(run: i64, text: &str) -> ExecutionSpec {
    ExecutionSpec {
        id: id(run),
        account: AccountId::new(1),
        workload: Workload::Task,
        command: vec!["sh".into(), "-c".into(), text.into()],
        environment: BTreeMap::from([("PATH".into(), std::env::var("PATH").unwrap())]),
        ticket: None,
        mounts: Vec::new(),
        limits: WorkloadLimits::default(),
        placement: Default::default(),
    }
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

pub(crate) fn environment_of(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

pub(crate) fn argv_of(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// Neither gone nor a zombie.
pub(crate) fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub(crate) fn kill(pid: i32, signal: &str) {
    let _ = Command::new("kill")
        .args([signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Other cases run at the same time and name their executions alike.
pub(crate) fn supervisor_of(fixture: &Fixture, id: ExecutionId) -> i32 {
    let ours = format!("DBTCLOUD_EXECUTION={}", fixture.directory(id).display());
    let is_it = |pid: i32| {
        is_session_leader(pid) && argv_of(pid).starts_with("/bin/sh\0-c\0#") && environment_of(pid).contains(&ours)
    };
    pids().into_iter().find(|pid| is_it(*pid)).unwrap()
}

pub(crate) fn is_session_leader(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let session = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(3)?.parse().ok());
    session == Some(pid)
}

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

pub(crate) struct Starter {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
}

impl Starter {
    pub(crate) fn new(fixture: &Fixture, first: i64, last: i64, text: &str) -> Self {
        Self::by(
            Command::new(std::env::current_exe().unwrap()),
            fixture,
            first,
            last,
            text,
        )
    }

    pub(crate) fn by(mut command: Command, fixture: &Fixture, first: i64, last: i64, text: &str) -> Self {
        let mut child = command
            .args(["support::starter_process", "--exact", "--nocapture"])
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

    pub(crate) fn wait_until_started(&mut self, run: i64) {
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

    pub(crate) fn kill_9(&mut self) {
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

/// Ends by itself when it is interrupted.
pub(crate) const POLITE: &str = "trap 'exit 42' INT; echo $$ >\"$OUT\"; while :; do sleep 0.05; done";
/// Counts interrupts and goes on.
pub(crate) const DEAF: &str =
    "trap 'echo x >>\"$OUT.interrupts\"' INT; echo $$ >\"$OUT\"; while :; do sleep 0.05; done";

pub(crate) fn with_out(fixture: &Fixture, mut spec: ExecutionSpec) -> ExecutionSpec {
    spec.environment
        .insert("OUT".into(), fixture.file("out").to_str().unwrap().into());
    spec
}
