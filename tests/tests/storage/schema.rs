//! The schema as each engine tells it, and that both tell of the same tables.
//!
//! After adding a migration: `UPDATE_GOLDEN=1 cargo test -p dbtcloud-tests --test storage schema`.

use std::collections::BTreeSet;

use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::{self, Database};
use sqlx::Connection;

use crate::subjects::sqlite_url;

const SQLITE: &str = include_str!("sqlite-schema.sql");
const POSTGRES: &str = include_str!("postgres-schema.txt");

/// What only one engine has, and why.
const ACCEPTED: [(&str, &str); 2] = [
    // On PostgreSQL a sequence.
    ("sqlite", "run_numbers.last integer not null"),
    // On SQLite the primary key, which on PostgreSQL would have to hold the run's id too.
    ("postgres", "run_steps_id_key"),
];

/// Tables, columns, constraints, indexes and parts, from the catalogs.
const TOLD: &str = r#"
WITH ours AS (
    SELECT oid, relname, relkind, reloptions, relpartbound, relispartition FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace
), tables AS (
    SELECT * FROM ours WHERE relkind IN ('r', 'p')
), lines (owner, section, place, name, line) AS (
    SELECT relname, 0, 0, '', 'TABLE ' || relname
        || coalesce(' PARTITION BY ' || pg_get_partkeydef(oid), '')
        || coalesce(' PARTITION OF ' || (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = tables.oid)
            || ' ' || pg_get_expr(relpartbound, oid), '')
        || coalesce(' WITH (' || array_to_string(reloptions, ', ') || ')', '')
    FROM tables
    UNION ALL SELECT relname, 1, attnum, '', '    ' || attname || ' ' || format_type(atttypid, atttypmod)
        || CASE WHEN attcollation NOT IN (0, (SELECT typcollation FROM pg_type WHERE oid = atttypid))
            THEN ' COLLATE ' || (SELECT quote_ident(collname) FROM pg_collation WHERE oid = attcollation) ELSE '' END
        || CASE WHEN attstorage <> (SELECT typstorage FROM pg_type WHERE oid = atttypid)
            THEN ' STORAGE ' || attstorage::text ELSE '' END
        || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
        || CASE attidentity WHEN 'a' THEN ' IDENTITY ALWAYS' WHEN 'd' THEN ' IDENTITY DEFAULT' ELSE '' END
        || coalesce(' DEFAULT ' || (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
            WHERE adrelid = attrelid AND adnum = attnum), '')
    FROM tables JOIN pg_attribute ON attrelid = oid WHERE attnum > 0 AND NOT attisdropped
    -- What a column may not be is told with the column.
    UNION ALL SELECT relname, 2, 0, conname, '    CONSTRAINT ' || conname || ' ' || pg_get_constraintdef(pg_constraint.oid)
    FROM tables JOIN pg_constraint ON conrelid = tables.oid WHERE contype <> 'n'
    UNION ALL SELECT relname, 3, 0, name, '    ' || replace(pg_get_indexdef(indexrelid), current_schema() || '.', '')
    FROM tables JOIN pg_index ON indrelid = tables.oid, LATERAL (SELECT indexrelid::regclass::text AS name) AS named
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    UNION ALL SELECT relname, 0, 0, '', 'SEQUENCE ' || relname FROM ours WHERE relkind = 'S'
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = ours.oid AND deptype = 'i')
    UNION ALL SELECT relname, 0, 0, '', 'OTHER ' || relkind::text || ' ' || relname FROM ours
        WHERE relkind NOT IN ('r', 'p', 'i', 'I', 'S', 't')
    UNION ALL SELECT proname, 0, 0, '', 'FUNCTION ' || pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace
    UNION ALL SELECT relname, 4, 0, tgname, '    ' || pg_get_triggerdef(pg_trigger.oid)
    FROM tables JOIN pg_trigger ON tgrelid = tables.oid WHERE NOT tgisinternal
)
SELECT line FROM lines ORDER BY owner COLLATE "C", section, place, name COLLATE "C", line COLLATE "C"
"#;

/// Columns as both engines could have them. A SQLite key is never null, whatever the pragma says.
const SQLITE_COLUMNS: &str = "SELECT t.name || '.' || c.name || ' ' || replace(lower(c.type), 'bigint', 'integer')
        || CASE WHEN c.\"notnull\" OR c.pk > 0 THEN ' not null' ELSE '' END
    FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'";
