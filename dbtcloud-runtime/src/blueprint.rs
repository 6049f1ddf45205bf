//! Everything a first run needs, in one go: for embedders, examples and tests. The server's API makes the
//! same records one by one.

use dbtcloud_core::Result;
use dbtcloud_core::account::Account;
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt, Extras, Record};
use dbtcloud_core::connection::{Connection, Credentials};
use dbtcloud_core::environment::{DeploymentType, Environment, EnvironmentKind, Placement};
use dbtcloud_core::job::Job;
use dbtcloud_core::project::{GitAccess, Project, Repository};

use crate::ControlPlane;

/// A dbt project, where its code and its warehouse are, and what is run.
///
/// ```
/// use dbtcloud_runtime::Blueprint;
/// let blueprint = Blueprint::new("shop", "https://git.example/shop.git", "duckdb")
///     .connect("path", "/data/shop.duckdb")
///     .commands(["dbt seed", "dbt build"]);
/// assert_eq!(blueprint.commands, ["dbt seed", "dbt build"]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Blueprint {
    /// Name of account and project.
    pub name: String,
    /// URL or path of the git repository.
    pub repository: String,
    /// Folder of the repository that holds `dbt_project.yml`.
    pub subdirectory: Option<String>,
    /// dbt adapter.
    pub adapter: String,
    /// Profile fields that are not secret.
    pub connection: Extras,
    /// Target schema.
    pub schema: Option<String>,
    /// Which dbt.
    pub dbt_version: String,
    /// dbt commands.
    pub commands: Vec<String>,
}

impl Blueprint {
    /// A project whose job is `dbt build` with the tested default dbt.
    pub fn new(name: impl Into<String>, repository: impl Into<String>, adapter: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            repository: repository.into(),
            subdirectory: None,
            adapter: adapter.into(),
            connection: Extras::new(),
            schema: None,
            dbt_version: "latest".to_owned(),
            commands: vec!["dbt build".to_owned()],
        }
    }

    /// With this field of the profile.
    #[must_use]
    pub fn connect(mut self, field: &str, value: impl Into<serde_json::Value>) -> Self {
        self.connection.insert(field.to_owned(), value.into());
        self
    }

    /// With these commands in place of `dbt build`.
    #[must_use]
    pub fn commands<S: Into<String>>(mut self, commands: impl IntoIterator<Item = S>) -> Self {
        self.commands = commands.into_iter().map(Into::into).collect();
        self
    }

    /// With `dbt_project.yml` in this folder of the repository.
    #[must_use]
    pub fn subdirectory(mut self, folder: impl Into<String>) -> Self {
        self.subdirectory = Some(folder.into());
        self
    }

    /// With this target schema.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }
}

impl ControlPlane {
    /// Makes account, project, repository, connection, credentials, environment and job of a blueprint. A
    /// second call makes a second set.
    ///
    /// # Errors
    /// `Invalid`, naming the field; those of storage. Records made before the error stay.
    pub async fn install(&self, blueprint: &Blueprint) -> Result<Record<Job>> {
        let (catalog, now) = (self.catalog(), self.clock().now());
        let own = dbtcloud_core::id::AccountId::new(0);
        let account = catalog.create(own, &Account::new(&blueprint.name), now).await?.id;
        let project = Project {
            name: blueprint.name.clone(),
            description: String::new(),
            repository: None,
            connection: None,
            subdirectory: blueprint.subdirectory.clone(),
            docs_job: None,
            freshness_job: None,
            extras: Extras::new(),
        };
        let mut project = catalog.create(account, &project, now).await?;
        let repository = Repository {
            project: project.id,
            remote_url: blueprint.repository.clone(),
            git_clone_strategy: "deploy_key".to_owned(),
            default_branch: None,
            access: GitAccess::Anonymous,
            extras: Extras::new(),
        };
        project.body.repository = Some(catalog.create(account, &repository, now).await?.id);
        let project = catalog.save(&project, now).await?;
        let adapter_version = format!("{}_v0", blueprint.adapter);
        let connection = Connection {
            name: blueprint.name.clone(),
            adapter: blueprint.adapter.clone(),
            adapter_version: adapter_version.clone(),
            config: blueprint.connection.clone(),
            secrets: Default::default(),
            extras: Extras::new(),
        };
        let connection = catalog.create(account, &connection, now).await?.id;
        let credentials = Credentials {
            project: project.id,
            adapter: blueprint.adapter.clone(),
            adapter_version,
            schema: blueprint.schema.clone(),
            threads: None,
            target_name: None,
            fields: Extras::new(),
            secrets: Default::default(),
            extras: Extras::new(),
        };
        let credentials = catalog.create(account, &credentials, now).await?.id;
        let environment = Environment {
            project: project.id,
            name: "Production".to_owned(),
            kind: EnvironmentKind::Deployment,
            deployment_type: Some(DeploymentType::Production),
            dbt_version: blueprint.dbt_version.clone(),
            connection: Some(connection),
            credentials: Some(credentials),
            extended_attributes: None,
            custom_branch: None,
            use_custom_branch: false,
            execution: Placement::default(),
            extras: Extras::new(),
        };
        let environment = catalog.create(account, &environment, now).await?;
        let mut job = Job::new(project.id, environment.id, blueprint.name.clone());
        job.execute_steps.clone_from(&blueprint.commands);
        self.create_job(&Actor::System, account, job).await
    }
}
