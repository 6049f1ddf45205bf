use bytes::Bytes;
use dbtcloud_core::{Error, Result, Timestamp};
use sqlx::Row as _;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::{Engine, Sql, Value, value};
use crate::error::translate;

/// A connection of either engine, inside a transaction or not.
pub(crate) enum Link<'c> {
    #[cfg(feature = "postgres")]
    Postgres(&'c mut sqlx::PgConnection),
    #[cfg(feature = "sqlite")]
    Sqlite(&'c mut sqlx::SqliteConnection),
}

/// What the driver answers, before anybody has judged it.
pub(crate) type Raw<T> = std::result::Result<T, sqlx::Error>;

impl Link<'_> {
    pub(crate) fn engine(&self) -> Engine {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Engine::Postgres,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => Engine::Sqlite,
        }
    }

    /// Runs a statement; how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: &Sql, args: Vec<Value>) -> Result<u64> {
        self.execute_raw(sql, args).await.map_err(translate)
    }

    /// The same with the driver's own error, for whoever must tell a lost race from a fault.
    pub(crate) async fn execute_raw(&mut self, sql: &Sql, args: Vec<Value>) -> Raw<u64> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(connection) => {
                let query = sqlx::query_with(sql.postgres, value::postgres(args)?);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(connection) => {
                let query = sqlx::query_with(sql.sqlite, value::sqlite(args)?);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
        }
    }

    /// All rows of a statement.
    pub(crate) async fn all(&mut self, sql: &Sql, args: Vec<Value>) -> Result<Vec<Row>> {
        let text = sql.on(self.engine()).into_sql_str();
        self.all_raw(text, args).await.map_err(translate)
    }

    /// All rows of a statement that was put together from constants.
    pub(crate) async fn all_of(&mut self, text: String, args: Vec<Value>) -> Result<Vec<Row>> {
        self.all_raw(AssertSqlSafe(text).into_sql_str(), args)
            .await
            .map_err(translate)
    }

    /// The first row of a statement, if any.
    pub(crate) async fn first(&mut self, sql: &Sql, args: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.all(sql, args).await?.into_iter().next())
    }

    /// The same with the driver's own error.
    pub(crate) async fn first_raw(&mut self, sql: &Sql, args: Vec<Value>) -> Raw<Option<Row>> {
        let text = sql.on(self.engine()).into_sql_str();
        Ok(self.all_raw(text, args).await?.into_iter().next())
    }

    /// The first row of a statement that always has one.
    pub(crate) async fn one(&mut self, sql: &Sql, args: Vec<Value>) -> Result<Row> {
        self.first(sql, args)
            .await?
            .ok_or_else(|| Error::corrupt("database: a row that must exist is missing"))
    }

    pub(crate) async fn all_raw(&mut self, text: SqlStr, args: Vec<Value>) -> Raw<Vec<Row>> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(connection) => {
                let query = sqlx::query_with(text, value::postgres(args)?);
                let rows = query.fetch_all(&mut **connection).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(connection) => {
                let query = sqlx::query_with(text, value::sqlite(args)?);
                let rows = query.fetch_all(&mut **connection).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    /// Runs a script of several statements without arguments.
    pub(crate) async fn script(&mut self, text: &'static str) -> Result<()> {
        self.script_raw(text.into_sql_str()).await
    }

    /// Runs a script that was put together from constants and numbers.
    pub(crate) async fn script_of(&mut self, text: String) -> Result<()> {
        self.script_raw(AssertSqlSafe(text).into_sql_str()).await
    }

    async fn script_raw(&mut self, text: SqlStr) -> Result<()> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(connection) => sqlx::raw_sql(text).execute(&mut **connection).await.map(drop),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(connection) => sqlx::raw_sql(text).execute(&mut **connection).await.map(drop),
        }
        .map_err(translate)
    }
}

/// A row of either engine. A column that is missing or of another type is `Corrupt`.
pub(crate) enum Row {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::postgres::PgRow),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::sqlite::SqliteRow),
}

macro_rules! column {
    ($row:expr, $name:expr) => {
        match $row {
            #[cfg(feature = "postgres")]
            Row::Postgres(row) => row.try_get($name),
            #[cfg(feature = "sqlite")]
            Row::Sqlite(row) => row.try_get_unchecked($name),
        }
        .map_err(translate)
    };
}

impl Row {
    pub(crate) fn int(&self, name: &str) -> Result<i64> {
        column!(self, name)
    }

    pub(crate) fn maybe_int(&self, name: &str) -> Result<Option<i64>> {
        column!(self, name)
    }

    pub(crate) fn bool(&self, name: &str) -> Result<bool> {
        column!(self, name)
    }

    pub(crate) fn text(&self, name: &str) -> Result<String> {
        column!(self, name)
    }

    pub(crate) fn maybe_text(&self, name: &str) -> Result<Option<String>> {
        column!(self, name)
    }

    pub(crate) fn maybe_bool(&self, name: &str) -> Result<Option<bool>> {
        column!(self, name)
    }

    pub(crate) fn maybe_bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        column!(self, name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<Bytes> {
        let bytes: Vec<u8> = column!(self, name)?;
        Ok(Bytes::from(bytes))
    }

    pub(crate) fn id<T: From<i64>>(&self, name: &str) -> Result<T> {
        self.int(name).map(T::from)
    }

    pub(crate) fn maybe_id<T: From<i64>>(&self, name: &str) -> Result<Option<T>> {
        Ok(self.maybe_int(name)?.map(T::from))
    }

    pub(crate) fn at(&self, name: &str) -> Result<Timestamp> {
        self.int(name).map(Timestamp::from_micros)
    }

    pub(crate) fn maybe_at(&self, name: &str) -> Result<Option<Timestamp>> {
        Ok(self.maybe_int(name)?.map(Timestamp::from_micros))
    }

    /// An integer that cannot be negative or is smaller than 64 bits.
    pub(crate) fn count<T: TryFrom<i64>>(&self, name: &str) -> Result<T> {
        T::try_from(self.int(name)?).map_err(|_| Error::corrupt(format!("database: {name} is out of its range")))
    }

    /// A name that one of the enums has.
    pub(crate) fn named<T>(&self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text = self.text(name)?;
        parse(&text).ok_or_else(|| Error::corrupt(format!("database: {name} '{text}' is not known")))
    }

    /// A column that holds JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_str(&self.text(name)?)
            .map_err(|e| Error::corrupt(format!("database: {name} is not understood")).because(e))
    }
}
