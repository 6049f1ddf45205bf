//! From a run and the catalog to the plan that its agent redeems. The only place where secrets of many
//! records are opened together; what comes out goes to the agent and nowhere else.

use std::collections::BTreeMap;

use dbtcloud_core::catalog::{CatalogExt, Entity as _, Extras, Query, Record};
use dbtcloud_core::connection::{Connection, Credentials, ExtendedAttributes};
use dbtcloud_core::environment::{DeploymentType, Environment};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::job::Job;
use dbtcloud_core::page::PAGE_LIMIT;
use dbtcloud_core::project::{GitAccess, Project, Repository};
use dbtcloud_core::run::{CauseCategory, Run, plan_steps};
use dbtcloud_core::secret::{Sealed, Secret};
use dbtcloud_core::variable::{self, Value, Variable, Viewer};
use dbtcloud_core::{Error, Page, Result};

use crate::protocol::{GitLogin, GitSource, ProfileSource, RunPlan, StateUse};
use crate::{ControlPlane, trace};

/// Vault contexts: what a sealed value is bound to. The server seals with the same.
pub mod context {
    /// Secret fields of a connection.
    pub const CONNECTION: &str = "connection";
    /// Secret fields of credentials.
    pub const CREDENTIALS: &str = "credentials";
    /// A repository's token or deploy key.
    pub const REPOSITORY: &str = "repository";
    /// A secret environment variable.
    pub const VARIABLE: &str = "variable";
    /// What a webhook is signed with.
    pub const WEBHOOK: &str = "webhook.secret";
}

/// Variables that a project may have in all scopes together.
pub const VARIABLE_LIMIT: usize = 5_000;

/// Everything the agent of a run needs.
///
/// # Errors
/// `Invalid` when something that the run needs is missing, naming it; those of storage and vault.
pub async fn make(plane: &ControlPlane, run: &Run) -> Result<RunPlan> {
    let (account, catalog) = (run.new.account, plane.catalog());
    let missing = |what: &'static str, instead: &str| Error::invalid(what, format!("expected {instead}"));
    let environment = catalog.fetch::<Environment>(account, run.new.environment).await?;
    let project = catalog.fetch::<Project>(account, run.new.project).await?;
    let repository_id = project.repository.ok_or_else(|| {
        missing(
            "repository_id",
            &format!("project '{}' to have a repository", project.name),
        )
    })?;
    let repository = catalog.fetch::<Repository>(account, repository_id).await?;
    let connection_id = environment.connection.or(project.connection).ok_or_else(|| {
        missing(
            "connection_id",
            &format!("environment '{}' to have a connection", environment.name),
        )
    })?;
    let connection = catalog.fetch::<Connection>(account, connection_id).await?;
    let credentials = match environment.credentials {
        Some(id) => Some(catalog.fetch::<Credentials>(account, id).await?),
        None => None,
    };
    let extended = match environment.extended_attributes {
        Some(id) => catalog.fetch::<ExtendedAttributes>(account, id).await?.body.fields,
        None => Extras::new(),
    };
    let job = catalog.fetch::<Job>(account, run.new.job).await?;

    let mut secrets = Vec::new();
    let login = git_login(plane, &repository, &mut secrets).await?;
    let connection_fields = opened(
        plane,
        context::CONNECTION,
        &connection.config,
        &connection.secrets,
        &mut secrets,
    )
    .await?;
    let credential_fields = match &credentials {
        Some(record) => {
            opened(
                plane,
                context::CREDENTIALS,
                &record.fields,
                &record.secrets,
                &mut secrets,
            )
            .await?
        }
        None => Extras::new(),
    };
    let mut variables = injected(run, &environment);
    for (name, value) in own_variables(plane, account, run).await? {
        let value = match value {
            Value::Plain(value) => value,
            Value::Sealed(sealed) => keep(plane.vault()?.open(context::VARIABLE, &sealed).await?, &mut secrets),
        };
        variables.insert(name, value);
    }
    let state = match (run.new.retry_of, plane.deferred_to(&job).await?) {
        (Some(_), _) => Some(StateUse::Retry),
        (None, Some(_)) => Some(StateUse::Defer),
        (None, None) => None,
    };
    let schema = run
        .new
        .spec
        .schema
        .clone()
        .or_else(|| credentials.as_ref().and_then(|record| record.schema.clone()));
    let spec = &run.new.spec;
    Ok(RunPlan {
        account,
        project: run.new.project,
        environment: run.new.environment,
        job: run.new.job,
        run: run.id,
        attempt: run.attempt,
        steps: plan_steps(spec, &connection.name),
        git: GitSource {
            url: repository.remote_url.clone(),
            branch: spec.git_branch.clone().or_else(|| repository.default_branch.clone()),
            commit: spec.git_sha.clone(),
            subdirectory: project.subdirectory.clone(),
            login,
        },
        profile: ProfileSource {
            connection_name: connection.name.clone(),
            adapter: connection.adapter.clone(),
            connection: connection_fields,
            credentials: credential_fields,
            extended_attributes: extended,
            target_name: spec.target_name.clone(),
            schema,
            threads: spec.threads,
        },
        dbt_version: spec.dbt_version.clone(),
        variables,
        secrets,
        timeout_seconds: spec.timeout_seconds,
        state,
        grace_seconds: plane.config().grace.as_secs(),
        traceparent: trace::of_run(run).map(|context| context.to_string()),
    })
}

