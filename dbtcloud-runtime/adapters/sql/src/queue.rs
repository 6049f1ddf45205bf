//! Who executes: the queue, claims and leases. Everything here works on `run_queue`, whose size is that of
//! what has not ended. Invariants, each in the outer `WHERE` and once more in a partial unique index: a run
//! is claimed once, a slot of an account is held once (`run_queue_slot`), an exclusive job executes once
//! (`run_queue_exclusive`). `SKIP LOCKED` on PostgreSQL spares waiting, it proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Claimed, EventBody, Fence, Holder, Owner, Renewed, Since};
use dbtcloud_core::run::{Admission, Busy, QueueSnapshot, Run, RunStatus, Waiting};
use dbtcloud_core::{Error, Result, Timestamp};

use crate::engine::{Database, Engine, Link, Row, Sql, Value, args};
use crate::error::{is_deadlock, is_duplicate, translate};
use crate::journal;
use crate::runs::{self, run_columns};
use crate::storage::no_nul;

/// The accounts that have somebody waiting: one probe of `run_queue_startable` each, not a scan of it.
macro_rules! lines {
    () => {
        "WITH RECURSIVE line (account_id) AS ( \
            SELECT min(account_id) FROM run_queue WHERE state = 'queued' AND due_at >= $3 \
            UNION ALL \
            SELECT (SELECT min(q.account_id) FROM run_queue q \
                WHERE q.state = 'queued' AND q.account_id > line.account_id AND q.due_at >= $3) \
            FROM line WHERE line.account_id IS NOT NULL) "
    };
}
macro_rules! columns {
    ($q:literal) => {
        concat!(
            $q,
            "run_id, ",
            $q,
            "account_id, ",
            $q,
            "job_id, ",
            $q,
            "due_at, ",
            $q,
            "exclusive, ",
            $q,
            "takes_slot, ",
            $q,
            "slot, ",
            $q,
            "state"
        )
    };
}
macro_rules! busy {
    () => {
        concat!(
            " UNION ALL SELECT ",
            columns!(""),
            " FROM run_queue WHERE state <> 'queued'"
        )
    };
}
/// Due, and of no job that is kept busy: that is probed in `run_queue_exclusive`.
macro_rules! startable {
    () => {
        " FROM run_queue q WHERE q.state = 'queued' AND q.account_id = line.account_id \
            AND q.takes_slot = kind.takes_slot AND q.due_at <= $1 AND q.due_at >= $3 \
            AND NOT (q.exclusive AND EXISTS (SELECT 1 FROM run_queue b \
                WHERE b.job_id = q.job_id AND b.exclusive AND b.state <> 'queued')) \
            ORDER BY q.due_at, q.run_id LIMIT $2"
    };
}

/// Index `run_queue_startable`, its first entries per account that could start, those that take a slot and those
/// that do not apart, and index `run_queue_live`: one statement, one instant. `$3` and `$4` are where the look
/// begins: entries before are passed over in the indexes, dead ones without a look at their rows.
const SNAPSHOT: Sql = Sql::each(
    concat!(
        lines!(),
        "SELECT ",
        columns!("w."),
        " FROM line CROSS JOIN (VALUES (TRUE), (FALSE)) AS kind (takes_slot) CROSS JOIN LATERAL (SELECT ",
        columns!("q."),
        startable!(),
        ") w",
        busy!(),
        " AND run_id >= $4"
    ),
    concat!(
        lines!(),
        "SELECT ",
        columns!("w."),
        " FROM line CROSS JOIN (SELECT 1 AS takes_slot UNION ALL SELECT 0) AS kind CROSS JOIN run_queue w \
         WHERE w.run_id IN (SELECT q.run_id",
        startable!(),
        ")",
        busy!(),
        " AND run_id >= $4"
    ),
);

