//! `Dispatches`. Invariants: a name is there once (primary key); only what waits is changed, which the outer `WHERE`
//! says, so that one is taken by one caller and an end is an end.

use async_trait::async_trait;
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::{
    Addressee, Channel, Dispatch, DispatchId, DispatchState, Dispatched, Dispatches, Next, Try,
};
use dbtcloud_core::{Error, Page, Paged, Result, Timestamp};

use crate::engine::{self, Conditions, Row, Sql, args};
use crate::storage::{SqlStorage, no_nul, signed};

macro_rules! columns {
    () => {
        "channel, addressee_id, run_id, sequence, part, account_id, job_id, event, body, created_at, state, tries, \
         tried_at, code, error, answer"
    };
}

/// Primary key.
const POST: Sql = Sql::both(
    "INSERT INTO dispatches (channel, addressee_id, run_id, sequence, part, account_id, job_id, event, body, \
        created_at, state, due_at, tries) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'waiting', $10, 0) \
     ON CONFLICT (channel, addressee_id, run_id, sequence, part) DO NOTHING",
);

/// Due, and the earliest that waits of its addressee and run. Index `dispatches_due`; the earlier one is looked for by
/// the primary key. What is due is short: addressees that do not answer are put off and then deactivated.
macro_rules! offered {
    ($except:literal) => {
        concat!(
            "SELECT channel, addressee_id, run_id, sequence, part, due_at, place FROM ( \
               SELECT w.channel, w.addressee_id, w.run_id, w.sequence, w.part, w.due_at, \
                 row_number() OVER (PARTITION BY w.addressee_id ORDER BY w.due_at, w.run_id, w.sequence, w.part) \
                   AS place \
               FROM dispatches w WHERE w.channel = $1 AND w.state = 'waiting' AND w.due_at <= $2 AND ",
            $except,
            " AND NOT EXISTS (SELECT 1 FROM dispatches e WHERE e.channel = w.channel \
                 AND e.addressee_id = w.addressee_id AND e.run_id = w.run_id AND e.state = 'waiting' \
                 AND (e.sequence, e.part) < (w.sequence, w.part))) AS ranked \
             WHERE place <= $5 ORDER BY place, due_at, run_id, sequence, part, addressee_id LIMIT $4"
        )
    };
}

macro_rules! take {
    ($except:literal) => {
        concat!(
            "UPDATE dispatches SET due_at = $3, tries = tries + 1 \
             WHERE state = 'waiting' AND due_at <= $2 AND (channel, addressee_id, run_id, sequence, part) IN \
               (SELECT channel, addressee_id, run_id, sequence, part FROM (",
            offered!($except),
            ") AS offered) RETURNING ",
            columns!()
        )
    };
}

/// Primary key, from [`offered!`]. That it still waits and is due is a condition of the outer `WHERE` too.
const TAKE: Sql = Sql::each(
    take!("w.addressee_id <> ALL($6)"),
    take!("w.addressee_id NOT IN (SELECT value FROM json_each($6))"),
);

/// Primary key.
const AGAIN: Sql = Sql::both(
    "UPDATE dispatches SET due_at = $6, tried_at = $7, code = $8, error = $9, answer = $10 \
     WHERE channel = $1 AND addressee_id = $2 AND run_id = $3 AND sequence = $4 AND part = $5 AND state = 'waiting'",
);

/// Primary key.
const END: Sql = Sql::both(
    "UPDATE dispatches SET state = $6, tried_at = $7, code = $8, error = $9, answer = $10 \
     WHERE channel = $1 AND addressee_id = $2 AND run_id = $3 AND sequence = $4 AND part = $5 AND state = 'waiting'",
);

/// Primary key.
const GET: Sql = Sql::both(concat!(
    "SELECT ",
    columns!(),
    " FROM dispatches WHERE channel = $1 AND addressee_id = $2 AND run_id = $3 AND sequence = $4 AND part = $5 \
        AND account_id = $6"
));

// Conditions of a list: index `dispatches_posted`.
const OF_CHANNEL: Sql = Sql::both("channel = $$");
const OF_ADDRESSEE: Sql = Sql::both("addressee_id = $$");
const OF_ACCOUNT: Sql = Sql::both("account_id = $$");

/// Index `dispatches_tried`.
const LAST_TRIES: Sql = Sql::both(concat!(
    "SELECT ",
    columns!(),
    " FROM dispatches WHERE channel = $1 AND addressee_id = $2 AND tried_at IS NOT NULL \
        AND (state IN ('delivered', 'failed') OR NOT $3) \
     ORDER BY tried_at DESC, run_id DESC, sequence DESC, part DESC LIMIT $4"
));

/// Index `dispatches_due`, without touching the table.
const UNDELIVERED: Sql =
    Sql::both("SELECT count(*) AS waiting FROM dispatches WHERE channel = $1 AND state = 'waiting'");

/// Index `dispatches_ended`.
const OLD: Sql = Sql::both("SELECT count(*) AS old FROM dispatches WHERE state <> 'waiting' AND created_at < $1");

/// Index `dispatches_ended`.
const FORGET: Sql = Sql::both(
    "DELETE FROM dispatches WHERE state <> 'waiting' AND (channel, addressee_id, run_id, sequence, part) IN \
       (SELECT channel, addressee_id, run_id, sequence, part FROM dispatches \
        WHERE state <> 'waiting' AND created_at < $1 ORDER BY created_at LIMIT $2)",
);

