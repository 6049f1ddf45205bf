//! Everything that people edit, as versioned records. The port is [`crate::ports::Catalog`]; this is the
//! typed view of it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::audit::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{AccountId, ProjectId};
use crate::page::{Direction, Page, Paged};
use crate::ports::Catalog;
use crate::time::Timestamp;

/// Free-form fields that round-trip.
pub type Extras = serde_json::Map<String, serde_json::Value>;

/// What kinds of records there are; each has a table of its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`crate::account::Account`]. Its account is itself.
    Account,
    /// [`crate::connection::Connection`]
    Connection,
    /// [`crate::connection::Credentials`]
    Credentials,
    /// [`crate::environment::Environment`]
    Environment,
    /// [`crate::connection::ExtendedAttributes`]
    ExtendedAttributes,
    /// [`crate::job::Job`]
    Job,
    /// [`crate::notification::Notification`]
    Notification,
    /// [`crate::project::Project`]
    Project,
    /// [`crate::project::Repository`]
    Repository,
    /// [`crate::account::Token`]
    Token,
    /// [`crate::account::User`]
    User,
    /// [`crate::variable::Variable`]
    Variable,
    /// [`crate::webhook::Webhook`]
    Webhook,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Account,
        Self::Connection,
        Self::Credentials,
        Self::Environment,
        Self::ExtendedAttributes,
        Self::Job,
        Self::Notification,
        Self::Project,
        Self::Repository,
        Self::Token,
        Self::User,
        Self::Variable,
        Self::Webhook,
    ];

    /// The noun, for messages.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Connection => "connection",
            Self::Credentials => "credentials",
            Self::Environment => "environment",
            Self::ExtendedAttributes => "extended attributes",
            Self::Job => "job",
            Self::Notification => "notification",
            Self::Project => "project",
            Self::Repository => "repository",
            Self::Token => "token",
            Self::User => "user",
            Self::Variable => "environment variable",
            Self::Webhook => "webhook",
        }
    }
}

/// A body that the catalog keeps.
pub trait Entity: Serialize + DeserializeOwned + Send + Sync {
    /// Which kind it is.
    const KIND: Kind;
    /// The type of its id.
    type Id: Copy + From<i64> + std::fmt::Display + PartialEq + Send + Sync;
    /// What a list can be searched by.
    fn name(&self) -> &str;
    /// The project it belongs to, if any.
    fn project(&self) -> Option<ProjectId> {
        None
    }
    /// Another record it hangs on, by kind: a job's environment, a variable's environment, job or user.
    fn parent(&self) -> Option<i64> {
        None
    }
    /// A key that is unique over all accounts among records that are not deleted: a token's digest, a
    /// user's email.
    fn lookup(&self) -> Option<&str> {
        None
    }
}

/// A record as the port has it: columns that can be searched and a body that cannot.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which kind.
    pub kind: Kind,
    /// Its id, unique in its kind over all accounts.
    pub id: i64,
    /// Whose it is.
    pub account: AccountId,
    /// Its project.
    pub project: Option<ProjectId>,
    /// See [`Entity::parent`].
    pub parent: Option<i64>,
    /// See [`Entity::name`].
    pub name: String,
    /// See [`Entity::lookup`].
    pub lookup: Option<String>,
    /// Soft-deleted (`state` 2 on the wire).
    pub deleted: bool,
    /// Counts changes, from 1.
    pub version: u64,
    /// When it was inserted.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// The body as JSON.
    pub body: serde_json::Value,
}

/// What is inserted or written over: a [`Row`] without what the storage decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Which kind.
    pub kind: Kind,
    /// Whose it is. Ignored when an account is inserted: an account is its own.
    pub account: AccountId,
    /// Its project.
    pub project: Option<ProjectId>,
    /// See [`Entity::parent`].
    pub parent: Option<i64>,
    /// See [`Entity::name`].
    pub name: String,
    /// See [`Entity::lookup`].
    pub lookup: Option<String>,
    /// Soft-deleted.
    pub deleted: bool,
    /// The body as JSON.
    pub body: serde_json::Value,
    /// The instant of the change.
    pub at: Timestamp,
    /// Who makes it, for the audit log.
    pub by: Actor,
}

/// By what a list is ordered; ties are broken by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SortKey {
    /// The id.
    #[default]
    Id,
    /// The name.
    Name,
    /// When it was inserted.
    CreatedAt,
    /// When it was changed.
    UpdatedAt,
}

/// Which records a list holds. Every condition must hold; an absent one always does.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Which kind.
    pub kind: Kind,
    /// Whose.
    pub account: AccountId,
    /// In one of these projects.
    pub projects: Option<Vec<ProjectId>>,
    /// With this parent.
    pub parent: Option<i64>,
    /// One of these ids.
    pub ids: Option<Vec<i64>>,
    /// With an id above this.
    pub id_above: Option<i64>,
    /// With exactly this name.
    pub name: Option<String>,
    /// With this in the name, whatever the case (ASCII).
    pub name_contains: Option<String>,
    /// `Some(false)` those not deleted, `Some(true)` those deleted, `None` all.
    pub deleted: Option<bool>,
    /// By what it is ordered.
    pub sort: SortKey,
    /// Which way.
    pub direction: Direction,
}

