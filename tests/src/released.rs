//! Databases as released versions left them, for tests of what later versions make of them.

use std::path::PathBuf;

use sqlx::{AssertSqlSafe, Connection};

/// What the last binary of schema 1 had written.
const ROWS: &str = include_str!("released/schema-1.sql");
/// As the binary makes it before the first step.
const RECORDS: &str = "CREATE TABLE schema_migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)";

/// Runs statements on a database of either engine.
///
/// # Panics
/// When it refuses them.
pub async fn execute(url: &str, script: &str) {
    let script = AssertSqlSafe(script.to_owned());
    let done = if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(script).execute(&mut connection).await.map(drop)
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(script).execute(&mut connection).await.map(drop)
    };
    done.unwrap();
}

/// The first column of what a query of texts answers, on either engine.
///
/// # Panics
/// When it is refused.
pub async fn ask(url: &str, query: &str) -> Vec<String> {
    let query = AssertSqlSafe(query.to_owned());
    let told = if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
        sqlx::query_scalar(query).fetch_all(&mut connection).await
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::query_scalar(query).fetch_all(&mut connection).await
    };
    told.unwrap()
}

/// Fills an empty database as a binary of this schema left it: rows of schema 1, taken along by every later step.
///
/// # Panics
/// When the database is not empty.
pub async fn load(url: &str, schema: u32) {
    execute(url, RECORDS).await;
    for (number, name, text) in steps(url) {
        if number > schema {
            break;
        }
        execute(url, &text).await;
        if number == 1 {
            execute(url, &rows(url)).await;
        } else {
            let record = format!("INSERT INTO schema_migrations (number, name) VALUES ({number}, '{name}')");
            execute(url, &record).await;
        }
    }
}

/// Number, name and text of each migration, as the sources have them.
fn steps(url: &str) -> Vec<(u32, String, String)> {
    let engine = if url.starts_with("sqlite") {
        "sqlite"
    } else {
        "postgres"
    };
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../dbtcloud-runtime/adapters/sql/migrations")
        .join(engine);
    let mut steps: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let (number, name) = stem.split_once('_').unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            (number.parse().unwrap(), name.to_owned(), text)
        })
        .collect();
    steps.sort();
    steps
}

/// The rows in the words of the engine.
fn rows(url: &str) -> String {
    if !url.starts_with("sqlite") {
        return ROWS.to_owned();
    }
    let rows = ROWS.replace(" OVERRIDING SYSTEM VALUE", "").replace("'\\x", "X'");
    let lines = rows.lines().filter(|line| !line.starts_with("SELECT setval"));
    lines.flat_map(|line| [line, "\n"]).collect()
}
