//! Memory of a scheduler whose cluster has 5,000 Jobs, beside the JSON of the same Jobs and Pods, which is what a
//! client that keeps them as they are has to hold at least.
//!
//! A cluster without nodes is brought up for it (`tests/kubernetes/up`, as root): every Job has its Pod, and none
//! ever runs. The scheduler is the release build on SQLite. Its memory is read with no Job there and with all.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dbtcloud_benches::figures::table;
use dbtcloud_benches::program;
use dbtcloud_benches::server::{self, Server};
use dbtcloud_contract::suite::executor::plain_spec;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor};
use dbtcloud_kubernetes::{Access, KubernetesExecutor, Options};
use dbtcloud_tests::cluster;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::project::workspace;
use futures::StreamExt;

const JOBS: i64 = 5_000;
const AT_ONCE: usize = 16;
/// Long enough to have seen all there is.
const SETTLED: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(900);
const IMAGE: &str = "local.test/busybox:1";
const NAMESPACE: &str = "default";

fn main() {
    match std::env::var_os("KUBECONFIG") {
        Some(_) => inside(),
        None => outside(),
    }
}

/// Brings the cluster up, and runs this program again in its network.
fn outside() {
    server::build();
    let folder = tempfile::tempdir().expect("a directory");
    let script = |name: &str| {
        let mut command = Command::new(workspace().join("tests/kubernetes").join(name));
        command.arg(folder.path());
        command
    };
    let up = script("up")
        .env("WITHOUT_NODE", "1")
        // Its usual 20 requests a second would take four minutes to make the pods.
        .env("CONTROLLER_MANAGER_ARGS", "--kube-api-qps=500 --kube-api-burst=1000")
        .status();
    assert!(up.is_ok_and(|status| status.success()), "no cluster");
    let measured = script("in")
        .arg(std::env::current_exe().expect("this program"))
        .env("KUBECONFIG", folder.path().join("admin.kubeconfig"))
        .status();
    let down = script("down").status();
    assert!(measured.is_ok_and(|status| status.success()), "it did not end well");
    assert!(down.is_ok_and(|status| status.success()), "the cluster stays");
}

fn task(run: i64) -> ExecutionSpec {
    let mut spec = plain_spec(ExecutionId::Run {
        run: RunId::new(run),
        attempt: 1,
    });
    spec.command = vec!["dbtcloud".to_owned(), "agent".to_owned()];
    spec.environment = [
        "DBTCLOUD_SERVER",
        "DBTCLOUD_WORK_DIR",
        "DBTCLOUD_CACHE_DIR",
        "DBTCLOUD_LOG",
    ]
    .map(|name| (name.to_owned(), "http://dbtcloud-app.default.svc:8080".to_owned()))
    .into();
    spec
}

async fn make_jobs(kubeconfig: &Path) {
    let access = Access::Kubeconfig {
        path: kubeconfig.to_owned(),
        context: None,
    };
    let options = Options::new(access, IMAGE).with_namespace(NAMESPACE);
    let executor = KubernetesExecutor::open(options).await.expect("a cluster");
    futures::stream::iter(1..=JOBS)
        .for_each_concurrent(AT_ONCE, async |run| executor.start(&task(run)).await.expect("a Job"))
        .await;
}

/// Objects of a kind, and the bytes of their JSON.
fn listed(kind: &str) -> (usize, usize) {
    let names = program::said(cluster::kubectl().args(["get", kind, "-o", "name"]));
    let json = program::said(cluster::kubectl().args(["get", kind, "-o", "json", "--show-managed-fields"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    (names.lines().count(), json.to_string().len())
}

fn memory(installation: &Installation, settings: &[(&str, String)]) -> f64 {
    let (server, _) = Server::start(installation, settings);
    std::thread::sleep(SETTLED);
    let (resident, _) = program::memory(&server.pid().to_string());
    server.stop();
    resident
}

fn inside() {
    let installation = Installation::new();
    let settings = [
        ("DBTCLOUD_ROLE", "scheduler".to_owned()),
        ("DBTCLOUD_EXECUTOR", "kubernetes".to_owned()),
        ("DBTCLOUD_KUBERNETES_NAMESPACE", NAMESPACE.to_owned()),
        ("DBTCLOUD_KUBERNETES_IMAGE", IMAGE.to_owned()),
        ("DBTCLOUD_AGENT_URL", "http://10.250.0.1:8080".to_owned()),
        ("KUBECONFIG", cluster::kubeconfig().display().to_string()),
    ];
    let without = memory(&installation, &settings);
    let began = Instant::now();
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(make_jobs(&cluster::kubeconfig()));
    let started = JOBS as f64 / began.elapsed().as_secs_f64();
    while listed("pods").0 < JOBS as usize {
        assert!(began.elapsed() < LIMIT, "the pods were not made");
        std::thread::sleep(Duration::from_secs(2));
    }
    let with = memory(&installation, &settings);
    let ((jobs, of_jobs), (pods, of_pods)) = (listed("jobs"), listed("pods"));
    let json = (of_jobs + of_pods) as f64 / f64::from(1 << 20);

    println!("cluster_memory: a scheduler beside the JSON of {jobs} Jobs and {pods} Pods, resident (RSS)");
    println!("{started:.0} Jobs a second were started, {AT_ONCE} at a time\n");
    let row = |name: &str, mib: f64| vec![name.to_owned(), format!("{mib:.1}"), format!("{:.3}", mib / json)];
    table(
        &["what", "MiB", "ratio to the JSON"],
        &[
            row("scheduler without Jobs", without),
            row("scheduler with them", with),
            row("what they take in it", with - without),
            row("their JSON", json),
        ],
    );
}
