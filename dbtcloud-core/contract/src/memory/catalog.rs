use std::cmp::Ordering;

use async_trait::async_trait;
use dbtcloud_core::audit::{Action, Entry};
use dbtcloud_core::catalog::{Draft, Kind, Query, Row, SortKey};
use dbtcloud_core::error::{Error, ErrorKind, Result};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::page::{Direction, Page, Paged};
use dbtcloud_core::ports::Catalog;

use super::MemoryStorage;
use super::state::{Mutation, State, check_text};

impl State {
    /// `AlreadyExists` when another record that is not deleted has this draft's lookup.
    fn check_lookup(&self, draft: &Draft, own: Option<i64>) -> Result<()> {
        let Some(lookup) = draft.lookup.as_ref().filter(|_| !draft.deleted) else {
            return Ok(());
        };
        let taken = self.catalog.values().any(|row| {
            row.kind == draft.kind && !row.deleted && row.lookup.as_ref() == Some(lookup) && Some(row.id) != own
        });
        if taken && !self.breaks(Mutation::IgnoreLookups) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("a {} with this key exists already", draft.kind.noun()),
            ));
        }
        Ok(())
    }

    fn row(&self, kind: Kind, account: AccountId, id: i64) -> Result<&Row> {
        self.catalog
            .get(&(kind, id))
            .filter(|row| row.account == account)
            .ok_or_else(|| Error::not_found(kind.noun(), id))
    }
}

fn check_draft(draft: &Draft) -> Result<()> {
    check_text("name", &draft.name)?;
    check_text("actor", &draft.by)?;
    check_text("lookup", &draft.lookup)
}

fn matches(query: &Query, row: &Row) -> bool {
    let contains = |part: &String| row.name.to_ascii_lowercase().contains(&part.to_ascii_lowercase());
    row.kind == query.kind
        && row.account == query.account
        && query
            .projects
            .as_ref()
            .is_none_or(|list| row.project.is_some_and(|project| list.contains(&project)))
        && query.parent.is_none_or(|parent| row.parent == Some(parent))
        && query.ids.as_ref().is_none_or(|ids| ids.contains(&row.id))
        && query.id_above.is_none_or(|id| row.id > id)
        && query.name.as_ref().is_none_or(|name| row.name == *name)
        && query.name_contains.as_ref().is_none_or(contains)
        && query.deleted.is_none_or(|deleted| row.deleted == deleted)
}

fn order(sort: SortKey, a: &Row, b: &Row) -> Ordering {
    let by_key = match sort {
        SortKey::Id => Ordering::Equal,
        SortKey::Name => a.name.cmp(&b.name),
        SortKey::CreatedAt => a.created_at.cmp(&b.created_at),
        SortKey::UpdatedAt => a.updated_at.cmp(&b.updated_at),
    };
    by_key.then(a.id.cmp(&b.id))
}

/// One page of what is already in order.
pub(super) fn cut<T>(items: Vec<T>, direction: Direction, page: Page) -> Paged<T> {
    let total = items.len() as u64;
    let (offset, limit) = (page.offset() as usize, page.limit() as usize);
    let items = match direction {
        Direction::Ascending => items.into_iter().skip(offset).take(limit).collect(),
        Direction::Descending => items.into_iter().rev().skip(offset).take(limit).collect(),
    };
    Paged { items, total }
}

#[async_trait]
impl Catalog for MemoryStorage {
    async fn insert(&self, draft: Draft) -> Result<Row> {
        check_draft(&draft)?;
        let mut state = self.lock();
        state.check_lookup(&draft, None)?;
        let last = state.catalog_ids.entry(draft.kind).or_default();
        *last += 1;
        let id = *last;
        let account = if draft.kind == Kind::Account {
            AccountId::new(id)
        } else {
            draft.account
        };
        state.audit(Entry::of_draft(&draft, account, id, Action::Added));
        let row = Row {
            kind: draft.kind,
            id,
            account,
            project: draft.project,
            parent: draft.parent,
            name: draft.name,
            lookup: draft.lookup,
            deleted: draft.deleted,
            version: 1,
            created_at: draft.at,
            updated_at: draft.at,
            body: draft.body,
        };
        state.catalog.insert((row.kind, id), row.clone());
        Ok(row)
    }

    async fn get(&self, kind: Kind, account: AccountId, id: i64) -> Result<Row> {
        self.lock().row(kind, account, id).cloned()
    }

    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Row>> {
        let state = self.lock();
        let found = state
            .catalog
            .values()
            .find(|row| row.kind == kind && !row.deleted && row.lookup.as_deref() == Some(lookup));
        Ok(found.cloned())
    }

    async fn list(&self, query: &Query, page: Page) -> Result<Paged<Row>> {
        let mut rows: Vec<Row> = self
            .lock()
            .catalog
            .values()
            .filter(|row| matches(query, row))
            .cloned()
            .collect();
        rows.sort_by(|a, b| order(query.sort, a, b));
        Ok(cut(rows, query.direction, page))
    }

    async fn update(&self, id: i64, version: u64, draft: Draft) -> Result<Row> {
        check_draft(&draft)?;
        let mut state = self.lock();
        let old = state.row(draft.kind, draft.account, id)?.clone();
        if old.version != version && !state.breaks(Mutation::IgnoreVersions) {
            return Err(Error::conflict(format!(
                "{} {id} has version {}, not {version}",
                draft.kind.noun(),
                old.version
            )));
        }
        state.check_lookup(&draft, Some(id))?;
        state.audit(Entry::of_draft(&draft, old.account, id, Action::Changed));
        let row = Row {
            project: draft.project,
            parent: draft.parent,
            name: draft.name,
            lookup: draft.lookup,
            deleted: draft.deleted,
            version: old.version + 1,
            updated_at: draft.at,
            body: draft.body,
            ..old
        };
        state.catalog.insert((row.kind, id), row.clone());
        Ok(row)
    }

    async fn scan(&self, kind: Kind, after: i64, limit: u32) -> Result<Vec<Row>> {
        let state = self.lock();
        let above = state
            .catalog
            .values()
            .filter(|row| row.kind == kind && !row.deleted && row.id > after);
        Ok(above.take(limit as usize).cloned().collect())
    }
}
