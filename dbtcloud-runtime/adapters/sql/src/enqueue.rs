//! How runs come to be: history, queue, unique instant and journal in one statement for any number of them.
//! Invariants: a job has one run per instant (primary key of `run_instants`); of a line the newest is queued.

use std::collections::{BTreeMap, BTreeSet};

use dbtcloud_core::id::{JobId, RunId};
use dbtcloud_core::ports::{Enqueued, EventBody};
use dbtcloud_core::run::{Month, NewRun, Run, RunStatus};
use dbtcloud_core::{Result, Timestamp};
use serde_json::json;

use crate::engine::{Database, Engine, Link, Sql, args};
use crate::runs::{self, run_columns};
use crate::storage::{SqlStorage, no_nul_json, to_json};
use crate::{audit, journal, reports};

/// The columns of `runs` that a new one has, behind its id.
macro_rules! given {
    () => {
        "account_id, project_id, environment_id, job_id, cause_body, spec_body, scheduled_for, exclusive, \
         takes_slot, retry_of, due_at"
    };
}
/// The new runs of `$1` on SQLite, each with its id: their numbers were counted just before.
macro_rules! numbered {
    () => {
        "(SELECT e.key AS place, $2 + ((SELECT last FROM run_numbers) - json_array_length($1) + 1 + e.key) % 100000000 \
            AS run_id, e.value->>'account_id' AS account_id, e.value->>'project_id' AS project_id, \
            e.value->>'environment_id' AS environment_id, e.value->>'job_id' AS job_id, \
            e.value->>'cause_body' AS cause_body, e.value->>'spec_body' AS spec_body, \
            e.value->>'scheduled_for' AS scheduled_for, e.value->>'exclusive' AS exclusive, \
            e.value->>'takes_slot' AS takes_slot, e.value->>'retry_of' AS retry_of, e.value->>'due_at' AS due_at, \
            e.value->>'line' AS line FROM json_each($1) AS e) AS new"
    };
}
/// Those of them whose instant is theirs.
macro_rules! fresh {
    () => {
        concat!(
            " FROM ",
            numbered!(),
            " WHERE new.scheduled_for IS NULL OR EXISTS (SELECT 1 FROM run_instants i WHERE i.job_id = new.job_id \
                AND i.scheduled_for = new.scheduled_for AND i.run_id = new.run_id)"
        )
    };
}
macro_rules! runs_from {
    () => {
        concat!(
            "INSERT INTO runs (id, ",
            given!(),
            ", status, created_at, updated_at, last_sequence) SELECT run_id, ",
            given!(),
            ", 'queued', $3, $3, 1"
        )
    };
}
macro_rules! queue_from {
    () => {
        "INSERT INTO run_queue (run_id, account_id, job_id, exclusive, takes_slot, state, due_at, epoch, attempt, line) \
         SELECT run_id, account_id, job_id, exclusive, takes_slot, 'queued', due_at, 0, 0, line"
    };
}
macro_rules! journal_from {
    () => {
        "INSERT INTO journal (run_id, sequence, account_id, at, body) SELECT run_id, 1, account_id, $3, $4"
    };
}

/// Primary keys alone; that of `run_instants` decides, and nothing is written for an instant that has a run.
/// `$1` are the runs, `$2` is the first id of the month, `$4` the journal's first event. Answers the places of
/// those that came to be, with their ids. The number of a run is not taken back with the transaction on
/// PostgreSQL: one may be left out, none is given twice.
const ENQUEUE: Sql = Sql::each(
    concat!(
        "WITH new AS MATERIALIZED (SELECT n.*, $2 + nextval('run_numbers') % 100000000 AS run_id \
            FROM json_to_recordset($1::json) AS n (place bigint, account_id bigint, project_id bigint, \
              environment_id bigint, job_id bigint, cause_body text, spec_body text, scheduled_for bigint, \
              exclusive boolean, takes_slot boolean, retry_of bigint, due_at bigint, line text)), \
         instants AS (INSERT INTO run_instants (job_id, scheduled_for, run_id) \
            SELECT job_id, scheduled_for, run_id FROM new WHERE scheduled_for IS NOT NULL \
            ON CONFLICT (job_id, scheduled_for) DO NOTHING RETURNING run_id), \
         fresh AS MATERIALIZED (SELECT * FROM new WHERE scheduled_for IS NULL \
            OR run_id IN (SELECT run_id FROM instants)), \
         made AS (",
        runs_from!(),
        " FROM fresh), queued AS (",
        queue_from!(),
        " FROM fresh), told AS (",
        journal_from!(),
        " FROM fresh) SELECT place, run_id FROM fresh ORDER BY place"
    ),
    concat!(
        "UPDATE run_numbers SET last = last + json_array_length($1); \
         INSERT INTO run_instants (job_id, scheduled_for, run_id) SELECT job_id, scheduled_for, run_id FROM ",
        numbered!(),
        " WHERE scheduled_for IS NOT NULL ON CONFLICT (job_id, scheduled_for) DO NOTHING; ",
        runs_from!(),
        fresh!(),
        "; ",
        queue_from!(),
        fresh!(),
        "; ",
        journal_from!(),
        fresh!(),
        "; SELECT new.place, new.run_id",
        fresh!(),
        " ORDER BY new.place"
    ),
);

