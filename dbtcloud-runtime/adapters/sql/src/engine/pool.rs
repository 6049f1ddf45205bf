use std::str::FromStr;
use std::time::Duration;

use dbtcloud_core::{Error, Result, failpoint};
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

#[cfg(feature = "postgres")]
use super::postgres::{self, Postgres};
#[cfg(feature = "sqlite")]
use super::writer::{self, Writer};
use super::{Engine, Link, Options};
use crate::error::translate;

/// Begins what sees everything as it was at one instant.
#[cfg(feature = "postgres")]
const FREEZE: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// How long to wait before a file that was locked is opened again.
#[cfg(feature = "sqlite")]
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// Where a test may end the process, around every commit.
const BEFORE_COMMIT: &str = "before_commit";
const AFTER_COMMIT: &str = "after_commit";

/// The connections to one database.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
    /// SQLite has one writer at a time: writers queue here, fairly, and not by polling inside SQLite. Readers
    /// see the last commit (WAL) and never wait.
    #[cfg(feature = "sqlite")]
    Sqlite {
        writer: Writer,
        readers: SqlitePool,
        bells: crate::wakeups::Bells,
    },
}

impl Database {
    pub(crate) async fn connect(url: &str, options: &Options) -> Result<Self> {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => postgres::connect(url, options).await.map(Self::Postgres),
            #[cfg(feature = "sqlite")]
            "sqlite" => connect_sqlite(url, options).await,
            _ => Err(Error::invalid(
                "database_url",
                "expected postgres://user:password@host/database or sqlite:///path/to/file, with the \
                 engine compiled in",
            )),
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Engine::Postgres,
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Engine::Sqlite,
        }
    }

    /// A connection for one statement that only reads.
    pub(crate) async fn read(&self) -> Result<Borrowed> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(server) => server.reading.acquire().await.map(Borrowed::Postgres),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { readers, .. } => readers.acquire().await.map(Borrowed::Sqlite),
        }
        .map_err(translate)
    }

    /// A connection for one statement that writes and is its own transaction, for this call of a port.
    pub(crate) async fn write(&self, call: &'static str) -> Result<Written> {
        let connection = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(server) => server.writing.acquire().await.map(Borrowed::Postgres),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { writer, .. } => writer.pool().acquire().await.map(Borrowed::Sqlite),
        };
        let connection = connection.map_err(translate)?;
        failpoint::reached("sql", call, BEFORE_COMMIT);
        Ok(Written { connection, call })
    }

    /// A transaction that writes. Dropping it rolls back.
    pub(crate) async fn begin(&self) -> Result<Work> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(server) => server.writing.begin().await.map(Work::Postgres),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { writer, .. } => return writer.begin().await.map(Work::Sqlite),
        }
        .map_err(translate)
    }

    /// A transaction that only reads, and sees these tables as they are at its first statement, whatever others do
    /// meanwhile: none of their parts is dropped either. The locks are taken before there is something to see.
    pub(crate) async fn freeze(&self, tables: &str) -> Result<Frozen> {
        let frozen = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => {
                let begun = postgres.reading.begin_with(FREEZE).await.map(Frozen::Postgres);
                let mut frozen = begun.map_err(translate)?;
                let lock = format!("LOCK TABLE {tables} IN ACCESS SHARE MODE");
                frozen.link().script_of(lock).await?;
                return Ok(frozen);
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { readers, .. } => readers.begin().await.map(Frozen::Sqlite),
        };
        frozen.map_err(translate)
    }

    /// Connections that wait, and those that work.
    pub(crate) fn connections(&self) -> (u32, u32) {
        let counted = |size: u32, idle: usize| {
            let idle = u32::try_from(idle).unwrap_or(u32::MAX).min(size);
            (idle, size - idle)
        };
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(server) => counted(
                server.writing.size() + server.reading.size(),
                server.writing.num_idle() + server.reading.num_idle(),
            ),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { writer, readers, .. } => {
                let writer = writer.pool();
                counted(writer.size() + readers.size(), writer.num_idle() + readers.num_idle())
            }
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(server) => {
                server.reading.close().await;
                server.writing.close().await;
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { writer, readers, .. } => {
                // Readers first: the last connection to close writes the WAL back.
                readers.close().await;
                writer.pool().close().await;
            }
        }
    }
}

/// A connection outside of a transaction.
pub(crate) enum Borrowed {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::pool::PoolConnection<sqlx::Postgres>),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::pool::PoolConnection<sqlx::Sqlite>),
}

