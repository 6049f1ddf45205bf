//! What happens to a run: changes, cancellations and the reports of its agent. Each is one transaction that
//! takes the run's lock (its row in `run_queue`, then the one in `runs`), judges fence and state, and writes.
//! Invariants: a status comes from `RunStatus::apply` alone; queue, history and journal change together.

use std::collections::BTreeMap;

use bytes::BytesMut;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Ack, Batch, Consumer, EventBody, Fence, Holder, RunChange, RunPatch, Taken};
use dbtcloud_core::run::{Line, Run, RunEvent, RunStatus, StepState};
use dbtcloud_core::{Error, Result, Timestamp};

use crate::engine::{Database, Link, Row, Sql, args};
use crate::runs::{self, run_columns};
use crate::storage::{no_nul, signed};
use crate::{journal, logs};

macro_rules! lock_columns {
    () => {
        concat!(
            run_columns!("r."),
            ", r.last_sequence, r.batch_number, r.ended_by_agent, "
        )
    };
}

/// Primary keys. The queue's row is locked first, as everywhere.
const LOCK_QUEUED: Sql = Sql::each(
    concat!(
        "SELECT ",
        lock_columns!(),
        "q.epoch AS held_epoch FROM run_queue q JOIN runs r ON r.id = q.run_id WHERE q.run_id = $1 FOR UPDATE OF q, r"
    ),
    concat!(
        "SELECT ",
        lock_columns!(),
        "q.epoch AS held_epoch FROM run_queue q JOIN runs r ON r.id = q.run_id WHERE q.run_id = $1"
    ),
);

/// The same of several at once, as far as nobody else has them just now. PostgreSQL only.
pub(crate) const LOCK_FREE: &str = concat!(
    "SELECT ",
    lock_columns!(),
    "q.epoch AS held_epoch FROM run_queue q JOIN runs r ON r.id = q.run_id WHERE q.run_id = ANY($1) \
        AND r.id = ANY($1) ORDER BY q.run_id FOR UPDATE OF q, r SKIP LOCKED"
);

/// Primary key: a run that has ended has no row in the queue.
const LOCK_ENDED: Sql = Sql::each(
    concat!(
        "SELECT ",
        lock_columns!(),
        "r.epoch AS held_epoch FROM runs r WHERE r.id = $1 FOR UPDATE"
    ),
    concat!(
        "SELECT ",
        lock_columns!(),
        "r.epoch AS held_epoch FROM runs r WHERE r.id = $1"
    ),
);

macro_rules! history {
    () => {
        "UPDATE runs SET status = $4, epoch = $5, due_at = $6, updated_at = $7, dequeued_at = $8, started_at = $9, \
            finished_at = $10, heartbeat_at = $11, cancel_requested_at = $12, git_branch = $13, git_sha = $14, \
            dbt_version = $15, message = $16, artifacts_saved = $17, has_docs = $18, has_sources = $19, \
            last_sequence = $20, batch_number = $21, ended_by_agent = $22 \
         WHERE id = $1 AND status = $2 AND attempt = $3 RETURNING 1"
    };
}
macro_rules! told_postgres {
    () => {
        concat!(
            "told AS (",
            journal::append!(postgres, "$1", "$23", "$24", "$25", "$26"),
            "), owed AS (INSERT INTO outbox (consumer, run_id, sequence, due_at, tries) \
                SELECT owed.consumer, $1, owed.sequence, $25, 0 FROM unnest($27, $28) AS owed (consumer, sequence))"
        )
    };
}
macro_rules! told_sqlite {
    () => {
        concat!(
            journal::append!(sqlite, "$1", "$23", "$24", "$25", "$26"),
            "; INSERT INTO outbox (consumer, run_id, sequence, due_at, tries) \
                SELECT consumer.value, $1, sequence.value, $25, 0 FROM json_each($27) AS consumer \
                JOIN json_each($28) AS sequence ON sequence.key = consumer.key; "
        )
    };
}
/// What becomes of the row in the queue, the journal's events and who is to be told of them, the history: one
/// statement on PostgreSQL, one after the other on SQLite. Primary keys; epoch, state, status and attempt as
/// they were judged. The first and the last answer a row each if they met what they expected. Fields that did
/// not change keep their indexes.
macro_rules! save {
    ($queue:literal) => {
        Sql::each(
            concat!(
                "WITH queue AS (",
                $queue,
                " RETURNING 1), ",
                told_postgres!(),
                ", saved AS (",
                history!(),
                ") SELECT 1 FROM queue UNION ALL SELECT 1 FROM saved"
            ),
            concat!($queue, " RETURNING 1; ", told_sqlite!(), history!()),
        )
    };
}

