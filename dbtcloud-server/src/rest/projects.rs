//! Projects and their repositories.

use dbtcloud_core::catalog::{Query, Record};
use dbtcloud_core::connection::Connection;
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::ProjectId;
use dbtcloud_core::job::Job;
use dbtcloud_core::project::{GitAccess, Project, Repository};
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{catalog::Kind, secret::Sealed};
use dbtcloud_runtime::plan::context;
use serde_json::Value;

use super::resource::{Filter, Resource, all, by_ids, check_reference};
use crate::auth::Right;
use crate::call::Call;
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::project::{self, NewAccess};
use crate::wire::{connection, environment, job};

impl Resource for Project {
    const EDIT: Right = Right::EditAccount;

    fn blank(_: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        Ok(fields.require::<String>("name").map(|_| project::blank_project()))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        project::read_project(fields, body);
        fields.check()?;
        check_reference::<Connection>(call, "connection_id", body.connection, None).await?;
        check_reference::<Repository>(call, "repository_id", body.repository, None).await
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        let include = call.params.include();
        let mut views: Vec<_> = records
            .iter()
            .map(|record| project::project(record, call.api))
            .collect();
        if include.has("repository") {
            let ids = records.iter().filter_map(|record| record.repository).map(i64::from);
            let found = by_ids::<Repository>(call, ids).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let related = record.repository.and_then(|id| found.get(&id.get()));
                let shown = related.map(|related| project::repository(related, call.api));
                view.insert("repository".to_owned(), shown.into());
            }
        }
        if include.has("connection") {
            let ids = records.iter().filter_map(|record| record.connection).map(i64::from);
            let found = by_ids::<Connection>(call, ids).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let related = record.connection.and_then(|id| found.get(&id.get()));
                let shown = related.map(|related| connection::legacy(related, Some(record.id), call.api));
                view.insert("connection".to_owned(), shown.into());
            }
        }
        if include.has("environments") {
            let mut query = Query::new(Kind::Environment, call.account);
            query.projects = Some(records.iter().map(|record| record.id).collect());
            let found = all::<Environment>(call, &query).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let own = found.iter().filter(|environment| environment.project == record.id);
                let shown: Vec<Value> = own.map(|own| environment::view(own, call.api).into()).collect();
                view.insert("environments".to_owned(), shown.into());
            }
        }
        for (name, related) in [
            ("docs_job", (|project: &Project| project.docs_job) as fn(&Project) -> _),
            ("freshness_job", |project| project.freshness_job),
        ] {
            if !include.has(name) && !include.has(&format!("{name}_id")) {
                continue;
            }
            let ids = records.iter().filter_map(|record| related(&record.body)).map(i64::from);
            let found = by_ids::<Job>(call, ids).await?;
            for (view, record) in views.iter_mut().zip(records) {
                let found = related(&record.body).and_then(|id| found.get(&id.get()));
                view.insert(
                    name.to_owned(),
                    found.map(|found| job::view(found, None, call.now(), call.api)).into(),
                );
            }
        }
        Ok(views.into_iter().map(Value::Object).collect())
    }
}

async fn seal(call: &Call, text: String) -> Result<Sealed, Fault> {
    Ok(call
        .plane()
        .vault()?
        .seal(context::REPOSITORY, &Secret::new(text))
        .await?)
}

impl Resource for Repository {
    const EDIT: Right = Right::EditProject;

    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        fields.require::<String>("remote_url");
        let project = match call.project()? {
            Some(project) => Some(project),
            None => fields.require::<ProjectId>("project_id"),
        };
        Ok(project.map(project::blank_repository))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        let access = project::read_repository(fields, body);
        fields.check()?;
        check_reference::<Project>(call, "project_id", Some(body.project), None).await?;
        match access {
            None => {}
            Some(NewAccess::Anonymous) => body.access = GitAccess::Anonymous,
            Some(NewAccess::Token { username, token }) => {
                body.access = GitAccess::Token {
                    username,
                    token: seal(call, token).await?,
                };
            }
            Some(NewAccess::DeployKey {
                public_key,
                private_key,
            }) => {
                body.access = GitAccess::DeployKey {
                    public_key,
                    private_key: seal(call, private_key).await?,
                };
            }
        }
        Ok(())
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        Ok(records
            .iter()
            .map(|record| project::repository(record, call.api).into())
            .collect())
    }

    fn filter(call: &Call) -> Result<Option<Filter<Self>>, Fault> {
        let remote = call.params.text("remote_url").map(ToOwned::to_owned);
        Ok(remote.map(|remote| -> Filter<Self> { Box::new(move |record| record.remote_url == remote) }))
    }
}
