//! Environments.

use dbtcloud_core::catalog::{Extras, Record};
use dbtcloud_core::environment::{DeploymentType, Environment, EnvironmentKind, Placement};
use dbtcloud_core::id::ProjectId;
use serde_json::{Map, Value};

use super::body::Fields;
use super::extras::{self, Keep, Table};
use super::{Api, state};

const EXTRAS: Table = &[
    ("supports_docs", Keep::Bool(Some(false))),
    ("enable_model_query_history", Keep::Bool(Some(false))),
    ("enable_dbt_state", Keep::Bool(Some(false))),
    ("primary_profile_id", Keep::Int(None)),
    ("created_by_id", Keep::Int(None)),
];

/// An environment with dbt Cloud's defaults, to read a request into.
pub(crate) fn blank(project: ProjectId) -> Environment {
    Environment {
        project,
        name: "New Environment".to_owned(),
        kind: EnvironmentKind::Deployment,
        deployment_type: None,
        dbt_version: "latest".to_owned(),
        connection: None,
        credentials: None,
        extended_attributes: None,
        custom_branch: None,
        use_custom_branch: false,
        execution: Placement::default(),
        extras: Extras::new(),
    }
}

pub(crate) const fn kind(kind: EnvironmentKind) -> &'static str {
    match kind {
        EnvironmentKind::Development => "development",
        EnvironmentKind::Deployment => "deployment",
    }
}

pub(crate) fn deployment_type(kind: Option<DeploymentType>) -> Option<&'static str> {
    kind.map(|kind| match kind {
        DeploymentType::Production => "production",
        DeploymentType::Staging => "staging",
    })
}

/// Takes a request's fields over.
pub(crate) fn read(fields: &mut Fields, environment: &mut Environment) {
    fields.set("name", &mut environment.name);
    match fields.take::<String>("type").as_deref() {
        None => {}
        Some("development") => environment.kind = EnvironmentKind::Development,
        Some("deployment") => environment.kind = EnvironmentKind::Deployment,
        Some(_) => fields.reject("type", "expected 'development' or 'deployment'"),
    }
    let mut rank = deployment_type(environment.deployment_type).map(ToOwned::to_owned);
    fields.set_optional("deployment_type", &mut rank);
    environment.deployment_type = match rank.as_deref() {
        None | Some("" | "general" | "other") => None,
        Some("production") => Some(DeploymentType::Production),
        Some("staging") => Some(DeploymentType::Staging),
        Some(_) => {
            fields.reject("deployment_type", "expected 'production', 'staging' or null");
            None
        }
    };
    fields.set("dbt_version", &mut environment.dbt_version);
    fields.set_optional("connection_id", &mut environment.connection);
    fields.set_optional("credentials_id", &mut environment.credentials);
    fields.set_optional("extended_attributes_id", &mut environment.extended_attributes);
    fields.set_optional_text("custom_branch", &mut environment.custom_branch);
    fields.set("use_custom_branch", &mut environment.use_custom_branch);
    execution(fields, &mut environment.execution);
    extras::read(fields, EXTRAS, &mut environment.extras);
    if environment.name.trim().is_empty() {
        fields.reject("name", "expected a name, got an empty text");
    }
    if environment.use_custom_branch && environment.custom_branch.is_none() {
        fields.reject("custom_branch", "expected a branch because use_custom_branch is true");
    }
    if environment
        .custom_branch
        .as_ref()
        .is_some_and(|branch| branch.starts_with('-'))
    {
        fields.reject("custom_branch", "expected the name of a branch");
    }
}

/// Our own extension of dbt Cloud's environment: where its runs execute.
fn execution(fields: &mut Fields, placement: &mut Placement) {
    match fields.raw("execution").cloned() {
        None => {}
        Some(Value::Null) => *placement = Placement::default(),
        Some(sent) => match Placement::parse("execution", &sent) {
            Ok(sent) => *placement = sent,
            Err(error) => {
                let field = error.field().unwrap_or("execution").to_owned();
                let told = error.to_string();
                fields.reject(&field, told.strip_prefix(&format!("{field}: ")).unwrap_or(&told));
            }
        },
    }
}

/// An environment; related objects are null until somebody fills them in.
pub(crate) fn view(record: &Record<Environment>, api: Api) -> Map<String, Value> {
    let mut view = object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "project_id": record.project.get(),
        "name": record.name,
        "type": kind(record.kind),
        "deployment_type": deployment_type(record.deployment_type),
        "dbt_version": record.dbt_version,
        "raw_dbt_version": record.dbt_version,
        "connection_id": record.connection.map(i64::from),
        "credentials_id": record.credentials.map(i64::from),
        "extended_attributes_id": record.extended_attributes.map(i64::from),
        "custom_branch": record.custom_branch,
        "use_custom_branch": record.use_custom_branch,
        "is_deferrable": record.kind == EnvironmentKind::Deployment,
        "dbt_project_subdirectory": Value::Null,
        "repository_id": Value::Null,
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
        "project": Value::Null,
        "repository": Value::Null,
        "connection": Value::Null,
        "credentials": Value::Null,
        "jobs": Value::Null,
        "custom_environment_variables": Value::Null,
        "fusion_readiness": Value::Null,
    };
    if !record.execution.is_default() {
        view.insert(
            "execution".to_owned(),
            serde_json::to_value(&record.execution).unwrap_or_default(),
        );
    }
    extras::show(&record.extras, EXTRAS, &mut view);
    view
}
