//! List, get, create, update and delete of a kind of record, once for all kinds.

use dbtcloud_core::catalog::{CatalogExt, Entity, Kind, Query, Record};
use dbtcloud_core::id::ProjectId;
use dbtcloud_core::page::PAGE_LIMIT;
use dbtcloud_core::{ErrorKind, Page, Paged};
use serde_json::Value;

use crate::auth::Right;
use crate::call::{Answer, Body, Call};
use crate::wire::body::Fields;
use crate::wire::envelope;
use crate::wire::fault::Fault;

/// How often an update is begun again because somebody else wrote the record meanwhile.
pub(crate) const CHANGE_TRIES: u32 = 8;
/// Records that a filter which storage does not know may look through.
const SCAN_LIMIT: usize = 100_000;

/// Which records of a page stay.
pub(crate) type Filter<T> = Box<dyn Fn(&Record<T>) -> bool + Send + Sync>;

/// A kind of record that clients list, read, make, change and delete.
pub(crate) trait Resource: Entity<Id: Into<i64>> + Clone + 'static {
    /// What it takes to change one.
    const EDIT: Right;

    /// A record with dbt Cloud's defaults, before the request is read into it. `None` when the request does
    /// not say what must be said; the fields then know why.
    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault>;

    /// Reads a request over a record, seals what is secret, and checks what it refers to. Faults of the
    /// fields are checked before anything is sealed.
    fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Records as the wire has them, with the related objects that were asked for. Related objects are
    /// fetched for the whole page at one time.
    fn views(call: &Call, records: &[Record<Self>]) -> impl Future<Output = Result<Vec<Value>, Fault>> + Send;

    /// A filter of the request that storage does not know.
    fn filter(_call: &Call) -> Result<Option<Filter<Self>>, Fault> {
        Ok(None)
    }

    /// Whether a record is the one that the path means, beyond its id.
    fn belongs(call: &Call, record: &Record<Self>) -> Result<bool, Fault> {
        Ok(call
            .project()?
            .is_none_or(|project| record.body.project() == Some(project)))
    }

    /// Stores a new one.
    fn insert(call: &Call, body: &Self) -> impl Future<Output = dbtcloud_core::Result<Record<Self>>> + Send {
        async move {
            let catalog = call.plane().catalog();
            catalog.create_by(&call.who.by(), call.account, body, call.now()).await
        }
    }

    /// Writes one back.
    fn save(call: &Call, record: &Record<Self>) -> impl Future<Output = dbtcloud_core::Result<Record<Self>>> + Send {
        async move {
            let catalog = call.plane().catalog();
            catalog.save_by(&call.who.by(), record, call.now()).await
        }
    }
}

/// The project by which rights on a record are decided: a project's own is itself.
fn scope<T: Resource>(record: &Record<T>) -> Option<ProjectId> {
    if T::KIND == Kind::Project {
        Some(ProjectId::new(record.id.into()))
    } else {
        record.body.project()
    }
}

/// The record of an id, if it may be read and is the one that the path means.
pub(crate) async fn fetch<T: Resource>(call: &Call, id: i64) -> Result<Record<T>, Fault> {
    let record = call.plane().catalog().fetch::<T>(call.account, id).await?;
    let readable = call.who.may(Right::Read, scope(&record));
    if !readable || !T::belongs(call, &record)? {
        return Err(Fault::not_found(format!("{} {id} not found", T::KIND.noun())));
    }
    Ok(record)
}

/// The query that the path and the common filters of a request ask for.
fn query<T: Resource>(call: &Call) -> Result<Query, Fault> {
    let params = &call.params;
    let mut query = Query::new(T::KIND, call.account);
    query.ids = params.one_of(&["id", "pk"])?;
    query.id_above = params.int("id__gt")?.or(params.int("pk__gt")?);
    query.name = params.text("name").map(ToOwned::to_owned);
    query.name_contains = params.text("name__icontains").map(ToOwned::to_owned);
    query.deleted = params.deleted()?;
    (query.sort, query.direction) = params.catalog_order();
    let mut projects = params.one_of(&["project_id"])?;
    if let Some(project) = call.project()? {
        projects = Some(vec![project.get()]);
    }
    if let Some(readable) = call.who.readable_projects() {
        let readable: Vec<i64> = readable.into_iter().map(i64::from).collect();
        projects = Some(match projects {
            Some(asked) => asked.into_iter().filter(|id| readable.contains(id)).collect(),
            None => readable,
        });
    }
    match (T::KIND, projects) {
        // Connections, users and accounts have no project to be narrowed by.
        (_, None) | (Kind::Connection | Kind::Notification | Kind::User | Kind::Account | Kind::Token, _) => {}
        (Kind::Project, Some(projects)) => {
            let narrowed = |ids: Vec<i64>| ids.into_iter().filter(|id| projects.contains(id)).collect();
            query.ids = Some(query.ids.map_or(projects.clone(), narrowed));
        }
        (_, Some(projects)) => query.projects = Some(projects.into_iter().map(ProjectId::new).collect()),
    }
    if T::KIND == Kind::Job {
        query.parent = params.int("environment_id")?;
    }
    Ok(query)
}

/// All records of a query, page after page.
pub(crate) async fn all<T: Entity>(call: &Call, query: &Query) -> Result<Vec<Record<T>>, Fault> {
    let mut records: Vec<Record<T>> = Vec::new();
    loop {
        let offset = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let page = call
            .plane()
            .catalog()
            .page::<T>(query, Page::new(PAGE_LIMIT, offset))
            .await?;
        let (got, total) = (page.items.len(), page.total);
        records.extend(page.items);
        if got == 0 || records.len() as u64 >= total || records.len() >= SCAN_LIMIT {
            return Ok(records);
        }
    }
}