const POSTGRES_COLUMNS: &str = "SELECT relname || '.' || attname || ' '
        || CASE format_type(atttypid, atttypmod) WHEN 'bigint' THEN 'integer' WHEN 'boolean' THEN 'integer'
            WHEN 'bytea' THEN 'blob' ELSE format_type(atttypid, atttypmod) END
        || CASE WHEN attnotnull THEN ' not null' ELSE '' END
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        AND attnum > 0 AND NOT attisdropped";
const SQLITE_INDEXES: &str = "SELECT name FROM sqlite_schema WHERE type = 'index' AND name NOT LIKE 'sqlite%'";
const POSTGRES_INDEXES: &str = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace \
        AND relkind IN ('i', 'I') AND NOT relispartition \
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = pg_class.oid)";

async fn ask(url: &str, statement: &'static str) -> Vec<String> {
    let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
    sqlx::query_scalar(statement).fetch_all(&mut connection).await.unwrap()
}

async fn sqlite_schema(url: &str) -> String {
    let told = "SELECT sql || ';' FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' \
        ORDER BY type DESC, name";
    ask(url, told).await.into_iter().map(|line| line + "\n").collect()
}

fn postgres_schema(database: &Database) -> String {
    database.ask(TOLD) + "\n"
}

fn compare(name: &str, told: &str, golden: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = format!("{}/tests/storage/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, told).unwrap();
        return;
    }
    let differ = told.lines().zip(golden.lines()).find(|(told, golden)| told != golden);
    assert!(
        told == golden,
        "{name}: a migration that was released is never edited; first difference: {differ:?}"
    );
}

async fn migrated(url: &str) -> SqlStorage {
    let storage = SqlStorage::connect(url, Options::new()).await.unwrap();
    assert_eq!(storage.schema_version().await.unwrap(), 0, "connecting changes nothing");
    storage.migrate().await.unwrap();
    assert_eq!(storage.schema_version().await.unwrap(), SqlStorage::SCHEMA_VERSION);
    storage.check().await.unwrap();
    storage
}

#[tokio::test]
async fn an_empty_sqlite_file_comes_to_the_golden_schema_and_stays_there() {
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    let storage = migrated(&url).await;
    let first = sqlite_schema(&url).await;
    compare("sqlite-schema.sql", &first, SQLITE);
    storage.migrate().await.unwrap();
    assert_eq!(sqlite_schema(&url).await, first);
}

#[tokio::test]
async fn an_empty_postgres_database_comes_to_the_golden_schema_and_stays_there() {
    let database = postgres::database();
    let storage = migrated(&database.url()).await;
    let first = postgres_schema(&database);
    compare("postgres-schema.txt", &first, POSTGRES);
    storage.migrate().await.unwrap();
    assert_eq!(postgres_schema(&database), first);
    // What is changed by hand is seen.
    for change in [
        "ALTER TABLE runs ALTER COLUMN message SET NOT NULL",
        "ALTER TABLE jobs ALTER COLUMN version TYPE INTEGER",
        "ALTER TABLE leases ADD CHECK (term > 0)",
        "CREATE INDEX strange ON journal (at)",
        "ALTER TABLE run_queue SET (fillfactor = 60)",
        "CREATE TABLE runs_later PARTITION OF runs FOR VALUES FROM (30000000000000) TO (30000000000001)",
    ] {
        let before = postgres_schema(&database);
        database.ask(change);
        assert_ne!(postgres_schema(&database), before, "{change}");
    }
}

#[tokio::test]
async fn both_engines_have_the_same_tables_columns_and_indexes() {
    let home = tempfile::tempdir().unwrap();
    let url = sqlite_url(home.path());
    let database = postgres::database();
    migrated(&url).await;
    migrated(&database.url()).await;
    for (here, there) in [(SQLITE_COLUMNS, POSTGRES_COLUMNS), (SQLITE_INDEXES, POSTGRES_INDEXES)] {
        let sqlite: BTreeSet<String> = ask(&url, here).await.into_iter().collect();
        let postgres: BTreeSet<String> = database.ask(there).lines().map(ToOwned::to_owned).collect();
        assert!(sqlite.len() > 20, "{sqlite:?}");
        let accepted = |engine: &str, what: &str| ACCEPTED.contains(&(engine, what));
        let only: Vec<_> = sqlite
            .difference(&postgres)
            .filter(|one| !accepted("sqlite", one))
            .collect();
        assert!(only.is_empty(), "only on SQLite: {only:#?}");
        let only: Vec<_> = postgres
            .difference(&sqlite)
            .filter(|one| !accepted("postgres", one))
            .collect();
        assert!(only.is_empty(), "only on PostgreSQL: {only:#?}");
    }
}
