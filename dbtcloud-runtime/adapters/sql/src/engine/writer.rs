//! SQLite's one writer. Every commit is a flush to disk, so transactions that come together make one: the
//! first begins it, those that wait meanwhile join as savepoints, and whoever is in line again first commits
//! for all. Nobody is answered before that commit.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dbtcloud_core::{Error, Result};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::translate;

/// At once, so that it cannot fail to upgrade from a read in the middle.
const BEGIN: &str = "BEGIN IMMEDIATE";
const COMMIT: &str = "COMMIT";
const ROLLBACK: &str = "ROLLBACK";
/// What one transaction of several did.
const JOIN: &str = "SAVEPOINT member";
const LEAVE: &str = "RELEASE member";
const TAKE_BACK: &str = "ROLLBACK TO member";

/// What became of a commit, once it is known: nothing, or why there was none.
type Outcome = Arc<OnceLock<Option<String>>>;

/// The connection while a transaction is open on it.
struct Open {
    connection: PoolConnection<Sqlite>,
    outcome: Outcome,
}

/// In line for the writer; fair, so that whoever waits joins before the commit of those that were first.
type Line = Arc<Mutex<Option<Open>>>;

/// The writer. A clone is the same.
#[derive(Clone)]
pub(crate) struct Writer {
    pool: SqlitePool,
    line: Line,
    patience: Duration,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(pool: SqlitePool, patience: Duration) -> Self {
        Self {
            pool,
            line: Line::default(),
            patience,
        }
    }

    /// The pool of the one connection, for statements that are their own transaction.
    pub(crate) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    pub(crate) async fn begin(&self) -> Result<Member> {
        let waiting = tokio::time::timeout(self.patience, self.line.clone().lock_owned());
        let mut turn = waiting
            .await
            .map_err(|_| Error::unavailable("database: no connection within the time limit"))?;
        let first = turn.is_none();
        if first {
            let connection = self.pool.acquire().await.map_err(translate)?;
            let outcome = Outcome::default();
            *turn = Some(Open { connection, outcome });
        }
        // From here on a drop takes back.
        let mut member = Member {
            turn: Some(turn),
            line: self.line.clone(),
            first,
        };
        let statement = if first { BEGIN } else { JOIN };
        match say(member.connection(), statement).await {
            Ok(()) => Ok(member),
            Err(error) => {
                let error = translate(error);
                member.take_back().await?;
                Err(error)
            }
        }
    }
}

async fn say(connection: &mut SqliteConnection, statement: &'static str) -> std::result::Result<(), sqlx::Error> {
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}

/// A transaction, alone or with others. Dropping it takes back what it did, and nothing of the others.
pub(crate) struct Member {
    /// Present until it has ended.
    turn: Option<OwnedMutexGuard<Option<Open>>>,
    line: Line,
    first: bool,
}

impl Member {
    #[expect(
        clippy::expect_used,
        reason = "`turn` is taken by the methods that consume the member, and holds an open transaction until then"
    )]
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        let open = self.turn.as_mut().and_then(|turn| turn.as_mut());
        &mut open.expect("an open transaction").connection
    }

    /// Takes back what it did. Where it saw what others did before it, it waits for their commit, whose error
    /// is then the answer: what was seen may be lost.
    pub(crate) async fn take_back(mut self) -> Result<()> {
        let (Some(turn), line, first) = (self.turn.take(), self.line.clone(), self.first) else {
            return Ok(());
        };
        let outcome = turn.as_ref().map(|open| open.outcome.clone());
        // In a task of its own: dropping the caller's future must not stop it half way.
        let ending = tokio::spawn(async move {
            undo(turn, first).await;
            match outcome {
                Some(outcome) if !first => settle(&line, &outcome).await,
                _ => Ok(()),
            }
        });
        ending.await.map_err(|_| cut_off())?
    }

    /// Waits until what it did is committed, by itself or by another. Dropping the future leaves the commit
    /// to a task.
    pub(crate) async fn commit(mut self) -> Result<()> {
        if !self.first
            && let Err(error) = say(self.connection(), LEAVE).await
        {
            let error = translate(error);
            self.take_back().await?;
            return Err(error);
        }
        let turn = self.turn.take();
        let outcome = turn
            .as_ref()
            .and_then(|turn| turn.as_ref())
            .map(|open| open.outcome.clone());
        let Some(outcome) = outcome else {
            return Err(Error::corrupt("database: a transaction was lost"));
        };
        let line = self.line.clone();
        let committing = tokio::spawn(async move {
            // Those that waited join now; the line is fair.
            drop(turn);
            settle(&line, &outcome).await
        });
        committing.await.map_err(|_| cut_off())?
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let (Some(turn), Ok(runtime)) = (self.turn.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(undo(turn, self.first));
        }
    }
}

fn cut_off() -> Error {
    Error::unavailable("database: the commit was cut off")
}

async fn undo(mut turn: OwnedMutexGuard<Option<Open>>, first: bool) {
    if first {
        if let Some(open) = turn.take() {
            roll_back(open).await;
        }
    } else if let Some(open) = turn.as_mut() {
        // Neither is there when SQLite took everything back by itself (a full disk); the commit tells all.
        let _ = say(&mut open.connection, TAKE_BACK).await;
        let _ = say(&mut open.connection, LEAVE).await;
    }
}

/// Ends a transaction of which nothing is to stay.
async fn roll_back(mut open: Open) {
    if let Err(error) = say(&mut open.connection, ROLLBACK).await
        && !error.to_string().contains("no transaction is active")
    {
        open.connection.close_on_drop();
    }
}

/// Commits for all, if nobody has yet.
async fn settle(line: &Line, outcome: &Outcome) -> Result<()> {
    let mut turn = line.lock().await;
    if outcome.get().is_none()
        && let Some(mut open) = turn.take()
    {
        if let Err(error) = say(&mut open.connection, COMMIT).await {
            // Whatever the reason, what was done may be lost: calling again is right.
            let error = Error::unavailable(translate(error).to_string());
            let _ = outcome.set(Some(error.to_string()));
            roll_back(open).await;
            return Err(error);
        }
        let _ = outcome.set(None);
    }
    match outcome.get() {
        Some(None) => Ok(()),
        Some(Some(reason)) => Err(Error::unavailable(reason.clone())),
        None => Err(Error::corrupt("database: a transaction was lost")),
    }
}