macro_rules! first_of {
    ($takes_slot:literal) => {
        concat!(
            "SELECT * FROM (SELECT ",
            columns!("q."),
            " FROM run_queue q WHERE q.state = 'queued' AND q.account_id = $1 AND q.takes_slot = ",
            $takes_slot,
            " ORDER BY q.due_at, q.run_id LIMIT $2) AS line"
        )
    };
}
/// Index `run_queue_startable`, its first entries of one account of either kind, and index `run_queue_live`.
const SNAPSHOT_OF: Sql = Sql::both(concat!(
    "SELECT * FROM (SELECT * FROM (",
    first_of!("TRUE"),
    " UNION ALL ",
    first_of!("FALSE"),
    ") AS both_kinds ORDER BY due_at, run_id LIMIT $2) AS line",
    busy!(),
    " AND account_id = $1"
));

/// Index `run_queue_startable`, without touching the table.
const COUNT: Sql = Sql::both("SELECT count(*) AS waiting FROM run_queue WHERE account_id = $1 AND state = 'queued'");

/// Claims of several runs of the same accounts come one after the other, so that they cannot wait for each
/// other in a ring. Claims of one run do without: they meet in the unique indexes, always in one order.
/// PostgreSQL only; SQLite has one writer.
const CLAIMS_IN_TURN: &str = "SELECT count(*) AS locks FROM (SELECT pg_advisory_xact_lock(723684913, line) FROM \
    (SELECT DISTINCT (account_id % 64)::int AS line FROM run_queue WHERE run_id = ANY($1) ORDER BY 1) AS lines) AS held";

/// What may be claimed, again in the outer condition. The state is written so that no plan made for an empty queue
/// takes `run_queue_startable` from end to end where the primary key is meant.
macro_rules! claimable {
    () => {
        ") AS wanted WHERE q.run_id = wanted.run_id AND q.state || '' = 'queued' \
          AND NOT EXISTS (SELECT 1 FROM run_queue h WHERE h.account_id = q.account_id AND h.slot = wanted.slot) \
          AND NOT (q.exclusive AND EXISTS (SELECT 1 FROM run_queue h \
            WHERE h.job_id = q.job_id AND h.exclusive AND h.state <> 'queued'))"
    };
}
macro_rules! claim_sets {
    () => {
        "UPDATE run_queue AS q SET state = 'starting', slot = wanted.slot, owner = $2, lease_until = $3, \
            epoch = q.epoch + 1, attempt = q.attempt + 1 FROM ("
    };
}
/// The attempt is that of `run_queue`: both are counted together.
macro_rules! admit_sets {
    () => {
        "UPDATE runs SET status = 'starting', attempt = attempt + 1, dequeued_at = $4, updated_at = $4, \
            batch_number = 0, last_sequence = last_sequence + 1 "
    };
}
/// Those of `$6` that the statement before has just taken, on SQLite.
macro_rules! just_taken {
    () => {
        "WHERE id IN (SELECT value FROM json_each($6)) AND status = 'queued' \
            AND EXISTS (SELECT 1 FROM run_queue q WHERE q.run_id = runs.id AND q.state = 'starting') "
    };
}

/// Primary keys; the conditions probe `run_queue_slot` and `run_queue_exclusive`. Queue, journal and history: one
/// statement on PostgreSQL, one after the other on SQLite. `$1` are pairs of run and slot, `$6` the runs alone, so
/// that PostgreSQL looks into no other month.
const CLAIM: Sql = Sql::each(
    concat!(
        "WITH taken AS (",
        claim_sets!(),
        "SELECT w.run_id, pair.slot FROM (SELECT (p.value->>0)::bigint AS run_id, (p.value->>1)::bigint AS slot \
            FROM jsonb_array_elements($1::jsonb) AS p (value)) AS pair JOIN run_queue w ON w.run_id = pair.run_id \
            WHERE w.run_id = ANY($6) AND w.state || '' = 'queued' ORDER BY w.run_id FOR UPDATE OF w SKIP LOCKED",
        claimable!(),
        " RETURNING q.run_id, q.epoch), admitted AS (",
        admit_sets!(),
        "FROM taken WHERE runs.id = taken.run_id AND runs.id = ANY($6) AND runs.status = 'queued' RETURNING ",
        run_columns!("runs."),
        ", runs.last_sequence, taken.epoch), told AS (\
            INSERT INTO journal (run_id, sequence, account_id, at, body) \
            SELECT id, last_sequence, account_id, $4, $5 FROM admitted) SELECT * FROM admitted"
    ),
    concat!(
        claim_sets!(),
        "SELECT p.value->>0 AS run_id, p.value->>1 AS slot FROM json_each($1) AS p",
        claimable!(),
        "; INSERT INTO journal (run_id, sequence, account_id, at, body) \
            SELECT id, last_sequence + 1, account_id, $4, $5 FROM runs ",
        just_taken!(),
        "; ",
        admit_sets!(),
        just_taken!(),
        "RETURNING ",
        run_columns!(""),
        ", (SELECT q.epoch FROM run_queue q WHERE q.run_id = runs.id) AS epoch"
    ),
);

