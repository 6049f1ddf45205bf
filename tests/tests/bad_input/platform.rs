//! From the world around: databases, disks and clocks. The manual has the same table (`docs/operate.md`).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::disk::SmallDisk;
use dbtcloud_tests::fake;
use dbtcloud_tests::installation::{Installation, binary, key_file};
use dbtcloud_tests::postgres::{self, Cluster, GUARDED_ROLE};
use dbtcloud_tests::processes::ended_within;
use reqwest::Method;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// Where Debian has it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// A role that may log in and nothing else.
const STRANGER: &str = "stranger";

/// Starts a server that cannot be, and holds it to the rule: exit code 1, one error that says this, and no password.
fn refused(data: &Path, key: &str, database_url: &str, what: &str) {
    let mut command = Command::new(binary());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--key-file", key, "--data-dir"])
        .arg(data)
        .args(["--database-url", database_url]);
    let output = ended_within(&mut command, LIMIT);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{database_url}: {said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{database_url}: {said}");
    let more = if errors[0].ends_with("wrong:") {
        said.as_str()
    } else {
        errors[0]
    };
    assert!(more.contains(what), "{database_url}: expected '{what}' in: {said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_database_that_cannot_be_used_ends_the_start_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let (data, key) = (home.path().join("data"), key_file(home.path()));
    let database = postgres::database();
    let (port, name) = (database.port(), database.name());
    let url = |user: &str, port: u16, name: &str| format!("postgres://{user}@127.0.0.1:{port}/{name}?sslmode=disable");
    let try_it = |url: &str, what: &str| refused(&data, &key, url, what);
    try_it(
        "mysql://me:hunter2@127.0.0.1/db",
        "database_url: expected a URL that begins with postgres:",
    );
    let closed = postgres::closed_port();
    try_it(
        &url("me:hunter2", closed, "db"),
        &format!("cannot connect to postgresql at 127.0.0.1:{closed}"),
    );
    try_it(
        &url("postgres", port, "absent"),
        "the database does not exist; create it",
    );
    try_it(
        &url(&format!("{GUARDED_ROLE}:hunter2"), port, name),
        "check user, password and pg_hba.conf",
    );
    try_it(&database.url(), "the schema is version 0");
    try_it(&database.url(), "run `dbtcloud migrate`");

    // A role that may do nothing, before and after there is something.
    database.ask(&format!(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{STRANGER}') \
            THEN CREATE ROLE {STRANGER} LOGIN; END IF; END $$"
    ));
    let migrate = |url: &str| {
        let mut command = Command::new(binary());
        command.args(["migrate", "--key-file", &key, "--database-url", url, "--data-dir"]);
        let output = command.arg(&data).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = migrate(&url(STRANGER, port, name));
    assert!(code == Some(1) && said.contains("lacks a privilege"), "{said}");
    assert_eq!(migrate(&database.url()).0, Some(0));
    try_it(&url(STRANGER, port, name), "make it the owner of the schema");

    // A standby, or a server that was told to be like one.
    database.ask(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    try_it(&database.url(), "the server is read-only; name the primary");
    database.ask(&format!(
        "BEGIN READ WRITE; ALTER DATABASE {name} RESET default_transaction_read_only; COMMIT"
    ));

    let newer = SqlStorage::SCHEMA_VERSION + 1;
    let record = format!("INSERT INTO schema_migrations (number, name, oldest_binary) VALUES ({newer}, 'x', {newer})");
    database.ask(&record);
    try_it(&database.url(), "run a newer dbtcloud");

    // Files.
    let absent = home.path().join("absent/dbtcloud.db");
    try_it(&format!("sqlite://{}", absent.display()), "does not exist; create it");
    let text = home.path().join("text");
    std::fs::write(&text, "no database ".repeat(1_000)).unwrap();
    try_it(&format!("sqlite://{}", text.display()), "no database; restore a backup");
}

/// A database that was closed cannot be opened there; of one whose server was killed the log is beside it, and SQLite
/// would begin to write.
#[tokio::test]
async fn a_read_only_disk_ends_the_start_however_the_database_was_left() {
    for killed in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let (data, key) = (home.path().join("data"), key_file(home.path()));
        let disk = SmallDisk::mount(&home.path().join("disk"), 8);
        let path = disk.path().join("dbtcloud.db");
        let file = format!("sqlite://{}", path.display());
        let mut left = Installation::with(&["--database-url", &file]);
        if killed {
            left.start().await;
            left.kill_server();
        }
        assert_eq!(disk.path().join("dbtcloud.db-wal").exists(), killed);
        disk.read_only();
        refused(&data, &key, &file, "whether the file system can be written");
        refused(&disk.path().join("data"), &key, &file, "cannot make the directory");
    }
}

async fn ready(installation: &Installation) -> (u16, Value) {
    let answer = reqwest::get(format!("{}/readyz", installation.url())).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Waits until `/readyz` has this code and says this of a component.
async fn says(installation: &Installation, code: u16, component: &str, what: &str) {
    until(LIMIT, || async {
        let (status, told) = ready(installation).await;
        let said = told["components"][component].as_str().unwrap_or_default();
        let agreed = status == code && said.contains(what);
        agreed.then_some(()).ok_or(format!("{status} {told}"))
    })
    .await;
}

async fn is_whole(installation: &Installation, run: i64) {
    let run = installation.api().ended(run, LIMIT).await;
    assert_eq!(run["status"], json!(10), "{run:#}");
    let log = run["run_steps"][3]["logs"].as_str().unwrap_or_default();
    assert!(fake::is_whole(log), "{log}");
}

/// What a server says while its database takes nothing.
const TAKES_NOTHING: [&str; 9] = [
    "testing the connection on-release",
    "disk is full",
    "No space left",
    "agent request failed",
    "request could not be served",
    "scheduler tick failed",
    "cleanup failed",
    "is read-only",
    "terminating connection",
];

/// A server with a job that goes on until the file is there.
async fn with_a_slow_job(installation: &mut Installation) -> (i64, std::path::PathBuf) {
    installation.expected = TAKES_NOTHING.to_vec();
    fake::install(installation.path());
    installation.start().await;
    let repository = fake::repository(&installation.path().join("origin"));
    let enough = installation.path().join("enough");
    let slow = format!("dbt run --select {}", enough.display());
    (installation.job(&repository, &[&slow]).await, enough)
}

/// A run is under way; the disk fills up; it is told, and `/readyz` has it of the scheduler if that must write; the
/// disk is freed and nothing is lost.
async fn fills_up(installation: &mut Installation, disk: &SmallDisk, scheduler: Option<&str>) {
    let (job, enough) = with_a_slow_job(installation).await;
    let api = installation.api().clone();
    let run = api.trigger(job).await;
    let begun = |run: &Value| {
        run["run_steps"][3]["logs"]
            .as_str()
            .unwrap_or_default()
            .contains("counted 1")
    };
    api.until(run, LIMIT, begun).await;
    disk.fill();
    // What room is left in the files is enough for some.
    let trigger = format!("v2/accounts/{{a}}/jobs/{job}/run/");
    let (mut taken, cause) = (vec![run], json!({"cause": "x"}));
    while taken.len() < 1_000 {
        match api.send(Method::POST, &trigger, Some(&cause)).await.unwrap() {
            (status, _) if status == 503 => break,
            (_, answer) => taken.push(answer["data"]["id"].as_i64().unwrap_or_else(|| panic!("{answer}"))),
        }
    }
    if let Some(scheduler) = scheduler {
        says(installation, 200, "scheduler", scheduler).await;
    }
    std::fs::write(&enough, "").unwrap();
    disk.free();
    says(installation, 200, "scheduler", "ok").await;
    for run in taken {
        is_whole(installation, run).await;
    }
    is_whole(installation, api.trigger(job).await).await;
    installation.stop().await;
    let log = std::fs::read_to_string(installation.log()).unwrap();
    assert!(log.contains("disk is full; make room on it"), "{log}");
}

#[tokio::test]
async fn a_full_disk_below_sqlite_is_told_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&home.path().join("disk"), 8);
    let url = format!("sqlite://{}", disk.path().join("dbtcloud.db").display());
    let mut installation = Installation::with(&["--database-url", &url]);
    fills_up(&mut installation, &disk, Some("disk is full; make room on it")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_below_postgres_is_told_and_loses_nothing() {
    let home = tempfile::Builder::new().prefix("dbtcloud-full-").tempdir().unwrap();
    // The server runs as another user.
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let disk = SmallDisk::mount(&home.path().join("disk"), 24);
    let space = disk.path().join("space");
    std::fs::create_dir(&space).unwrap();
    let owner = Command::new("chown").arg("postgres").arg(&space).status().unwrap();
    assert!(owner.success());
    let cluster = Cluster::start();
    let database = cluster.database();
    database.ask(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display()));
    database.ask("CREATE DATABASE small TABLESPACE small");
    let url = database.url().replace(database.name(), "small");
    let mut installation = Installation::on(&url, &[]);
    // What the scheduler changes has its room already.
    fills_up(&mut installation, &disk, None).await;
}

#[tokio::test]
async fn a_database_that_becomes_read_only_is_told_and_loses_nothing() {
    let database = tokio::task::spawn_blocking(postgres::database).await.unwrap();
    let mut installation = Installation::on(&database.url(), &[]);
    let (job, enough) = with_a_slow_job(&mut installation).await;
    installation.expected.push("not ready");
    installation.expected.push("bells of other processes");
    let api = installation.api().clone();
    let run = api.trigger(job).await;
    api.until(run, LIMIT, |run| run["status"] == json!(3)).await;
    // As a failover does: what comes back is a standby.
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE datname = current_database() AND application_name LIKE 'dbtcloud%'";
    let name = database.name();
    database.ask(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    database.ask(cut);
    says(
        &installation,
        503,
        "database",
        "the server is read-only; name the primary",
    )
    .await;
    says(&installation, 503, "scheduler", "the server is read-only").await;
    let seen = api.run(run).await.unwrap();
    assert_eq!(seen["is_complete"], json!(false), "what can be read is answered");
    let trigger = format!("v2/accounts/{{a}}/jobs/{job}/run/");
    let (status, _) = api
        .send(Method::POST, &trigger, Some(&json!({"cause": "x"})))
        .await
        .unwrap();
    assert_eq!(status, 503);
    std::fs::write(&enough, "").unwrap();
    database.ask(&format!(
        "BEGIN READ WRITE; ALTER DATABASE {name} RESET default_transaction_read_only; COMMIT"
    ));
    database.ask(cut);
    says(&installation, 200, "database", "ok").await;
    is_whole(&installation, run).await;
    is_whole(&installation, api.trigger(job).await).await;
    installation.stop().await;
}

/// The wall clock of the real server goes back an hour and comes again. Its agents have the machine's.
#[tokio::test]
async fn a_clock_that_is_set_back_is_told_and_loses_nothing() {
    assert!(Path::new(FAKETIME).is_file(), "install libfaketime: tests/setup does");
    let mut installation = Installation::new();
    let offset = installation.path().join("offset");
    std::fs::write(&offset, "+0").unwrap();
    installation.environment = vec![
        ("LD_PRELOAD", FAKETIME.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let (job, enough) = with_a_slow_job(&mut installation).await;
    installation.expected.push("s behind what it was; set it right");
    let repository = fake::repository(&installation.path().join("another"));
    let quick = installation.job(&repository, &["dbt build"]).await;
    let api = installation.api().clone();
    let live = api.trigger(job).await;
    api.until(live, LIMIT, |run| run["status"] == json!(3)).await;
    let waits = api.trigger(job).await;

    std::fs::write(&offset, "-1h").unwrap();
    says(&installation, 200, "clock", "s behind what it was; set it right").await;
    // New runs go their way, and the one under way ends; the one that was queued before waits.
    is_whole(&installation, api.trigger(quick).await).await;
    std::fs::write(&enough, "").unwrap();
    is_whole(&installation, live).await;
    is_whole(&installation, api.trigger(quick).await).await;
    let seen = api.run(waits).await.unwrap();
    assert_eq!(seen["status"], json!(1), "{seen:#}");

    std::fs::write(&offset, "+0").unwrap();
    says(&installation, 200, "clock", "ok").await;
    is_whole(&installation, waits).await;
    installation.stop().await;
    let log = std::fs::read_to_string(installation.log()).unwrap();
    assert_eq!(log.matches("s behind what it was; set it right").count(), 1, "{log}");
}
