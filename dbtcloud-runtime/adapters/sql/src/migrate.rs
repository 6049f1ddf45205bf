//! The schema: numbered steps, forward only, the same numbers and names on both engines. Never a side
//! effect of connecting. Invariant: all that is missing is applied by one transaction, and of any number of
//! processes one applies it (an advisory lock on PostgreSQL, the write lock on SQLite).
//!
//! Each step says the oldest binary that still works beside it, so that a release can be rolled out while
//! the one before it runs: first a step that adds (old binaries go on), in a later release one that removes.

use dbtcloud_core::{Error, Result};

use crate::engine::{Engine, Link, Sql, args};
use crate::error::{RUN_MIGRATE, read_only};
use crate::storage::SqlStorage;

struct Migration {
    number: u32,
    name: &'static str,
    /// The lowest [`SqlStorage::SCHEMA_VERSION`] of a binary whose statements still work once this step is
    /// applied. At most `number`; less where the step only adds what an older binary need not know.
    oldest_binary: u32,
    text: Sql,
}

macro_rules! migration {
    ($number:literal, $name:literal, $file:literal, oldest_binary: $oldest:literal) => {
        Migration {
            number: $number,
            name: $name,
            oldest_binary: $oldest,
            text: Sql::each(
                include_str!(concat!("../migrations/postgres/", $file)),
                include_str!(concat!("../migrations/sqlite/", $file)),
            ),
        }
    };
}

/// All of them, in order, without a gap.
const MIGRATIONS: &[Migration] = &[
    migration!(1, "first", "0001_first.sql", oldest_binary: 1),
    migration!(2, "outbox", "0002_outbox.sql", oldest_binary: 2),
    migration!(3, "history", "0003_history.sql", oldest_binary: 3),
    migration!(4, "log_parts", "0004_log_parts.sql", oldest_binary: 4),
    migration!(5, "retention", "0005_retention.sql", oldest_binary: 4),
    migration!(6, "dispatches", "0006_dispatches.sql", oldest_binary: 4),
    migration!(7, "startable", "0007_startable.sql", oldest_binary: 4),
    migration!(8, "audit", "0008_audit.sql", oldest_binary: 4),
    migration!(9, "requests", "0009_requests.sql", oldest_binary: 4),
];

const RECORD_TABLE: Sql =
    Sql::both("CREATE TABLE IF NOT EXISTS schema_migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)");
const RECORD_EXISTS: Sql = Sql::each(
    "SELECT count(*) AS present FROM pg_class WHERE oid = to_regclass('schema_migrations')",
    "SELECT count(*) AS present FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'",
);
const APPLIED: Sql = Sql::both("SELECT number, name FROM schema_migrations ORDER BY number");
const RECORD: Sql = Sql::both("INSERT INTO schema_migrations (number, name) VALUES ($1, $2)");
/// From [`HAS_OLDEST`] on.
const RECORD_OLDEST: Sql = Sql::both("INSERT INTO schema_migrations (number, name, oldest_binary) VALUES ($1, $2, $3)");
const OLDEST: Sql = Sql::both("SELECT max(oldest_binary) AS oldest FROM schema_migrations");

/// SQLite lets a transaction begin as one that writes on a file that can only be read: see [`WRITE_NOTHING`].
const READ_ONLY: Sql = Sql::each(
    "SELECT count(*) AS refused FROM (SELECT current_setting('transaction_read_only')) AS told (answer) \
        WHERE answer = 'on'",
    "SELECT 0 AS refused",
);

/// Refused where nothing can be written.
const WRITE_NOTHING: Sql = Sql::both("UPDATE schema_migrations SET number = number WHERE number < 0");

