//! The schema: numbered steps, forward only, the same numbers and names on both engines. Never a side
//! effect of connecting. Invariant: all that is missing is applied by one transaction, and of any number of
//! processes one applies it (an advisory lock on PostgreSQL, the write lock on SQLite).

use dbtcloud_core::{Error, Result};

use crate::engine::{Link, Sql, args};
use crate::error::RUN_MIGRATE;
use crate::storage::SqlStorage;

struct Migration {
    number: u32,
    name: &'static str,
    text: Sql,
}

macro_rules! migration {
    ($number:literal, $name:literal, $file:literal) => {
        Migration {
            number: $number,
            name: $name,
            text: Sql::each(
                include_str!(concat!("../migrations/postgres/", $file)),
                include_str!(concat!("../migrations/sqlite/", $file)),
            ),
        }
    };
}

/// All of them, in order, without a gap.
const MIGRATIONS: &[Migration] = &[
    migration!(1, "first", "0001_first.sql"),
    migration!(2, "outbox", "0002_outbox.sql"),
];

const RECORD_TABLE: Sql =
    Sql::both("CREATE TABLE IF NOT EXISTS schema_migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)");
const RECORD_EXISTS: Sql = Sql::each(
    "SELECT count(*) AS present FROM pg_class WHERE oid = to_regclass('schema_migrations')",
    "SELECT count(*) AS present FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'",
);
const APPLIED: Sql = Sql::both("SELECT number, name FROM schema_migrations ORDER BY number");
const RECORD: Sql = Sql::both("INSERT INTO schema_migrations (number, name) VALUES ($1, $2)");

/// A number of our own among the database's advisory locks. Waiting for it and building an index have no
/// time limit. SQLite's `BEGIN IMMEDIATE` is lock enough.
const ALONE: Sql = Sql::each(
    "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true), \
        set_config('client_min_messages', 'warning', true)",
    "SELECT 1",
);
const LOCK: Sql = Sql::each(
    "SELECT count(*) FROM (SELECT pg_advisory_xact_lock(7236849120)) AS held",
    "SELECT 1",
);

impl SqlStorage {
    /// The schema this binary works with.
    pub const SCHEMA_VERSION: u32 = 2;

    /// Brings the schema to [`SqlStorage::SCHEMA_VERSION`].
    ///
    /// On `Ok` it is there, whole. A second call changes nothing; concurrent calls, of other processes too,
    /// wait for the first. Errors: `Invalid` when the database is newer than the binary, `Unavailable` when
    /// it cannot be had now (nothing was changed).
    pub async fn migrate(&self) -> Result<()> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            link.all(&ALONE, args![]).await?;
            link.all(&LOCK, args![]).await?;
            link.execute(&RECORD_TABLE, args![]).await?;
            let version = version_of(&mut link).await?;
            for migration in MIGRATIONS.iter().filter(|migration| migration.number > version) {
                link.script(migration.text.on(link.engine())).await?;
                link.execute(&RECORD, args![migration.number, migration.name]).await?;
            }
            Ok(())
        }
        .await;
        work.end("migrate", done).await
    }

    /// The schema the database has; 0 when it was never migrated.
    ///
    /// Errors: `Invalid` when it is newer than the binary, `Corrupt` when it is not one of ours.
    pub async fn schema_version(&self) -> Result<u32> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        if link.one(&RECORD_EXISTS, args![]).await?.int("present")? == 0 {
            return Ok(0);
        }
        version_of(&mut link).await
    }

    /// `Ok` when the database answers and has exactly the schema of this binary.
    ///
    /// Errors: `Unavailable` when it is older (the text says what to run), `Invalid` when it is newer.
    pub async fn check(&self) -> Result<()> {
        let version = self.schema_version().await?;
        if version < Self::SCHEMA_VERSION {
            let wanted = Self::SCHEMA_VERSION;
            return Err(Error::unavailable(format!(
                "database: the schema is version {version}, this binary needs {wanted}; {RUN_MIGRATE}"
            )));
        }
        Ok(())
    }
}

async fn version_of(link: &mut Link<'_>) -> Result<u32> {
    let rows = link.all(&APPLIED, args![]).await?;
    let mut version = 0;
    for row in &rows {
        let (number, name): (u32, String) = (row.count("number")?, row.text("name")?);
        if number > SqlStorage::SCHEMA_VERSION {
            return Err(Error::invalid(
                "schema_version",
                format!(
                    "the database has schema {number}, this binary knows {} at most; run a newer dbtcloud",
                    SqlStorage::SCHEMA_VERSION
                ),
            ));
        }
        let known = MIGRATIONS
            .iter()
            .any(|migration| migration.number == number && migration.name == name);
        if !known || number != version + 1 {
            return Err(Error::corrupt(format!(
                "database: schema {number} '{name}' is not one of dbtcloud's; is this the right database?"
            )));
        }
        version = number;
    }
    Ok(version)
}
