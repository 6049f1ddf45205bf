//! `Wakeups`: NOTIFY and LISTEN on PostgreSQL; within the process on SQLite, whose file is one process's.
//! A notification has no payload, so that PostgreSQL keeps one of many, and is a transaction of its own: a
//! transaction that notifies holds a lock of the whole database while it commits.

use async_trait::async_trait;
use dbtcloud_core::ports::{Bell, BellStream, Wakeups};
use dbtcloud_core::{Error, Result};
use futures::stream;

use crate::engine::Database;
use crate::storage::SqlStorage;

/// How often each bell was rung in this process.
#[cfg(feature = "sqlite")]
pub(crate) type Bells = std::sync::Arc<tokio::sync::watch::Sender<[u64; Bell::ALL.len()]>>;

#[async_trait]
impl Wakeups for SqlStorage {
    async fn ring(&self, bell: Bell) -> Result<()> {
        match &self.database {
            #[cfg(feature = "postgres")]
            Database::Postgres(server) => channels::ring(&server.writing, bell).await,
            #[cfg(feature = "sqlite")]
            Database::Sqlite { bells, .. } => {
                bells.send_modify(|counts| counts[bell as usize] = counts[bell as usize].wrapping_add(1));
                Ok(())
            }
        }
    }

    async fn listen(&self) -> Result<BellStream> {
        match &self.database {
            #[cfg(feature = "postgres")]
            Database::Postgres(server) => channels::listen(server.listening.as_ref().clone()).await,
            #[cfg(feature = "sqlite")]
            Database::Sqlite { bells, .. } => Ok(within(bells.subscribe())),
        }
    }
}

#[cfg(feature = "sqlite")]
fn within(mut bells: tokio::sync::watch::Receiver<[u64; Bell::ALL.len()]>) -> BellStream {
    let seen = *bells.borrow_and_update();
    Box::pin(stream::unfold(Some((bells, seen)), |listener| async {
        let (mut bells, mut seen) = listener?;
        loop {
            let counts = *bells.borrow_and_update();
            let rung = |bell: &Bell| counts[*bell as usize] != seen[*bell as usize];
            if let Some(bell) = Bell::ALL.into_iter().find(rung) {
                seen[bell as usize] = counts[bell as usize];
                return Some((Ok(bell), Some((bells, seen))));
            }
            if bells.changed().await.is_err() {
                return Some((Err(Error::unavailable("database: this storage is gone")), None));
            }
        }
    }))
}

#[cfg(feature = "postgres")]
mod channels {
    use std::time::Duration;

    use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};

    use super::*;
    use crate::error::translate;

    /// Channels are the database's, so the schema is part of their name: installations that share a
    /// database do not wake each other. Index `pg_namespace_nspname_index`.
    const RING: &str = "SELECT pg_notify('dbtcloud_' || $1 || '_' || oid, '') FROM pg_namespace \
        WHERE nspname = current_schema()";

    /// Where [`RING`] rings.
    const SCHEMA: &str = "SELECT oid::text FROM pg_namespace WHERE nspname = current_schema()";

    /// A connection on which nothing was heard for so long is asked whether it still lives: one that was cut
    /// in the middle says nothing by itself.
    const TRUSTED_SILENCE: Duration = Duration::from_secs(10);

    /// How long it may take to answer, and a new connection to be made.
    const PATIENCE: Duration = Duration::from_secs(10);

    pub(super) async fn ring(pool: &PgPool, bell: Bell) -> Result<()> {
        let ringing = sqlx::query(RING).bind(bell.name()).execute(pool).await;
        ringing.map(drop).map_err(translate)
    }

    /// Its connection is beside the pool's: it is held as long as somebody listens.
    pub(super) async fn listen(server: PgConnectOptions) -> Result<BellStream> {
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(PATIENCE)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(server);
        let mut listener = PgListener::connect_with(&own).await.map_err(translate)?;
        listener.eager_reconnect(false);
        let schema: String = sqlx::query_scalar(SCHEMA)
            .fetch_one(&mut listener)
            .await
            .map_err(translate)?;
        let names = Bell::ALL.map(|bell| format!("dbtcloud_{bell}_{schema}"));
        listener
            .listen_all(names.iter().map(String::as_str))
            .await
            .map_err(translate)?;
        Ok(Box::pin(stream::unfold(Some(listener), |listener| async {
            let mut listener = listener?;
            match next(&mut listener).await {
                Ok(bell) => Some((Ok(bell), Some(listener))),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    async fn next(listener: &mut PgListener) -> Result<Bell> {
        loop {
            match tokio::time::timeout(TRUSTED_SILENCE, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    let name = notification.channel().split('_').nth(1);
                    if let Some(bell) = name.and_then(Bell::from_name) {
                        return Ok(bell);
                    }
                }
                Ok(Ok(None)) => return Err(lost()),
                Ok(Err(error)) => return Err(lost().because(error)),
                Err(_) => {
                    let asked = sqlx::query("SELECT 1").execute(&mut *listener);
                    match tokio::time::timeout(PATIENCE, asked).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => return Err(lost().because(error)),
                        Err(_) => return Err(lost()),
                    }
                }
            }
        }
    }

    fn lost() -> Error {
        Error::unavailable("database: the connection that hears wake-ups was lost")
    }
}
