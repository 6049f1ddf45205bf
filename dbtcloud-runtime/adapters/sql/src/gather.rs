//! Reports that come at the same time, taken in by few transactions. PostgreSQL only: SQLite's writer gathers by itself.
//!
//! Each report is judged by itself, and none waits for a run that somebody else has: what cannot be taken in with the
//! others is taken in alone. Nobody is answered before the commit. While few come, each has a transaction at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Ack, BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, Batch, Fence};
use dbtcloud_core::{Error, ErrorKind, Result};
use tokio::sync::{Semaphore, oneshot};

use crate::engine::{Database, Engine, Link, args};
use crate::reports::{self, Held, Judged};
use crate::storage::{no_nul_json, signed, to_json};

/// Transactions of reports at one time.
const TURNS: usize = 4;
/// The most reports of one transaction.
const GROUP: usize = 64;
/// Log bytes that are enough for one transaction.
const ENOUGH_BYTES: usize = 256 * 1024;

/// Primary key; the runs are locked and have been judged. `$1` are runs, `$2` numbers of reports, `$3` instants.
const BEAT: &str = "UPDATE runs SET heartbeat_at = beat.at, updated_at = beat.at, batch_number = beat.number \
    FROM unnest($1, $2, $3) AS beat (run_id, number, at) WHERE runs.id = beat.run_id AND runs.id = ANY($1) \
    RETURNING runs.id";

/// A report whose agent waits for the answer.
struct Waiting {
    fence: Fence,
    batch: Batch,
    answer: oneshot::Sender<Result<Ack>>,
}

struct Shared {
    waiting: Mutex<VecDeque<Waiting>>,
    turns: Arc<Semaphore>,
}

/// Those that wait. A clone is the same.
#[derive(Clone)]
pub(crate) struct Gathering(Arc<Shared>);

impl std::fmt::Debug for Gathering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gathering")
    }
}

impl Default for Gathering {
    fn default() -> Self {
        Self(Arc::new(Shared {
            waiting: Mutex::default(),
            turns: Arc::new(Semaphore::new(TURNS)),
        }))
    }
}

