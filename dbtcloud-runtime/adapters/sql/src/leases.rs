//! `Leases`: one row per name, by primary key. Invariant: the term grows whenever the holder changes, so
//! a row stays when its lease is given up.

use async_trait::async_trait;
use dbtcloud_core::ports::{Leases, Owner};
use dbtcloud_core::{Result, Timestamp};

use crate::engine::{Sql, args};
use crate::storage::{SqlStorage, no_nul};

/// Takes or keeps it; no row comes back when somebody else holds it. Primary key.
const ACQUIRE: Sql = Sql::both(
    "INSERT INTO leases (name, owner, term, held_until) VALUES ($1, $2, 1, $4) \
     ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, held_until = excluded.held_until, \
        term = CASE WHEN leases.owner = excluded.owner THEN leases.term ELSE leases.term + 1 END \
     WHERE leases.owner = excluded.owner OR leases.held_until IS NULL OR leases.held_until <= $3 \
     RETURNING term",
);

/// Primary key.
const RELEASE: Sql = Sql::both("UPDATE leases SET held_until = NULL WHERE name = $1 AND owner = $2");

/// The whole table, which is short: a name for each thing that is held, and those that are used once are purged.
const ANY_HELD: Sql =
    Sql::both("SELECT count(*) AS held FROM leases WHERE substr(name, 1, length($1)) = $1 AND held_until > $2");

/// The same.
const PURGE: Sql = Sql::both(
    "DELETE FROM leases WHERE name IN (SELECT name FROM leases WHERE substr(name, 1, length($1)) = $1 \
        AND (held_until IS NULL OR held_until < $2) ORDER BY name LIMIT $3) \
     AND (held_until IS NULL OR held_until < $2)",
);

/// The same, read only.
const OVER: Sql = Sql::both(
    "SELECT count(*) AS gone FROM leases WHERE substr(name, 1, length($1)) = $1 \
     AND (held_until IS NULL OR held_until < $2)",
);

#[async_trait]
impl Leases for SqlStorage {
    async fn acquire(&self, name: &str, owner: &Owner, now: Timestamp, until: Timestamp) -> Result<Option<u64>> {
        no_nul("name", name)?;
        no_nul("owner", owner.as_str())?;
        let mut writer = self.database.write("leases.acquire").await?;
        let row = writer
            .link()
            .first(&ACQUIRE, args![name, owner.as_str(), now, until])
            .await?;
        row.map(|row| row.count("term")).transpose()
    }

    async fn release(&self, name: &str, owner: &Owner) -> Result<()> {
        no_nul("name", name)?;
        no_nul("owner", owner.as_str())?;
        let mut writer = self.database.write("leases.release").await?;
        writer
            .link()
            .execute(&RELEASE, args![name, owner.as_str()])
            .await
            .map(drop)
    }

    async fn any_held(&self, prefix: &str, now: Timestamp) -> Result<bool> {
        no_nul("prefix", prefix)?;
        let mut reader = self.database.read().await?;
        let row = reader.link().one(&ANY_HELD, args![prefix, now]).await?;
        Ok(row.int("held")? > 0)
    }

    async fn purge(&self, prefix: &str, before: Timestamp, limit: u32) -> Result<u64> {
        no_nul("prefix", prefix)?;
        let mut writer = self.database.write("leases.purge").await?;
        writer.link().execute(&PURGE, args![prefix, before, limit]).await
    }

    async fn over(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        no_nul("prefix", prefix)?;
        let mut reader = self.database.read().await?;
        reader.link().one(&OVER, args![prefix, before]).await?.count("gone")
    }
}