/// Index `run_queue_live`: only what executes is looked at. The lease is a condition of the outer `WHERE`
/// too, so that each is taken over once.
const RECLAIM: Sql = Sql::each(
    "UPDATE run_queue AS q SET epoch = q.epoch + 1, owner = $2, lease_until = $3 \
     WHERE q.state <> 'queued' AND q.lease_until <= $1 AND q.run_id IN (SELECT w.run_id FROM run_queue w \
        WHERE w.state <> 'queued' AND w.lease_until <= $1 ORDER BY w.lease_until, w.run_id LIMIT $4 \
        FOR UPDATE SKIP LOCKED) \
     RETURNING q.run_id, q.epoch",
    "UPDATE run_queue AS q SET epoch = q.epoch + 1, owner = $2, lease_until = $3 \
     WHERE q.state <> 'queued' AND q.lease_until <= $1 AND q.run_id IN (SELECT w.run_id FROM run_queue w \
        WHERE w.state <> 'queued' AND w.lease_until <= $1 ORDER BY w.lease_until, w.run_id LIMIT $4) \
     RETURNING run_id, epoch",
);

/// Primary key.
const BY_IDS: Sql = Sql::each(
    concat!("SELECT ", run_columns!(""), " FROM runs WHERE id = ANY($1)"),
    concat!(
        "SELECT ",
        run_columns!(""),
        " FROM runs WHERE id IN (SELECT value FROM json_each($1))"
    ),
);

/// Primary key; the epoch is the fence. `$1` are pairs of run and epoch.
const LEASE: Sql = Sql::each(
    "UPDATE run_queue AS q SET lease_until = $2 FROM (SELECT (p.value->>0)::bigint AS run_id, \
        (p.value->>1)::bigint AS epoch FROM jsonb_array_elements($1::jsonb) AS p (value)) AS fence \
     WHERE q.run_id = fence.run_id AND q.epoch = fence.epoch AND q.state <> 'queued'",
    "UPDATE run_queue AS q SET lease_until = $2 FROM (SELECT p.value->>0 AS run_id, p.value->>1 AS epoch \
        FROM json_each($1) AS p) AS fence \
     WHERE q.run_id = fence.run_id AND q.epoch = fence.epoch AND q.state <> 'queued'",
);

/// Primary keys. Of a run that has ended the last epoch is kept in `runs`. `$2` are the runs once more, so
/// that PostgreSQL looks into no other month.
const HELD: Sql = Sql::each(
    concat!(
        "SELECT ",
        run_columns!("r."),
        " FROM (SELECT (p.value->>0)::bigint AS run_id, (p.value->>1)::bigint AS epoch \
            FROM jsonb_array_elements($1::jsonb) AS p (value)) AS fence JOIN runs r ON r.id = fence.run_id \
         LEFT JOIN run_queue q ON q.run_id = r.id \
         WHERE r.id = ANY($2) AND coalesce(q.epoch, r.epoch) = fence.epoch AND r.status <> 'queued'"
    ),
    concat!(
        "SELECT ",
        run_columns!("r."),
        " FROM (SELECT p.value->>0 AS run_id, p.value->>1 AS epoch FROM json_each($1) AS p) AS fence \
         JOIN runs r ON r.id = fence.run_id LEFT JOIN run_queue q ON q.run_id = r.id \
         WHERE $2 IS NOT NULL AND coalesce(q.epoch, r.epoch) = fence.epoch AND r.status <> 'queued'"
    ),
);