fn keep(secret: Secret, secrets: &mut Vec<String>) -> String {
    secrets.push(secret.expose().to_owned());
    secret.expose().to_owned()
}

async fn opened(
    plane: &ControlPlane,
    context: &str,
    plain: &Extras,
    sealed: &BTreeMap<String, Sealed>,
    secrets: &mut Vec<String>,
) -> Result<Extras> {
    let mut fields = plain.clone();
    for (name, value) in sealed {
        let value = keep(plane.vault()?.open(&format!("{context}.{name}"), value).await?, secrets);
        fields.insert(name.clone(), value.into());
    }
    Ok(fields)
}

async fn git_login(
    plane: &ControlPlane,
    repository: &Record<Repository>,
    secrets: &mut Vec<String>,
) -> Result<GitLogin> {
    Ok(match &repository.access {
        GitAccess::Anonymous => GitLogin::Anonymous,
        GitAccess::Token { username, token } => {
            let token = plane.vault()?.open(context::REPOSITORY, token).await?;
            GitLogin::Token {
                username: username.clone(),
                token: keep(token, secrets),
            }
        }
        GitAccess::DeployKey { private_key, .. } => {
            let key = plane.vault()?.open(context::REPOSITORY, private_key).await?;
            GitLogin::DeployKey {
                private_key: keep(key, secrets),
            }
        }
    })
}

async fn own_variables(plane: &ControlPlane, account: AccountId, run: &Run) -> Result<Vec<(String, Value)>> {
    let query = Query::new(Variable::KIND, account).in_project(run.new.project);
    let mut all: Vec<Record<Variable>> = Vec::new();
    loop {
        let offset = u32::try_from(all.len()).unwrap_or(u32::MAX);
        let page = plane
            .catalog()
            .page::<Variable>(&query, Page::new(PAGE_LIMIT, offset))
            .await?;
        let (got, total) = (page.items.len(), page.total);
        all.extend(page.items);
        if got == 0 || all.len() as u64 >= total {
            break;
        }
        if all.len() > VARIABLE_LIMIT {
            return Err(Error::invalid(
                "environment_variables",
                format!("expected at most {VARIABLE_LIMIT} in a project, got {total}"),
            ));
        }
    }
    let resolved = variable::resolve(&all, run.new.environment, Viewer::Job(run.new.job));
    Ok(resolved
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect())
}

/// The variables that dbt Cloud injects into every run. Source: dbt Cloud's documentation, "Environment
/// variables", and what its clients read (`DBT_ENV_CUSTOM_ENV_…` puts the ids into `metadata.env`).
pub fn injected(run: &Run, environment: &Environment) -> BTreeMap<String, String> {
    let trigger = &run.new.trigger;
    let kind = match environment.deployment_type {
        Some(DeploymentType::Production) => "prod",
        Some(DeploymentType::Staging) => "staging",
        None => "",
    };
    let pull_request = trigger
        .github_pull_request_id
        .or(trigger.gitlab_merge_request_id)
        .or(trigger.azure_pull_request_id)
        .or(trigger.non_native_pull_request_id);
    let category = match trigger.category {
        CauseCategory::Scheduled => "scheduled",
        _ if trigger.github_pull_request_id.is_some() => "github_pull_request",
        _ if trigger.gitlab_merge_request_id.is_some() => "gitlab_merge_request",
        _ if trigger.azure_pull_request_id.is_some() => "azure_pull_request",
        _ => "other",
    };
    let context = if pull_request.is_some() { "ci" } else { kind };
    let ids = [
        ("DBT_CLOUD_ACCOUNT_ID", run.new.account.to_string()),
        ("DBT_CLOUD_PROJECT_ID", run.new.project.to_string()),
        ("DBT_CLOUD_ENVIRONMENT_ID", run.new.environment.to_string()),
        ("DBT_CLOUD_JOB_ID", run.new.job.to_string()),
        ("DBT_CLOUD_RUN_ID", run.id.to_string()),
        ("DBT_CLOUD_RUN_REASON_CATEGORY", category.to_owned()),
        ("DBT_CLOUD_RUN_REASON", trigger.cause.clone()),
    ];
    let mut variables = BTreeMap::from([
        ("DBT_ENV".to_owned(), "prod".to_owned()),
        ("DBT_CLOUD_ENVIRONMENT_NAME".to_owned(), environment.name.clone()),
        ("DBT_CLOUD_ENVIRONMENT_TYPE".to_owned(), kind.to_owned()),
        ("DBT_CLOUD_INVOCATION_CONTEXT".to_owned(), context.to_owned()),
    ]);
    for (name, value) in ids {
        variables.insert(format!("DBT_ENV_CUSTOM_ENV_{name}"), value.clone());
        variables.insert(name.to_owned(), value);
    }
    if let Some(id) = pull_request {
        variables.insert("DBT_CLOUD_PR_ID".to_owned(), id.to_string());
        variables.insert("DBT_ENV_CUSTOM_ENV_DBT_CLOUD_PR_ID".to_owned(), id.to_string());
    }
    if let Some(sha) = &trigger.git_sha {
        variables.insert("DBT_CLOUD_GIT_SHA".to_owned(), sha.clone());
    }
    variables
}
