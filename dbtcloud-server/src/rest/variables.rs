//! Environment variables: one by one, and a whole name at a time.

use std::collections::BTreeMap;

use axum::response::Response;
use dbtcloud_core::catalog::{CatalogExt, Kind, Query, Record};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::ProjectId;
use dbtcloud_core::job::Job;
use dbtcloud_core::project::Project;
use dbtcloud_core::secret::Secret;
use dbtcloud_core::variable::{self, Scope, Value as Held, Variable};
use dbtcloud_runtime::plan::context;
use serde_json::{Map, Value, json};

use super::resource::{Resource, all, check_reference, remove};
use crate::auth::Right;
use crate::call::{Answer, Body, Call};
use crate::wire::body::Fields;
use crate::wire::envelope;
use crate::wire::fault::Fault;
use crate::wire::secrets::MASK;
use crate::wire::variable::{read_scope, read_value, view};

/// Seals a value whose name says that it is secret.
async fn held(call: &Call, name: &str, value: String) -> Result<Held, Fault> {
    variable::validate(name, &value)?;
    if !variable::is_secret(name) {
        return Ok(Held::Plain(value));
    }
    Ok(Held::Sealed(
        call.plane()
            .vault()?
            .seal(context::VARIABLE, &Secret::new(value))
            .await?,
    ))
}

/// Variables of the path's project, with this name if one is given.
pub(crate) async fn of_project(
    call: &Call,
    project: ProjectId,
    name: Option<&str>,
) -> Result<Vec<Record<Variable>>, Fault> {
    let mut query = Query::new(Kind::Variable, call.account).in_project(project);
    query.name = name.map(ToOwned::to_owned);
    all(call, &query).await
}

/// The project of the path, if it is there.
pub(crate) async fn project_of(call: &Call, right: Right) -> Result<ProjectId, Fault> {
    let project = call.project()?.ok_or_else(|| Fault::not_found("project not found"))?;
    call.plane().catalog().fetch::<Project>(call.account, project).await?;
    call.demand(right, Some(project))?;
    Ok(project)
}

impl Resource for Variable {
    const EDIT: Right = Right::EditProject;

    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        let name = fields.require::<String>("name");
        let scope = read_scope(fields);
        if !fields.has("raw_value") && !fields.has("display_value") {
            fields.reject("raw_value", "This field is required.");
        }
        fields.check()?;
        let value = Held::Plain(String::new());
        Ok(match (call.project()?, name, scope) {
            (Some(project), Some(name), Some(scope)) => Some(Self {
                project,
                name,
                scope,
                value,
            }),
            _ => None,
        })
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        // A variable keeps its name and scope: another name or scope is another variable.
        let value = read_value(fields);
        fields.check()?;
        check_reference::<Project>(call, "project_id", Some(body.project), None).await?;
        match body.scope {
            Scope::Project | Scope::User(_) => {}
            Scope::Environment(id) => {
                check_reference::<Environment>(call, "environment_id", Some(id), Some(body.project)).await?;
            }
            Scope::Job(id) => check_reference::<Job>(call, "job_definition_id", Some(id), Some(body.project)).await?,
        }
        match value {
            Some(value) => body.value = held(call, &body.name, value).await?,
            None => variable::validate(&body.name, "")?,
        }
        Ok(())
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        Ok(records.iter().map(|record| view(record, call.api).into()).collect())
    }

    /// One value per name and scope: a second one writes over the first, as a client that repeats itself
    /// means it to.
    async fn insert(call: &Call, body: &Self) -> dbtcloud_core::Result<Record<Self>> {
        let mut query = Query::new(Kind::Variable, call.account).in_project(body.project);
        query.name = Some(body.name.clone());
        query.parent = dbtcloud_core::catalog::Entity::parent(body);
        let same = call
            .plane()
            .catalog()
            .page::<Self>(&query, dbtcloud_core::Page::default())
            .await?;
        match same.items.into_iter().find(|record| record.scope == body.scope) {
            Some(mut record) => {
                record.body.value = body.value.clone();
                call.plane()
                    .catalog()
                    .save_by(&call.who.by(), &record, call.now())
                    .await
            }
            None => {
                call.plane()
                    .catalog()
                    .create_by(&call.who.by(), call.account, body, call.now())
                    .await
            }
        }
    }
}

/// The scopes that a bulk request can name: `project`, and every environment by its name.
async fn scopes(call: &Call, project: ProjectId) -> Result<BTreeMap<String, Scope>, Fault> {
    let query = Query::new(Kind::Environment, call.account).in_project(project);
    let environments = all::<Environment>(call, &query).await?;
    let mut scopes: BTreeMap<String, Scope> = environments
        .into_iter()
        .map(|record| (record.name.clone(), Scope::Environment(record.id)))
        .collect();
    scopes.insert("project".to_owned(), Scope::Project);
    Ok(scopes)
}

