//! A control plane that only takes agents' reports, strictly, and can go away, come back, lose answers and refuse.

#![allow(clippy::unwrap_used, missing_docs, dead_code, reason = "tests fail loudly")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as At, State as Of};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use dbtcloud_core::ports::{BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, RunPatch};
use dbtcloud_core::run::{NodeReport, RunEvent, RunStatus, StepState};
use sha2::{Digest as _, Sha256};

use crate::protocol::{Redeem, Refusal, Report, ReportAck, RunPlan, Stored};

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Takes everything in and answers nothing of use.
    LoseAnswers,
    /// Takes nothing in.
    Refuse(u16),
    /// Every other request is taken in without an answer, every third refused.
    Flaky,
}

#[derive(Default)]
pub struct Seen {
    pub plan: Option<RunPlan>,
    pub key: Option<String>,
    pub status: Option<RunStatus>,
    pub number: u64,
    pub requests: u64,
    pub steps: BTreeMap<u32, Vec<StepState>>,
    pub nodes: Vec<NodeReport>,
    pub events: Vec<RunEvent>,
    pub patch: RunPatch,
    pub logs: BTreeMap<u32, Vec<u8>>,
    /// Length and digest of each log; with `digest_only` little else is kept of it.
    pub digests: BTreeMap<u32, (u64, Sha256)>,
    pub digest_only: bool,
    pub artifacts: BTreeMap<(u32, String), Vec<u8>>,
    pub debug_logs: BTreeMap<u32, Vec<u8>>,
    pub state: BTreeMap<String, Vec<u8>>,
    pub refuse_artifacts: bool,
    pub fault: Fault,
    pub wrong: Vec<String>,
    pub largest: usize,
}

#[derive(Clone, Default)]
pub struct Plane {
    seen: Arc<Mutex<Seen>>,
    server: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
    socket: PathBuf,
}

fn refuse(status: u16, message: &str) -> Response {
    (
        StatusCode::from_u16(status).unwrap(),
        Json(Refusal {
            message: message.to_owned(),
        }),
    )
        .into_response()
}

impl Plane {
    pub fn new(dir: &Path, plan: Option<RunPlan>) -> Self {
        let plane = Self {
            socket: dir.join("plane.sock"),
            ..Self::default()
        };
        plane.seen().plan = plan;
        plane.seen().status = Some(RunStatus::Starting);
        plane.up();
        plane
    }

