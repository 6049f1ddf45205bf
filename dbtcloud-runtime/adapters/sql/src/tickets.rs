//! `Tickets`. Invariants: an attempt is bound to one key (primary key of `agent_keys`), a key to one
//! attempt (its unique key); who comes first with a ticket of the attempt decides.

use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{AgentIdentity, Digest, Fence, Holder, TicketIssue, Tickets};
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};

use crate::engine::{Row, Sql, args};
use crate::storage::SqlStorage;

/// Primary key; a second issue of one digest changes nothing.
const ISSUE: Sql = Sql::both(
    "INSERT INTO tickets (ticket, account_id, run_id, attempt, expires_at) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (ticket) DO NOTHING",
);

/// Binds, unless the ticket has expired or either side is bound already. Primary keys; both constraints
/// decide the race, whichever is hit.
const BIND: Sql = Sql::both(
    "INSERT INTO agent_keys (run_id, attempt, account_id, key) \
     SELECT run_id, attempt, account_id, $2 FROM tickets WHERE ticket = $1 AND expires_at > $3 \
     ON CONFLICT DO NOTHING",
);

/// To whom ticket and key belong together. Primary keys.
const BOUND: Sql = Sql::both(
    "SELECT r.account_id, k.run_id, k.attempt FROM tickets t \
     JOIN agent_keys k ON k.run_id = t.run_id AND k.attempt = t.attempt \
     JOIN runs r ON r.id = k.run_id WHERE t.ticket = $1 AND k.key = $2",
);

/// Unique key of `agent_keys`.
const AUTHENTICATE: Sql = Sql::both(
    "SELECT r.account_id, k.run_id, k.attempt FROM agent_keys k JOIN runs r ON r.id = k.run_id WHERE k.key = $1",
);

/// Primary key of `agent_keys`.
const REDEEMED: Sql = Sql::both("SELECT run_id FROM agent_keys WHERE run_id = $1 AND attempt = $2");

/// Both tables are short: what ended is purged.
const PURGE_KEYS: Sql = Sql::both(
    "DELETE FROM agent_keys WHERE (run_id, attempt) IN (SELECT k.run_id, k.attempt FROM agent_keys k \
     LEFT JOIN runs r ON r.id = k.run_id WHERE r.id IS NULL OR r.finished_at < $1 LIMIT $2)",
);
const PURGE_TICKETS: Sql = Sql::both(
    "DELETE FROM tickets WHERE ticket IN (SELECT t.ticket FROM tickets t \
     LEFT JOIN runs r ON r.id = t.run_id WHERE r.id IS NULL OR r.finished_at < $1 LIMIT $2)",
);

/// The same tables, read only.
const SPENT: Sql = Sql::both(
    "SELECT (SELECT count(*) FROM agent_keys k LEFT JOIN runs r ON r.id = k.run_id WHERE r.id IS NULL OR r.finished_at < $1) \
     + (SELECT count(*) FROM tickets t LEFT JOIN runs r ON r.id = t.run_id WHERE r.id IS NULL OR r.finished_at < $1) AS spent",
);

fn stored(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

fn identity(row: &Row) -> Result<AgentIdentity> {
    let holder = Holder::Agent {
        attempt: row.count("attempt")?,
    };
    Ok(AgentIdentity {
        account: row.id("account_id")?,
        fence: Fence::issue(row.id("run_id")?, holder),
    })
}

#[async_trait]
impl Tickets for SqlStorage {
    async fn issue(&self, issue: &TicketIssue) -> Result<()> {
        let values = args![
            stored(issue.ticket),
            issue.account,
            issue.run,
            issue.attempt,
            issue.expires_at
        ];
        let mut writer = self.database.write("tickets.issue").await?;
        writer.link().execute(&ISSUE, values).await.map(drop)
    }

    async fn redeem(&self, ticket: Digest, key: Digest, now: Timestamp) -> Result<AgentIdentity> {
        let mut writer = self.database.write("tickets.redeem").await?;
        let mut link = writer.link();
        link.execute(&BIND, args![stored(ticket), stored(key), now]).await?;
        let bound = link.first(&BOUND, args![stored(ticket), stored(key)]).await?;
        let refused = || {
            Error::new(
                ErrorKind::Denied,
                "the ticket is unknown or expired, or its attempt has another key",
            )
        };
        identity(&bound.ok_or_else(refused)?)
    }

    async fn authenticate(&self, key: Digest) -> Result<AgentIdentity> {
        let mut reader = self.database.read().await?;
        let row = reader.link().first(&AUTHENTICATE, args![stored(key)]).await?;
        identity(&row.ok_or_else(|| Error::new(ErrorKind::Denied, "unknown key"))?)
    }

    async fn redeemed(&self, run: RunId, attempt: u32) -> Result<bool> {
        let mut reader = self.database.read().await?;
        Ok(reader.link().first(&REDEEMED, args![run, attempt]).await?.is_some())
    }

    async fn purge(&self, before: Timestamp, limit: u32) -> Result<u64> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let keys = link.execute(&PURGE_KEYS, args![before, limit]).await?;
            let left = i64::try_from(u64::from(limit).saturating_sub(keys)).unwrap_or(0);
            let tickets = link.execute(&PURGE_TICKETS, args![before, left]).await?;
            Ok(keys + tickets)
        }
        .await;
        work.end("tickets.purge", done).await
    }

    async fn spent(&self, before: Timestamp) -> Result<u64> {
        let mut reader = self.database.read().await?;
        reader.link().one(&SPENT, args![before]).await?.count("spent")
    }
}