/// Writes the values of one name: `{<scope>: value, …}`; a null or empty one removes that scope's value.
async fn write(
    call: &Call,
    project: ProjectId,
    name: &str,
    new_name: &str,
    values: Map<String, Value>,
) -> Result<(Vec<i64>, Vec<i64>), Fault> {
    variable::validate(new_name, "")?;
    if variable::is_secret(name) != variable::is_secret(new_name) {
        return Err(Fault::field(
            "new_name",
            "expected a name that is secret if the old one is, and only then",
        ));
    }
    let scopes = scopes(call, project).await?;
    let existing = of_project(call, project, Some(name)).await?;
    let mut faults = Fields::default();
    let mut wanted: BTreeMap<String, (Scope, Option<String>)> = BTreeMap::new();
    for (at, value) in values {
        if ["name", "new_name"].contains(&at.as_str()) {
            continue;
        }
        let text = match value {
            Value::Null => None,
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Array(_) | Value::Object(_) => {
                faults.reject(&at, "expected a text");
                continue;
            }
        };
        match scopes.get(&at) {
            Some(scope) => {
                wanted.insert(at, (*scope, text));
            }
            None => faults.reject(&at, "expected 'project' or the name of an environment of the project"),
        }
    }
    faults.check()?;
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for (scope, value) in wanted.into_values() {
        let old = existing.iter().find(|record| record.scope == scope);
        match (old, value) {
            (_, Some(value)) if value == MASK => {}
            (None, None) => {}
            (Some(old), None) => {
                remove::<Variable>(call, old.id.get()).await?;
                removed.push(old.id.get());
            }
            (Some(old), Some(value)) => {
                let mut record = old.clone();
                record.body.value = held(call, new_name, value).await?;
                call.plane()
                    .catalog()
                    .save_by(&call.who.by(), &record, call.now())
                    .await?;
            }
            (None, Some(value)) => {
                let value = held(call, new_name, value).await?;
                let body = Variable {
                    project,
                    name: new_name.to_owned(),
                    scope,
                    value,
                };
                made.push(
                    call.plane()
                        .catalog()
                        .create_by(&call.who.by(), call.account, &body, call.now())
                        .await?
                        .id
                        .get(),
                );
            }
        }
    }
    if name != new_name {
        for record in of_project(call, project, Some(name)).await? {
            let mut record = record;
            new_name.clone_into(&mut record.body.name);
            call.plane()
                .catalog()
                .save_by(&call.who.by(), &record, call.now())
                .await?;
        }
    }
    Ok((made, removed))
}

fn done(made: &[i64], removed: &[i64]) -> Response {
    envelope::ok(json!({
        "message": "Environment variables were saved.",
        "new_var_ids": made,
        "deleted_var_ids": removed,
        "failures": [],
    }))
}

/// `{"env_var": {"new_name": N, "project": value, "<environment>": value}}`
pub(crate) async fn bulk_create(call: Call, Body(mut fields): Body) -> Answer {
    let project = project_of(&call, Right::EditProject).await?;
    let values = fields.require::<Map<String, Value>>("env_var");
    fields.check()?;
    let values = values.unwrap_or_default();
    let Some(name) = values
        .get("new_name")
        .or_else(|| values.get("name"))
        .and_then(Value::as_str)
        .map(ToOwned::to_owned)
    else {
        return Err(Fault::field("env_var.new_name", "This field is required."));
    };
    if !of_project(&call, project, Some(&name)).await?.is_empty() {
        return Err(Fault::field(
            "env_var.new_name",
            format!("{name} exists already; change it with PUT"),
        ));
    }
    let (made, removed) = write(&call, project, &name, &name, values).await?;
    Ok(done(&made, &removed))
}

/// `{"env_vars": {"name": N, …}}`: the scopes that are named are written, the others stay.
pub(crate) async fn bulk_update(call: Call, Body(mut fields): Body) -> Answer {
    let project = project_of(&call, Right::EditProject).await?;
    let at = if fields.has("env_var") { "env_var" } else { "env_vars" };
    let values = fields.require::<Map<String, Value>>(at);
    fields.check()?;
    let values = values.unwrap_or_default();
    let Some(name) = values.get("name").and_then(Value::as_str).map(ToOwned::to_owned) else {
        return Err(Fault::field(&format!("{at}.name"), "This field is required."));
    };
    let new_name = values
        .get("new_name")
        .and_then(Value::as_str)
        .unwrap_or(&name)
        .to_owned();
    let (made, removed) = write(&call, project, &name, &new_name, values).await?;
    Ok(done(&made, &removed))
}

/// `{"name": N}`: every scope of it.
pub(crate) async fn bulk_delete(call: Call, Body(mut fields): Body) -> Answer {
    let project = project_of(&call, Right::EditProject).await?;
    let name = fields.require::<String>("name");
    fields.check()?;
    let name = name.unwrap_or_default();
    let found = of_project(&call, project, Some(&name)).await?;
    if found.is_empty() {
        return Err(Fault::not_found(format!("environment variable {name} not found")));
    }
    let mut removed = Vec::new();
    for record in found {
        remove::<Variable>(&call, record.id.get()).await?;
        removed.push(record.id.get());
    }
    Ok(done(&[], &removed))
}
