//! The three views of a project's environment variables. A scope that has no value is left out, never null:
//! clients decode the views into what cannot be null.

use dbtcloud_core::catalog::{Kind, Query, Record};
use dbtcloud_core::environment::{Environment, EnvironmentKind};
use dbtcloud_core::id::{EnvironmentId, JobId, UserId};
use dbtcloud_core::job::Job;
use dbtcloud_core::variable::{Scope, Variable};
use serde_json::{Map, Value, json};

use super::resource::{all, fetch};
use super::variables::{of_project, project_of};
use crate::auth::{Actor, Right};
use crate::call::{Answer, Call};
use crate::wire::envelope;
use crate::wire::fault::Fault;
use crate::wire::variable::value;

/// `{NAME: {scope: {id, value}}}` of the variables to which `label` gives a scope's name.
fn grouped(variables: &[Record<Variable>], label: impl Fn(Scope) -> Option<String>) -> Map<String, Value> {
    let mut names: Map<String, Value> = Map::new();
    for record in variables {
        let Some(scope) = label(record.scope) else { continue };
        let entry = names.entry(record.name.clone()).or_insert_with(|| json!({}));
        if let Value::Object(scopes) = entry {
            scopes.insert(scope, value(record));
        }
    }
    names
}

/// By environment: a project's variables under `project` and each environment's **name**.
pub(crate) async fn by_environment(call: Call) -> Answer {
    let project = project_of(&call, Right::Read).await?;
    let query = Query::new(Kind::Environment, call.account).in_project(project);
    let environments = all::<Environment>(&call, &query).await?;
    let name_of = |id: EnvironmentId| {
        environments
            .iter()
            .find(|record| record.id == id)
            .map(|record| record.name.clone())
    };
    let variables = grouped(&of_project(&call, project, None).await?, |scope| match scope {
        Scope::Project => Some("project".to_owned()),
        Scope::Environment(id) => name_of(id),
        Scope::Job(_) | Scope::User(_) => None,
    });
    let names = std::iter::once("project").chain(environments.iter().map(|record| record.name.as_str()));
    let names: Vec<&str> = names.collect();
    Ok(envelope::ok(json!({ "environments": names, "variables": variables })))
}

fn narrowed(environment: Option<EnvironmentId>, own: Scope, own_name: &str) -> impl Fn(Scope) -> Option<String> {
    move |scope| match scope {
        Scope::Project => Some("project".to_owned()),
        Scope::Environment(id) if Some(id) == environment => Some("environment".to_owned()),
        scope if scope == own => Some(own_name.to_owned()),
        Scope::Environment(_) | Scope::Job(_) | Scope::User(_) => None,
    }
}

/// By job: what its runs see, and from which scope.
pub(crate) async fn by_job(call: Call) -> Answer {
    let project = project_of(&call, Right::Read).await?;
    let Some(id) = call.params.int("job_definition_id")? else {
        return Err(Fault::field("job_definition_id", "This field is required."));
    };
    let job = fetch::<Job>(&call, id).await?;
    let label = narrowed(Some(job.environment), Scope::Job(JobId::new(id)), "job");
    Ok(envelope::ok(grouped(&of_project(&call, project, None).await?, label)))
}

/// By user: what their development sessions see. A person sees their own.
pub(crate) async fn by_user(call: Call) -> Answer {
    let project = project_of(&call, Right::Read).await?;
    let own = match call.who.actor {
        Actor::User(id) => Some(id),
        Actor::Service(_) => None,
    };
    let Some(user) = call.params.int("user_id")?.map(UserId::new).or(own) else {
        return Err(Fault::field("user_id", "This field is required."));
    };
    if Some(user) != own {
        call.demand(Right::EditAccount, None)?;
    }
    let query = Query::new(Kind::Environment, call.account).in_project(project);
    let environments = all::<Environment>(&call, &query).await?;
    let development = environments
        .iter()
        .find(|record| record.kind == EnvironmentKind::Development);
    let label = narrowed(development.map(|record| record.id), Scope::User(user), "user");
    Ok(envelope::ok(grouped(&of_project(&call, project, None).await?, label)))
}