/// Records by id, for related objects; those that are gone are left out.
pub(crate) async fn by_ids<T: Entity>(
    call: &Call,
    ids: impl IntoIterator<Item = i64>,
) -> Result<std::collections::BTreeMap<i64, Record<T>>, Fault>
where
    T::Id: Into<i64>,
{
    let mut ids: Vec<i64> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(std::collections::BTreeMap::new());
    }
    let mut query = Query::new(T::KIND, call.account);
    query.ids = Some(ids);
    let records = all::<T>(call, &query).await?;
    Ok(records.into_iter().map(|record| (record.id.into(), record)).collect())
}

async fn page<T: Resource>(call: &Call, query: &Query, page: Page) -> Result<Paged<Record<T>>, Fault> {
    let Some(filter) = T::filter(call)? else {
        return Ok(call.plane().catalog().page(query, page).await?);
    };
    let kept: Vec<Record<T>> = all::<T>(call, query)
        .await?
        .into_iter()
        .filter(|record| filter(record))
        .collect();
    let total = kept.len() as u64;
    let items = kept
        .into_iter()
        .skip(page.offset() as usize)
        .take(page.limit() as usize)
        .collect();
    Ok(Paged { items, total })
}

async fn view<T: Resource>(call: &Call, record: Record<T>) -> Result<Value, Fault> {
    let mut views = T::views(call, std::slice::from_ref(&record)).await?;
    Ok(views.pop().unwrap_or(Value::Null))
}

/// `GET` of a list.
pub(crate) async fn list<T: Resource>(call: Call) -> Answer {
    call.demand(Right::Read, call.project()?)?;
    let wanted = call.params.page()?;
    let found = page::<T>(&call, &query::<T>(&call)?, wanted).await?;
    let views = T::views(&call, &found.items).await?;
    Ok(envelope::list(views, found.total, call.params.extra(wanted)))
}

/// `GET` of one.
pub(crate) async fn read<T: Resource>(call: Call) -> Answer {
    let record = fetch::<T>(&call, call.id("id")?).await?;
    Ok(envelope::ok(view(&call, record).await?))
}

/// `POST` of a new one.
pub(crate) async fn create<T: Resource>(call: Call, Body(mut fields): Body) -> Answer {
    let Some(mut body) = T::blank(&call, &mut fields)? else {
        fields.check()?;
        return Err(Fault::field("body", "expected more fields"));
    };
    call.demand(T::EDIT, body.project())?;
    T::read(&call, &mut fields, &mut body).await?;
    // A body may name another project than the path did.
    call.demand(T::EDIT, body.project())?;
    let record = T::insert(&call, &body).await?;
    Ok(envelope::created(view(&call, record).await?))
}

/// Changes the record of an id; begins again when somebody else wrote it meanwhile.
pub(crate) async fn change<T: Resource>(call: &Call, id: i64, fields: &mut Fields) -> Result<Record<T>, Fault> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut record = fetch::<T>(call, id).await?;
        call.demand(T::EDIT, scope(&record))?;
        if fields.says_deleted() {
            record.deleted = true;
        } else {
            fields.check()?;
            T::read(call, fields, &mut record.body).await?;
            call.demand(T::EDIT, scope(&record))?;
        }
        match T::save(call, &record).await {
            Err(error) if error.kind() == ErrorKind::Conflict && tries < CHANGE_TRIES => {}
            other => return Ok(other?),
        }
    }
}

/// `POST`, `PATCH` or `PUT` of one: the whole object as it was read, or a part of it. `state` 2 deletes.
pub(crate) async fn update<T: Resource>(call: Call, Body(mut fields): Body) -> Answer {
    let record = change::<T>(&call, call.id("id")?, &mut fields).await?;
    Ok(envelope::ok(view(&call, record).await?))
}

/// Deletes the record of an id.
pub(crate) async fn remove<T: Resource>(call: &Call, id: i64) -> Result<Record<T>, Fault> {
    let deletion = serde_json::Map::from_iter([("state".to_owned(), crate::wire::codes::STATE_DELETED.into())]);
    change::<T>(call, id, &mut Fields::new(deletion)).await
}

/// `DELETE` of one: 200 with the object in `state` 2, then 404.
pub(crate) async fn delete<T: Resource>(call: Call) -> Answer {
    let record = remove::<T>(&call, call.id("id")?).await?;
    Ok(envelope::ok(view(&call, record).await?))
}

/// Refuses a reference to what is not there; the field's name and what was expected.
pub(crate) async fn check_reference<T: Entity>(
    call: &Call,
    field: &'static str,
    id: Option<impl Into<i64>>,
    project: Option<ProjectId>,
) -> Result<(), Fault> {
    let Some(id) = id.map(Into::into) else { return Ok(()) };
    let expected = || {
        Fault::field(
            field,
            format!("expected the id of {} of this account, got {id}", T::KIND.noun()),
        )
    };
    match call.plane().catalog().fetch::<T>(call.account, id).await {
        Ok(record) if project.is_some() && record.body.project() != project => Err(Fault::field(
            field,
            format!("expected {} of the same project, got {id}", T::KIND.noun()),
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(expected()),
        Err(error) => Err(error.into()),
    }
}
