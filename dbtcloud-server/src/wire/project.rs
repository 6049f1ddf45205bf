//! Projects and repositories.

use dbtcloud_core::catalog::{Extras, Record};
use dbtcloud_core::id::ProjectId;
use dbtcloud_core::project::{GitAccess, Project, Repository};
use serde_json::{Map, Value, json};

use super::body::Fields;
use super::extras::{self, Keep, Table};
use super::{Api, state};

const PROJECT_EXTRAS: Table = &[
    ("semantic_layer_config_id", Keep::Int(None)),
    ("type", Keep::Int(Some(0))),
    ("default_version", Keep::Text(None)),
];

const REPOSITORY_EXTRAS: Table = &[
    ("remote_backend", Keep::Text(None)),
    ("deploy_key_id", Keep::Int(None)),
    ("repository_credentials_id", Keep::Int(None)),
    ("github_installation_id", Keep::Int(None)),
    ("github_webhook_id", Keep::Int(None)),
    ("git_provider_id", Keep::Int(None)),
    ("gitlab_project_id", Keep::Int(None)),
    ("azure_active_directory_project_id", Keep::Text(None)),
    ("azure_active_directory_repository_id", Keep::Text(None)),
    ("azure_bypass_webhook_registration_failure", Keep::Bool(Some(false))),
    ("private_link_endpoint_id", Keep::Text(None)),
    ("pull_request_url_template", Keep::Text(None)),
];

/// What may be shown of a repository's authentication: nothing.
const MASK: &str = super::secrets::MASK;

/// An empty project, to read a request into.
pub(crate) fn blank_project() -> Project {
    Project {
        name: String::new(),
        description: String::new(),
        repository: None,
        connection: None,
        subdirectory: None,
        docs_job: None,
        freshness_job: None,
        extras: Extras::new(),
    }
}

/// Takes a request's fields over.
pub(crate) fn read_project(fields: &mut Fields, project: &mut Project) {
    fields.set("name", &mut project.name);
    fields.set("description", &mut project.description);
    fields.set_optional("repository_id", &mut project.repository);
    fields.set_optional("connection_id", &mut project.connection);
    fields.set_optional_text("dbt_project_subdirectory", &mut project.subdirectory);
    fields.set_optional("docs_job_id", &mut project.docs_job);
    fields.set_optional("freshness_job_id", &mut project.freshness_job);
    extras::read(fields, PROJECT_EXTRAS, &mut project.extras);
    if project.name.trim().is_empty() {
        fields.reject("name", "expected a name, got an empty text");
    }
    let outside = |path: &String| path.starts_with('/') || path.split('/').any(|part| part == "..");
    if project.subdirectory.as_ref().is_some_and(outside) {
        fields.reject("dbt_project_subdirectory", "expected a folder inside the repository");
    }
}

/// A project; related objects are null until somebody fills them in.
pub(crate) fn project(record: &Record<Project>, api: Api) -> Map<String, Value> {
    let mut view = object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "name": record.name,
        "description": record.description,
        "repository_id": record.repository.map(i64::from),
        "connection_id": record.connection.map(i64::from),
        "dbt_project_subdirectory": record.subdirectory,
        "docs_job_id": record.docs_job.map(i64::from),
        "freshness_job_id": record.freshness_job.map(i64::from),
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
        "skipped_setup": false,
        "connection": Value::Null,
        "repository": Value::Null,
        "environments": Value::Null,
        "group_permissions": Value::Null,
        "docs_job": Value::Null,
        "freshness_job": Value::Null,
        "fusion_readiness": Value::Null,
    };
    extras::show(&record.extras, PROJECT_EXTRAS, &mut view);
    view
}

/// An empty repository, to read a request into.
pub(crate) fn blank_repository(project: ProjectId) -> Repository {
    Repository {
        project,
        remote_url: String::new(),
        git_clone_strategy: "deploy_key".to_owned(),
        default_branch: None,
        access: GitAccess::Anonymous,
        extras: Extras::new(),
    }
}

/// A secret of a repository that a request brought along, still to be sealed. These fields are this
/// server's own: dbt Cloud gets its tokens by OAuth.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NewAccess {
    /// User name and token.
    Token { username: String, token: String },
    /// An SSH key pair.
    DeployKey { public_key: String, private_key: String },
    /// None any more.
    Anonymous,
}

