//! The endpoints. Most are one of five generic handlers over a [`resource::Resource`]; what is more than
//! that has a module of its own. An endpoint of dbt Cloud's that is not here answers an enveloped 404 that
//! says so; its place is the module of its resource, and one line below.

mod accounts;
mod artifacts;
mod audit;
mod connections;
mod environments;
mod jobs;
mod notifications;
mod projects;
mod resource;
mod runs;
mod steps;
mod users;
mod variable_views;
mod variables;
mod webhooks;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{MethodRouter, get, post};
use dbtcloud_core::account::User;
use dbtcloud_core::connection::{Connection, Credentials, ExtendedAttributes};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::job::Job;
use dbtcloud_core::notification::Notification;
use dbtcloud_core::project::{Project, Repository};
use dbtcloud_core::variable::Variable;

use crate::App;
use crate::live;
use crate::wire::fault::Fault;
use resource::{Resource, create, delete, list, read, update};
pub(crate) use runs::fetch_run;

/// List and create.
fn many<T: Resource>() -> MethodRouter<App> {
    get(list::<T>).post(create::<T>)
}

/// Get, update and delete; an update is the same by `POST`, `PATCH` and `PUT`.
fn single<T: Resource>() -> MethodRouter<App> {
    get(read::<T>)
        .post(update::<T>)
        .patch(update::<T>)
        .put(update::<T>)
        .delete(delete::<T>)
}

/// All endpoints, without the trailing slash: the gateway takes it off.
pub(crate) fn router() -> Router<App> {
    Router::new().merge(v2()).merge(v3())
}

fn v2() -> Router<App> {
    const A: &str = "/api/v2/accounts/{account}";
    let at = |path: &str| format!("{A}{path}");
    Router::new()
        .route("/api/v2/whoami", get(users::whoami))
        .route("/api/v2/users/{id}", get(users::by_id))
        .route("/api/v2/accounts", get(accounts::list))
        .route(A, get(accounts::get))
        .route(&at("/users"), get(list::<User>))
        .route(&at("/users/{id}"), get(users::by_id))
        .route(&at("/projects"), many::<Project>())
        .route(&at("/projects/{id}"), single::<Project>())
        .route(&at("/environments"), many::<Environment>())
        .route(&at("/environments/{id}"), single::<Environment>())
        .route(&at("/repositories"), many::<Repository>())
        .route(&at("/repositories/{id}"), single::<Repository>())
        .route("/api/v2/notifications/unsubscribe", post(notifications::unsubscribe))
        .route(&at("/notifications"), many::<Notification>())
        .route(&at("/notifications/{id}"), single::<Notification>())
        .route(&at("/jobs"), many::<Job>())
        .route(&at("/jobs/{id}"), single::<Job>())
        .route(&at("/jobs/{id}/run"), post(jobs::run))
        .route(&at("/jobs/{id}/rerun"), post(jobs::rerun))
        .route(&at("/jobs/{id}/artifacts/{*path}"), get(artifacts::of_job))
        .route(&at("/runs"), get(runs::list))
        .route(&at("/runs/{id}"), get(runs::get))
        .route(&at("/runs/{id}/cancel"), post(runs::cancel))
        .route(&at("/runs/{id}/retry"), get(runs::failure).post(runs::retry))
        .route(&at("/runs/{id}/artifacts"), get(artifacts::list))
        .route(&at("/runs/{id}/artifacts/{*path}"), get(artifacts::of_run))
        .route(&at("/runs/{id}/events"), get(live::events))
        .route(&at("/steps/{id}"), get(steps::get))
}

fn v3() -> Router<App> {
    const A: &str = "/api/v3/accounts/{account}";
    let at = |path: &str| format!("{A}{path}");
    let project = |path: &str| format!("{A}/projects/{{project}}{path}");
    Router::new()
        .route("/api/v3/accounts", get(accounts::list))
        .route(A, get(accounts::get))
        .route(&at("/users"), get(list::<User>))
        .route(&at("/users/{id}"), get(users::by_id))
        .route(&at("/projects"), many::<Project>())
        .route(&at("/projects/{id}"), single::<Project>())
        .route(&at("/environments"), many::<Environment>())
        .route(&at("/environments/{id}"), single::<Environment>())
        .route(&at("/audit-logs"), get(audit::list))
        .route(&at("/audit-logs/download"), get(audit::download))
        .route(&at("/connections"), many::<Connection>())
        .route(&at("/connections/{id}"), single::<Connection>())
        .route(&project("/environments"), many::<Environment>())
        .route(&project("/environments/{id}"), single::<Environment>())
        .route(&project("/connections"), many::<Connection>())
        .route(&project("/connections/{id}"), single::<Connection>())
        .route(&project("/credentials"), many::<Credentials>())
        .route(&project("/credentials/{id}"), single::<Credentials>())
        .route(&project("/repositories"), many::<Repository>())
        .route(&project("/repositories/{id}"), single::<Repository>())
        .route(&project("/extended-attributes"), many::<ExtendedAttributes>())
        .route(&project("/extended-attributes/{id}"), single::<ExtendedAttributes>())
        .route(&project("/environment-variables"), many::<Variable>())
        .route(&project("/environment-variables/{id}"), single::<Variable>())
        .route(
            &project("/environment-variables/bulk"),
            post(variables::bulk_create)
                .put(variables::bulk_update)
                .delete(variables::bulk_delete),
        )
        .route(
            &project("/environment-variables/environment"),
            get(variable_views::by_environment),
        )
        .route(
            &at("/webhooks/subscriptions"),
            get(webhooks::list).post(webhooks::create),
        )
        .route(
            &at("/webhooks/subscription/{id}"),
            get(webhooks::get).put(webhooks::update).delete(webhooks::delete),
        )
        .route(&at("/webhooks/subscription/{id}/test"), get(webhooks::test))
        .route(&at("/webhooks/subscription/{id}/events"), get(webhooks::events))
        .route(
            &at("/webhooks/subscription/{id}/event/{event}/receipt"),
            get(webhooks::receipt),
        )
        .route(&project("/environment-variables/job"), get(variable_views::by_job))
        .route(&project("/environment-variables/user"), get(variable_views::by_user))
}

/// What dbt Cloud has and this server has not, and what nobody has.
pub(crate) async fn not_implemented(method: Method, uri: Uri) -> Fault {
    Fault::not_found(format!("{method} {} is not implemented by this server", uri.path()))
}

/// A path that exists, asked for in a way that does not.
pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> Fault {
    Fault::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not allowed on {}.", uri.path()),
    )
}
