//! `Sessions`. Invariant: at most one session of a user and project that has not ended (unique index
//! `sessions_open`); a change names the status and generation it was decided on in its outer `WHERE`.

use async_trait::async_trait;
use dbtcloud_core::id::{AccountId, SessionId};
use dbtcloud_core::ports::{NewSession, SessionChange, Sessions};
use dbtcloud_core::session::{Session, SessionStatus};
use dbtcloud_core::{Error, Result, Timestamp};

use crate::engine::{Row, Sql, args};
use crate::storage::{SqlStorage, no_nul_in};

macro_rules! columns {
    () => {
        "id, account_id, project_id, user_id, status, generation, address, created_at, updated_at, active_at"
    };
}

/// Unique index `sessions_open`; no row comes back when one is open.
const INSERT: Sql = Sql::both(concat!(
    "INSERT INTO sessions (account_id, project_id, user_id, status, generation, created_at, updated_at, active_at) \
     VALUES ($1, $2, $3, 'starting', 1, $4, $4, $4) \
     ON CONFLICT (account_id, project_id, user_id) WHERE status NOT IN ('closed', 'failed') DO NOTHING \
     RETURNING ",
    columns!()
));

/// Index `sessions_open`.
const OPEN: Sql = Sql::both(concat!(
    "SELECT ",
    columns!(),
    " FROM sessions WHERE account_id = $1 AND project_id = $2 AND user_id = $3 AND status NOT IN ('closed', 'failed')"
));

/// Primary key.
const GET: Sql = Sql::both(concat!(
    "SELECT ",
    columns!(),
    " FROM sessions WHERE id = $1 AND account_id = $2"
));

/// Index `sessions_by_status`.
const SCAN: Sql = Sql::each(
    concat!(
        "SELECT ",
        columns!(),
        " FROM sessions WHERE status = ANY($1) AND id > $2 ORDER BY id LIMIT $3"
    ),
    concat!(
        "SELECT ",
        columns!(),
        " FROM sessions WHERE status IN (SELECT value FROM json_each($1)) AND id > $2 ORDER BY id LIMIT $3"
    ),
);

/// Primary key; status and generation as they were read.
const CHANGE: Sql = Sql::both(concat!(
    "UPDATE sessions SET status = $5, generation = $6, address = CASE WHEN $7 THEN coalesce($8, address) END, \
        updated_at = $9, active_at = CASE WHEN $10 THEN $9 ELSE active_at END \
     WHERE id = $1 AND account_id = $2 AND status = $3 AND generation = $4 RETURNING ",
    columns!()
));

/// Primary key.
const FORGET: Sql = Sql::each(
    "DELETE FROM sessions WHERE id = ANY($1) AND status IN ('closed', 'failed')",
    "DELETE FROM sessions WHERE id IN (SELECT value FROM json_each($1)) AND status IN ('closed', 'failed')",
);

/// How often an opening is tried against sessions that end at the same moment.
const OPEN_ATTEMPTS: usize = 4;

fn read(row: &Row) -> Result<Session> {
    Ok(Session {
        id: row.id("id")?,
        account: row.id("account_id")?,
        project: row.id("project_id")?,
        user: row.id("user_id")?,
        status: row.named("status", SessionStatus::from_name)?,
        generation: row.count("generation")?,
        address: row.maybe_text("address")?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
        active_at: row.at("active_at")?,
    })
}

#[async_trait]
impl Sessions for SqlStorage {
    async fn open(&self, new: NewSession, now: Timestamp) -> Result<Session> {
        let mut writer = self.database.write("sessions.open").await?;
        let mut link = writer.link();
        for _ in 0..OPEN_ATTEMPTS {
            // Reading first: coming back to an open session is the common case and writes nothing.
            let open = link.first(&OPEN, args![new.account, new.project, new.user]).await?;
            let row = match open {
                Some(row) => Some(row),
                None => {
                    link.first(&INSERT, args![new.account, new.project, new.user, now])
                        .await?
                }
            };
            if let Some(row) = row {
                return read(&row);
            }
        }
        Err(Error::unavailable(
            "session: opened and ended by others at the same moment",
        ))
    }

    async fn get(&self, account: AccountId, id: SessionId) -> Result<Session> {
        let mut reader = self.database.read().await?;
        let row = reader.link().first(&GET, args![id, account]).await?;
        read(&row.ok_or_else(|| Error::not_found("session", id))?)
    }

    async fn scan(&self, states: &[SessionStatus], after: SessionId, limit: u32) -> Result<Vec<Session>> {
        let states: Vec<String> = states.iter().map(|status| status.name().to_owned()).collect();
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&SCAN, args![states, after, limit]).await?;
        rows.iter().map(read).collect()
    }

    async fn change(
        &self,
        account: AccountId,
        id: SessionId,
        change: &SessionChange,
        now: Timestamp,
    ) -> Result<Session> {
        no_nul_in("address", change.address.as_deref())?;
        let mut writer = self.database.write("sessions.change").await?;
        let mut link = writer.link();
        // An illegal event is told only after the session was looked at: not there comes first.
        if let Ok(to) = change.from.apply(change.event) {
            let starts = change.from == SessionStatus::Suspended && to == SessionStatus::Starting;
            let values = args![
                id,
                account,
                change.from.name(),
                change.generation,
                to.name(),
                i64::from(change.generation) + i64::from(starts),
                to == SessionStatus::Running,
                change.address.as_deref(),
                now,
                change.active,
            ];
            if let Some(row) = link.first(&CHANGE, values).await? {
                return read(&row);
            }
        }
        let row = link.first(&GET, args![id, account]).await?;
        let session = read(&row.ok_or_else(|| Error::not_found("session", id))?)?;
        if session.status == change.from && session.generation == change.generation {
            session.status.apply(change.event)?;
        }
        Err(Error::conflict(format!(
            "session {id} is {} in generation {}",
            session.status.name(),
            session.generation
        )))
    }

    async fn forget(&self, sessions: &[SessionId]) -> Result<u64> {
        let ids: Vec<i64> = sessions.iter().map(|session| session.get()).collect();
        let mut writer = self.database.write("sessions.forget").await?;
        writer.link().execute(&FORGET, args![ids]).await
    }
}
