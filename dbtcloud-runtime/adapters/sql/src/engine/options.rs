use std::time::Duration;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL 13 or newer.
    Postgres,
    /// SQLite, compiled in.
    Sqlite,
}

/// How a storage uses its database.
///
/// ```
/// use dbtcloud_sql::Options;
/// let options = Options::new().with_pool_size(20);
/// assert_eq!(options.pool_size(), 20);
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pool_size: u32,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    application_name: String,
}

impl Options {
    /// 10 connections, 10 s for getting one, 30 s for a statement.
    pub fn new() -> Self {
        Self {
            pool_size: 10,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            application_name: "dbtcloud".to_owned(),
        }
    }

    /// How many connections at most; with SQLite, how many readers beside the one writer. At least 1.
    #[must_use]
    pub fn with_pool_size(mut self, size: u32) -> Self {
        self.pool_size = size.max(1);
        self
    }

    /// How long a call waits for a connection (and, with SQLite, for another process's lock) before it is
    /// `Unavailable`.
    #[must_use]
    pub fn with_acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// How long one statement may take before it is `Unavailable` (PostgreSQL).
    #[must_use]
    pub fn with_statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// What `pg_stat_activity` shows (PostgreSQL).
    #[must_use]
    pub fn with_application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// See [`Options::with_pool_size`].
    pub fn pool_size(&self) -> u32 {
        self.pool_size
    }

    /// See [`Options::with_acquire_timeout`].
    pub fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// See [`Options::with_statement_timeout`].
    pub fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// See [`Options::with_application_name`].
    pub fn application_name(&self) -> &str {
        &self.application_name
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}
