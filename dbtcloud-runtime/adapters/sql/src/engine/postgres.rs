//! The connections to a PostgreSQL server: how they are made, with which settings, and what is in the way.

use std::str::FromStr;
use std::time::Duration;

use dbtcloud_core::{Error, Result};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use super::Options;
use crate::error;

/// Settings of every connection. No sequential scan where an index will do: after a herd the server has not
/// counted the queue yet, and every statement has its index (`tests/tests/storage/plans.rs`).
const PREPARE_CONNECTION: &str = "SELECT set_config('statement_timeout', $1, false), \
    set_config('lock_timeout', $2, false), \
    set_config('idle_in_transaction_session_timeout', '60s', false), \
    set_config('plan_cache_mode', $3, false), \
    set_config('enable_seqscan', 'off', false), \
    set_config('jit', 'off', false), \
    set_config('client_min_messages', 'warning', false)";

/// What changes something names its rows by their keys: one plan for all, made once per connection.
const ONE_PLAN: &str = "force_generic_plan";
/// Which index suits a list depends on what is asked for: a plan each time.
const A_PLAN_EACH: &str = "force_custom_plan";

/// A connection that was idle longer than this is asked whether it still lives before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// The oldest server that works, as `server_version_num` counts.
const OLDEST_SERVER: u32 = 130_000;

/// The longest name that `pg_stat_activity` shows.
const APPLICATION_NAME_LIMIT_BYTES: usize = 63;

/// What a URL may say after its `?`. Everything else is refused: the driver would pass over it, also over an
/// `sslmode` that is misspelt.
const PARAMETERS: [&str; 11] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
];
/// Session settings, `options=-csearch_path=…` or `options[search_path]=…`.
const SESSION: &str = "options";

/// One server.
#[derive(Clone)]
pub(crate) struct Postgres {
    /// Connections for what changes something.
    pub(crate) writing: PgPool,
    /// Connections for what only reads: a long list keeps nobody from claiming a run.
    pub(crate) reading: PgPool,
    /// How the connection that hears wake-ups is made: past a pooler that lends connections by transaction.
    pub(crate) listening: Box<PgConnectOptions>,
}

/// Without the options, which have the password.
impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres")
            .field("writing", &self.writing)
            .field("reading", &self.reading)
            .finish_non_exhaustive()
    }
}

pub(crate) async fn connect(url: &str, options: &Options) -> Result<Postgres> {
    let connect = understood("database_url", url, options)?;
    let listening = match options.listen_url() {
        Some(url) => understood("database_listen_url", url.expose(), options)?,
        None => connect.clone(),
    };
    // One attempt outside of the pool: the pool would retry until its time-out and lose the reason.
    let place = format!("{}:{}", connect.get_host(), connect.get_port());
    match tokio::time::timeout(options.acquire_timeout(), PgConnection::connect_with(&connect)).await {
        Ok(Ok(probe)) => {
            let version = probe.server_version_num();
            drop(probe.close().await);
            new_enough(version)?;
        }
        Ok(Err(error)) => return Err(error::connecting(error, &place)),
        Err(_) => {
            return Err(Error::unavailable(format!(
                "database: no answer from {place} within {:?}",
                options.acquire_timeout()
            )));
        }
    }
    // Half of the connections for either.
    let readers = (options.pool_size() / 2).max(1);
    let writers = options.pool_size().saturating_sub(readers).max(1);
    Ok(Postgres {
        writing: pool(writers, ONE_PLAN, &connect, options),
        reading: pool(readers, A_PLAN_EACH, &connect, options),
        listening: Box::new(listening),
    })
}

fn pool(size: u32, plans: &'static str, connect: &PgConnectOptions, options: &Options) -> PgPool {
    let millis = |time: Duration| format!("{}ms", time.as_millis());
    let (statement, lock) = (millis(options.statement_timeout()), millis(options.lock_timeout()));
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(options.acquire_timeout())
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            let (statement, lock) = (statement.clone(), lock.clone());
            Box::pin(async move {
                let settings = sqlx::query(PREPARE_CONNECTION).bind(statement).bind(lock).bind(plans);
                settings.execute(connection).await.map(drop)
            })
        })
        .connect_lazy_with(connect.clone())
}

fn understood(field: &'static str, url: &str, options: &Options) -> Result<PgConnectOptions> {
    // Causes are left out: they may quote the URL, and the URL has a password.
    let bad = |what: String| Error::invalid(field, what);
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split('=').next().unwrap_or_default();
        if !PARAMETERS.contains(&name) && !name.starts_with(SESSION) {
            let known = PARAMETERS.join(", ");
            return Err(bad(format!("'{name}' is not known; known are {known}, {SESSION}")));
        }
    }
    let none = || bad("expected postgres://user:password@host:port/database".to_owned());
    if !["postgres:", "postgresql:"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(none());
    }
    let mut connect = PgConnectOptions::from_str(url)
        .map_err(|_| none())?
        .application_name(shown(options.application_name()))
        // Poolers know no such setting, and no column is a float.
        .extra_float_digits(None);
    if let Some(password) = options.password() {
        connect = connect.password(password.expose());
    }
    Ok(connect)
}

/// As much of the end of a name as the server keeps: that is where names of processes differ.
fn shown(name: &str) -> &str {
    let cut = name.len().saturating_sub(APPLICATION_NAME_LIMIT_BYTES);
    let cut = (cut..name.len()).find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    &name[cut..]
}

/// What a server of no known version is, only its statements will tell.
fn new_enough(version: Option<u32>) -> Result<()> {
    match version {
        Some(version) if version < OLDEST_SERVER => Err(Error::invalid(
            "database_url",
            format!(
                "expected PostgreSQL {} or newer, the server is {}; upgrade it",
                OLDEST_SERVER / 10_000,
                version / 10_000
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_told_apart() {
        for (version, refused) in [
            (None, false),
            (Some(90_624), true),
            (Some(120_022), true),
            (Some(130_000), false),
            (Some(180_001), false),
        ] {
            assert_eq!(new_enough(version).is_err(), refused, "{version:?}");
        }
        let told = new_enough(Some(120_022)).unwrap_err().to_string();
        assert!(told.contains("PostgreSQL 13 or newer, the server is 12"), "{told}");
    }

    #[test]
    fn a_parameter_that_is_not_known_is_refused_without_its_value() {
        let refused = |url| {
            understood("database_url", url, &Options::new())
                .map(drop)
                .unwrap_err()
                .to_string()
        };
        let told = refused("postgres://u:hunter2@h/d?sslmode=require&ssl_mode=hunter2");
        assert!(
            told.contains("'ssl_mode' is not known") && !told.contains("hunter2"),
            "{told}"
        );
        for url in [
            "postgres://h/d",
            "postgres://h/d?sslmode=verify-full&sslrootcert=/ca.pem&options=-csearch_path%3Da&options[a]=b",
        ] {
            understood("database_url", url, &Options::new()).unwrap();
        }
    }

    #[test]
    fn the_end_of_a_long_name_is_shown() {
        let name = format!("dbtcloud/all/{}-17-0badcafe", "h\u{e9}".repeat(40));
        assert!(shown(&name).len() <= APPLICATION_NAME_LIMIT_BYTES && shown(&name).ends_with("-17-0badcafe"));
        assert_eq!((shown("short"), shown("")), ("short", ""));
    }
}