pub(crate) async fn snapshot(
    database: &Database,
    now: Timestamp,
    per_account: u32,
    since: Option<Since>,
) -> Result<QueueSnapshot> {
    let (due_at, run) = since.map_or((i64::MIN, i64::MIN), |since| {
        (since.due_at.as_micros(), since.run.get())
    });
    let mut reader = database.read().await?;
    read(
        reader
            .link()
            .all(&SNAPSHOT, args![now, per_account, due_at, run])
            .await?,
    )
}

pub(crate) async fn snapshot_of(database: &Database, account: AccountId, limit: u32) -> Result<QueueSnapshot> {
    let mut reader = database.read().await?;
    read(reader.link().all(&SNAPSHOT_OF, args![account, limit]).await?)
}

fn read(rows: Vec<Row>) -> Result<QueueSnapshot> {
    let mut snapshot = QueueSnapshot::default();
    for row in rows {
        let run = row.id("run_id")?;
        let (account, job) = (row.id("account_id")?, row.id("job_id")?);
        let exclusive = row.bool("exclusive")?;
        if row.named("state", RunStatus::from_name)? == RunStatus::Queued {
            let (due_at, takes_slot) = (row.at("due_at")?, row.bool("takes_slot")?);
            snapshot.waiting.push(Waiting {
                run,
                account,
                job,
                due_at,
                exclusive,
                takes_slot,
            });
        } else {
            let slot = row.maybe_int("slot")?.map(u32::try_from).transpose();
            let slot = slot.map_err(|_| Error::corrupt("database: slot is out of its range"))?;
            snapshot.busy.push(Busy {
                run,
                account,
                job,
                exclusive,
                slot,
            });
        }
    }
    snapshot.waiting.sort_by_key(|waiting| (waiting.due_at, waiting.run));
    snapshot.busy.sort_by_key(|busy| busy.run);
    Ok(snapshot)
}

pub(crate) async fn count(database: &Database, account: AccountId) -> Result<u64> {
    let mut reader = database.read().await?;
    reader.link().one(&COUNT, args![account]).await?.count("waiting")
}

