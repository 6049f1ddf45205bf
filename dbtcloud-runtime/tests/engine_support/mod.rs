//! What the engine's tests share: uv, environments, small projects, a PostgreSQL of their own.
#![allow(dead_code, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dbtcloud_core::secret::Secret;
use dbtcloud_runtime::engine::profile::{Profile, ProfileInput, generate};
use dbtcloud_runtime::engine::{
    Canceller, Engine, EngineConfig, EngineError, EngineEvent, EnvironmentSpec, EnvironmentStore, Invocation,
    NodeEvent, PreparedEngine, Reply, WarmOptions, find_uv,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// uv from DBTCLOUD_TEST_UV, the project's tools, or PATH. Its absence is a failure, not a reason to skip.
pub fn uv() -> PathBuf {
    let mut places: Vec<PathBuf> = std::env::var_os("DBTCLOUD_TEST_UV")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    places.push(workspace().join(".cache/tools/bin/uv"));
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path).map(|dir| dir.join("uv")));
    }
    find_uv(places).expect("uv 0.13.8 is needed: set DBTCLOUD_TEST_UV or install it at .cache/tools/bin/uv")
}

/// Certificates, proxies and uv's own settings of the machine the tests run on.
pub fn uv_env() -> BTreeMap<String, String> {
    let wanted = |name: &str| {
        name.starts_with("UV_") || name.starts_with("SSL_CERT") || name.to_ascii_lowercase().ends_with("_proxy")
    };
    let mut env: BTreeMap<String, String> = std::env::vars().filter(|(name, _)| wanted(name)).collect();
    // Where the Python of a version manager is found.
    env.extend(std::env::var("PATH").map(|path| ("PATH".to_owned(), path)));
    env
}

/// Environments are shared between test binaries and runs.
pub fn store() -> EnvironmentStore {
    EnvironmentStore::new(workspace().join(".cache/dbt-envs"), uv()).with_uv_env(uv_env())
}

pub fn warm_options() -> WarmOptions {
    WarmOptions {
        idle: Duration::from_secs(20),
        ..WarmOptions::default()
    }
}

/// An engine of its own: parents are not shared with other tests, and leave when the directory is removed.
pub async fn engine(adapter: &str, warm: Option<WarmOptions>) -> (PreparedEngine, TempDir) {
    let dir = tempfile::Builder::new().prefix("eng").tempdir().unwrap();
    let mut config = EngineConfig::new(store(), dir.path().join("run"), "account-1");
    config.warm = warm;
    let prepared = Engine::new(config)
        .prepare(&EnvironmentSpec::new("1.11", adapter))
        .await
        .unwrap();
    (prepared, dir)
}

/// An engine whose parents are shared between tests and runs; they leave when idle.
pub async fn shared(adapter: &str, warm: bool) -> PreparedEngine {
    let dir = std::env::temp_dir().join(format!("dbtcloud-test-{}", nix::unistd::geteuid()));
    let mut config = EngineConfig::new(store(), dir, "account-1");
    config.warm = warm.then(|| WarmOptions {
        idle: Duration::from_secs(60),
        ..WarmOptions::default()
    });
    Engine::new(config)
        .prepare(&EnvironmentSpec::new("1.11", adapter))
        .await
        .unwrap()
}

pub struct Project {
    pub dir: TempDir,
    pub profile: Profile,
}

pub fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

impl Project {
    /// Three seeds, five models, six tests on duckdb.
    pub fn duckdb() -> Self {
        let dir = tempfile::Builder::new().prefix("prj").tempdir().unwrap();
        let connection = json!({"path": dir.path().join("tiny.duckdb")});
        Self::new(dir, "duckdb", &connection, &json!({}), "main")
    }

    pub fn postgres(server: &Postgres, application_name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("prj").tempdir().unwrap();
        let connection = json!({"hostname": "127.0.0.1", "port": server.port, "dbname": "postgres"});
        let credentials = json!({"username": "postgres", "password": "pa'ss {{ word }}"});
        let mut project = Self::new(dir, "postgres", &connection, &credentials, "analytics");
        project.profile = profile(
            "postgres",
            &connection,
            &credentials,
            "analytics",
            Some(application_name),
        );
        write(&project.dir.path().join("profiles/profiles.yml"), &project.profile.text);
        project
    }

