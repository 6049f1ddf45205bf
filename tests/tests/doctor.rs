//! `dbtcloud doctor`: what it says of installations that are well and of those that are not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dbtcloud_tests::installation::{Installation, binary, key_file};
use dbtcloud_tests::processes::ended_within;
use dbtcloud_tests::{postgres, s3};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Exit code, and each check with its verdict and text.
struct Told {
    code: i32,
    findings: Vec<[String; 3]>,
}

impl Told {
    fn of(command: &mut Command) -> Self {
        let output = ended_within(command.arg("--json"), LIMIT);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("hunter2"), "{said}");
        let report: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        let checks = report["checks"].as_array().unwrap().iter();
        let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
        let told = Self {
            code: output.status.code().unwrap(),
            findings: checks
                .map(|check| ["check", "verdict", "text"].map(|key| text(check, key)))
                .collect(),
        };
        assert_eq!(report["well"], Value::Bool(told.code == 0));
        told
    }

    fn verdicts(&self, verdict: &str) -> Vec<&str> {
        let found = self.findings.iter().filter(|[_, found, _]| found == verdict);
        found.map(|[check, ..]| check.as_str()).collect()
    }

    /// These checks and no others are wrong, the first says this.
    fn is_ill(&self, checks: &[&str], what: &str) {
        assert_eq!(
            (self.code, self.verdicts("wrong")),
            (1, checks.to_vec()),
            "{:?}",
            self.findings
        );
        let said = self
            .findings
            .iter()
            .find(|[check, verdict, _]| check == checks[0] && verdict == "wrong");
        assert!(
            said.unwrap()[2].contains(what),
            "expected '{what}': {:?}",
            self.findings
        );
    }
}

fn files(directory: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    found
}

#[test]
fn of_nothing_it_says_what_makes_it_and_makes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut doctor = Command::new(binary());
    doctor.args(["doctor", "--data-dir"]).arg(home.path().join("data"));
    let told = Told::of(&mut doctor);
    assert_eq!(told.code, 0, "{:?}", told.findings);
    assert_eq!(
        told.verdicts("warning"),
        ["data_dir", "key_file", "database", "artifacts"]
    );
    assert_eq!(told.verdicts("not seen"), ["schema", "clock", "wakeups"]);
    assert!(files(home.path()).is_empty());
}

#[tokio::test]
async fn an_embedded_installation_is_well_while_it_serves_and_after() {
    let mut installation = Installation::new();
    installation.start().await;
    let doctor = |installation: &Installation| Told::of(&mut installation.command("doctor"));
    let told = doctor(&installation);
    assert_eq!(
        (told.code, told.verdicts("ok").len()),
        (0, told.findings.len()),
        "{:?}",
        told.findings
    );
    installation.stop().await;
    let before = files(installation.path());
    let told = doctor(&installation);
    assert_eq!(
        (told.code, told.verdicts("ok").len()),
        (0, told.findings.len()),
        "{:?}",
        told.findings
    );
    assert_eq!(files(installation.path()), before);
    let table = installation.command("doctor").output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.ends_with("nothing is wrong\n") && table.contains("ok        schema "),
        "{table}"
    );
}

#[test]
fn on_postgresql_and_s3_every_fault_is_told_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let key = key_file(home.path());
    let (database, bucket) = (postgres::database(), s3::bucket());
    let (url, store) = (database.url(), bucket.url());
    let command = |name: &str, database: &str, store: &str, access: &str| {
        let mut command = Command::new(binary());
        command.args([name, "--key-file", &key, "--database-url", database]);
        command.args(["--artifacts-url", store, "--data-dir"]).arg(home.path());
        command.envs(bucket.environment(access));
        command
    };
    let doctor = |database: &str, store: &str, access: &str| Told::of(&mut command("doctor", database, store, access));
    let run = |name: &str| {
        assert!(
            command(name, &url, &store, s3::ADMIN)
                .output()
                .unwrap()
                .status
                .success()
        )
    };

    doctor(&url, &store, s3::ADMIN).is_ill(&["schema"], "run `dbtcloud migrate`");
    run("migrate");
    doctor(&url, &store, s3::ADMIN).is_ill(&["schema"], "run `dbtcloud bootstrap`");
    run("bootstrap");
    let told = doctor(&url, &store, s3::ADMIN);
    assert_eq!(
        (told.code, told.verdicts("ok").len()),
        (0, told.findings.len()),
        "{:?}",
        told.findings
    );

    let closed = format!(
        "postgres://me:hunter2@127.0.0.1:{}/db?sslmode=disable",
        postgres::closed_port()
    );
    let told = doctor(&closed, &store, s3::ADMIN);
    told.is_ill(&["database"], "cannot connect to postgresql at 127.0.0.1");
    assert_eq!(told.verdicts("not seen"), ["schema", "clock", "wakeups"]);
    doctor(&url, &bucket.url_of("absent-bucket"), s3::ADMIN).is_ill(&["artifacts"], "bucket");
    doctor(&url, &store, s3::READER).is_ill(&["artifacts"], "grant reading, writing");

    // Secrets that another key sealed.
    let sealed = "v1.0badcafe.QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQQ==";
    database.ask(&format!(
        "UPDATE accounts SET body = jsonb_set(body::jsonb, '{{left}}', '\"{sealed}\"')::text"
    ));
    doctor(&url, &store, s3::ADMIN).is_ill(&["secrets"], "lacks keys 0badcafe");

    let mut wrong = command("doctor", "mysql://me:hunter2@h/db", "s4://x", s3::ADMIN);
    wrong.args(["--role", "painter"]);
    Told::of(&mut wrong).is_ill(&["settings", "settings", "settings"], "");
}

#[tokio::test]
async fn a_gateway_asks_its_apps() {
    let mut installation = Installation::new();
    installation.start().await;
    let doctor = |app: &str| {
        let mut command = Command::new(binary());
        Told::of(command.args(["doctor", "--role", "gateway", "--app-url", app]))
    };
    let told = doctor(&installation.url());
    assert_eq!(
        (told.code, told.verdicts("ok")),
        (0, vec!["settings", "app"]),
        "{:?}",
        told.findings
    );
    let closed = format!("http://127.0.0.1:{}", postgres::closed_port());
    doctor(&closed).is_ill(&["app"], "is the app up?");
    installation.stop().await;
}
