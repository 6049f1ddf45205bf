//! The executor's contract suite on [`Gentle`], and what only it promises.

use std::path::PathBuf;
use std::sync::Arc;

use dbtcloud_contract::suite::Subject;
use dbtcloud_contract::suite::executor::Fixture;
use dbtcloud_contract::wait;
use dbtcloud_core::ErrorKind;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

dbtcloud_contract::executor_suite!(contract, || async {
    let directory = tempfile::tempdir().unwrap();
    Subject::executor(World(directory.path().to_owned())).keeping(directory)
});

/// A directory, and shell commands that do in it as the suite says.
struct World(PathBuf);

impl World {
    fn open(&self) -> Arc<dyn Executor> {
        let inner = LocalExecutor::new(self.0.join("executions")).unwrap();
        Arc::new(Gentle::new(inner, 100))
    }

    /// A file of this execution.
    fn file(&self, name: &str, id: ExecutionId) -> PathBuf {
        self.0.join(format!("{name}-{id}"))
    }

    /// A script that first leaves a line for [`Fixture::starts`]; `$pids` takes the ids of its children.
    fn script(&self, id: ExecutionId, text: &str) -> ExecutionSpec {
        let (starts, pids) = (self.file("starts", id), self.file("pids", id));
        let script = format!("pids='{}'; echo begun >>'{}'; {text}", pids.display(), starts.display());
        ExecutionSpec { id, ..task(0, &script) }
    }
}

/// Neither gone nor a zombie.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[async_trait]
impl Fixture for World {
    fn executor(&self) -> Arc<dyn Executor> {
        self.open()
    }

    async fn restart(&self) -> Arc<dyn Executor> {
        self.open()
    }

    fn exits(&self, id: ExecutionId, code: i32) -> ExecutionSpec {
        self.script(id, &format!("exit {code}"))
    }

    fn runs_until_cancelled(&self, id: ExecutionId) -> ExecutionSpec {
        self.script(id, "exec sleep 3600")
    }

    fn ignores_interrupt(&self, id: ExecutionId) -> ExecutionSpec {
        self.script(id, "trap '' INT; exec sleep 3600")
    }

    fn serves(&self, id: ExecutionId) -> ExecutionSpec {
        // An address is opaque to everybody between the service and its caller: a process id will do.
        let mut spec = self.script(id, "echo $$ >\"$DBTCLOUD_ADDRESS_FILE\"; exec sleep 3600");
        spec.workload = Workload::Service;
        spec
    }

    fn spawns_children(&self, id: ExecutionId, waits: bool) -> Option<ExecutionSpec> {
        let children = "trap '' INT; sleep 3600 & echo $! >>\"$pids\"; setsid sleep 3600 & echo $! >>\"$pids\"";
        Some(self.script(id, &format!("{children}; {}", if waits { "wait" } else { "exit 0" })))
    }

    async fn children(&self, id: ExecutionId) -> usize {
        let pids = std::fs::read_to_string(self.file("pids", id)).unwrap_or_default();
        pids.lines().filter(|pid| lives(pid)).count()
    }

    fn checks_environment(&self, id: ExecutionId) -> Option<ExecutionSpec> {
        let greeting = r#"test "$GREETING" = "a 'b' \$c""#;
        let script = format!(
            r#"{greeting} && test "$DBTCLOUD_TICKET" = the-ticket && test -z "${{CARGO_PKG_NAME+x}}${{HOME+x}}" || exit 1"#
        );
        Some(self.script(id, &script))
    }

    fn impossible(&self, id: ExecutionId) -> ExecutionSpec {
        ExecutionSpec {
            command: Vec::new(),
            ..self.script(id, "")
        }
    }

    async fn starts(&self, id: ExecutionId) -> usize {
        let starts = std::fs::read_to_string(self.file("starts", id)).unwrap_or_default();
        starts.lines().count()
    }

    async fn answers(&self, address: &str) -> bool {
        lives(address)
    }
}

fn gentle(limit: usize) -> (tempfile::TempDir, Gentle<LocalExecutor>) {
    let directory = tempfile::tempdir().unwrap();
    let inner = LocalExecutor::new(directory.path().join("executions")).unwrap();
    (directory, Gentle::new(inner, limit))
}

async fn exit_code<E: Executor>(executor: &Gentle<E>, id: ExecutionId) -> Option<i32> {
    let look = || async {
        match executor.observe(id).await.unwrap() {
            Observation::Exited(exit) => Ok(exit.code),
            other => Err(other),
        }
    };
    wait::until(LIMIT, look).await
}

#[tokio::test]
async fn agents_are_gentle_and_their_exit_code_is_their_own() {
    let (directory, executor) = gentle(1);
    let spec = task(1, &format!("nice > {}/nice; exit 3", directory.path().display()));
    executor.start(&spec).await.unwrap();
    assert_eq!(exit_code(&executor, spec.id).await, Some(3));
    let nice = std::fs::read_to_string(directory.path().join("nice")).unwrap();
    assert_eq!(nice.trim(), "10");
}

#[tokio::test]
async fn one_too_many_is_to_come_back_later() {
    let (_directory, executor) = gentle(1);
    let (first, second) = (task(1, "exec sleep 600"), task(2, "exit 0"));
    executor.start(&first).await.unwrap();
    executor.start(&first).await.unwrap();
    let refused = executor.start(&second).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(executor.observe(second.id).await.unwrap(), Observation::Absent);

    executor.remove(first.id).await.unwrap();
    executor.start(&second).await.unwrap();
    assert_eq!(exit_code(&executor, second.id).await, Some(0));
}

#[tokio::test]
async fn of_many_at_once_only_so_many_start() {
    let (_directory, executor) = gentle(3);
    let specs: Vec<_> = (1..=8).map(|run| task(run, "exec sleep 600")).collect();
    let started = futures::future::join_all(specs.iter().map(|spec| executor.start(spec))).await;
    assert_eq!(started.iter().filter(|start| start.is_ok()).count(), 3);
    for spec in &specs {
        executor.remove(spec.id).await.unwrap();
    }
}
