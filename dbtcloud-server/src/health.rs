//! `/healthz`: the process answers. `/readyz`: what it depends on answers too.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dbtcloud_core::Error;
use dbtcloud_core::catalog::Kind;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_runtime::ControlPlane;
use serde_json::json;

use crate::App;

/// How long each thing that a server depends on may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// The component that every process needs.
const DATABASE: &str = "database";

/// One thing that a server depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its name.
    pub name: &'static str,
    /// What is wrong with it; nothing when absent.
    pub fault: Option<String>,
    /// Whether the server is not ready without it. Otherwise it is only slower.
    pub vital: bool,
}

impl Component {
    fn vital(name: &'static str, error: Option<Error>) -> Self {
        if let Some(error) = &error {
            tracing::warn!(component = name, error = %error.chain(), "not ready");
        }
        Self {
            name,
            fault: error.map(|error| error.to_string()),
            vital: true,
        }
    }
}

impl Component {
    /// One without which a server is only slower, or cannot do all.
    fn degraded(name: &'static str, fault: Option<String>) -> Self {
        Self {
            name,
            fault: fault.map(|fault| format!("degraded: {fault}")),
            vital: false,
        }
    }
}

/// Whether a server can do its work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Everything it depends on.
    pub components: Vec<Component>,
    /// Seconds since the scheduler of this process last finished a round; nothing before the first.
    pub scheduler_idle_seconds: Option<u64>,
}

impl Readiness {
    /// Asks every component of a control plane. Changes nothing.
    pub async fn of(plane: &ControlPlane) -> Self {
        // A read that any migrated database can answer, and a listing of a run that cannot exist, which asks an
        // object store one question.
        let database = plane.catalog().scan(Kind::Account, 0, 1);
        let database = in_time(
            database,
            "the database does not answer in time; everything waits for it",
        );
        let artifacts = async {
            let asked = plane.artifacts()?.list(AccountId::new(0), RunId::new(0), None);
            asked.await
        };
        let artifacts = in_time(
            artifacts,
            "the artifact store does not answer in time; runs wait for it",
        );
        let (database, artifacts) = tokio::join!(database, artifacts);
        let ticked = plane.metrics().scheduler_tick_at.get();
        let idle = plane.clock().now().since(dbtcloud_core::Timestamp::from_micros(ticked));
        // Told by the loop that listens, where there is one; without wake-ups the loops poll.
        let wakeups = plane
            .wakeups_fault()
            .map(|fault| format!("polling every {:?}; {fault}", plane.config().poll));
        Self {
            components: vec![
                Component::vital(DATABASE, database),
                Component::vital("artifacts", artifacts),
                Component::degraded("wakeups", wakeups),
                Component::degraded("scheduler", plane.scheduler_fault()),
                Component::degraded("clock", plane.clock_fault()),
                Component::degraded("mail", plane.mail_fault()),
            ],
            scheduler_idle_seconds: (ticked > 0).then_some(idle.as_secs()),
        }
    }

    /// Whether all that are vital answer.
    pub fn is_ready(&self) -> bool {
        let fine = |component: &Component| component.fault.is_none() || !component.vital;
        self.components.iter().all(fine)
    }
}

/// What is wrong with something that has to answer soon.
async fn in_time<T>(asked: impl Future<Output = Result<T, Error>>, late: &'static str) -> Option<Error> {
    match tokio::time::timeout(PROBE_LIMIT, asked).await {
        Ok(answer) => answer.err(),
        Err(_) => Some(Error::unavailable(late)),
    }
}

/// The process answers.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// 200 when everything vital answers, 503 with the reasons otherwise.
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let mut readiness = Readiness::of(&app.plane).await;
    if let Some(check) = &app.options.database {
        let answers = |component: &&mut Component| component.name == DATABASE && component.fault.is_none();
        if let Some(database) = readiness.components.iter_mut().find(answers) {
            *database = Component::vital(DATABASE, check().await.err());
        }
    }
    let draining = app.options.draining.is_cancelled();
    if let Some(check) = &app.options.executor {
        // Runs wait for it; everything else works.
        let late = "the cluster does not answer in time; runs wait for it";
        let fault = in_time(check(), late).await.map(|error| error.to_string());
        readiness.components.push(Component::degraded("executor", fault));
    }
    let ready = readiness.is_ready() && !draining;
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let components: serde_json::Map<String, serde_json::Value> = readiness
        .components
        .iter()
        .map(|component| {
            (
                component.name.to_owned(),
                component.fault.as_deref().unwrap_or("ok").into(),
            )
        })
        .collect();
    let body = json!({
        "ready": ready,
        "draining": draining,
        "components": components,
        "scheduler_idle_seconds": readiness.scheduler_idle_seconds,
    });
    (status, Json(body)).into_response()
}
