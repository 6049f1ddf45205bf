//! An installation with everything in it, what its API tells, and its end.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_runtime::vault::KeyringVault;
use dbtcloud_tests::api::Api;
use dbtcloud_tests::installation::{Installation, binary};
use dbtcloud_tests::postgres::Database;
use dbtcloud_tests::s3::{ADMIN, Bucket};
use dbtcloud_tests::{fake, processes};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Row as _};

/// What must stand in no backup.
pub const SECRET: &str = "correct-horse-battery-staple";
pub const LIMIT: Duration = Duration::from_secs(60);
/// What a log may say after a restore: agents and leases of the lost installation, and a server that was killed.
const EXPECTED: [&str; 7] = [
    "agent request failed",
    "tried again",
    "lease",
    "upload broke off",
    "took over",
    "tells of no agent",
    "execution ended without",
];

/// Where everything is.
pub enum Base {
    /// A file and a directory.
    Embedded,
    /// A database and a bucket of their own.
    Shared(Database, Bucket),
}

/// An installation, and what was made in it.
pub struct Stage {
    base: Base,
    pub installation: Installation,
    pub quick: i64,
    pub slow: i64,
    /// The slow job ends once this file is there.
    pub enough: PathBuf,
    pub home: tempfile::TempDir,
}

pub fn new_key(path: &Path) {
    let mut options = std::fs::File::options();
    let mut file = options.create_new(true).write(true).mode(0o600).open(path).unwrap();
    let key = KeyringVault::generate().unwrap();
    std::io::Write::write_all(&mut file, key.expose().as_bytes()).unwrap();
}

impl Stage {
    /// Jobs, a secret, and a server that is up.
    pub async fn new(base: Base) -> Self {
        let home = tempfile::tempdir().unwrap();
        let key = home.path().join("key");
        new_key(&key);
        let text = key.display().to_string();
        let mut installation = match &base {
            Base::Embedded => Installation::with(&["--key-file", &text]),
            Base::Shared(database, bucket) => {
                let (url, artifacts) = (database.url(), bucket.url());
                let urls = ["--database-url", &url, "--artifacts-url", &artifacts];
                let mut installation = Installation::with(
                    &[&urls[..], &["--key-file", &text, "--migrate", "--drain-seconds", "0"]].concat(),
                );
                installation.environment = bucket.environment(ADMIN);
                installation
            }
        };
        installation.expected = EXPECTED.to_vec();
        fake::install(installation.path());
        installation.start().await;
        let repository = fake::repository(&home.path().join("origin"));
        let enough = home.path().join("enough");
        let quick = installation.job(&repository, &["dbt build"]).await;
        let lasting = format!("dbt run --select {}", enough.display());
        let slow = installation.job(&repository, &[lasting.as_str()]).await;
        let stage = Self {
            base,
            installation,
            quick,
            slow,
            enough,
            home,
        };
        stage.add_secret().await;
        stage
    }

    async fn add_secret(&self) {
        let api = self.installation.api();
        let project = api.get("v3/accounts/{a}/projects/").await[0]["id"].as_i64().unwrap();
        let path = format!("v3/accounts/{{a}}/projects/{project}/environment-variables/");
        let secret = json!({"name": "DBT_ENV_SECRET_KEY", "type": "project", "raw_value": SECRET});
        api.post(&path, &secret).await;
    }