const MOVE_QUEUED: Sql = save!("UPDATE run_queue SET state = $4 WHERE run_id = $1 AND epoch = $5 AND state = $2");
/// Its slot and its job are free.
const REQUEUE: Sql = save!(
    "UPDATE run_queue SET state = 'queued', slot = NULL, owner = NULL, lease_until = NULL, due_at = $6 \
     WHERE run_id = $1 AND epoch = $5 AND state = $2"
);
const LEAVE: Sql = save!("DELETE FROM run_queue WHERE run_id = $1 AND epoch = $5 AND state = $2");
/// The status stays, and with it the queue.
const STAY: Sql = Sql::each(
    concat!("WITH ", told_postgres!(), " ", history!()),
    concat!(told_sqlite!(), history!()),
);

/// Unique key (`run_id`, `step_index`).
const STEPS: Sql = Sql::both(
    "SELECT step_index, name, kind, status, started_at, finished_at, exit_code, message, backend, log_bytes \
     FROM run_steps WHERE run_id = $1 ORDER BY step_index",
);

/// Unique key; the run's lock makes it certain that there is none.
const INSERT_STEP: Sql = Sql::both(
    "INSERT INTO run_steps (run_id, step_index, name, kind, status, started_at, finished_at, exit_code, message, \
        backend, created_at, updated_at, log_bytes) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)",
);

/// Unique key.
const UPDATE_STEP: Sql = Sql::both(
    "UPDATE run_steps SET name = $3, kind = $4, status = $5, started_at = $6, finished_at = $7, exit_code = $8, \
        message = $9, backend = $10, updated_at = $11, log_bytes = $12 WHERE run_id = $1 AND step_index = $2",
);

/// A run whose lock this transaction has, and what is to become of it.
pub(crate) struct Held {
    pub(crate) run: Run,
    /// The present driver's, or the last one's.
    epoch: u64,
    taken: u64,
    ended_by_agent: bool,
    /// As it is stored.
    was: RunStatus,
    sequence: i64,
    /// What the journal is to be told.
    events: Vec<String>,
    /// Where among them its new statuses are.
    statuses: Vec<(usize, RunStatus)>,
}

impl Held {
    pub(crate) fn of(row: &Row) -> Result<Self> {
        let run = runs::read(row)?;
        Ok(Self {
            was: run.status,
            run,
            epoch: row.count("held_epoch")?,
            taken: row.count("batch_number")?,
            ended_by_agent: row.bool("ended_by_agent")?,
            sequence: row.int("last_sequence")?,
            events: Vec::new(),
            statuses: Vec::new(),
        })
    }

    fn tell(&mut self, event: &EventBody) -> Result<()> {
        self.events.push(journal::body(event)?);
        Ok(())
    }

    /// Moves the run to `to` because of `event`, with all that follows from it. The journal is told when
    /// the status is another one afterwards.
    fn advance(&mut self, to: RunStatus, event: RunEvent, message: Option<&str>, at: Timestamp) -> Result<()> {
        if !self.run.advance(to, event, at) {
            return Ok(());
        }
        self.statuses.push((self.events.len(), to));
        self.tell(&EventBody::Run {
            status: to,
            message: message.map(ToOwned::to_owned),
        })
    }
}

/// Locks a run until the end of the transaction; `None` when there is none.
async fn lock(link: &mut Link<'_>, id: RunId) -> Result<Option<Held>> {
    if let Some(row) = link.first(&LOCK_QUEUED, args![id]).await? {
        return Held::of(&row).map(Some);
    }
    let Some(row) = link.first(&LOCK_ENDED, args![id]).await? else {
        return Ok(None);
    };
    let held = Held::of(&row)?;
    if !held.run.status.is_terminal() {
        // Queued between the two statements.
        return Err(Error::unavailable(format!("run {id} is just coming to be")));
    }
    Ok(Some(held))
}

