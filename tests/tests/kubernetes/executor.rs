//! The executor's contract on a real cluster, and what is Kubernetes' own about it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_contract::suite::Subject;
use dbtcloud_contract::suite::executor::{self, plain_spec};
use dbtcloud_core::environment::Placement;
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Observation, Workload};
use dbtcloud_kubernetes::KubernetesExecutor;
use serde_json::json;

use crate::stage::{Stage, ended, run, running, script, seen};

/// Executions of one case. Every command says in its log that it began.
struct World {
    stage: Stage,
    executor: KubernetesExecutor,
}

impl World {
    async fn new() -> Self {
        let stage = Stage::new("contract").await;
        let executor = stage.executor().await;
        Self { stage, executor }
    }

    fn script(&self, id: ExecutionId, text: &str) -> ExecutionSpec {
        let mut spec = script(id, &format!("echo began; {text}"));
        spec.environment
            .insert("WORLD".into(), self.stage.namespace.name().into());
        spec
    }
}

#[async_trait]
impl executor::Fixture for World {
    fn executor(&self) -> Arc<dyn Executor> {
        Arc::new(self.executor.clone())
    }

    async fn restart(&self) -> Arc<dyn Executor> {
        Arc::new(self.stage.executor().await)
    }

    fn exits(&self, id: ExecutionId, code: i32) -> ExecutionSpec {
        self.script(id, &format!("exit {code}"))
    }

    fn runs_until_cancelled(&self, id: ExecutionId) -> ExecutionSpec {
        // The first process of a pid namespace hears only what it asks for.
        let mut spec = self.script(id, "");
        spec.command[2] = format!("trap 'exit 42' INT; {} while :; do sleep 0.1; done", spec.command[2]);
        spec
    }

    fn ignores_interrupt(&self, id: ExecutionId) -> ExecutionSpec {
        let mut spec = self.script(id, "");
        spec.command[2] = format!("trap '' INT TERM; {} while :; do sleep 1; done", spec.command[2]);
        spec
    }

    fn serves(&self, id: ExecutionId) -> ExecutionSpec {
        let serve = "trap 'exit 0' INT; httpd -f -p \"$DBTCLOUD_PORT\" -h /work & wait";
        let mut spec = self.script(id, serve);
        spec.workload = Workload::Service;
        spec
    }

    fn spawns_children(&self, id: ExecutionId, waits: bool) -> Option<ExecutionSpec> {
        let child = format!("trap \"\" INT; IS_CHILD={id} exec sleep 600");
        let then = if waits { "trap '' INT; wait; wait" } else { "exit 0" };
        Some(self.script(id, &format!("sh -c '{child}' & setsid sh -c '{child}' & {then}")))
    }

    /// Nodes of the tests' own cluster are this machine.
    async fn children(&self, id: ExecutionId) -> usize {
        let world = format!("WORLD={}", self.stage.namespace.name());
        let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let is_ours = |path: &std::path::PathBuf| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            let has = |wanted: &str| environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes());
            has(&world) && has(&format!("IS_CHILD={id}"))
        };
        pids.filter(is_ours).count()
    }

    fn checks_environment(&self, id: ExecutionId) -> Option<ExecutionSpec> {
        let right = "[ \"$GREETING\" = \"a 'b' \\$c\" ] && [ \"$DBTCLOUD_TICKET\" = the-ticket ]";
        // A container has a HOME, which is not ours.
        let home = std::env::var("HOME").unwrap();
        let none = format!("[ -z \"${{CARGO_PKG_NAME+x}}\" ] && [ \"$HOME\" != '{home}' ]");
        Some(self.script(id, &format!("{right} && {none}")))
    }

    fn impossible(&self, id: ExecutionId) -> ExecutionSpec {
        let mut spec = plain_spec(id);
        spec.command = Vec::new();
        spec
    }

    async fn starts(&self, id: ExecutionId) -> usize {
        self.stage.log(id).await.lines().filter(|line| *line == "began").count()
    }

    async fn answers(&self, address: &str) -> bool {
        let connected = tokio::net::TcpStream::connect(address);
        tokio::time::timeout(Duration::from_secs(3), connected)
            .await
            .is_ok_and(|done| done.is_ok())
    }
}

