//! `Audit`. Invariant: the entry of a change is written by the transaction of the change.

use async_trait::async_trait;
use dbtcloud_core::audit::{Action, Actor, Entry, Logged, Subject};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::Audit;
use dbtcloud_core::run::NewRun;
use dbtcloud_core::{Error, Page, Paged, Result, Timestamp};

use crate::engine::{self, Conditions, Link, Row, Sql, args};
use crate::storage::{SqlStorage, no_nul};

macro_rules! columns {
    () => {
        "id, account_id, at, actor, actor_id, actor_name, action, subject, subject_id, name, project_id"
    };
}

/// Its id is the database's own.
const NOTE: Sql = Sql::both(
    "INSERT INTO audit (account_id, at, actor, actor_id, actor_name, action, subject, subject_id, name, project_id) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
);

// Conditions of a list: index `audit_by_account`, and its order.
const OF_ACCOUNT: Sql = Sql::both("account_id = $$");
const FROM: Sql = Sql::both("at >= $$");
const TO: Sql = Sql::both("at < $$");

/// Index `audit_by_account`, in its order.
const FORGET: Sql = Sql::both(
    "DELETE FROM audit WHERE id IN \
       (SELECT id FROM audit WHERE account_id = $1 AND at < $2 ORDER BY at, id LIMIT $3)",
);

/// Writes an entry inside the caller's transaction.
pub(crate) async fn note(link: &mut Link<'_>, entry: &Entry) -> Result<()> {
    no_nul("name", &entry.name)?;
    no_nul("actor", entry.by.name())?;
    let values = args![
        entry.account,
        entry.at,
        entry.by.kind(),
        entry.by.id(),
        entry.by.name(),
        entry.action.name(),
        entry.subject.name(),
        entry.id,
        entry.name.as_str(),
        entry.project,
    ];
    link.execute(&NOTE, values).await.map(drop)
}

/// Writes the entry of a run that was queued, if somebody set it off.
pub(crate) async fn note_trigger(link: &mut Link<'_>, run: RunId, new: &NewRun, now: Timestamp) -> Result<()> {
    if new.trigger.by.is_system() {
        return Ok(());
    }
    let entry = Entry {
        account: new.account,
        at: now,
        by: new.trigger.by.clone(),
        action: Action::Triggered,
        subject: Subject::Run,
        id: run.get(),
        name: new.trigger.cause.clone(),
        project: Some(new.project),
    };
    note(link, &entry).await
}

fn read(row: &Row) -> Result<Logged> {
    let (kind, id, name) = (row.text("actor")?, row.maybe_int("actor_id")?, row.text("actor_name")?);
    let by = Actor::of(&kind, id, &name)
        .ok_or_else(|| Error::corrupt(format!("database: an audit entry has the actor '{kind}'")))?;
    Ok(Logged {
        id: row.id("id")?,
        entry: Entry {
            account: row.id("account_id")?,
            at: row.at("at")?,
            by,
            action: row.named("action", Action::from_name)?,
            subject: row.named("subject", Subject::from_name)?,
            id: row.int("subject_id")?,
            name: row.text("name")?,
            project: row.maybe_id("project_id")?,
        },
    })
}

#[async_trait]
impl Audit for SqlStorage {
    async fn note(&self, entry: &Entry) -> Result<()> {
        let mut writer = self.database.write("audit.note").await?;
        note(&mut writer.link(), entry).await
    }

    async fn entries(
        &self,
        account: AccountId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        page: Page,
    ) -> Result<Paged<Logged>> {
        let mut conditions = Conditions::new(self.database.engine());
        conditions.and(&OF_ACCOUNT, account);
        if let Some(from) = from {
            conditions.and(&FROM, from);
        }
        if let Some(to) = to {
            conditions.and(&TO, to);
        }
        let mut reader = self.database.read().await?;
        let order = "at DESC, id DESC";
        let (rows, total) = engine::page(&mut reader.link(), "audit", columns!(), conditions, order, page).await?;
        Ok(Paged {
            items: rows.iter().map(read).collect::<Result<_>>()?,
            total,
        })
    }

    async fn forget_entries(&self, account: AccountId, before: Timestamp, limit: u32) -> Result<u64> {
        let mut writer = self.database.write("audit.forget_entries").await?;
        writer.link().execute(&FORGET, args![account, before, limit]).await
    }
}