/// Writes queue, history, journal and outbox.
async fn save(link: &mut Link<'_>, held: &mut Held, at: Timestamp) -> Result<()> {
    let run = &held.run;
    let epoch = signed("epoch", held.epoch)?;
    let statement = match run.status {
        status if status == held.was => &STAY,
        status if status.is_terminal() => &LEAVE,
        RunStatus::Queued => &REQUEUE,
        _ => &MOVE_QUEUED,
    };
    let expected = if run.status == held.was { 1 } else { 2 };
    let events = std::mem::take(&mut held.events);
    let last = held.sequence;
    held.sequence += i64::try_from(events.len()).unwrap_or(0);
    let (mut consumers, mut sequences) = (Vec::new(), Vec::new());
    for (place, status) in std::mem::take(&mut held.statuses) {
        for consumer in Consumer::of(status) {
            consumers.push(consumer.name().to_owned());
            sequences.push(last + 1 + i64::try_from(place).unwrap_or(0));
        }
    }
    let values = args![
        run.id,
        held.was.name(),
        run.attempt,
        run.status.name(),
        epoch,
        run.new.due_at,
        run.updated_at,
        run.dequeued_at,
        run.started_at,
        run.finished_at,
        run.heartbeat_at,
        run.cancel_requested_at,
        run.git_branch.as_deref(),
        run.git_sha.as_deref(),
        run.dbt_version.as_deref(),
        run.message.as_deref(),
        run.artifacts_saved,
        run.has_docs,
        run.has_sources,
        held.sequence,
        signed("batch.number", held.taken)?,
        held.ended_by_agent,
        last,
        run.new.account,
        at,
        events,
        consumers,
        sequences,
    ];
    if link.all(statement, values).await?.len() != expected {
        return Err(Error::conflict(format!("run {} changed meanwhile", run.id)));
    }
    Ok(())
}

pub(crate) fn check_patch(patch: &RunPatch) -> Result<()> {
    let texts = [&patch.message, &patch.git_branch, &patch.git_sha, &patch.dbt_version];
    texts.into_iter().flatten().try_for_each(|text| no_nul("patch", text))
}

pub(crate) async fn change(database: &Database, fence: &Fence, change: &RunChange) -> Result<Run> {
    check_patch(&change.patch)?;
    let id = fence.run();
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_> = async {
        let mut held = lock(&mut link, id).await?.ok_or_else(|| Error::not_found("run", id))?;
        if fence.holder() != (Holder::Driver { epoch: held.epoch }) {
            return Err(Error::fenced(format!("run {id} has another driver")));
        }
        let status = held.run.status;
        if status != change.from() {
            if status.is_terminal() && status == change.to() {
                return Ok(held.run);
            }
            let text = format!("run {id} is {}, not {}", status.name(), change.from().name());
            return Err(Error::conflict(text));
        }
        change.patch.apply(&mut held.run);
        held.advance(change.to(), change.event(), change.patch.message.as_deref(), change.at)?;
        save(&mut link, &mut held, change.at).await?;
        Ok(held.run)
    }
    .await;
    work.end("runs.change", done).await
}

pub(crate) async fn request_cancel(
    database: &Database,
    account: AccountId,
    id: RunId,
    message: &str,
    now: Timestamp,
) -> Result<Run> {
    no_nul("message", message)?;
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_> = async {
        let held = lock(&mut link, id)
            .await?
            .filter(|held| held.run.new.account == account);
        let mut held = held.ok_or_else(|| Error::not_found("run", id))?;
        let to = held.run.status.apply(RunEvent::CancelRequested)?;
        if to == held.run.status {
            return Ok(held.run);
        }
        held.run.message = Some(message.to_owned());
        held.advance(to, RunEvent::CancelRequested, Some(message), now)?;
        save(&mut link, &mut held, now).await?;
        Ok(held.run)
    }
    .await;
    work.end("runs.request_cancel", done).await
}