impl Borrowed {
    pub(crate) fn link(&mut self) -> Link<'_> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(connection) => Link::Postgres(connection),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(connection) => Link::Sqlite(connection),
        }
    }
}

/// A transaction that only reads. Dropping it ends it.
pub(crate) enum Frozen {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
}

impl Frozen {
    pub(crate) fn link(&mut self) -> Link<'_> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(work) => Link::Postgres(work),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(work) => Link::Sqlite(work),
        }
    }
}

/// A connection on which one statement writes.
pub(crate) struct Written {
    connection: Borrowed,
    call: &'static str,
}

impl Written {
    pub(crate) fn link(&mut self) -> Link<'_> {
        self.connection.link()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        failpoint::reached("sql", self.call, AFTER_COMMIT);
    }
}

/// A transaction.
pub(crate) enum Work {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
    #[cfg(feature = "sqlite")]
    Sqlite(writer::Member),
}

impl Work {
    pub(crate) fn link(&mut self) -> Link<'_> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(work) => Link::Postgres(work),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(work) => Link::Sqlite(work.connection()),
        }
    }

    /// Ends the transaction of this call of a port: commits what went well and takes back the rest. Either
    /// way its locks are gone when this returns: left to a drop, they would last until the connection is
    /// next looked at, and the caller's own next call might run into them.
    pub(crate) async fn end<T, E: From<Error>>(
        self,
        call: &'static str,
        done: std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        failpoint::reached("sql", call, BEFORE_COMMIT);
        let ended = match (self, done.is_ok()) {
            #[cfg(feature = "postgres")]
            (Self::Postgres(work), true) => work.commit().await,
            #[cfg(feature = "postgres")]
            (Self::Postgres(work), false) => work.rollback().await,
            #[cfg(feature = "sqlite")]
            (Self::Sqlite(work), true) => {
                work.commit().await?;
                Ok(())
            }
            #[cfg(feature = "sqlite")]
            (Self::Sqlite(work), false) => {
                work.take_back().await?;
                Ok(())
            }
        };
        failpoint::reached("sql", call, AFTER_COMMIT);
        let value = done?;
        ended.map_err(translate)?;
        Ok(value)
    }
}

#[cfg(feature = "sqlite")]
async fn connect_sqlite(url: &str, options: &Options) -> Result<Database> {
    let connect = SqliteConnectOptions::from_str(url).map_err(|error| {
        Error::invalid("database_url", "expected sqlite:///path/to/file or sqlite::memory:").because(error)
    })?;
    let memory = url.contains(":memory:") || url.contains("mode=memory");
    if !memory
        && let Some(folder) = connect.get_filename().parent()
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        return Err(Error::unavailable(format!(
            "database: the directory {} does not exist; create it or change the database URL",
            folder.display()
        )));
    }
    let connect = connect
        .busy_timeout(options.acquire_timeout())
        .foreign_keys(true)
        // FULL: a run that was acknowledged survives a power cut, as on PostgreSQL.
        .synchronous(SqliteSynchronous::Full)
        .statement_cache_capacity(200);
    let fixed = || {
        SqlitePoolOptions::new()
            .acquire_timeout(options.acquire_timeout())
            .test_before_acquire(false)
            .idle_timeout(None::<Duration>)
            .max_lifetime(None::<Duration>)
    };
    let read_only = url.contains("mode=ro") || url.contains("immutable=");
    let mut writing = connect.clone();
    if !read_only {
        writing = writing.journal_mode(SqliteJournalMode::Wal).create_if_missing(true);
    }
    let first = async {
        loop {
            let pool = fixed().max_connections(1).connect_with(writing.clone());
            match pool.await {
                // Of two processes that open a new file at once, one may not switch it to WAL just now, and
                // SQLite does not wait there.
                Err(error) if crate::error::is_locked(&error) => tokio::time::sleep(LOCKED_PAUSE).await,
                answer => return answer.map_err(translate),
            }
        }
    };
    let writer = match tokio::time::timeout(options.acquire_timeout(), first).await {
        Ok(answer) => answer?,
        Err(_) => {
            return Err(Error::unavailable("database: the file is locked by another process"));
        }
    };
    let readers = if memory {
        // A database in memory belongs to its one connection.
        writer.clone()
    } else {
        let reading = connect.pragma("query_only", "1");
        fixed().max_connections(options.pool_size()).connect_lazy_with(reading)
    };
    Ok(Database::Sqlite {
        writer: Writer::new(writer, options.acquire_timeout()),
        readers,
        bells: Default::default(),
    })
}
