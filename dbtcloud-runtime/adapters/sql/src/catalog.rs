//! `Catalog`: one table per kind, all alike. Invariants: an id is given once; a version is written over
//! once (the outer `WHERE` names it); `lookup` is unique among records that are not deleted.

use async_trait::async_trait;
use dbtcloud_core::audit::{Action, Entry};
use dbtcloud_core::catalog::{Draft, Kind, Query, Row, SortKey};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::Catalog;
use dbtcloud_core::{Direction, Error, ErrorKind, Page, Paged, Result};

use crate::audit;
use crate::engine::{self, Conditions, Sql, args};
use crate::error::{is_duplicate, translate};
use crate::storage::{SqlStorage, no_nul, no_nul_in};

macro_rules! columns {
    () => {
        "id, account_id, project_id, parent_id, name, lookup, deleted, version, created_at, updated_at, body"
    };
}

/// The same statement for every kind's table, each a constant of its own.
macro_rules! per_kind {
    ($(#[$doc:meta])* $name:ident = $before:expr, table, $after:expr) => {
        $(#[$doc])*
        const fn $name(kind: Kind) -> Sql {
            Sql::both(match kind {
                Kind::Account => concat!($before, "accounts", $after),
                Kind::Connection => concat!($before, "connections", $after),
                Kind::Credentials => concat!($before, "credentials", $after),
                Kind::Environment => concat!($before, "environments", $after),
                Kind::ExtendedAttributes => concat!($before, "extended_attributes", $after),
                Kind::Job => concat!($before, "jobs", $after),
                Kind::Notification => concat!($before, "notifications", $after),
                Kind::Project => concat!($before, "projects", $after),
                Kind::Repository => concat!($before, "repositories", $after),
                Kind::Token => concat!($before, "tokens", $after),
                Kind::User => concat!($before, "users", $after),
                Kind::Variable => concat!($before, "variables", $after),
                Kind::Webhook => concat!($before, "webhooks", $after),
            })
        }
    };
}

per_kind! {
    /// The table itself.
    table = "", table, ""
}
per_kind! {
    /// Unique by `*_by_lookup`.
    insert = "INSERT INTO ", table, " (account_id, project_id, parent_id, name, lookup, deleted, version, \
        created_at, updated_at, body) VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $7, $8) RETURNING id"
}
per_kind! {
    /// By primary key; the account is a condition, not a filter afterwards.
    get = concat!("SELECT ", columns!(), " FROM "), table, " WHERE id = $1 AND account_id = $2"
}
per_kind! {
    /// Index `*_by_lookup`.
    find = concat!("SELECT ", columns!(), " FROM "), table, " WHERE lookup = $1 AND lookup IS NOT NULL AND NOT deleted"
}
per_kind! {
    /// By primary key, in its order.
    scan = concat!("SELECT ", columns!(), " FROM "), table, " WHERE id > $1 AND NOT deleted ORDER BY id LIMIT $2"
}
per_kind! {
    /// By primary key. Of two callers that read one version, the outer `WHERE` lets one write.
    update = "UPDATE ", table, " SET project_id = $4, parent_id = $5, name = $6, lookup = $7, deleted = $8, \
        version = version + 1, updated_at = $9, body = $10 \
        WHERE id = $1 AND account_id = $2 AND version = $3 RETURNING version, created_at"
}

/// An account is its own account: only known once it has an id, so in the same transaction.
const OWN_ACCOUNT: Sql = Sql::both("UPDATE accounts SET account_id = id WHERE id = $1");

// Conditions of a list. The account comes first: index `*_by_account`.
const OF_ACCOUNT: Sql = Sql::both("account_id = $$");
const IN_PROJECTS: Sql = Sql::each(
    "project_id = ANY($$)",
    "project_id IN (SELECT value FROM json_each($$))",
);
const UNDER_PARENT: Sql = Sql::both("parent_id = $$");
const WITH_IDS: Sql = Sql::each("id = ANY($$)", "id IN (SELECT value FROM json_each($$))");
const ID_ABOVE: Sql = Sql::both("id > $$");
const NAMED: Sql = Sql::both("name = $$");
/// The column collates by bytes on both engines, so `lower` folds ASCII only.
const NAME_CONTAINS: Sql = Sql::each("strpos(lower(name), $$) > 0", "instr(lower(name), $$) > 0");
const DELETED: Sql = Sql::both("deleted = $$");

const fn order(sort: SortKey, direction: Direction) -> &'static str {
    match (sort, direction) {
        (SortKey::Id, Direction::Ascending) => "id",
        (SortKey::Id, Direction::Descending) => "id DESC",
        (SortKey::Name, Direction::Ascending) => "name, id",
        (SortKey::Name, Direction::Descending) => "name DESC, id DESC",
        (SortKey::CreatedAt, Direction::Ascending) => "created_at, id",
        (SortKey::CreatedAt, Direction::Descending) => "created_at DESC, id DESC",
        (SortKey::UpdatedAt, Direction::Ascending) => "updated_at, id",
        (SortKey::UpdatedAt, Direction::Descending) => "updated_at DESC, id DESC",
    }
}

fn read(kind: Kind, row: &engine::Row) -> Result<Row> {
    Ok(Row {
        kind,
        id: row.int("id")?,
        account: row.id("account_id")?,
        project: row.maybe_id("project_id")?,
        parent: row.maybe_int("parent_id")?,
        name: row.text("name")?,
        lookup: row.maybe_text("lookup")?,
        deleted: row.bool("deleted")?,
        version: row.count("version")?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
        body: row.json("body")?,
    })
}

fn check(draft: &Draft) -> Result<()> {
    no_nul("name", &draft.name)?;
    no_nul("actor", draft.by.name())?;
    no_nul_in("lookup", draft.lookup.as_deref())
}

/// Whose a new record is: an account is its own.
fn own_account(draft: &Draft, id: i64) -> AccountId {
    match draft.kind {
        Kind::Account => AccountId::new(id),
        _ => draft.account,
    }
}

/// A duplicate can only be one of the lookup: ids are the database's own.
fn refused(kind: Kind, error: sqlx::Error) -> Error {
    if is_duplicate(&error) {
        let text = format!("a {} with this key exists already", kind.noun());
        return Error::new(ErrorKind::AlreadyExists, text).because(error);
    }
    translate(error)
}

#[async_trait]
impl Catalog for SqlStorage {
    async fn insert(&self, draft: Draft) -> Result<Row> {
        check(&draft)?;
        let kind = draft.kind;
        let values = args![
            draft.account,
            draft.project,
            draft.parent,
            draft.name.as_str(),
            draft.lookup.as_deref(),
            draft.deleted,
            draft.at,
            draft.body.to_string(),
        ];
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let row = link
                .first_raw(&insert(kind), values)
                .await
                .map_err(|e| refused(kind, e))?;
            let row = row.ok_or_else(|| Error::corrupt("database: an insert gave no id"))?;
            let id = row.int("id")?;
            if kind == Kind::Account {
                link.execute(&OWN_ACCOUNT, args![id]).await?;
            }
            let account = own_account(&draft, id);
            audit::note(&mut link, &Entry::of_draft(&draft, account, id, Action::Added)).await?;
            Ok(id)
        }
        .await;
        let id = work.end("catalog.insert", done).await?;
        Ok(Row {
            kind,
            id,
            account: own_account(&draft, id),
            project: draft.project,
            parent: draft.parent,
            name: draft.name,
            lookup: draft.lookup,
            deleted: draft.deleted,
            version: 1,
            created_at: draft.at,
            updated_at: draft.at,
            body: draft.body,
        })
    }

    async fn get(&self, kind: Kind, account: AccountId, id: i64) -> Result<Row> {
        let mut reader = self.database.read().await?;
        let row = reader.link().first(&get(kind), args![id, account]).await?;
        read(kind, &row.ok_or_else(|| Error::not_found(kind.noun(), id))?)
    }

    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Row>> {
        if lookup.contains('\0') {
            return Ok(None);
        }
        let mut reader = self.database.read().await?;
        let row = reader.link().first(&find(kind), args![lookup]).await?;
        row.map(|row| read(kind, &row)).transpose()
    }

    async fn list(&self, query: &Query, page: Page) -> Result<Paged<Row>> {
        if [&query.name, &query.name_contains]
            .into_iter()
            .flatten()
            .any(|text| text.contains('\0'))
        {
            return Ok(Paged {
                items: Vec::new(),
                total: 0,
            });
        }
        let mut conditions = Conditions::new(self.database.engine());
        conditions.and(&OF_ACCOUNT, query.account);
        if let Some(projects) = &query.projects {
            conditions.and(&IN_PROJECTS, projects.iter().map(|id| id.get()).collect::<Vec<_>>());
        }
        if let Some(parent) = query.parent {
            conditions.and(&UNDER_PARENT, parent);
        }
        if let Some(ids) = &query.ids {
            conditions.and(&WITH_IDS, ids.clone());
        }
        if let Some(above) = query.id_above {
            conditions.and(&ID_ABOVE, above);
        }
        if let Some(name) = &query.name {
            conditions.and(&NAMED, name.as_str());
        }
        if let Some(part) = &query.name_contains {
            conditions.and(&NAME_CONTAINS, part.to_ascii_lowercase());
        }
        if let Some(deleted) = query.deleted {
            conditions.and(&DELETED, deleted);
        }
        let mut reader = self.database.read().await?;
        let (rows, total) = engine::page(
            &mut reader.link(),
            table(query.kind).postgres,
            columns!(),
            conditions,
            order(query.sort, query.direction),
            page,
        )
        .await?;
        Ok(Paged {
            items: rows.iter().map(|row| read(query.kind, row)).collect::<Result<_>>()?,
            total,
        })
    }

    async fn update(&self, id: i64, version: u64, draft: Draft) -> Result<Row> {
        check(&draft)?;
        let kind = draft.kind;
        // A version that no row can have is another version.
        let expected = i64::try_from(version).unwrap_or(-1);
        let values = args![
            id,
            draft.account,
            expected,
            draft.project,
            draft.parent,
            draft.name.as_str(),
            draft.lookup.as_deref(),
            draft.deleted,
            draft.at,
            draft.body.to_string(),
        ];
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            let row = link
                .first_raw(&update(kind), values)
                .await
                .map_err(|e| refused(kind, e))?;
            let Some(row) = row else {
                let now = link.first(&get(kind), args![id, draft.account]).await?;
                let now = now.ok_or_else(|| Error::not_found(kind.noun(), id))?.int("version")?;
                return Err(Error::conflict(format!(
                    "{} {id} has version {now}, not {version}",
                    kind.noun()
                )));
            };
            audit::note(&mut link, &Entry::of_draft(&draft, draft.account, id, Action::Changed)).await?;
            Ok(row)
        }
        .await;
        let row = work.end("catalog.update", done).await?;
        Ok(Row {
            kind,
            id,
            account: draft.account,
            project: draft.project,
            parent: draft.parent,
            name: draft.name,
            lookup: draft.lookup,
            deleted: draft.deleted,
            version: row.count("version")?,
            created_at: row.at("created_at")?,
            updated_at: draft.at,
            body: draft.body,
        })
    }

    async fn scan(&self, kind: Kind, after: i64, limit: u32) -> Result<Vec<Row>> {
        let mut reader = self.database.read().await?;
        let rows = reader.link().all(&scan(kind), args![after, limit]).await?;
        rows.iter().map(|row| read(kind, row)).collect()
    }
}