/// Why a claim of several runs came to nothing.
enum Setback {
    /// Somebody else took a slot or a job at the same moment: one by one, those that can be had are had.
    Raced,
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(crate) async fn claim(
    database: &Database,
    owner: &Owner,
    admissions: &[Admission],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<Claimed>> {
    no_nul("owner", owner.as_str())?;
    if admissions.is_empty() {
        return Ok(Vec::new());
    }
    let distinct: BTreeSet<RunId> = admissions.iter().map(|admission| admission.run).collect();
    if distinct.len() == admissions.len() {
        match claim_together(database, owner, admissions, now, until).await {
            Ok(claimed) => return Ok(claimed),
            Err(Setback::Failed(error)) => return Err(error),
            Err(Setback::Raced) if admissions.len() == 1 => return Ok(Vec::new()),
            Err(Setback::Raced) => {}
        }
    }
    let mut claimed = Vec::new();
    for admission in admissions {
        match claim_together(database, owner, std::slice::from_ref(admission), now, until).await {
            Ok(more) => claimed.extend(more),
            Err(Setback::Raced) => {}
            // What was claimed so far is the caller's: a later call finds the rest.
            Err(Setback::Failed(_)) if !claimed.is_empty() => break,
            Err(Setback::Failed(error)) => return Err(error),
        }
    }
    Ok(claimed)
}

async fn claim_together(
    database: &Database,
    owner: &Owner,
    admissions: &[Admission],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<Claimed>, Setback> {
    let pairs: Vec<(i64, Option<i64>)> = admissions
        .iter()
        .map(|admission| (admission.run.get(), admission.slot.map(i64::from)))
        .collect();
    let runs: Vec<i64> = pairs.iter().map(|(run, _)| *run).collect();
    let event = journal::body(&EventBody::Run {
        status: RunStatus::Starting,
        message: None,
    })?;
    let values = args![pairs, owner.as_str(), until, now, event, runs.clone()];
    // One alone needs no lock before its statement, and on PostgreSQL a statement is a transaction.
    if admissions.len() == 1 && database.engine() == Engine::Postgres {
        let mut writer = database.write("runs.claim").await?;
        return take(&mut writer.link(), admissions, values).await;
    }
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_, Setback> = async {
        if link.engine() == Engine::Postgres {
            link.all_of(CLAIMS_IN_TURN.to_owned(), args![runs]).await?;
        }
        take(&mut link, admissions, values).await
    }
    .await;
    work.end("runs.claim", done).await
}

async fn take(link: &mut Link<'_>, admissions: &[Admission], values: Vec<Value>) -> Result<Vec<Claimed>, Setback> {
    let text = sqlx::SqlSafeStr::into_sql_str(CLAIM.on(link.engine()));
    let rows = match link.all_raw(text, values).await {
        Ok(rows) => rows,
        Err(error) if is_duplicate(&error) || is_deadlock(&error) => return Err(Setback::Raced),
        Err(error) => return Err(Setback::Failed(translate(error))),
    };
    let mut epochs = BTreeMap::new();
    for row in &rows {
        epochs.insert(row.id::<RunId>("id")?, row.count::<u64>("epoch")?);
    }
    let mut runs = by_id(rows)?;
    let claimed = admissions
        .iter()
        .filter_map(|admission| issue(&mut runs, &epochs, admission.run));
    Ok(claimed.collect())
}

fn by_id(rows: Vec<Row>) -> Result<BTreeMap<RunId, Run>> {
    rows.iter()
        .map(|row| runs::read(row).map(|run| (run.id, run)))
        .collect()
}

fn issue(runs: &mut BTreeMap<RunId, Run>, epochs: &BTreeMap<RunId, u64>, id: RunId) -> Option<Claimed> {
    let (run, epoch) = (runs.remove(&id)?, *epochs.get(&id)?);
    Some(Claimed {
        run,
        fence: Fence::issue(id, Holder::Driver { epoch }),
    })
}

pub(crate) async fn reclaim(
    database: &Database,
    owner: &Owner,
    now: Timestamp,
    until: Timestamp,
    limit: u32,
) -> Result<Vec<Claimed>> {
    no_nul("owner", owner.as_str())?;
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_> = async {
        let rows = link.all(&RECLAIM, args![now, owner.as_str(), until, limit]).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut epochs = BTreeMap::new();
        for row in &rows {
            epochs.insert(row.id::<RunId>("run_id")?, row.count::<u64>("epoch")?);
        }
        let ids: Vec<i64> = epochs.keys().map(|run| run.get()).collect();
        let mut runs = by_id(link.all(&BY_IDS, args![ids]).await?)?;
        Ok(epochs.keys().filter_map(|id| issue(&mut runs, &epochs, *id)).collect())
    }
    .await;
    work.end("runs.reclaim", done).await
}

/// Driver fences as pairs. An agent's fence is no lease, an epoch beyond the range nobody's.
fn pairs(fences: &[Fence]) -> Vec<(i64, Option<i64>)> {
    let pair = |fence: &Fence| match fence.holder() {
        Holder::Driver { epoch } => i64::try_from(epoch).ok().map(|epoch| (fence.run().get(), Some(epoch))),
        Holder::Agent { .. } => None,
    };
    fences.iter().filter_map(pair).collect()
}

async fn lease(link: &mut Link<'_>, fences: &[Fence], until: Timestamp) -> Result<()> {
    link.execute(&LEASE, args![pairs(fences), until]).await.map(drop)
}

pub(crate) async fn renew(database: &Database, fences: &[Fence], until: Timestamp) -> Result<Vec<Renewed>> {
    if fences.is_empty() {
        return Ok(Vec::new());
    }
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_> = async {
        lease(&mut link, fences, until).await?;
        let ids: Vec<i64> = fences.iter().map(|fence| fence.run().get()).collect();
        let held = by_id(link.all(&HELD, args![pairs(fences), ids]).await?)?;
        let answer = |fence: &Fence| held.get(&fence.run()).map(|run| Renewed { run: run.clone() });
        Ok(fences
            .iter()
            .filter(|fence| !pairs(&[**fence]).is_empty())
            .filter_map(answer)
            .collect())
    }
    .await;
    work.end("runs.renew", done).await
}

pub(crate) async fn release(database: &Database, fences: &[Fence], now: Timestamp) -> Result<()> {
    if fences.is_empty() {
        return Ok(());
    }
    let mut writer = database.write("runs.release").await?;
    lease(&mut writer.link(), fences, now).await
}