/// Takes a request's fields over; a secret among them is returned apart.
pub(crate) fn read_repository(fields: &mut Fields, repository: &mut Repository) -> Option<NewAccess> {
    const STRATEGIES: [&str; 7] = [
        "deploy_key",
        "deploy_token",
        "github_app",
        "git_token",
        "azure_active_directory_app",
        "git_clone",
        "none",
    ];
    fields.set("remote_url", &mut repository.remote_url);
    fields.set("git_clone_strategy", &mut repository.git_clone_strategy);
    fields.set_optional_text("default_branch", &mut repository.default_branch);
    extras::read(fields, REPOSITORY_EXTRAS, &mut repository.extras);
    if repository.remote_url.trim().is_empty() || repository.remote_url.starts_with('-') {
        fields.reject("remote_url", "expected a URL to clone from");
    }
    if let Ok(url) = url::Url::parse(&repository.remote_url)
        && url.password().is_some()
    {
        fields.reject("remote_url", "expected a URL without a password; send it as git_token");
    }
    if !STRATEGIES.contains(&repository.git_clone_strategy.as_str()) {
        fields.reject(
            "git_clone_strategy",
            format!("expected one of {}", STRATEGIES.join(", ")),
        );
    }
    if fields.raw("git_token").is_some_and(Value::is_null) {
        return Some(NewAccess::Anonymous);
    }
    if let Some(token) = fields.take::<String>("git_token").filter(|token| token != MASK) {
        let username = fields
            .take("git_username")
            .unwrap_or_else(|| "x-access-token".to_owned());
        return Some(NewAccess::Token { username, token });
    }
    let private_key = fields.take::<String>("deploy_key_private").filter(|key| key != MASK)?;
    let public_key = fields.take("deploy_key_public").unwrap_or_default();
    Some(NewAccess::DeployKey {
        public_key,
        private_key,
    })
}

/// `owner/name` of a remote, as hosts call it.
fn full_name(remote: &str) -> String {
    let path = match remote.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, path)| path),
        None => remote.rsplit_once(':').map_or(remote, |(_, path)| path),
    };
    path.trim_matches('/').trim_end_matches(".git").to_owned()
}

fn backend(remote: &str) -> &'static str {
    ["github", "gitlab"]
        .into_iter()
        .find(|host| remote.contains(host))
        .unwrap_or(match remote {
            url if url.contains("dev.azure.com") => "ado",
            _ => "manual_config",
        })
}

/// A repository.
pub(crate) fn repository(record: &Record<Repository>, api: Api) -> Map<String, Value> {
    let full_name = full_name(&record.remote_url);
    let name = full_name.rsplit('/').next().unwrap_or_default().to_owned();
    let web_url = record
        .remote_url
        .starts_with("https://")
        .then(|| record.remote_url.trim_end_matches(".git"));
    let deploy_key = match &record.access {
        GitAccess::DeployKey { public_key, .. } => json!({
            "id": record.id.get(),
            "account_id": record.account.get(),
            "public_key": public_key,
            "state": state(record),
        }),
        GitAccess::Anonymous | GitAccess::Token { .. } => Value::Null,
    };
    let (username, token) = match &record.access {
        GitAccess::Token { username, .. } => (Some(username.as_str()), Some(MASK)),
        GitAccess::Anonymous | GitAccess::DeployKey { .. } => (None, None),
    };
    let mut view = object! {
        "id": record.id.get(),
        "account_id": record.account.get(),
        "project_id": record.project.get(),
        "full_name": full_name,
        "name": name,
        "web_url": web_url,
        "github_repo": Value::Null,
        "remote_url": record.remote_url,
        "git_clone_strategy": record.git_clone_strategy,
        "default_branch": record.default_branch,
        "state": state(record),
        "created_at": api.time(record.created_at),
        "updated_at": api.time(record.updated_at),
        "deploy_key": deploy_key,
        "git_provider": Value::Null,
        "gitlab": Value::Null,
        "is_private_link_enabled": false,
    };
    extras::show(&record.extras, REPOSITORY_EXTRAS, &mut view);
    if record.extras.get("remote_backend").is_none() {
        view.insert("remote_backend".to_owned(), backend(&record.remote_url).into());
    }
    if let (Some(username), Some(token)) = (username, token) {
        view.insert("git_username".to_owned(), username.into());
        view.insert("git_token".to_owned(), token.into());
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_has_the_name_its_host_gives_it() {
        for (remote, name) in [
            ("https://github.com/acme/shop.git", "acme/shop"),
            ("git@github.com:acme/shop.git", "acme/shop"),
            ("ssh://git@host:22/acme/shop", "acme/shop"),
            ("file:///srv/git/shop.git", "srv/git/shop"),
            ("/srv/git/shop", "srv/git/shop"),
        ] {
            assert_eq!(full_name(remote), name, "{remote}");
        }
    }
}