impl Gathering {
    /// Takes in a report, with those that come at the same time.
    pub(crate) async fn report(&self, database: &Database, fence: &Fence, batch: &Batch) -> Result<Ack> {
        check_batch(batch)?;
        if database.engine() == Engine::Sqlite {
            return reports::report(database, fence, batch).await;
        }
        let (answer, mut answered) = oneshot::channel();
        self.waiting().push_back(Waiting {
            fence: *fence,
            batch: batch.clone(),
            answer,
        });
        loop {
            tokio::select! {
                biased;
                told = &mut answered => return told.map_err(|_| cut_off())?,
                turn = self.0.turns.clone().acquire_owned() => {
                    let turn = turn.map_err(|_| cut_off())?;
                    let (group, database) = (self.next(), database.clone());
                    if group.is_empty() {
                        // Nobody waits any more: ours is under way. Another turn would only spin.
                        drop(turn);
                        return answered.await.map_err(|_| cut_off())?;
                    }
                    // In a task of its own: others wait for it too.
                    tokio::spawn(async move {
                        take_in(&database, group).await;
                        drop(turn);
                    });
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that have waited the longest and still do.
    fn next(&self) -> Vec<Waiting> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        let mut waiting = self.waiting();
        while group.len() < GROUP && bytes < ENOUGH_BYTES {
            let Some(one) = waiting.pop_front() else { break };
            if !one.answer.is_closed() {
                bytes += one.batch.logs.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
                group.push(one);
            }
        }
        group
    }
}

fn check_batch(batch: &Batch) -> Result<()> {
    let bytes: usize = batch.logs.iter().map(|chunk| chunk.bytes.len()).sum();
    if bytes > BATCH_LIMIT_BYTES {
        return Err(Error::invalid(
            "logs",
            format!("expected at most {BATCH_LIMIT_BYTES} bytes, got {bytes}"),
        ));
    }
    let items = batch.steps.len() + batch.nodes.len() + batch.logs.len();
    if items > BATCH_LIMIT_ITEMS {
        return Err(Error::invalid(
            "batch",
            format!("expected at most {BATCH_LIMIT_ITEMS} items, got {items}"),
        ));
    }
    no_nul_json("steps", &to_json("steps", &batch.steps)?)?;
    no_nul_json("nodes", &to_json("nodes", &batch.nodes)?)?;
    reports::check_patch(&batch.patch)
}

fn cut_off() -> Error {
    Error::unavailable("database: the report was cut off")
}

async fn alone(database: &Database, one: Waiting) {
    let ack = reports::report(database, &one.fence, &one.batch).await;
    let _ = one.answer.send(ack);
}

async fn take_in(database: &Database, mut group: Vec<Waiting>) {
    if group.len() < 2 {
        if let Some(one) = group.pop() {
            alone(database, one).await;
        }
        return;
    }
    let apart = |one: Waiting| {
        let database = database.clone();
        tokio::spawn(async move { alone(&database, one).await });
    };
    match together(database, &group).await {
        Ok(answers) => {
            for (one, answer) in group.into_iter().zip(answers) {
                match answer {
                    Some(answer) => drop(one.answer.send(answer)),
                    None => apart(one),
                }
            }
        }
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            let told = error.chain();
            for one in group {
                let _ = one.answer.send(Err(Error::unavailable(told.clone())));
            }
        }
        // One of them cannot be stored: the others are, without it.
        Err(_) => group.into_iter().for_each(apart),
    }
}

/// Takes in as many of these as can be by one transaction; an answer for each of them.
async fn together(database: &Database, group: &[Waiting]) -> Result<Vec<Option<Result<Ack>>>> {
    let mut work = database.begin().await?;
    let mut link = work.link();
    let done = all(&mut link, group).await;
    work.end("runs.report", done).await
}

async fn all(link: &mut Link<'_>, group: &[Waiting]) -> Result<Vec<Option<Result<Ack>>>> {
    let ids: Vec<i64> = group.iter().map(|one| one.fence.run().get()).collect();
    let mut free: BTreeMap<RunId, Held> = BTreeMap::new();
    for row in link.all_of(reports::LOCK_FREE.to_owned(), args![ids]).await? {
        let held = Held::of(&row)?;
        free.insert(held.run.id, held);
    }
    let (mut answers, mut beats) = (Vec::with_capacity(group.len()), Vec::new());
    for Waiting { fence, batch, .. } in group {
        // Ended, another's just now, or the second report of its run: alone.
        let Some(held) = free.remove(&fence.run()) else {
            answers.push(None);
            continue;
        };
        let answer = match reports::judge(link, held, fence, batch).await {
            Ok(Judged::Before(ack)) => Ok(ack),
            Ok(Judged::New(taking)) if taking.is_beat(batch) => {
                beats.push((fence.run(), signed("batch.number", batch.number)?, batch.at));
                Ok(taking.ack())
            }
            Ok(Judged::New(taking)) => Ok(taking.write(link, batch.at).await?),
            Err(error) if refused(error.kind()) => Err(error),
            Err(error) => return Err(error),
        };
        answers.push(Some(answer));
    }
    if !beats.is_empty() {
        let runs: Vec<i64> = beats.iter().map(|(run, ..)| run.get()).collect();
        let numbers: Vec<i64> = beats.iter().map(|(_, number, _)| *number).collect();
        let instants: Vec<i64> = beats.iter().map(|(.., at)| at.as_micros()).collect();
        let beaten = link.all_of(BEAT.to_owned(), args![runs, numbers, instants]).await?;
        if beaten.len() != beats.len() {
            return Err(Error::conflict("runs changed meanwhile"));
        }
    }
    Ok(answers)
}

/// Whether a report was judged so, and nothing went wrong.
const fn refused(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Fenced | ErrorKind::Conflict | ErrorKind::Invalid)
}