/// The step that adds the column `oldest_binary`.
const HAS_OLDEST: u32 = 3;

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
    pub const SCHEMA_VERSION: u32 = MIGRATIONS[MIGRATIONS.len() - 1].number;

    /// Brings the schema to [`SqlStorage::SCHEMA_VERSION`].
    ///
    /// On `Ok` it is there, whole, or a newer one that this binary works with. A second call changes
    /// nothing; concurrent calls, of other processes too, wait for the first. Errors: `Invalid` when the
    /// database is too new for the binary, `Corrupt` when it is not one of ours, `Unavailable` when it
    /// cannot be had now (nothing was changed).
    pub async fn migrate(&self) -> Result<()> {
        self.migrate_to(Self::SCHEMA_VERSION).await
    }

    /// The same to the schema of an earlier release, for tests of what that one left behind.
    #[doc(hidden)]
    pub async fn migrate_to(&self, number: u32) -> Result<()> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            link.all(&ALONE, args![]).await?;
            link.all(&LOCK, args![]).await?;
            link.execute(&RECORD_TABLE, args![]).await?;
            let version = version_of(&mut link).await?;
            let wanted = |migration: &&Migration| migration.number > version && migration.number <= number;
            for migration in MIGRATIONS.iter().filter(wanted) {
                link.script(migration.text.on(link.engine())).await?;
                if migration.number < HAS_OLDEST {
                    link.execute(&RECORD, args![migration.number, migration.name]).await?;
                } else {
                    let values = args![migration.number, migration.name, migration.oldest_binary];
                    link.execute(&RECORD_OLDEST, values).await?;
                }
            }
            Ok(())
        }
        .await;
        work.end("migrate", done).await
    }

    /// The schema the database has; 0 when it was never migrated.
    ///
    /// It may be newer than [`SqlStorage::SCHEMA_VERSION`] where this binary still works with it.
    ///
    /// Errors: `Invalid` when it is too new for this binary, `Corrupt` when it is not one of ours.
    pub async fn schema_version(&self) -> Result<u32> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        if link.one(&RECORD_EXISTS, args![]).await?.int("present")? == 0 {
            return Ok(0);
        }
        version_of(&mut link).await
    }

    /// `Ok` when the database answers and has a schema that this binary works with: its own, or a newer one
    /// that says so; and when it is whole.
    ///
    /// Errors: `Unavailable` when it is older or a copy into it did not end (the text says what to run), `Invalid`
    /// when it is too new.
    pub async fn check(&self) -> Result<()> {
        self.check_schema().await?;
        if self.is_half_copied().await? {
            return Err(Error::unavailable(
                "database: what was copied or restored into it is not whole; run the same command again to its end",
            ));
        }
        Ok(())
    }

    /// `Ok` when the database can be written; it must have been migrated. Changes nothing. Errors: `Unavailable` when it is read-only or does
    /// not answer.
    pub async fn check_writable(&self) -> Result<()> {
        let mut reader = self.database.read().await?;
        if reader.link().one(&READ_ONLY, args![]).await?.int("refused")? != 0 {
            return Err(read_only());
        }
        drop(reader);
        if self.engine() == Engine::Sqlite {
            let mut work = self.database.begin().await?;
            work.link().execute(&WRITE_NOTHING, args![]).await?;
        }
        Ok(())
    }

    pub(crate) async fn check_schema(&self) -> Result<()> {
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
        // What is newer than the binary only it can know.
        let ours = number > SqlStorage::SCHEMA_VERSION
            || MIGRATIONS
                .iter()
                .any(|migration| migration.number == number && migration.name == name);
        if !ours || number != version + 1 {
            return Err(Error::corrupt(format!(
                "database: schema {number} '{name}' is not one of dbtcloud's; is this the right database?"
            )));
        }
        version = number;
    }
    if version > SqlStorage::SCHEMA_VERSION {
        let oldest: u32 = link.one(&OLDEST, args![]).await?.count("oldest")?;
        if oldest > SqlStorage::SCHEMA_VERSION {
            return Err(Error::invalid(
                "schema_version",
                format!(
                    "the database has schema {version} and needs a dbtcloud of schema {oldest} or newer, this \
                     binary is of schema {}; run a newer dbtcloud",
                    SqlStorage::SCHEMA_VERSION
                ),
            ));
        }
    }
    Ok(version)
}
