//! Connections and credentials: what is secret in them is sealed before it is stored.

use std::collections::BTreeMap;

use dbtcloud_core::catalog::{Kind, Query, Record};
use dbtcloud_core::connection::{Connection, Credentials};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::project::Project;
use dbtcloud_core::secret::{Sealed, Secret};
use dbtcloud_runtime::plan::context;
use serde_json::Value;

use super::resource::{Filter, Resource, all, check_reference};
use crate::auth::Right;
use crate::call::Call;
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::{connection, credentials};

/// Seals each secret with a context of its own: a sealed password cannot be passed off as a token.
async fn seal(
    call: &Call,
    context: &str,
    secrets: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Sealed>, Fault> {
    let mut sealed = BTreeMap::new();
    for (field, text) in secrets {
        let context = format!("{context}.{field}");
        let envelope = call
            .plane()
            .vault()?
            .seal(&context, &Secret::new(text.as_str()))
            .await?;
        sealed.insert(field.clone(), envelope);
    }
    Ok(sealed)
}

impl Resource for Connection {
    const EDIT: Right = Right::EditAccount;

    fn blank(call: &Call, fields: &mut Fields) -> Result<Option<Self>, Fault> {
        fields.require::<String>("name");
        let mut blank = connection::blank();
        if let Some(project) = call.project()? {
            connection::set_home(&mut blank, project);
        }
        Ok(Some(blank))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        let split = connection::read(fields, body);
        fields.check()?;
        check_reference::<Project>(call, "project_id", call.project()?, None).await?;
        let sealed = seal(call, context::CONNECTION, &split.secret).await?;
        split.merge(&sealed, &mut body.config, &mut body.secrets);
        Ok(())
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        if let Some(project) = call.project()? {
            let view = |record| connection::legacy(record, Some(project), call.api).into();
            return Ok(records.iter().map(view).collect());
        }
        // A list shows how many environments use each.
        let uses = match call.text("id") {
            "" => all::<Environment>(call, &Query::new(Kind::Environment, call.account)).await?,
            _ => Vec::new(),
        };
        let view = |record: &Record<Self>| {
            let mut view = connection::view(record, call.api);
            if call.text("id").is_empty() {
                let count = uses
                    .iter()
                    .filter(|environment| environment.connection == Some(record.id))
                    .count();
                view.insert("environment__count".to_owned(), count.into());
            }
            view.into()
        };
        Ok(records.iter().map(view).collect())
    }

    fn filter(call: &Call) -> Result<Option<Filter<Self>>, Fault> {
        let version = call.params.text("adapter_version").map(ToOwned::to_owned);
        let home = call.project()?;
        if version.is_none() && home.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(move |record| {
            version
                .as_ref()
                .is_none_or(|version| record.adapter_version == *version)
                && home.is_none_or(|project| connection::home(record).is_none_or(|home| home == project))
        })))
    }

    /// A connection belongs to the account. The deprecated endpoints see those made for their project and
    /// those made for none.
    fn belongs(call: &Call, record: &Record<Self>) -> Result<bool, Fault> {
        let asked = call.project()?;
        Ok(asked.is_none_or(|project| connection::home(record).is_none_or(|home| home == project)))
    }
}

impl Resource for Credentials {
    const EDIT: Right = Right::EditProject;

    fn blank(call: &Call, _: &mut Fields) -> Result<Option<Self>, Fault> {
        Ok(call.project()?.map(credentials::blank))
    }

    async fn read(call: &Call, fields: &mut Fields, body: &mut Self) -> Result<(), Fault> {
        let split = credentials::read(fields, body);
        fields.check()?;
        check_reference::<Project>(call, "project_id", Some(body.project), None).await?;
        let sealed = seal(call, context::CREDENTIALS, &split.secret).await?;
        split.merge(&sealed, &mut body.fields, &mut body.secrets);
        Ok(())
    }

    async fn views(call: &Call, records: &[Record<Self>]) -> Result<Vec<Value>, Fault> {
        let detailed = call.params.include().has("adapter");
        Ok(records
            .iter()
            .map(|record| credentials::view(record, detailed, call.api).into())
            .collect())
    }
}
