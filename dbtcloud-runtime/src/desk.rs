//! The desk where agents are served: `/agent/v1/…` (see [`crate::protocol`]).
//!
//! It trusts nothing but a ticket and the key bound to it, and it writes by the agent's fence alone.

pub(crate) mod door;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::{AccountId, JobId, RunId};
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{
    AgentIdentity, Area, ArtifactKey, ArtifactPath, Batch, Bell, ByteRange, Digest, Holder, LogChunk,
};
use dbtcloud_core::run::Run;
use dbtcloud_core::{Error, ErrorKind, Result, failpoint};
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::plane::ControlPlane;
use crate::protocol::{
    FRAME_LIMIT_BYTES, PROTOCOL_HEADER, PROTOCOL_WRITTEN, Redeem, Refusal, Report, ReportAck, RunPlan, Stored,
    readable, status_of,
};
use crate::{plan, plane};

/// The shortest key an agent may bind, in bytes.
const KEY_MIN_BYTES: usize = 32;
/// The longest ticket or key, in bytes.
const KEY_MAX_BYTES: usize = 256;
/// The longest body of a redemption, in bytes.
const REDEEM_LIMIT_BYTES: usize = 4 * 1024;
/// Files of an earlier run that an agent may ask for.
const STATE_FILES: [&str; 2] = ["manifest.json", "run_results.json"];

struct Refused(Error);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(error) = self;
        match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Corrupt => {
                tracing::warn!(error = %error.chain(), "agent request failed")
            }
            _ => tracing::debug!(error = %error.chain(), "agent request refused"),
        }
        let status = if is_full(&error) {
            StatusCode::INSUFFICIENT_STORAGE
        } else {
            StatusCode::from_u16(status_of(error.kind())).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
        };
        (
            status,
            Json(Refusal {
                message: error.to_string(),
            }),
        )
            .into_response()
    }
}

