//! Environments and extended attributes.

use dbtcloud_core::catalog::{Kind, Query, Record};
use dbtcloud_core::connection::{Connection, Credentials, ExtendedAttributes};
use dbtcloud_core::environment::{Environment, EnvironmentKind};
use dbtcloud_core::id::ProjectId;
use dbtcloud_core::job::Job;
use dbtcloud_core::project::{Project, Repository};
use dbtcloud_core::variable::{Scope, Variable};
use serde_json::{Map, Value, json};

use super::resource::{Filter, Resource, all, by_ids, check_reference};
use crate::auth::Right;
use crate::call::Call;
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::{connection, credentials, environment, job, project, state, variable};

impl Resource for Environment {
    const EDIT: Right = Right::EditProject;

    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        fields.require::<String>("name");
        let project = match call.project()? {
            Some(project) => Some(project),
            None => fields.require::<ProjectId>("project_id"),
        };
        Ok(project.map(environment::blank))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        environment::read(fields, body);
        fields.check()?;
        check_reference::<Project>(call, "project_id", Some(body.project), None).await?;
        check_reference::<Connection>(call, "connection_id", body.connection, None).await?;
        check_reference::<Credentials>(call, "credentials_id", body.credentials, Some(body.project)).await?;
        let attributes = body.extended_attributes;
        check_reference::<ExtendedAttributes>(call, "extended_attributes_id", attributes, Some(body.project)).await
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        let include = call.params.include();
        let mut views: Vec<_> = records
            .iter()
            .map(|record| environment::view(record, call.api))
            .collect();
        if include.has("project") || include.has("repository") {
            let found = by_ids::<Project>(call, records.iter().map(|record| record.project.get())).await?;
            let ids = found.values().filter_map(|project| project.repository).map(i64::from);
            let repositories = by_ids::<Repository>(call, ids).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let Some(parent) = found.get(&record.project.get()) else {
                    continue;
                };
                if include.has("project") {
                    view.insert("project".to_owned(), project::project(parent, call.api).into());
                }
                if include.has("repository") {
                    let related = parent.repository.and_then(|id| repositories.get(&id.get()));
                    let shown = related.map(|related| project::repository(related, call.api));
                    view.insert("repository".to_owned(), shown.into());
                }
            }
        }
        if include.has("connection") {
            let ids = records.iter().filter_map(|record| record.connection).map(i64::from);
            let found = by_ids::<Connection>(call, ids).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let related = record.connection.and_then(|id| found.get(&id.get()));
                let shown = related.map(|related| connection::legacy(related, Some(record.project), call.api));
                view.insert("connection".to_owned(), shown.into());
            }
        }
        if include.has("credentials") {
            let ids = records.iter().filter_map(|record| record.credentials).map(i64::from);
            let found = by_ids::<Credentials>(call, ids).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let related = record.credentials.and_then(|id| found.get(&id.get()));
                let shown = related.map(|related| credentials::view(related, false, call.api));
                view.insert("credentials".to_owned(), shown.into());
            }
        }
        if include.has("jobs") {
            for (view, record) in views.iter_mut().zip(records) {
                let query = Query::new(Kind::Job, call.account).under(record.id.get());
                let found = all::<Job>(call, &query).await?;
                let shown = found.iter().map(|found| job::view(found, None, call.now(), call.api));
                view.insert("jobs".to_owned(), shown.map(Value::Object).collect());
            }
        }
        if include.has("custom_environment_variables") {
            for (view, record) in views.iter_mut().zip(records) {
                let query = Query::new(Kind::Variable, call.account)
                    .in_project(record.project)
                    .under(record.id.get());
                let found = all::<Variable>(call, &query).await?;
                let own = found
                    .iter()
                    .filter(|found| found.scope == Scope::Environment(record.id));
                let shown = own.map(|own| variable::view(own, call.api));
                view.insert(
                    "custom_environment_variables".to_owned(),
                    shown.map(Value::Object).collect(),
                );
            }
        }
        Ok(views.into_iter().map(Value::Object).collect())
    }

    fn filter(call: &Call) -> Result<Option<Filter<Self>>, Fault> {
        let params = &call.params;
        let owned = |list: Option<Vec<&str>>| -> Option<Vec<String>> {
            list.map(|list| list.into_iter().map(ToOwned::to_owned).collect())
        };
        let kind = match params.text("type") {
            Some("development") => Some(EnvironmentKind::Development),
            Some(_) => Some(EnvironmentKind::Deployment),
            None => None,
        };
        let ranks = owned(
            params
                .list("deployment_type__in")
                .or_else(|| params.list("deployment_type")),
        );
        let versions = owned(params.list("dbt_version__in").or_else(|| params.list("dbt_version")));
        let credentials = params.int("credentials_id")?;
        let connection = params.int("connection_id")?;
        if kind.is_none() && ranks.is_none() && versions.is_none() && credentials.is_none() && connection.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(move |record| {
            let rank = environment::deployment_type(record.deployment_type);
            kind.is_none_or(|kind| record.kind == kind)
                && ranks
                    .as_ref()
                    .is_none_or(|ranks| ranks.iter().any(|wanted| Some(wanted.as_str()) == rank))
                && versions
                    .as_ref()
                    .is_none_or(|versions| versions.contains(&record.dbt_version))
                && credentials.is_none_or(|id| record.credentials.map(i64::from) == Some(id))
                && connection.is_none_or(|id| record.connection.map(i64::from) == Some(id))
        })))
    }
}

impl Resource for ExtendedAttributes {
    const EDIT: Right = Right::EditProject;

    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        fields.require::<Map<String, Value>>("extended_attributes");
        Ok(call.project()?.map(|project| Self {
            project,
            fields: Map::new(),
        }))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        fields.set("extended_attributes", &mut body.fields);
        fields.check()?;
        check_reference::<Project>(call, "project_id", Some(body.project), None).await
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        let view = |record: &Record<Self>| {
            json!({
                "id": record.id.get(),
                "account_id": record.account.get(),
                "project_id": record.project.get(),
                "extended_attributes": record.fields,
                "state": state(record),
                "created_at": call.api.time(record.created_at),
                "updated_at": call.api.time(record.updated_at),
            })
        };
        Ok(records.iter().map(view).collect())
    }
}