/// Cancels a run whose place `newer` takes, in the transaction that queues that one.
pub(crate) async fn supersede(link: &mut Link<'_>, id: RunId, line: &Line, newer: RunId, now: Timestamp) -> Result<()> {
    // Judged under its lock: it may have begun or ended since it was seen.
    let Some(mut held) = lock(link, id).await?.filter(|held| line.supersedes(held.run.status)) else {
        return Ok(());
    };
    let to = held.run.status.apply(RunEvent::CancelRequested)?;
    let message = line.message(newer);
    held.run.message = Some(message.clone());
    held.advance(to, RunEvent::CancelRequested, Some(&message), now)?;
    save(link, &mut held, now).await
}

/// Takes in a report by itself.
pub(crate) async fn report(database: &Database, fence: &Fence, batch: &Batch) -> Result<Ack> {
    let id = fence.run();
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done: Result<_> = async {
        let held = lock(&mut link, id).await?.ok_or_else(|| Error::not_found("run", id))?;
        match judge(&mut link, held, fence, batch).await? {
            Judged::Before(ack) => Ok(ack),
            Judged::New(taking) => taking.write(&mut link, batch.at).await,
        }
    }
    .await;
    work.end("runs.report", done).await
}

/// What is to become of a report.
pub(crate) enum Judged {
    /// It was taken in before.
    Before(Ack),
    /// It is to be written.
    New(Box<Taking>),
}

/// A report that is being taken in.
pub(crate) struct Taking {
    held: Held,
    before: RunStatus,
    steps: Steps,
}

impl Taking {
    /// Whether nothing but a sign of life comes of it.
    pub(crate) fn is_beat(&self, batch: &Batch) -> bool {
        let Batch { steps, logs, patch, .. } = batch;
        let same = self.held.run.status == self.before && self.held.events.is_empty();
        same && steps.is_empty() && logs.is_empty() && *patch == RunPatch::default()
    }

    pub(crate) async fn write(mut self, link: &mut Link<'_>, at: Timestamp) -> Result<Ack> {
        let steps = std::mem::take(&mut self.steps);
        steps.save(link, self.held.run.id, at).await?;
        save(link, &mut self.held, at).await?;
        Ok(self.ack())
    }

    pub(crate) fn ack(self) -> Ack {
        Ack {
            number: self.held.taken,
            status: self.held.run.status,
            taken: Some(Box::new(Taken {
                before: self.before,
                run: self.held.run,
            })),
        }
    }
}

/// Judges a report of a run whose lock this transaction has. Reads, and writes nothing.
pub(crate) async fn judge(link: &mut Link<'_>, mut held: Held, fence: &Fence, batch: &Batch) -> Result<Judged> {
    let id = fence.run();
    let listens = held.run.status.is_live() || held.ended_by_agent;
    if fence.holder()
        != (Holder::Agent {
            attempt: held.run.attempt,
        })
        || !listens
    {
        return Err(Error::fenced(format!(
            "run {id} does not listen to this agent any more"
        )));
    }
    if batch.number <= held.taken {
        return Ok(Judged::Before(Ack {
            number: held.taken,
            status: held.run.status,
            taken: None,
        }));
    }
    let before = held.run.status;
    if batch.number - 1 > held.taken {
        let text = format!("expected report {}, got {}", held.taken + 1, batch.number);
        return Err(Error::conflict(text));
    }
    let was_terminal = held.run.status.is_terminal();
    held.run.heartbeat_at = Some(batch.at);
    held.run.updated_at = batch.at;
    held.taken = batch.number;
    batch.patch.apply(&mut held.run);
    // A beginning stands in the journal before what followed from it, an end after what led to it.
    if batch.event == Some(RunEvent::Started) {
        happen(&mut held, RunEvent::Started, batch)?;
    }
    let mut steps = Steps::default();
    if !batch.steps.is_empty() || !batch.logs.is_empty() {
        steps = Steps::load(link, id).await?;
        steps.take_states(&mut held, batch)?;
    }
    for node in &batch.nodes {
        held.tell(&EventBody::Node { node: node.clone() })?;
    }
    steps.take_logs(batch)?;
    if let Some(event) = batch.event.filter(|event| *event != RunEvent::Started) {
        happen(&mut held, event, batch)?;
    }
    held.ended_by_agent |= !was_terminal && held.run.status.is_terminal();
    Ok(Judged::New(Box::new(Taking { held, before, steps })))
}

