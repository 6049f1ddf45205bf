//! Migrations: made once, by whoever comes first, and of no effect on what is not ours.

use dbtcloud_core::ErrorKind;
use dbtcloud_core::ports::Runs;
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres;
use sqlx::Connection;

use crate::subjects::{ACCOUNT, at, new_run, sqlite_url};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_processes_migrate_one_database_at_once() {
    let home = tempfile::tempdir().unwrap();
    let database = postgres::database();
    for url in [sqlite_url(home.path()), database.url()] {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move {
                    let storage = SqlStorage::connect(&url, Options::new().with_pool_size(1))
                        .await
                        .unwrap();
                    storage.migrate().await.unwrap();
                    storage.check().await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_unmigrated_database_says_what_to_run() {
    let home = tempfile::tempdir().unwrap();
    let database = postgres::database();
    for url in [sqlite_url(home.path()), database.url()] {
        let storage = SqlStorage::connect(&url, Options::new()).await.unwrap();
        let refused = storage.check().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(refused.to_string().contains("run `dbtcloud migrate`"), "{refused}");
        for error in [
            storage.queued(ACCOUNT).await.unwrap_err(),
            storage.enqueue(&new_run(1), at(0)).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("run `dbtcloud migrate`"), "{error}");
        }
    }
}

/// A database that a newer release has migrated, as one whose oldest binary is `oldest`.
async fn newer(url: &str, oldest: u32) -> SqlStorage {
    let storage = SqlStorage::connect(url, Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    let statement = format!(
        "INSERT INTO schema_migrations (number, name, oldest_binary) VALUES ({}, 'later', {oldest})",
        SqlStorage::SCHEMA_VERSION + 1
    );
    change(url, &statement).await;
    storage
}

async fn change(url: &str, statement: &str) {
    let statement = sqlx::AssertSqlSafe(statement.to_owned());
    if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn a_newer_database_that_says_so_is_worked_with() {
    let (home, schema) = (tempfile::tempdir().unwrap(), postgres::schema());
    for url in [sqlite_url(home.path()), schema.url()] {
        let storage = newer(&url, SqlStorage::SCHEMA_VERSION).await;
        storage.check().await.unwrap();
        storage.migrate().await.unwrap();
        assert_eq!(storage.schema_version().await.unwrap(), SqlStorage::SCHEMA_VERSION + 1);
        storage.enqueue(&new_run(1), at(0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_database_that_is_too_new_is_left_alone() {
    let (home, schema) = (tempfile::tempdir().unwrap(), postgres::schema());
    for url in [sqlite_url(home.path()), schema.url()] {
        let storage = newer(&url, SqlStorage::SCHEMA_VERSION + 1).await;
        for error in [
            storage.check().await.unwrap_err(),
            storage.migrate().await.unwrap_err(),
            storage.schema_version().await.unwrap_err(),
        ] {
            assert_eq!(
                (error.kind(), error.field()),
                (ErrorKind::Invalid, Some("schema_version"))
            );
            assert!(error.to_string().contains("run a newer dbtcloud"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_foreign_database_is_left_alone() {
    for wrong in [
        "UPDATE schema_migrations SET name = 'theirs' WHERE number = 2",
        "DELETE FROM schema_migrations WHERE number = 1",
        "INSERT INTO schema_migrations (number, name) VALUES (999, 'later')",
    ] {
        let (home, schema) = (tempfile::tempdir().unwrap(), postgres::schema());
        for url in [sqlite_url(home.path()), schema.url()] {
            let storage = newer(&url, 1).await;
            change(&url, wrong).await;
            for error in [storage.check().await.unwrap_err(), storage.migrate().await.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{wrong}");
                assert!(error.to_string().contains("right database?"), "{error}");
            }
        }
    }
}