/// Runs of one line of one job are queued one after the other, so that the later one sees the earlier one and
/// takes its place. In one order, so that none waits in a ring. PostgreSQL only; SQLite has one writer.
const LINES_IN_TURN: &str = "SELECT count(*) AS locks FROM (SELECT pg_advisory_xact_lock(723684914, line) FROM \
    (SELECT DISTINCT hashtext(name) AS line FROM unnest($1) AS given (name) ORDER BY 1) AS lines) AS held";

/// Index `run_queue_line`. `$1` are jobs, `$2` the lines of each.
const OF_LINES: Sql = Sql::each(
    "SELECT q.run_id, q.state, q.job_id, q.line FROM unnest($1, $2) AS given (job_id, line) \
     JOIN run_queue q ON q.job_id = given.job_id AND q.line = given.line AND q.line IS NOT NULL ORDER BY q.run_id",
    "SELECT q.run_id, q.state, q.job_id, q.line FROM json_each($1) AS job JOIN json_each($2) AS line \
        ON line.key = job.key JOIN run_queue q ON q.job_id = job.value AND q.line = line.value AND q.line IS NOT NULL \
     ORDER BY q.run_id",
);

/// Primary keys.
const OF_INSTANT: Sql = Sql::both(concat!(
    "SELECT ",
    run_columns!("r."),
    " FROM run_instants i JOIN runs r ON r.id = i.run_id WHERE i.job_id = $1 AND i.scheduled_for = $2"
));

fn only(mut all: Vec<Enqueued>) -> Result<Enqueued> {
    all.pop()
        .ok_or_else(|| dbtcloud_core::Error::corrupt("database: no answer"))
}

/// Queues one run inside the caller's transaction.
pub(crate) async fn one_in(link: &mut Link<'_>, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
    only(all(link, &[new], now).await?)
}

/// Queues one run.
pub(crate) async fn one(database: &Database, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
    // Without a line, and without somebody to write down, one statement does it, and on PostgreSQL a statement is a
    // transaction.
    if database.engine() == Engine::Postgres && new.trigger.line().is_none() && new.trigger.by.is_system() {
        let mut writer = database.write("runs.enqueue").await?;
        return one_in(&mut writer.link(), new, now).await;
    }
    let mut work = database.begin().await?;
    let done = one_in(&mut work.link(), new, now).await;
    work.end("runs.enqueue", done).await
}

/// Queues runs inside the caller's transaction, as if one after the other; an answer for each, in their order.
pub(crate) async fn all(link: &mut Link<'_>, news: &[&NewRun], now: Timestamp) -> Result<Vec<Enqueued>> {
    if news.is_empty() {
        return Ok(Vec::new());
    }
    let mut given = Vec::with_capacity(news.len());
    let mut lines = BTreeSet::new();
    for (place, new) in news.iter().enumerate() {
        let (trigger, spec) = (to_json("trigger", &new.trigger)?, to_json("spec", &new.spec)?);
        no_nul_json("trigger", &trigger)?;
        no_nul_json("spec", &spec)?;
        let line = new.trigger.line().map(|line| line.key());
        lines.extend(line.clone().map(|line| (new.job.get(), line)));
        given.push(json!({
            "place": place,
            "account_id": new.account.get(),
            "project_id": new.project.get(),
            "environment_id": new.environment.get(),
            "job_id": new.job.get(),
            "cause_body": trigger,
            "spec_body": spec,
            "scheduled_for": new.scheduled_for.map(Timestamp::as_micros),
            "exclusive": new.exclusive,
            "takes_slot": new.takes_slot,
            "retry_of": new.retry_of.map(RunId::get),
            "due_at": new.due_at.as_micros(),
            "line": line,
        }));
    }
    if !lines.is_empty() && link.engine() == Engine::Postgres {
        let names: Vec<String> = lines.iter().map(|(job, line)| format!("{line} {job}")).collect();
        link.all_of(LINES_IN_TURN.to_owned(), args![names]).await?;
    }
    let event = journal::body(&EventBody::Run {
        status: RunStatus::Queued,
        message: None,
    })?;
    let values = args![to_json("runs", &given)?, Month::of(now).first_id(), now, event];
    let mut made: BTreeMap<usize, RunId> = BTreeMap::new();
    for row in link.all(&ENQUEUE, values).await? {
        made.insert(row.count("place")?, row.id("run_id")?);
    }
    if !lines.is_empty() {
        give_way(link, lines, news, &made, now).await?;
    }
    let mut answers = Vec::with_capacity(news.len());
    for (place, new) in news.iter().enumerate() {
        answers.push(match made.get(&place) {
            Some(id) => {
                audit::note_trigger(link, *id, new, now).await?;
                Enqueued::Created(Run::queued(*id, (*new).clone(), now))
            }
            None => {
                // The other transaction has committed: the insert waited for it.
                let row = link.one(&OF_INSTANT, args![new.job, new.scheduled_for]).await?;
                Enqueued::Existing(runs::read(&row)?)
            }
        });
    }
    Ok(answers)
}