impl Query {
    /// Everything of one kind in one account that is not deleted, by id.
    pub fn new(kind: Kind, account: AccountId) -> Self {
        Self {
            kind,
            account,
            projects: None,
            parent: None,
            ids: None,
            id_above: None,
            name: None,
            name_contains: None,
            deleted: Some(false),
            sort: SortKey::Id,
            direction: Direction::Ascending,
        }
    }

    /// The same, of one project only.
    #[must_use]
    pub fn in_project(mut self, project: ProjectId) -> Self {
        self.projects = Some(vec![project]);
        self
    }

    /// The same, under one parent only.
    #[must_use]
    pub fn under(mut self, parent: i64) -> Self {
        self.parent = Some(parent);
        self
    }
}

/// A typed record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<T: Entity> {
    /// Its id.
    pub id: T::Id,
    /// Whose it is.
    pub account: AccountId,
    /// Soft-deleted.
    pub deleted: bool,
    /// Counts changes; an update must name the one it read.
    pub version: u64,
    /// When it was inserted.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// What it says.
    pub body: T,
}

impl<T: Entity> std::ops::Deref for Record<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.body
    }
}

impl<T: Entity> TryFrom<Row> for Record<T> {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        let body = serde_json::from_value(row.body).map_err(|e| {
            Error::corrupt(format!("{} {}: stored body not understood", T::KIND.noun(), row.id)).because(e)
        })?;
        Ok(Self {
            id: T::Id::from(row.id),
            account: row.account,
            deleted: row.deleted,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
            body,
        })
    }
}

/// The draft of a body.
///
/// # Errors
/// `Invalid` when the body cannot be written as JSON.
pub fn draft<T: Entity>(account: AccountId, body: &T, deleted: bool, at: Timestamp) -> Result<Draft> {
    Ok(Draft {
        kind: T::KIND,
        account,
        project: body.project(),
        parent: body.parent(),
        name: body.name().to_owned(),
        lookup: body.lookup().map(ToOwned::to_owned),
        deleted,
        body: serde_json::to_value(body)
            .map_err(|e| Error::new(ErrorKind::Invalid, "body cannot be written as JSON").because(e))?,
        at,
        by: Actor::System,
    })
}

/// The typed view of a [`Catalog`]: `catalog.fetch::<Job>(account, id)`.
#[allow(async_fn_in_trait)]
pub trait CatalogExt: Catalog {
    /// Inserts a body for the platform itself. See [`Catalog::insert`].
    fn create<T: Entity>(
        &self,
        account: AccountId,
        body: &T,
        at: Timestamp,
    ) -> impl Future<Output = Result<Record<T>>> + Send {
        async move { self.create_by(&Actor::System, account, body, at).await }
    }

    /// Inserts a body for somebody. See [`Catalog::insert`].
    fn create_by<T: Entity>(
        &self,
        by: &Actor,
        account: AccountId,
        body: &T,
        at: Timestamp,
    ) -> impl Future<Output = Result<Record<T>>> + Send {
        async move {
            let by = by.clone();
            let draft = draft(account, body, false, at)?;
            self.insert(Draft { by, ..draft }).await?.try_into()
        }
    }

    /// The record that is not deleted. See [`Catalog::get`].
    fn fetch<T: Entity>(
        &self,
        account: AccountId,
        id: impl Into<i64> + Send,
    ) -> impl Future<Output = Result<Record<T>>> + Send {
        async move {
            let row = self.get(T::KIND, account, id.into()).await?;
            if row.deleted {
                return Err(Error::not_found(T::KIND.noun(), row.id));
            }
            row.try_into()
        }
    }

    /// Writes a record back for the platform itself; its version must be the stored one. See [`Catalog::update`].
    fn save<T: Entity>(&self, record: &Record<T>, at: Timestamp) -> impl Future<Output = Result<Record<T>>> + Send
    where
        T::Id: Into<i64>,
    {
        async move { self.save_by(&Actor::System, record, at).await }
    }

    /// Writes a record back for somebody; its version must be the stored one. See [`Catalog::update`].
    fn save_by<T: Entity>(
        &self,
        by: &Actor,
        record: &Record<T>,
        at: Timestamp,
    ) -> impl Future<Output = Result<Record<T>>> + Send
    where
        T::Id: Into<i64>,
    {
        async move {
            let by = by.clone();
            let draft = draft(record.account, &record.body, record.deleted, at)?;
            let draft = Draft { by, ..draft };
            self.update(record.id.into(), record.version, draft).await?.try_into()
        }
    }

    /// One page of a query. See [`Catalog::list`].
    fn page<T: Entity>(&self, query: &Query, page: Page) -> impl Future<Output = Result<Paged<Record<T>>>> + Send {
        async move { self.list(query, page).await?.try_map(Record::try_from) }
    }
}

impl<C: Catalog + ?Sized> CatalogExt for C {}