fn read(row: &Row) -> Result<Dispatched> {
    let last = match row.maybe_at("tried_at")? {
        Some(at) => Some(Try {
            at,
            code: row.maybe_int("code")?.and_then(|code| u16::try_from(code).ok()),
            error: row.maybe_text("error")?.unwrap_or_default(),
            answer: row.maybe_text("answer")?.unwrap_or_default(),
        }),
        None => None,
    };
    Ok(Dispatched {
        dispatch: Dispatch {
            id: DispatchId {
                to: Addressee::of(row.named("channel", Channel::from_name)?, row.int("addressee_id")?),
                run: row.id("run_id")?,
                sequence: row.count("sequence")?,
                part: row.count("part")?,
            },
            account: row.id("account_id")?,
            job: row.id("job_id")?,
            event: row.text("event")?,
            body: row.text("body")?,
            created_at: row.at("created_at")?,
        },
        state: row.named("state", DispatchState::from_name)?,
        tries: row.count("tries")?,
        last,
    })
}

#[async_trait]
impl Dispatches for SqlStorage {
    async fn post(&self, dispatches: &[Dispatch]) -> Result<()> {
        for dispatch in dispatches {
            no_nul("event", &dispatch.event)?;
            no_nul("body", &dispatch.body)?;
        }
        if dispatches.is_empty() {
            return Ok(());
        }
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            for dispatch in dispatches {
                let id = &dispatch.id;
                let values = args![
                    id.to.channel().name(),
                    id.to.id(),
                    id.run,
                    signed("sequence", id.sequence)?,
                    id.part,
                    dispatch.account,
                    dispatch.job,
                    dispatch.event.as_str(),
                    dispatch.body.as_str(),
                    dispatch.created_at,
                ];
                link.execute(&POST, values).await?;
            }
            Ok(())
        }
        .await;
        work.end("dispatches.post", done).await
    }

    async fn take(
        &self,
        channel: Channel,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
        each: u32,
        except: &[Addressee],
    ) -> Result<Vec<Dispatched>> {
        let except = except.iter().filter(|to| to.channel() == channel).map(|to| to.id());
        let except: Vec<i64> = except.collect();
        let mut writer = self.database.write("dispatches.take").await?;
        let values = args![channel.name(), now, until, limit, each, except];
        let rows = writer.link().all(&TAKE, values).await?;
        let mut taken: Vec<_> = rows.iter().map(read).collect::<Result<_>>()?;
        taken.sort_by_key(|taken| taken.dispatch.id);
        Ok(taken)
    }

    async fn settle(&self, id: &DispatchId, tried: &Try, next: Next) -> Result<()> {
        no_nul("error", &tried.error)?;
        no_nul("answer", &tried.answer)?;
        let mut values = args![
            id.to.channel().name(),
            id.to.id(),
            id.run,
            signed("sequence", id.sequence)?,
            id.part,
        ];
        let sql = match next {
            Next::Again(at) => {
                values.extend(args![at]);
                &AGAIN
            }
            Next::End(state) => {
                values.extend(args![state.name()]);
                &END
            }
        };
        let code = tried.code.map(i64::from);
        values.extend(args![tried.at, code, tried.error.as_str(), tried.answer.as_str()]);
        let mut writer = self.database.write("dispatches.settle").await?;
        writer.link().execute(sql, values).await.map(drop)
    }

    async fn dispatch(&self, account: AccountId, id: &DispatchId) -> Result<Dispatched> {
        let absent = || Error::not_found("dispatch", format!("of run {}", id.run));
        let Ok(sequence) = i64::try_from(id.sequence) else {
            return Err(absent());
        };
        let mut reader = self.database.read().await?;
        let values = args![id.to.channel().name(), id.to.id(), id.run, sequence, id.part, account];
        let row = reader.link().first(&GET, values).await?;
        read(&row.ok_or_else(absent)?)
    }

    async fn dispatches(&self, account: AccountId, to: Addressee, page: Page) -> Result<Paged<Dispatched>> {
        let mut conditions = Conditions::new(self.database.engine());
        conditions.and(&OF_CHANNEL, to.channel().name());
        conditions.and(&OF_ADDRESSEE, to.id());
        conditions.and(&OF_ACCOUNT, account);
        let mut reader = self.database.read().await?;
        let (rows, total) = engine::page(
            &mut reader.link(),
            "dispatches",
            columns!(),
            conditions,
            "created_at DESC, run_id DESC, sequence DESC, part DESC",
            page,
        )
        .await?;
        Ok(Paged {
            items: rows.iter().map(read).collect::<Result<_>>()?,
            total,
        })
    }

    async fn last_tries(&self, to: Addressee, ended: bool, limit: u32) -> Result<Vec<Dispatched>> {
        let mut reader = self.database.read().await?;
        let values = args![to.channel().name(), to.id(), ended, limit];
        let rows = reader.link().all(&LAST_TRIES, values).await?;
        rows.iter().map(read).collect()
    }

    async fn undelivered(&self, channel: Channel) -> Result<u64> {
        let mut reader = self.database.read().await?;
        let row = reader.link().one(&UNDELIVERED, args![channel.name()]).await?;
        row.count("waiting")
    }

    async fn old_dispatches(&self, before: Timestamp) -> Result<u64> {
        let mut reader = self.database.read().await?;
        reader.link().one(&OLD, args![before]).await?.count("old")
    }

    async fn forget_dispatches(&self, before: Timestamp, limit: u32) -> Result<u64> {
        let mut writer = self.database.write("dispatches.forget_dispatches").await?;
        writer.link().execute(&FORGET, args![before, limit]).await
    }
}