/// Whether a store has no room left, which waiting does not make.
fn is_full(error: &Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    std::iter::successors(std::error::Error::source(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

type Answer<T> = std::result::Result<T, Refused>;

/// The router of the desk.
pub(crate) fn router(plane: ControlPlane) -> Router {
    let desk = Router::new()
        .route(
            "/agent/v1/redeem",
            post(redeem).layer(DefaultBodyLimit::max(REDEEM_LIMIT_BYTES)),
        )
        .route(
            "/agent/v1/report",
            post(report).layer(DefaultBodyLimit::max(FRAME_LIMIT_BYTES)),
        )
        .route(
            "/agent/v1/artifacts/{step}/{*path}",
            put(put_artifact).layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/agent/v1/debug-logs/{step}",
            put(put_debug_log).layer(DefaultBodyLimit::disable()),
        )
        .route("/agent/v1/state/{file}", get(get_state))
        .with_state(plane);
    desk.layer(from_fn(understood)).layer(from_fn(observed))
}

/// Answers only what is of a protocol that can be read, and says which one the answer is of.
async fn understood(request: Request, next: Next) -> Response {
    let written = request.headers().get(PROTOCOL_HEADER);
    let written = written.map(|value| value.to_str().unwrap_or("unknown"));
    let mut response = match readable(written) {
        Ok(()) => next.run(request).await,
        Err(error) => Refused(error).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL_WRITTEN));
    response
}

/// Every line that is logged for an agent names its run, as soon as that is known.
async fn observed(request: Request, next: Next) -> Response {
    let span = tracing::error_span!("agent", account_id = Empty, job_id = Empty, run_id = Empty);
    next.run(request).instrument(span).await
}

/// Tells which run a request is about.
fn about(account: AccountId, run: RunId, job: Option<JobId>) {
    let span = tracing::Span::current();
    span.record("account_id", account.get());
    span.record("run_id", run.get());
    if let Some(job) = job {
        span.record("job_id", job.get());
    }
}

/// SHA-256, as storage keeps tickets and keys.
pub(crate) fn digest(text: &str) -> Digest {
    Digest(Sha256::digest(text.as_bytes()).into())
}

async fn redeem(State(plane): State<ControlPlane>, Json(ask): Json<Redeem>) -> Answer<Json<RunPlan>> {
    if ask.key.len() < KEY_MIN_BYTES || ask.key.len() > KEY_MAX_BYTES || ask.ticket.len() > KEY_MAX_BYTES {
        return Err(Error::invalid("key", format!("expected {KEY_MIN_BYTES} to {KEY_MAX_BYTES} bytes")).into());
    }
    let now = plane.clock().now();
    let identity = plane
        .tickets()
        .redeem(digest(&ask.ticket), digest(&ask.key), now)
        .await?;
    let run = living_run(&plane, &identity).await?;
    Ok(Json(plan::make(&plane, &run).await?))
}

async fn identify(plane: &ControlPlane, headers: &HeaderMap) -> Result<AgentIdentity> {
    let key = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| Error::new(ErrorKind::Denied, "expected Authorization: Bearer <key>"))?;
    let identity = plane.tickets().authenticate(digest(key)).await?;
    about(identity.account, identity.fence.run(), None);
    Ok(identity)
}

/// The run of an agent that is still its run.
async fn living_run(plane: &ControlPlane, identity: &AgentIdentity) -> Result<Run> {
    let run = plane.runs().get(identity.account, identity.fence.run()).await?;
    about(identity.account, run.id, Some(run.new.job));
    let current = identity.fence.holder() == Holder::Agent { attempt: run.attempt };
    if !current || run.status.is_terminal() {
        plane.metrics().fenced_reports.add(1);
        return Err(Error::fenced(format!("run {} is no longer this agent's", run.id)));
    }
    Ok(run)
}

async fn report(State(plane): State<ControlPlane>, headers: HeaderMap, frame: Bytes) -> Answer<Json<ReportAck>> {
    let identity = identify(&plane, &headers).await?;
    let report = Report::decode(frame)?;
    let event = report.event;
    let log_bytes: u64 = report.logs.iter().map(|part| part.bytes.len() as u64).sum();
    let counted = report.counted;
    let batch = Batch {
        number: report.number,
        at: plane.clock().now(),
        steps: report.steps,
        nodes: report.nodes,
        logs: report
            .logs
            .into_iter()
            .map(|part| LogChunk {
                step: part.step,
                offset: part.offset,
                bytes: part.bytes,
            })
            .collect(),
        event,
        patch: report.patch,
    };
    let ack = plane
        .runs()
        .report(&identity.fence, &batch)
        .await
        .inspect_err(|error| {
            if error.kind() == ErrorKind::Fenced {
                plane.metrics().fenced_reports.add(1);
            }
        })?;
    if let Some(taken) = &ack.taken {
        about(identity.account, taken.run.id, Some(taken.run.new.job));
        plane.metrics().log_bytes.add(log_bytes);
        plane.metrics().counted(&counted);
        plane.moved(taken.before, &taken.run);
    }
    if ack.status.is_terminal() {
        plane.ring(Bell::Queue);
    }
    plane.ring(Bell::Reports);
    if event.is_some() {
        plane.ring(Bell::Outbox);
    }
    Ok(Json(ReportAck {
        number: ack.number,
        status: ack.status,
    }))
}

async fn put_artifact(
    State(plane): State<ControlPlane>,
    Path((step, path)): Path<(u32, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<Stored>> {
    store(&plane, &headers, Area::Step(step), path.parse()?, body).await
}

async fn put_debug_log(
    State(plane): State<ControlPlane>,
    Path(step): Path<u32>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<Stored>> {
    store(&plane, &headers, Area::Logs, plane::debug_log_path(step)?, body).await
}

async fn store(
    plane: &ControlPlane,
    headers: &HeaderMap,
    area: Area,
    path: ArtifactPath,
    body: Body,
) -> Answer<Json<Stored>> {
    let identity = identify(plane, headers).await?;
    let run = living_run(plane, &identity).await?;
    let key = ArtifactKey {
        account: identity.account,
        run: run.id,
        area,
        path,
    };
    let stream = body
        .into_data_stream()
        .map_err(|e| Error::unavailable("the agent's upload broke off").because(e.to_string()))
        .boxed();
    failpoint::reached("desk", "artifact", "before_put");
    let put = plane.artifacts()?.put(&key, stream).await;
    failpoint::reached("desk", "artifact", "after_put");
    match put {
        Ok(bytes) => {
            plane.metrics().artifacts_stored.add(1);
            Ok(Json(Stored { bytes }))
        }
        Err(error) => {
            plane.metrics().artifact_failures.add(1);
            Err(error.into())
        }
    }
}

async fn get_state(
    State(plane): State<ControlPlane>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let identity = identify(&plane, &headers).await?;
    let run = living_run(&plane, &identity).await?;
    if !STATE_FILES.contains(&file.as_str()) {
        return Err(Error::not_found("state file", file).into());
    }
    let source = match run.new.retry_of {
        Some(earlier) => plane.runs().get(identity.account, earlier).await?,
        None => {
            let job = plane.catalog().fetch::<Job>(identity.account, run.new.job).await?;
            plane
                .deferred_to(&job)
                .await?
                .ok_or_else(|| Error::not_found("run to defer to for job", job.id))?
        }
    };
    // A retry resumes the step that failed; a deferral reads the newest manifest that the run left.
    let failed = match run.new.retry_of {
        Some(_) => plane.failed_step(&source).await?.map(|(step, _)| step),
        None => None,
    };
    let step = match failed {
        Some(step) => step,
        None => plane.newest_step_with(&source, &file).await?,
    };
    let key = ArtifactKey {
        account: identity.account,
        run: source.id,
        area: Area::Step(step),
        path: file.parse()?,
    };
    let stream = plane.artifacts()?.open(&key, ByteRange::default()).await?;
    Ok(Body::from_stream(stream.map_err(|error| std::io::Error::other(error.to_string()))).into_response())
}