fn happen(held: &mut Held, event: RunEvent, batch: &Batch) -> Result<()> {
    match held.run.status.apply(event) {
        Ok(to) => held.advance(to, event, batch.patch.message.as_deref(), batch.at),
        // Something else was quicker. The rest of the report still counts.
        Err(_) => Ok(()),
    }
}

/// The steps of a run while a report is taken in.
#[derive(Default)]
struct Steps {
    known: BTreeMap<u32, Step>,
    /// Those that are new, in the order in which they were reported: so they get their ids.
    fresh: Vec<u32>,
}

struct Step {
    state: StepState,
    changed: bool,
    log_bytes: u64,
    /// Bytes to be added, which begin at the first number.
    pending: Option<(u64, BytesMut)>,
}

impl Steps {
    async fn load(link: &mut Link<'_>, run: RunId) -> Result<Self> {
        let mut known = BTreeMap::new();
        for row in link.all(&STEPS, args![run]).await? {
            let state = runs::read_step_state(&row)?;
            let step = Step {
                state,
                changed: false,
                log_bytes: row.count("log_bytes")?,
                pending: None,
            };
            known.insert(step.state.index, step);
        }
        Ok(Self {
            known,
            fresh: Vec::new(),
        })
    }

    fn take_states(&mut self, held: &mut Held, batch: &Batch) -> Result<()> {
        for state in &batch.steps {
            match self.known.get_mut(&state.index) {
                Some(known) if !known.state.status.may_become(state.status) => {
                    let (is, next) = (known.state.status.name(), state.status.name());
                    let text = format!("step {} is {is} and may not become {next}", state.index);
                    return Err(Error::invalid("steps", text));
                }
                Some(known) if known.state == *state => continue,
                Some(known) => {
                    known.state = state.clone();
                    known.changed = true;
                }
                None => {
                    let step = Step {
                        state: state.clone(),
                        changed: true,
                        log_bytes: 0,
                        pending: None,
                    };
                    self.known.insert(state.index, step);
                    self.fresh.push(state.index);
                }
            }
            held.tell(&EventBody::Step { step: state.clone() })?;
        }
        Ok(())
    }

    fn take_logs(&mut self, batch: &Batch) -> Result<()> {
        for chunk in &batch.logs {
            let Some(step) = self.known.get_mut(&chunk.step) else {
                return Err(Error::invalid(
                    "logs",
                    format!("step {} was never reported", chunk.step),
                ));
            };
            if chunk.offset != step.log_bytes {
                return Err(Error::conflict(format!(
                    "log of step {}: expected offset {}, got {}",
                    chunk.step, step.log_bytes, chunk.offset
                )));
            }
            let (_, pending) = step.pending.get_or_insert_with(|| (chunk.offset, BytesMut::new()));
            pending.extend_from_slice(&chunk.bytes);
            step.log_bytes += chunk.bytes.len() as u64;
            step.changed = true;
        }
        Ok(())
    }

    async fn save(self, link: &mut Link<'_>, run: RunId, at: Timestamp) -> Result<()> {
        let Self { mut known, fresh } = self;
        for index in &fresh {
            if let Some(step) = known.remove(index) {
                step.save(link, &INSERT_STEP, run, at).await?;
            }
        }
        for step in known.into_values().filter(|step| step.changed) {
            step.save(link, &UPDATE_STEP, run, at).await?;
        }
        Ok(())
    }
}

impl Step {
    async fn save(self, link: &mut Link<'_>, statement: &Sql, run: RunId, at: Timestamp) -> Result<()> {
        let state = &self.state;
        let values = args![
            run,
            state.index,
            state.name.as_str(),
            state.kind.name(),
            state.status.name(),
            state.started_at,
            state.finished_at,
            state.exit_code.map(i64::from),
            state.message.as_deref(),
            state.backend.as_deref(),
            at,
            signed("logs", self.log_bytes)?,
        ];
        link.execute(statement, values).await?;
        if let Some((offset, bytes)) = self.pending {
            logs::append(link, run, state.index, offset, &bytes.freeze()).await?;
        }
        Ok(())
    }
}
