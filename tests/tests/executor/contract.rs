//! The contract's own cases, on processes.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_contract::suite::Subject;
use dbtcloud_contract::suite::executor::{self, plain_spec};
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Workload};
use dbtcloud_local::LocalExecutor;

use crate::support::{environment_of, lives, pids};

/// Executions of one case; every command notes that it began in a file of its name.
struct World {
    executor: LocalExecutor,
    root: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let executor = LocalExecutor::new(root.path().join("executions")).unwrap();
        Self { executor, root }
    }

    fn noted(&self, id: ExecutionId) -> PathBuf {
        self.root.path().join(format!("began-{id}"))
    }

    fn script(&self, id: ExecutionId, text: &str) -> ExecutionSpec {
        let mut spec = plain_spec(id);
        let noted = format!("echo x >>'{}'; {text}", self.noted(id).display());
        spec.command = vec!["sh".into(), "-c".into(), noted];
        spec.environment.insert("PATH".into(), std::env::var("PATH").unwrap());
        spec
    }
}

#[async_trait]
impl executor::Fixture for World {
    fn executor(&self) -> Arc<dyn Executor> {
        Arc::new(self.executor.clone())
    }

    async fn restart(&self) -> Arc<dyn Executor> {
        Arc::new(LocalExecutor::new(self.root.path().join("executions")).unwrap())
    }

    fn exits(&self, id: ExecutionId, code: i32) -> ExecutionSpec {
        self.script(id, &format!("exit {code}"))
    }

    fn runs_until_cancelled(&self, id: ExecutionId) -> ExecutionSpec {
        self.script(id, "exec sleep 600")
    }

    fn ignores_interrupt(&self, id: ExecutionId) -> ExecutionSpec {
        // The note says that it is deaf already: an interrupt before that is a fair end.
        let mut spec = self.script(id, "");
        spec.command[2] = format!("trap '' INT; {} exec sleep 600", spec.command[2]);
        spec
    }

    fn serves(&self, id: ExecutionId) -> ExecutionSpec {
        let server = "import http.server, os
server = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)
path = os.environ['DBTCLOUD_ADDRESS_FILE']
with open(path + '.new', 'w') as file:
    file.write('127.0.0.1:%d' % server.server_port)
os.rename(path + '.new', path)
server.serve_forever()";
        let mut spec = self.script(id, &format!("exec python3 -c \"{server}\""));
        spec.workload = Workload::Service;
        spec.environment.insert("HOME".into(), std::env::var("HOME").unwrap());
        spec
    }

    fn spawns_children(&self, id: ExecutionId, waits: bool) -> Option<ExecutionSpec> {
        let child = format!("trap \"\" INT; IS_CHILD={id} exec sleep 600");
        let then = if waits { "trap '' INT; wait; wait" } else { "exit 0" };
        Some(self.script(id, &format!("sh -c '{child}' & setsid sh -c '{child}' & {then}")))
    }

    async fn children(&self, id: ExecutionId) -> usize {
        let root = self.root.path().to_str().unwrap();
        let is_ours = |pid: i32| {
            let environment = environment_of(pid);
            environment.contains(&format!("IS_CHILD={id}")) && environment.iter().any(|line| line.contains(root))
        };
        pids().into_iter().filter(|pid| is_ours(*pid) && lives(*pid)).count()
    }

    fn checks_environment(&self, id: ExecutionId) -> Option<ExecutionSpec> {
        let right = "[ \"$GREETING\" = \"a 'b' \\$c\" ] && [ \"$DBTCLOUD_TICKET\" = the-ticket ]";
        let none = "[ -z \"${CARGO_PKG_NAME+x}${HOME+x}\" ]";
        Some(self.script(id, &format!("{right} && {none}")))
    }

    fn impossible(&self, id: ExecutionId) -> ExecutionSpec {
        let mut spec = plain_spec(id);
        spec.command = vec!["/no/such/program".into()];
        spec
    }

    async fn starts(&self, id: ExecutionId) -> usize {
        fs::read_to_string(self.noted(id)).unwrap_or_default().lines().count()
    }

    async fn answers(&self, address: &str) -> bool {
        let connected = tokio::net::TcpStream::connect(address);
        tokio::time::timeout(Duration::from_secs(5), connected)
            .await
            .is_ok_and(|done| done.is_ok())
    }
}

dbtcloud_contract::executor_suite!(processes, || async { Subject::executor(World::new()) });
