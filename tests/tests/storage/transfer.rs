//! An installation moves from one database to another with everything it has.

use dbtcloud_core::ErrorKind;
use dbtcloud_core::ports::Leases;
use dbtcloud_core::ports::Runs;
use dbtcloud_core::run::StepStatus;
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::installation::Installation;

use crate::subjects::{ACCOUNT, agent, at, batch, claim, owner, postgres, queue, sqlite, sqlite_url, step};

/// Long after every lease has run out.
const LATER: i64 = 1_000_000;

/// Runs that wait, one that works and left a log, more than a page of them.
async fn fill(storage: &SqlStorage) {
    for job in 1..=450 {
        queue(storage, job).await;
    }
    let run = queue(storage, 1_000).await;
    let claimed = claim(storage, run).await;
    let mut first = batch(1);
    first.steps.push(step(1, StepStatus::Running));
    first.logs.push(dbtcloud_core::ports::LogChunk {
        step: 1,
        offset: 0,
        bytes: (0..=255).collect::<Vec<u8>>().into(),
    });
    storage.report(&agent(&claimed), &first).await.unwrap();
}

async fn moves(from: &SqlStorage, to: &SqlStorage, back: &SqlStorage) {
    fill(from).await;
    let error = from.can_copy_to(to, at(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "a lease is held: {error}");
    let counted = from.tables().await.unwrap();
    let copied = from.copy_to(to, at(LATER), |_, _| {}).await.unwrap();
    assert_eq!(to.tables().await.unwrap(), counted);
    let of = |name: &str| copied.iter().find(|one| one.table == name).unwrap().rows;
    assert_eq!(
        (of("runs"), of("run_queue"), of("run_steps"), of("log_chunks")),
        (451, 451, 1, 1)
    );

    // New ids go on behind the old ones.
    let newest = queue(to, 2_000).await;
    assert_eq!(newest.get() % 100_000_000, 452, "{newest}");
    assert_eq!(to.get(ACCOUNT, newest).await.unwrap().id, newest);

    // What is there is not written over.
    let error = from.copy_to(to, at(LATER), |_, _| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");

    // And on to a third, of the first's engine.
    let there = to.copy_to(back, at(LATER), |_, _| {}).await.unwrap();
    assert_eq!(back.digests().await.unwrap(), there);
}

#[tokio::test]
async fn from_sqlite_to_postgres_and_back() {
    let (from, to, back) = (sqlite().await, postgres().await, sqlite().await);
    moves(&from.storage, &to.storage, &back.storage).await;
    // History is filed under its months, or none of them could be dropped at once.
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&to.home.url())
        .await
        .unwrap();
    let unfiled = sqlx::query("SELECT count(*) FROM runs_default").fetch_one(&mut connection);
    assert_eq!(sqlx::Row::get::<i64, _>(&unfiled.await.unwrap(), 0), 0);
}

#[tokio::test]
async fn from_postgres_to_sqlite_and_back() {
    let (from, to, back) = (postgres().await, sqlite().await, postgres().await);
    moves(&from.storage, &to.storage, &back.storage).await;
}

/// A copy that is dropped after any page goes on where it stood.
#[tokio::test]
async fn an_interrupted_copy_goes_on() {
    let (from, to) = (sqlite().await, postgres().await);
    fill(&from.storage).await;
    for pages in 1..=4 {
        let (sent, mut seen) = tokio::sync::watch::channel(0);
        tokio::select! {
            done = from.storage.copy_to(&to.storage, at(LATER), |_, _| sent.send_modify(|sent| *sent += 1)) => {
                assert!(done.is_ok(), "{done:?}");
                break;
            }
            _ = seen.wait_for(|seen| *seen == pages) => {}
        }
    }
    let copied = from.storage.copy_to(&to.storage, at(LATER), |_, _| {}).await;
    // The last round may have ended it, and then the target is not empty.
    if let Err(error) = copied {
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    assert_eq!(
        from.storage.digests().await.unwrap(),
        to.storage.digests().await.unwrap()
    );
}

/// A table of the schema that is not copied would be lost in silence.
#[tokio::test]
async fn no_table_is_forgotten() {
    let (one, other) = (sqlite().await, postgres().await);
    let names = |tables: Vec<(String, u64)>| tables.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let told = names(one.storage.tables().await.unwrap());
    assert_eq!(told, names(other.storage.tables().await.unwrap()));
    let golden = include_str!("sqlite-schema.sql");
    for line in golden.lines().filter_map(|line| line.strip_prefix("CREATE TABLE ")) {
        let name = line.split([' ', '(']).next().unwrap();
        let name = name.trim_matches('"');
        assert!(
            ["schema_migrations", "run_numbers"].contains(&name) || told.iter().any(|one| one == name),
            "{name}"
        );
    }
    // A difference is seen.
    queue(&one.storage, 1).await;
    assert_ne!(
        one.storage.digests().await.unwrap(),
        other.storage.digests().await.unwrap()
    );
    one.storage.acquire("x", &owner("o"), at(0), at(9)).await.unwrap();
}

/// The command on real installations: the account and its token are there after the move.
#[tokio::test]
async fn the_command_tells_what_it_does() {
    let installation = Installation::new();
    let home = tempfile::tempdir().unwrap();
    let target = sqlite_url(home.path());
    let source = format!("sqlite://{}/dbtcloud.db", installation.path().display());
    let command = |more: &[&str]| {
        let mut command = std::process::Command::new(dbtcloud_tests::installation::binary());
        command
            .args(["storage", "copy", "--from", &source, "--to", &target])
            .args(more);
        command.output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let dry = command(&["--dry-run"]);
    assert!(dry.status.success(), "{}", text(&dry.stderr));
    assert!(
        text(&dry.stdout).contains("accounts: 1 rows\n"),
        "{}",
        text(&dry.stdout)
    );
    let done = command(&[]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(
        text(&done.stdout).contains("tokens: 1 rows, sha256 "),
        "{}",
        text(&done.stdout)
    );
    let again = command(&[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("copy into an empty database"),
        "{}",
        text(&again.stderr)
    );
}
