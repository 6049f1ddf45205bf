use std::time::Duration;

use dbtcloud_core::secret::Secret;

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
    lock_timeout: Option<Duration>,
    application_name: String,
    password: Option<Secret>,
    listen_url: Option<Secret>,
}

impl Options {
    /// 10 connections, 10 s for getting one, 30 s for a statement.
    pub fn new() -> Self {
        Self {
            pool_size: 10,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: None,
            application_name: "dbtcloud".to_owned(),
            password: None,
            listen_url: None,
        }
    }

    /// How many connections at most, on PostgreSQL half of them for what only reads and at least one for each; with
    /// SQLite, how many readers beside the one writer. At least 1.
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

    /// How long one statement may wait for a lock before it is `Unavailable` (PostgreSQL); a third of the
    /// statement's time without it.
    #[must_use]
    pub fn with_lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = Some(timeout);
        self
    }

    /// The password, in place of the URL's (PostgreSQL).
    #[must_use]
    pub fn with_password(mut self, password: Secret) -> Self {
        self.password = Some(password);
        self
    }

    /// Where wake-ups are heard, when the URL leads to a pooler that lends connections by transaction
    /// (PostgreSQL): the same database without it.
    #[must_use]
    pub fn with_listen_url(mut self, url: Secret) -> Self {
        self.listen_url = Some(url);
        self
    }

    /// What `pg_stat_activity` shows (PostgreSQL); of a longer name the last 63 bytes.
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

    /// See [`Options::with_lock_timeout`].
    pub fn lock_timeout(&self) -> Duration {
        self.lock_timeout.unwrap_or(self.statement_timeout / 3)
    }

    /// See [`Options::with_password`].
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// See [`Options::with_listen_url`].
    pub fn listen_url(&self) -> Option<&Secret> {
        self.listen_url.as_ref()
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