    fn new(dir: TempDir, adapter: &str, connection: &Value, credentials: &Value, schema: &str) -> Self {
        let profile = profile(adapter, connection, credentials, schema, None);
        let at = |name: &str| dir.path().join(name);
        write(&at("profiles/profiles.yml"), &profile.text);
        for (name, text) in FILES {
            write(&at(&format!("project/{name}")), text);
        }
        Self { dir, profile }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn model(&self, name: &str, sql: &str) {
        write(&self.path(&format!("project/models/{name}.sql")), sql);
    }

    pub fn command(&self, argv: &[&str]) -> Invocation {
        let mut invocation = Invocation::new(
            argv.iter().copied(),
            self.path("project"),
            self.path("target"),
            self.path("logs"),
            self.path("profiles"),
        );
        invocation.env.extend(self.profile.env.clone());
        invocation
            .env
            .insert("HOME".into(), Secret::new(self.dir.path().to_string_lossy()));
        invocation
    }

    pub fn statuses(&self) -> BTreeMap<String, String> {
        let results = dbtcloud_runtime::engine::results::read_run_results(&self.path("target/run_results.json"))
            .unwrap()
            .unwrap();
        results
            .results
            .into_iter()
            .map(|result| (result.unique_id, result.status))
            .collect()
    }
}

fn profile(adapter: &str, connection: &Value, credentials: &Value, schema: &str, name: Option<&str>) -> Profile {
    generate(&ProfileInput {
        profile: "tiny",
        target: "dev",
        adapter,
        connection: connection.as_object().unwrap(),
        credentials: credentials.as_object().unwrap(),
        schema: Some(schema),
        threads: 1,
        extended_attributes: &Map::new(),
        application_name: name,
    })
    .unwrap()
}

const FILES: &[(&str, &str)] = &[
    (
        "dbt_project.yml",
        "name: tiny\nversion: '1.0.0'\nconfig-version: 2\nprofile: tiny\nmodel-paths: [models]\nseed-paths: [seeds]\nmacro-paths: [macros]\n",
    ),
    ("seeds/raw_customers.csv", "id,name\n1,ann\n2,bob\n3,cy\n"),
    ("seeds/raw_orders.csv", "id,customer_id,amount\n1,1,10\n2,1,20\n3,2,5\n"),
    (
        "seeds/raw_payments.csv",
        "id,order_id,method\n1,1,card\n2,2,cash\n3,3,card\n",
    ),
    (
        "models/stg_customers.sql",
        "select id as customer_id, name from {{ ref('raw_customers') }}\n",
    ),
    (
        "models/stg_orders.sql",
        "select id as order_id, customer_id, amount from {{ ref('raw_orders') }}\n",
    ),
    (
        "models/stg_payments.sql",
        "select id as payment_id, order_id, method from {{ ref('raw_payments') }}\n",
    ),
    (
        "models/customers.sql",
        "{{ config(materialized='table') }}\nselect c.customer_id, c.name, coalesce(sum(o.amount), 0) as total\nfrom {{ ref('stg_customers') }} c left join {{ ref('stg_orders') }} o using (customer_id) group by 1, 2\n",
    ),
    (
        "models/orders.sql",
        "{{ config(materialized='table') }}\nselect o.order_id, o.customer_id, o.amount, p.method\nfrom {{ ref('stg_orders') }} o left join {{ ref('stg_payments') }} p using (order_id)\n",
    ),
    (
        "models/schema.yml",
        "version: 2\nmodels:\n  - name: customers\n    columns:\n      - name: customer_id\n        data_tests: [unique, not_null]\n  - name: orders\n    columns:\n      - name: order_id\n        data_tests: [unique, not_null]\n      - name: customer_id\n        data_tests:\n          - relationships: {arguments: {to: ref('customers'), field: customer_id}}\n      - name: method\n        data_tests:\n          - accepted_values: {arguments: {values: [card, cash]}}\n",
    ),
];

/// All that one command said.
#[derive(Debug)]
pub struct Said {
    pub reply: Result<Reply, EngineError>,
    pub stdout: String,
    pub stderr: String,
    pub nodes: Vec<NodeEvent>,
}

pub async fn run(engine: &PreparedEngine, invocation: &Invocation) -> Said {
    run_with(engine, invocation, &Canceller::new()).await
}

pub async fn run_with(engine: &PreparedEngine, invocation: &Invocation, canceller: &Canceller) -> Said {
    let (sink, mut events) = tokio::sync::mpsc::channel(16);
    let collect = tokio::spawn(async move {
        let (mut stdout, mut stderr, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(event) = events.recv().await {
            match event {
                EngineEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                EngineEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                EngineEvent::Node(node) => nodes.push(*node),
                EngineEvent::Command(_) => {}
            }
        }
        (
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
            nodes,
        )
    });
    let reply = engine.invoke(invocation, &sink, canceller).await;
    drop(sink);
    let (stdout, stderr, nodes) = collect.await.unwrap();
    Said {
        reply,
        stdout,
        stderr,
        nodes,
    }
}

/// Waits for a condition, with a limit; the only waiting there is.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "still not so after 60 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// CPU time of a process so far, in ticks.
pub fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.get(11).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

pub fn alive(pid: i32) -> bool {
    // A zombie is dead; its state is the letter after the name.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

/// A PostgreSQL in a temporary directory, gone with the value.
pub struct Postgres {
    pub port: u16,
    bin: PathBuf,
    server: Child,
    _dir: TempDir,
}

impl Postgres {
    pub async fn start() -> Self {
        let bin = ["17", "16", "15", "14", "13"]
            .iter()
            .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
            .find(|dir| dir.join("postgres").exists())
            .or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| dir.join("initdb").exists()))
            .expect("PostgreSQL server programs are needed");
        let dir = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        let data = dir.path().join("data");
        let root = nix::unistd::geteuid().is_root();
        let command = |program: &str| {
            let program = bin.join(program);
            if !root {
                return Command::new(program);
            }
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
                .arg(program);
            command
        };
        if root {
            let chown = Command::new("chown")
                .arg("postgres:postgres")
                .arg(dir.path())
                .status()
                .unwrap();
            assert!(chown.success(), "no user postgres");
        }
        let made = command("initdb")
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .current_dir("/")
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let server = command("postgres")
            .arg("-D")
            .arg(&data)
            .args([
                "-p",
                &port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "fsync=off",
                "-k",
            ])
            .arg(dir.path())
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            port,
            bin,
            server,
            _dir: dir,
        };
        until("PostgreSQL answers", || server.query("select 1") == "1").await;
        server
    }

    pub fn query(&self, sql: &str) -> String {
        let output = Command::new(self.bin.join("psql"))
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-tAXc",
                sql,
                "-p",
                &self.port.to_string(),
            ])
            .stderr(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT: at once, children included.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.server.id() as i32),
            nix::sys::signal::Signal::SIGQUIT,
        );
        let _ = self.server.wait();
    }
}