/// Cancels those of these lines whose places the new ones take.
async fn give_way(
    link: &mut Link<'_>,
    lines: BTreeSet<(i64, String)>,
    news: &[&NewRun],
    made: &BTreeMap<usize, RunId>,
    now: Timestamp,
) -> Result<()> {
    let (jobs, names): (Vec<i64>, Vec<String>) = lines.into_iter().unzip();
    let mut waiting: BTreeMap<(JobId, String), Vec<(RunId, RunStatus)>> = BTreeMap::new();
    for row in link.all(&OF_LINES, args![jobs, names]).await? {
        waiting
            .entry((row.id("job_id")?, row.text("line")?))
            .or_default()
            .push((row.id("run_id")?, row.named("state", RunStatus::from_name)?));
    }
    let mine: BTreeSet<RunId> = made.values().copied().collect();
    for (place, id) in made {
        let Some((new, line)) = news.get(*place).and_then(|new| Some((new, new.trigger.line()?))) else {
            continue;
        };
        let others = waiting
            .get_mut(&(new.job, line.key()))
            .map(std::mem::take)
            .unwrap_or_default();
        let (older, newer): (Vec<_>, Vec<_>) = others.into_iter().partition(|(run, _)| run < id || !mine.contains(run));
        for (run, status) in older {
            if line.supersedes(status) {
                reports::supersede(link, run, &line, *id, now).await?;
            }
        }
        waiting.insert((new.job, line.key()), newer);
    }
    Ok(())
}

/// A connection of the caller's, in whatever transaction it is. Made `From` a `&mut sqlx::PgConnection` or a
/// `&mut sqlx::SqliteConnection` (a `sqlx::Transaction` dereferences to one).
pub struct Caller<'c>(Link<'c>);

#[cfg(feature = "postgres")]
impl<'c> From<&'c mut sqlx::PgConnection> for Caller<'c> {
    fn from(connection: &'c mut sqlx::PgConnection) -> Self {
        Self(Link::Postgres(connection))
    }
}

#[cfg(feature = "sqlite")]
impl<'c> From<&'c mut sqlx::SqliteConnection> for Caller<'c> {
    fn from(connection: &'c mut sqlx::SqliteConnection) -> Self {
        Self(Link::Sqlite(connection))
    }
}

impl SqlStorage {
    /// Queues a run inside the caller's own transaction: it exists if and when the caller commits.
    ///
    /// The one place where a type of sqlx is public: it works with the version of sqlx this crate was built
    /// with (0.9) and no other. The connection must lead to the database of this storage. Otherwise as
    /// [`Runs::enqueue`](dbtcloud_core::ports::Runs::enqueue); an `Existing` answer does not spoil the caller's transaction.
    ///
    /// ```no_run
    /// # async fn order(pool: sqlx::PgPool, new: dbtcloud_core::run::NewRun) -> Result<(), Box<dyn std::error::Error>> {
    /// # let now = dbtcloud_core::Timestamp::EPOCH;
    /// let mut transaction = pool.begin().await?;
    /// sqlx::query("INSERT INTO orders DEFAULT VALUES").execute(&mut *transaction).await?;
    /// dbtcloud_sql::SqlStorage::enqueue_in(&mut *transaction, &new, now).await?;
    /// transaction.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn enqueue_in<'c>(connection: impl Into<Caller<'c>>, new: &NewRun, now: Timestamp) -> Result<Enqueued> {
        one_in(&mut connection.into().0, new, now).await
    }
}
