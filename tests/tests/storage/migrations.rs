//! The schema: never touched by connecting, made once, the same from wherever one comes.

use dbtcloud_core::ErrorKind;
use dbtcloud_core::ports::Runs;
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres;
use sqlx::Connection;

use crate::subjects::{ACCOUNT, at, new_run, sqlite_url};

/// The schema as SQLite tells it. Regenerate with `UPDATE_GOLDEN=1` after adding a migration.
const GOLDEN: &str = include_str!("sqlite-schema.sql");

async fn schema(url: &str) -> String {
    let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' ORDER BY type DESC, name",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    rows.into_iter().map(|(sql,)| format!("{sql};\n")).collect()
}

#[tokio::test]
async fn an_empty_sqlite_file_comes_to_the_golden_schema_and_stays_there() {
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    let storage = SqlStorage::connect(&url, Options::new()).await.unwrap();
    assert_eq!(storage.schema_version().await.unwrap(), 0, "connecting changes nothing");
    storage.migrate().await.unwrap();
    assert_eq!(storage.schema_version().await.unwrap(), SqlStorage::SCHEMA_VERSION);
    storage.check().await.unwrap();
    let first = schema(&url).await;
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/storage/sqlite-schema.sql");
        std::fs::write(path, &first).unwrap();
    } else {
        assert_eq!(first, GOLDEN, "a migration that was released is never edited");
    }
    storage.migrate().await.unwrap();
    assert_eq!(schema(&url).await, first);
}

#[tokio::test]
async fn both_engines_have_the_same_tables_columns_and_indexes() {
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    SqlStorage::connect(&url, Options::new())
        .await
        .unwrap()
        .migrate()
        .await
        .unwrap();
    let database = postgres::database();
    SqlStorage::connect(&database.url(), Options::new())
        .await
        .unwrap()
        .migrate()
        .await
        .unwrap();

    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let columns: Vec<(String,)> = sqlx::query_as(
        "SELECT t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c \
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name <> 'run_numbers'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let indexes: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM sqlite_schema WHERE type = 'index' AND name NOT LIKE 'sqlite%'")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    let sorted = |rows: Vec<(String,)>| {
        let mut names: Vec<String> = rows.into_iter().map(|(name,)| name).collect();
        names.sort();
        names.join("\n")
    };
    let there = database.ask(
        "SELECT table_name || '.' || column_name FROM information_schema.columns \
         WHERE table_schema = 'public' AND NOT (SELECT relispartition FROM pg_class WHERE oid = table_name::regclass) \
         ORDER BY (table_name || '.' || column_name) COLLATE \"C\"",
    );
    assert_eq!(sorted(columns), there);
    let there = database.ask(
        "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND indexname !~ '_(pkey|key)$' \
            AND NOT (SELECT relispartition FROM pg_class WHERE oid = indexname::regclass) \
         ORDER BY indexname COLLATE \"C\"",
    );
    assert_eq!(sorted(indexes), there);
}

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