dbtcloud_contract::executor_suite!(contract, || async { Subject::executor(World::new().await) });

/// Bounded, and known: what a hundred runs at once cost the API server.
#[tokio::test]
async fn a_run_takes_seven_requests() {
    let stage = Stage::new("requests").await;
    let executor = stage.executor().await;
    let id = run(1);
    assert_eq!(executor.observe(id).await.unwrap(), Observation::Absent);
    executor.start(&script(id, "sleep 2")).await.unwrap();
    let exit = ended(&executor, id).await;
    assert_eq!(exit.code, Some(0), "{}", exit.message);
    executor.remove(id).await.unwrap();
    assert_eq!(executor.requests(), 7);
}

#[tokio::test]
async fn pods_are_restricted_and_hold_no_token() {
    let stage = Stage::new("hardening").await;
    let executor = stage.executor().await;
    let id = run(1);
    let looks = "id -u; ! ls /var/run/secrets/kubernetes.io; ! touch /here; touch /work/a /cache/b /tmp/c; env | \
                 grep -c _SERVICE_HOST; grep CapEff /proc/self/status; grep Seccomp: /proc/self/status";
    executor.start(&script(id, looks)).await.unwrap();
    ended(&executor, id).await;
    let log = stage.log(id).await;
    let lines: Vec<_> = log.lines().collect();
    assert!(
        lines.contains(&"65532") && lines.contains(&"CapEff:\t0000000000000000"),
        "{log}"
    );
    assert!(lines.contains(&"Seccomp:\t2"), "{log}");
    assert!(
        log.contains("secrets/kubernetes.io: No such file") && log.contains("Read-only file system"),
        "{log}"
    );
    let pod = serde_json::to_value(&stage.pods(id).await[0]).unwrap();
    assert_eq!(pod["spec"]["enableServiceLinks"], false);
    let secret = |variable: &&serde_json::Value| variable["valueFrom"].is_object();
    let variables = pod["spec"]["containers"][0]["env"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(variables.iter().filter(secret).count(), 0);
    executor.remove(id).await.unwrap();
}

#[tokio::test]
async fn an_environment_says_where_and_how_its_runs_execute() {
    let stage = Stage::new("placement").await;
    let executor = stage.executor().await;
    stage.namespace.kubectl(&["create", "serviceaccount", "analytics"]);
    let id = run(1);
    let mut spec = script(id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; echo $MORE");
    let execution = json!({
        "service_account": "analytics",
        "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}},
        "node_selector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "pod_overlay": {
            "metadata": {"labels": {"team": "data"}},
            "spec": {"containers": [{"name": "main", "env": [{"name": "MORE", "value": "more"}]}]},
        },
    });
    spec.placement = Placement::parse("execution", &execution).unwrap();
    executor.start(&spec).await.unwrap();
    let exit = ended(&executor, id).await;
    assert_eq!(exit.code, Some(0), "{}", exit.message);
    assert!(
        stage.log(id).await.contains("67108864\nmore"),
        "{}",
        stage.log(id).await
    );
    let pod = serde_json::to_value(&stage.pods(id).await[0]).unwrap();
    assert_eq!(pod["spec"]["serviceAccountName"], "analytics");
    assert_eq!(pod["metadata"]["labels"]["team"], "data");
    assert_eq!(pod["spec"]["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    executor.remove(id).await.unwrap();
}

/// Two installations in one namespace do not see each other.
#[tokio::test]
async fn installations_are_apart() {
    let stage = Stage::new("installations").await;
    let open = |name: &str| KubernetesExecutor::open(stage.options().with_installation(name));
    let (blue, green) = (open("blue").await.unwrap(), open("green").await.unwrap());
    for (executor, code) in [(&blue, 3), (&green, 4)] {
        executor.start(&script(run(1), &format!("exit {code}"))).await.unwrap();
    }
    assert_eq!(ended(&blue, run(1)).await.code, Some(3));
    assert_eq!(ended(&green, run(1)).await.code, Some(4));
    blue.remove(run(1)).await.unwrap();
    assert_eq!(green.list().await.unwrap().len(), 1);
    green.remove(run(1)).await.unwrap();
}

/// Somebody deletes the pod, or the whole Job: how it ended is known all the same.
#[tokio::test]
async fn an_end_survives_whoever_tidies_up() {
    let stage = Stage::new("tidied").await;
    let executor = stage.executor().await;
    let id = run(1);
    executor.start(&script(id, "exit 7")).await.unwrap();
    assert_eq!(ended(&executor, id).await.code, Some(7));
    stage.namespace.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    stage.namespace.kubectl(&["delete", "jobs", "--all", "--wait=false"]);
    assert_eq!(ended(&stage.executor().await, id).await.code, Some(7));
    assert_eq!(executor.list().await.unwrap().len(), 1);
    executor.remove(id).await.unwrap();
    assert_eq!(executor.observe(id).await.unwrap(), Observation::Absent);
    assert_eq!(executor.list().await.unwrap(), []);
}

/// A run that is cancelled while the cluster has no room for it never begins.
#[tokio::test]
async fn what_waits_can_be_cancelled() {
    let stage = Stage::new("waits").await;
    let executor = stage.executor().await;
    let mut spec = script(run(1), "exit 0");
    spec.placement.node_selector.insert("no".into(), "such-node".into());
    executor.start(&spec).await.unwrap();
    seen(&executor, run(1), |seen| {
        matches!(seen, Observation::Pending { .. }).then_some(())
    })
    .await;
    executor.cancel(run(1), Duration::from_secs(600)).await.unwrap();
    let exit = ended(&executor, run(1)).await;
    assert_eq!((exit.code, exit.message.as_str()), (None, "cancelled"));
    executor.remove(run(1)).await.unwrap();
}

#[tokio::test]
async fn a_lifetime_is_kept_by_the_cluster() {
    let stage = Stage::new("lifetime").await;
    let executor = stage.executor().await;
    let mut spec = script(run(1), "trap 'exit 9' INT; while :; do sleep 0.1; done");
    spec.limits.lifetime = Some(Duration::from_secs(2));
    executor.start(&spec).await.unwrap();
    running(&executor, run(1)).await;
    let exit = ended(&executor, run(1)).await;
    assert!(exit.message.contains("longer than it may (2 s)"), "{exit:?}");
    executor.remove(run(1)).await.unwrap();
}

/// Accounts that have namespaces of their own: made with the first run, of the restricted level.
#[tokio::test]
async fn accounts_have_namespaces_of_their_own() {
    let stage = Stage::new("accounts").await;
    let name = stage.namespace.name();
    let unique = &name[name.len() - 5..];
    let options = stage.options().with_installation(unique).with_namespace_per_account();
    let executor = KubernetesExecutor::open(options).await.unwrap();
    let mut ids = Vec::new();
    for account in [1, 2] {
        let mut spec = script(run(account), &format!("exit {account}"));
        spec.account = dbtcloud_core::id::AccountId::new(account);
        executor.start(&spec).await.unwrap();
        ids.push(spec.id);
    }
    for (id, code) in ids.iter().zip(1..) {
        assert_eq!(ended(&executor, *id).await.code, Some(code));
    }
    let level = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    for account in [1, 2] {
        let own = format!("{name}-{account}");
        assert_eq!(
            stage.namespace.kubectl(&["get", "namespace", &own, "--output", level]),
            "restricted"
        );
        let there = stage
            .namespace
            .kubectl(&["get", "jobs", "--namespace", &own, "--output", "name"]);
        assert_eq!(there.trim(), format!("job.batch/{unique}-run-{account}-1"));
    }
    assert_eq!(executor.list().await.unwrap().len(), 2);
    for id in ids {
        executor.remove(id).await.unwrap();
        assert_eq!(executor.observe(id).await.unwrap(), Observation::Absent);
    }
    assert_eq!(executor.list().await.unwrap(), []);
    for account in [1, 2] {
        let own = format!("{name}-{account}");
        stage.namespace.kubectl(&["delete", "namespace", "--wait=false", &own]);
    }
}