    pub fn server(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub fn up(&self) {
        let listener = tokio::net::UnixListener::bind(&self.socket).unwrap();
        let router = Router::new()
            .route("/agent/v1/redeem", post(redeem))
            .route("/agent/v1/report", post(report))
            .route("/agent/v1/artifacts/{step}/{*path}", put(artifact))
            .route("/agent/v1/debug-logs/{step}", put(debug_log))
            .route("/agent/v1/state/{file}", get(state))
            .layer(DefaultBodyLimit::disable())
            .with_state(self.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        *self.server.lock().unwrap() = Some(task);
    }

    pub fn down(&self) {
        self.server.lock().unwrap().take().unwrap().abort();
        std::fs::remove_file(&self.socket).unwrap();
    }

    pub fn log(&self, step: u32) -> String {
        String::from_utf8_lossy(self.seen().logs.get(&step).map_or(&[][..], Vec::as_slice)).into_owned()
    }

    pub fn last(&self, step: u32) -> StepState {
        self.seen().steps[&step].last().unwrap().clone()
    }

    /// A fault to answer with instead, and whether to take the request in all the same.
    fn fault(&self) -> (bool, Option<Response>) {
        let mut seen = self.seen();
        seen.requests += 1;
        match (seen.fault, seen.requests) {
            (Fault::None, _) => (true, None),
            (Fault::LoseAnswers, _) => (true, Some(StatusCode::BAD_GATEWAY.into_response())),
            (Fault::Refuse(status), _) => (false, Some(refuse(status, "no"))),
            (Fault::Flaky, n) if n % 3 == 0 => (false, Some(refuse(503, "busy"))),
            (Fault::Flaky, n) if n % 2 == 0 => (true, Some(StatusCode::GATEWAY_TIMEOUT.into_response())),
            (Fault::Flaky, _) => (true, None),
        }
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let seen = self.seen();
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
        seen.key
            .as_ref()
            .is_none_or(|key| bearer == Some(&format!("Bearer {key}")))
    }
}

async fn redeem(Of(plane): Of<Plane>, Json(ask): Json<Redeem>) -> Response {
    let (take, fault) = plane.fault();
    if take {
        let mut seen = plane.seen();
        if ask.ticket != "ticket" || seen.key.as_ref().is_some_and(|key| *key != ask.key) {
            return refuse(403, "this ticket opens nothing");
        }
        seen.key = Some(ask.key);
    }
    let plan = plane.seen().plan.clone();
    fault.unwrap_or_else(|| Json(plan).into_response())
}

async fn report(Of(plane): Of<Plane>, headers: HeaderMap, body: Bytes) -> Response {
    if !plane.knows(&headers) {
        return refuse(403, "unknown key");
    }
    let (take, fault) = plane.fault();
    if take && let Err(wrong) = take_in(&mut plane.seen(), body) {
        plane.seen().wrong.push(wrong.clone());
        return refuse(409, &wrong);
    }
    let seen = plane.seen();
    let ack = ReportAck {
        number: seen.number,
        status: seen.status.unwrap(),
    };
    fault.unwrap_or_else(|| Json(ack).into_response())
}

fn take_in(seen: &mut Seen, body: Bytes) -> Result<(), String> {
    seen.largest = seen.largest.max(body.len());
    let report = Report::decode(body).map_err(|error| error.to_string())?;
    if report.number <= seen.number {
        return Ok(());
    }
    if report.number != seen.number + 1 {
        return Err(format!("expected number {}, got {}", seen.number + 1, report.number));
    }
    let bytes: usize = report.logs.iter().map(|part| part.bytes.len()).sum();
    let items = report.steps.len() + report.nodes.len() + report.logs.len();
    if bytes > BATCH_LIMIT_BYTES || items > BATCH_LIMIT_ITEMS {
        return Err(format!("{bytes} bytes, {items} items"));
    }
    for state in report.steps {
        let states = seen.steps.entry(state.index).or_default();
        if let Some(last) = states.last()
            && !last.status.may_become(state.status)
        {
            return Err(format!(
                "step {} cannot go from {:?} to {:?}",
                state.index, last.status, state.status
            ));
        }
        states.push(state);
    }
    for part in report.logs {
        let (length, digest) = seen.digests.entry(part.step).or_default();
        if part.offset != *length {
            return Err(format!(
                "log of step {} is {length} long, got {}",
                part.step, part.offset
            ));
        }
        *length += part.bytes.len() as u64;
        digest.update(&part.bytes);
        let log = seen.logs.entry(part.step).or_default();
        log.extend_from_slice(&part.bytes);
        if seen.digest_only {
            log.drain(..log.len().saturating_sub(512));
        }
    }
    seen.nodes.extend(report.nodes);
    let (old, new) = (seen.patch.clone(), report.patch);
    seen.patch = RunPatch {
        message: new.message.or(old.message),
        git_branch: new.git_branch.or(old.git_branch),
        git_sha: new.git_sha.or(old.git_sha),
        dbt_version: new.dbt_version.or(old.dbt_version),
        artifacts_saved: new.artifacts_saved.or(old.artifacts_saved),
        has_docs: new.has_docs.or(old.has_docs),
        has_sources: new.has_sources.or(old.has_sources),
    };
    if let Some(event) = report.event {
        seen.events.push(event);
        seen.status = Some(seen.status.unwrap().apply(event).map_err(|error| error.to_string())?);
    }
    seen.number = report.number;
    Ok(())
}

async fn artifact(
    Of(plane): Of<Plane>,
    At((step, path)): At<(u32, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (_, fault) = plane.fault();
    if let Some(fault) = fault {
        return fault;
    }
    let mut seen = plane.seen();
    if seen.status.unwrap().is_terminal() || !headers.contains_key("authorization") {
        return refuse(410, "too late");
    }
    if seen.refuse_artifacts {
        return refuse(400, "no artifacts today");
    }
    let bytes = body.len() as u64;
    seen.artifacts.insert((step, path), body.to_vec());
    Json(Stored { bytes }).into_response()
}

async fn debug_log(Of(plane): Of<Plane>, At(step): At<u32>, body: Bytes) -> Response {
    let bytes = body.len() as u64;
    plane.seen().debug_logs.insert(step, body.to_vec());
    Json(Stored { bytes }).into_response()
}

async fn state(Of(plane): Of<Plane>, At(file): At<String>) -> Response {
    match plane.seen().state.get(&file) {
        Some(bytes) => bytes.clone().into_response(),
        None => refuse(404, "no such state"),
    }
}
