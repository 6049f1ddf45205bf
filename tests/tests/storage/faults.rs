//! What goes wrong outside: every fault has a kind that says what to do and a text that a person can use,
//! and no text has a password.

use std::time::Duration;

use dbtcloud_contract::wait;
use dbtcloud_core::ports::{Bell, Journal, Runs, Wakeups};
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::{self, Cluster, PASSWORD};
use futures::StreamExt;

use crate::subjects::{ACCOUNT, at, new_run, queue, sqlite_url};

async fn refused(url: &str) -> Error {
    let options = Options::new().with_acquire_timeout(Duration::from_secs(5));
    let error = SqlStorage::connect(url, options).await.expect_err("is refused");
    let everything = format!("{} {error:?}", error.chain());
    assert!(
        !everything.contains(PASSWORD) && !everything.contains("hunter2"),
        "a password leaked: {everything}"
    );
    error
}

#[tokio::test]
async fn a_url_that_is_none_is_invalid() {
    for url in [
        "",
        "hunter2",
        "mysql://a:hunter2@b/c",
        "postgres://user:hunter2@host:port/db",
        "postgres://a:hunter2@[::1/x",
    ] {
        let error = refused(url).await;
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::Invalid, Some("database_url")),
            "{url}: {error}"
        );
    }
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_named() {
    let port = postgres::closed_port();
    let error = refused(&format!("postgres://me:hunter2@127.0.0.1:{port}/db")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test]
async fn a_login_that_is_refused_is_denied() {
    let database = postgres::database();
    let error = refused(&database.url_with("hunter2")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
    SqlStorage::connect(&database.url_with(PASSWORD), Options::new())
        .await
        .unwrap();
    let nobody = database.url().replace("postgres@", "nobody-of-this-name:hunter2@");
    assert_eq!(refused(&nobody).await.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_invalid() {
    let database = postgres::database();
    let error = refused(&format!("{}&", database.url().replace("/test_", "/absent_"))).await;
    assert_eq!(
        (error.kind(), error.field()),
        (ErrorKind::Invalid, Some("database_url")),
        "{error}"
    );
}

#[tokio::test]
async fn a_directory_that_does_not_exist_is_named() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("absent");
    let error = refused(&sqlite_url(&folder)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(
        home.path().join("test.db"),
        "not a database, but long enough to look like one".repeat(100),
    )
    .unwrap();
    let error = refused(&sqlite_url(home.path())).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(error.to_string().contains("restore"), "{error}");
}

#[tokio::test]
async fn a_file_that_may_not_be_written_is_unavailable() {
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    SqlStorage::connect(&url, Options::new())
        .await
        .unwrap()
        .migrate()
        .await
        .unwrap();
    let storage = SqlStorage::connect(&format!("{url}?mode=ro"), Options::new())
        .await
        .unwrap();
    assert_eq!(storage.queued(ACCOUNT).await.unwrap(), 0);
    let error = storage.enqueue(&new_run(1), at(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[tokio::test]
async fn a_file_that_another_process_holds_is_unavailable_and_comes_back() {
    use sqlx::Connection;
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    let options = Options::new().with_acquire_timeout(Duration::from_millis(200));
    let storage = SqlStorage::connect(&url, options).await.unwrap();
    storage.migrate().await.unwrap();
    let mut other = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = storage.enqueue(&new_run(1), at(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert_eq!(storage.queued(ACCOUNT).await.unwrap(), 0, "readers do not wait");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    storage.enqueue(&new_run(1), at(0)).await.unwrap();
}

#[tokio::test]
async fn a_closed_storage_is_unavailable() {
    let home = tempfile::tempdir().unwrap();
    let storage = SqlStorage::connect(&sqlite_url(home.path()), Options::new())
        .await
        .unwrap();
    storage.close().await;
    assert_eq!(
        storage.queued(ACCOUNT).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn all_connections_in_use_is_unavailable() {
    let database = postgres::database();
    let options = Options::new()
        .with_pool_size(1)
        .with_acquire_timeout(Duration::from_millis(300));
    let storage = SqlStorage::connect(&database.url(), options).await.unwrap();
    storage.migrate().await.unwrap();
    let run = queue(&storage, 1).await;
    // Somebody else's lock keeps the one connection busy.
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url())
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        .execute(&mut other)
        .await
        .unwrap();
    let waiting = tokio::spawn({
        let storage = storage.clone();
        async move { storage.get(ACCOUNT, run).await }
    });
    wait::until(Duration::from_secs(10), || async {
        let error = storage.queued(ACCOUNT).await;
        error
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::Unavailable)
            .then_some(())
            .ok_or(format!("{error:?}"))
    })
    .await;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().id, run);
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_unavailable() {
    let database = postgres::database();
    let options = Options::new().with_statement_timeout(Duration::from_millis(300));
    let storage = SqlStorage::connect(&database.url(), options).await.unwrap();
    storage.migrate().await.unwrap();
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url())
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE run_queue IN ACCESS EXCLUSIVE MODE")
        .execute(&mut other)
        .await
        .unwrap();
    let error = storage.queued(ACCOUNT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_unavailable_until_it_is_back() {
    let (mut cluster, database) = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::start();
        let database = cluster.database();
        (cluster, database)
    })
    .await
    .unwrap();
    let options = Options::new().with_acquire_timeout(Duration::from_secs(2));
    let storage = SqlStorage::connect(&database.url(), options).await.unwrap();
    storage.migrate().await.unwrap();
    let run = queue(&storage, 1).await;

    // In the middle of a transaction: the change hangs on another's lock when the server goes.
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url())
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE journal IN ACCESS EXCLUSIVE MODE")
        .execute(&mut other)
        .await
        .unwrap();
    let hanging = tokio::spawn({
        let storage = storage.clone();
        async move { storage.request_cancel(ACCOUNT, run, "enough", at(1)).await }
    });
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbtcloud' AND wait_event_type = 'Lock'";
    wait::until(Duration::from_secs(10), || async {
        let seen = database.ask(waits);
        if seen == "1" { Ok(()) } else { Err(seen) }
    })
    .await;
    cluster.kill();
    assert_eq!(hanging.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    for _ in 0..3 {
        let error = storage.get(ACCOUNT, run).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    }

    cluster.resume();
    let seen = wait::until(Duration::from_secs(30), || async { storage.get(ACCOUNT, run).await }).await;
    assert_eq!(
        seen.status,
        dbtcloud_core::run::RunStatus::Queued,
        "nothing of the half-done change is left"
    );
    let events = storage.journal_of(run).await;
    assert_eq!(events, 1);
    storage.request_cancel(ACCOUNT, run, "enough", at(1)).await.unwrap();
}

/// Short for what is asked once.
trait JournalLength {
    async fn journal_of(&self, run: dbtcloud_core::id::RunId) -> usize;
}

impl JournalLength for SqlStorage {
    async fn journal_of(&self, run: dbtcloud_core::id::RunId) -> usize {
        self.of_run(ACCOUNT, run, 0, 100).await.unwrap().len()
    }
}

#[tokio::test]
async fn a_lock_that_is_not_had_in_time_is_unavailable() {
    let database = postgres::database();
    let options = Options::new().with_lock_timeout(Duration::from_millis(100));
    let storage = SqlStorage::connect(&database.url(), options).await.unwrap();
    storage.migrate().await.unwrap();
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url())
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE run_queue IN ACCESS EXCLUSIVE MODE")
        .execute(&mut other)
        .await
        .unwrap();
    let error = storage.queued(ACCOUNT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.to_string().contains("a lock was not had"), "{error}");
}

/// The pool may go by a pooler that lends connections by transaction; who listens needs one of its own.
#[tokio::test]
async fn wake_ups_are_heard_where_it_is_said_and_a_password_may_come_apart() {
    let database = postgres::database();
    let listen = Secret::new(database.url_with(PASSWORD));
    let apart = database.url_with("");
    let options = Options::new()
        .with_password(Secret::new(PASSWORD))
        .with_listen_url(listen);
    assert!(!format!("{options:?}").contains(PASSWORD));
    let storage = SqlStorage::connect(&apart, options.clone()).await.unwrap();
    assert!(!format!("{storage:?}").contains(PASSWORD));
    let mut heard = storage.listen().await.unwrap();
    let who = "SELECT usename FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()";
    assert_eq!(database.ask(who), postgres::GUARDED_ROLE);
    storage.ring(Bell::Queue).await.unwrap();
    assert_eq!(heard.next().await.unwrap().unwrap(), Bell::Queue);
    let wrong = options.with_listen_url(Secret::new("mysql://x"));
    let error = SqlStorage::connect(&apart, wrong).await.unwrap_err();
    assert_eq!(error.field(), Some("database_listen_url"), "{error}");
}
