//! Requests for runs that may be made again. Invariants: an account's key stands for one request and one run (primary
//! key of `run_requests`), and it is taken in the transaction that queues the run.

use bytes::Bytes;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Digest, Enqueued, RunRequest};
use dbtcloud_core::run::{NewRun, Run};
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};

use crate::engine::{Database, Link, Sql, args};
use crate::enqueue;
use crate::runs::{self, run_columns};

/// Primary key. Takes a key that is free or has run out, for a run that is about to come. Its row is locked from here
/// on, also when somebody has it: whoever comes at the same moment waits, and the next statement sees what came of it.
const TAKE: Sql = Sql::both(
    "INSERT INTO run_requests (account_id, key, asked, run_id, until) VALUES ($1, $2, $3, 0, $4) \
     ON CONFLICT (account_id, key) DO UPDATE SET asked = excluded.asked, run_id = 0, until = excluded.until \
        WHERE run_requests.until <= $5",
);

/// Primary key.
const FILL: Sql =
    Sql::both("UPDATE run_requests SET asked = $3, run_id = $4, until = $5 WHERE account_id = $1 AND key = $2");

/// Primary keys.
const OF_KEY: Sql = Sql::both(concat!(
    "SELECT ",
    run_columns!("r."),
    ", q.asked FROM run_requests q JOIN runs r ON r.id = q.run_id \
     WHERE q.account_id = $1 AND q.key = $2 AND q.until > $3"
));

/// Index `run_requests_by_end`.
const PURGE: Sql = Sql::both(
    "DELETE FROM run_requests WHERE (account_id, key) IN \
        (SELECT account_id, key FROM run_requests WHERE until < $1 ORDER BY until LIMIT $2)",
);
const OLD: Sql = Sql::both("SELECT count(*) AS old FROM run_requests WHERE until < $1");

fn stored(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

async fn find(link: &mut Link<'_>, account: AccountId, request: &RunRequest, now: Timestamp) -> Result<Option<Run>> {
    let row = link.first(&OF_KEY, args![account, stored(&request.key), now]).await?;
    let Some(row) = row else { return Ok(None) };
    if row.bytes("asked")? != stored(&request.asked) {
        let run: RunId = row.id("id")?;
        let text = format!("the key was used for another request, which queued run {run}");
        return Err(Error::new(ErrorKind::AlreadyExists, text));
    }
    runs::read(&row).map(Some)
}

pub(crate) async fn enqueue(
    database: &Database,
    new: &NewRun,
    request: &RunRequest,
    now: Timestamp,
) -> Result<Enqueued> {
    let (key, asked, until) = (&request.key, &request.asked, request.until);
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_> = async {
        let take = args![new.account, stored(key), stored(asked), until, now];
        // Of a key that is somebody's the run may be gone: then it is taken all the same.
        if link.execute(&TAKE, take).await? == 0
            && let Some(run) = find(&mut link, new.account, request, now).await?
        {
            return Ok(Enqueued::Existing(run));
        }
        let queued = enqueue::one_in(&mut link, new, now).await?;
        let run = match &queued {
            Enqueued::Created(run) | Enqueued::Existing(run) => run.id,
        };
        link.execute(&FILL, args![new.account, stored(key), stored(asked), run, until])
            .await?;
        Ok(queued)
    }
    .await;
    work.end("runs.enqueue_for", done).await
}

pub(crate) async fn run_of(
    database: &Database,
    account: AccountId,
    request: &RunRequest,
    now: Timestamp,
) -> Result<Option<Run>> {
    let mut reader = database.read().await?;
    find(&mut reader.link(), account, request, now).await
}

pub(crate) async fn purge(database: &Database, before: Timestamp, limit: u32) -> Result<u64> {
    let mut writer = database.write("runs.purge_requests").await?;
    writer.link().execute(&PURGE, args![before, limit]).await
}

pub(crate) async fn old(database: &Database, before: Timestamp) -> Result<u64> {
    let mut reader = database.read().await?;
    reader.link().one(&OLD, args![before]).await?.count("old")
}