    /// A command of the binary, with the store's credentials.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.installation.command(name);
        command.args(arguments);
        command.envs(self.installation.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn backup(&self, to: &str) -> String {
        said(&self.command("backup", &["--to", to]).output().unwrap())
    }

    pub fn verify(&self, from: &str) -> Output {
        self.command("restore", &["--verify", "--from", from]).output().unwrap()
    }

    /// The first column of what a statement answers, as text.
    pub async fn ask(&self, statement: &str) -> Vec<String> {
        match &self.base {
            Base::Shared(database, _) => database.ask(statement).lines().map(str::to_owned).collect(),
            Base::Embedded => ask(&self.installation.path().join("dbtcloud.db"), statement).await,
        }
    }

    /// Restarts the server, so that cleanup looks at once, and waits until a run's log has moved.
    pub async fn flush(&mut self, run: i64) {
        self.installation.stop().await;
        self.installation.start().await;
        let stage = &*self;
        until(LIMIT, || async move {
            let left = stage
                .ask(&format!(
                    "SELECT CAST(count(*) AS TEXT) FROM run_steps WHERE run_id = {run} AND log_bytes > log_first"
                ))
                .await;
            if left == ["0"] { Ok(()) } else { Err(left) }
        })
        .await;
    }

    pub async fn run_quick(&self) -> i64 {
        let api = self.installation.api();
        let run = api.trigger(self.quick).await;
        let ended = api.ended(run, LIMIT).await;
        assert_eq!(ended["status"], json!(10), "{ended:#}");
        run
    }

    /// A run that executes for as long as it is let.
    pub async fn run_slow(&self) -> i64 {
        let api = self.installation.api();
        let run = api.trigger(self.slow).await;
        api.until(run, LIMIT, |run| {
            let steps = run["run_steps"].as_array().cloned().unwrap_or_default();
            let says = |step: &Value| step["logs"].as_str().is_some_and(|log| log.contains("counted"));
            steps.iter().any(says)
        })
        .await;
        run
    }

    /// Everything that the API tells of these runs and of what people edit: files byte for byte, answers but for what
    /// depends on when and where they are looked at.
    pub async fn told(&self, runs: &[i64]) -> Vec<(String, Vec<u8>)> {
        told(self.installation.api(), runs).await
    }

    /// The whole installation is gone, but for its key file: processes, database, objects, directories.
    pub fn lose(&mut self) {
        self.installation.kill_server();
        processes::end(self.installation.path());
        if let Base::Shared(database, bucket) = &self.base {
            database.ask("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
            bucket.lose();
        }
        for entry in std::fs::read_dir(self.installation.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("cache") {
                continue;
            }
            match path.is_dir() {
                true => std::fs::remove_dir_all(path).unwrap(),
                false => std::fs::remove_file(path).unwrap(),
            }
        }
    }
}

/// See [`Stage::told`].
pub async fn told(api: &Api, runs: &[i64]) -> Vec<(String, Vec<u8>)> {
    let mut paths: Vec<String> = ["projects", "connections", "environments"]
        .iter()
        .map(|kind| format!("v3/accounts/{{a}}/{kind}/"))
        .collect();
    paths.push("v2/accounts/{a}/jobs/".to_owned());
    for run in runs {
        let of_run = format!("v2/accounts/{{a}}/runs/{run}/");
        paths.push(format!(
            "{of_run}?include_related=[\"trigger\",\"job\",\"environment\",\"run_steps\",\"debug_logs\"]"
        ));
        let kept = api.get(&format!("{of_run}artifacts/")).await;
        assert!(!kept.as_array().unwrap().is_empty());
        paths.extend(
            kept.as_array()
                .unwrap()
                .iter()
                .map(|kept| format!("{of_run}artifacts/{}", kept.as_str().unwrap())),
        );
        paths.push(format!("{of_run}artifacts/"));
        let whole = api.run(*run).await.unwrap();
        for step in whole["run_steps"].as_array().unwrap() {
            paths.push(format!(
                "v2/accounts/{{a}}/steps/{}/?include_related=[\"debug_logs\"]",
                step["id"]
            ));
        }
    }
    let mut told = Vec::new();
    for path in paths {
        let mut bytes = api.bytes(&path).await;
        if path.ends_with('/') || path.contains('?') {
            let mut answer = serde_json::from_slice(&bytes).unwrap();
            strip(&mut answer);
            bytes = answer.to_string().into_bytes();
        }
        told.push((path, bytes));
    }
    told
}

/// Takes out how long ago something was, where a log is just now, and where the server is.
fn strip(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(strip),
        Value::Object(all) => {
            all.retain(|name, _| {
                !name.ends_with("_humanized") && !["href", "log_location", "log_archive_type"].contains(&name.as_str())
            });
            all.values_mut().for_each(strip);
        }
        _ => {}
    }
}

/// The first column of what a SQLite file answers, as text.
pub async fn ask(file: &Path, statement: &str) -> Vec<String> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = options.connect().await.unwrap();
    let statement = sqlx::AssertSqlSafe(statement.to_owned());
    let rows = sqlx::query(statement).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}

/// What a command that went well said.
pub fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    );
    String::from_utf8(out.clone()).unwrap()
}

/// What a command that was refused said.
pub fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A command of no installation.
pub fn dbtcloud(name: &str, arguments: &[&str]) -> Output {
    Command::new(binary()).arg(name).args(arguments).output().unwrap()
}
