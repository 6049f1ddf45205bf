//! `/metrics`: what was counted, as Prometheus text. Never labelled by run, job or account: those have no
//! bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use dbtcloud_runtime::metrics::Metrics as PlaneMetrics;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::App;
use crate::wire::fault::Fault;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    status: &'static str,
}

type Durations = Family<Route, Histogram>;

fn histogram() -> Histogram {
    // 1 ms to about 16 s.
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// What this server counts of its own requests.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    durations: Durations,
    requests: AtomicU64,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self {
            durations: Family::new_with_constructor(histogram),
            requests: AtomicU64::new(0),
        }
    }
}

/// A method by name; what is no method of ours is one label.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

impl HttpMetrics {
    pub(crate) fn observe(&self, method: &Method, route: &str, status: u16, took: Duration) {
        let labels = Route {
            method: method_name(method),
            route: route.to_owned(),
            status,
        };
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An id for a request that brought none: unique in this process.
    pub(crate) fn next_id(&self) -> String {
        format!("r{:x}", self.requests.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

fn seconds(micros: i64) -> f64 {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64()
}

fn register(plane: &PlaneMetrics, http: &HttpMetrics) -> Registry {
    let mut registry = Registry::with_prefix("dbtcloud");
    let counters = [
        ("log_bytes_shipped", "Log bytes taken in from agents", &plane.log_bytes),
        ("artifacts_stored", "Artifacts stored", &plane.artifacts_stored),
        (
            "artifact_upload_failures",
            "Artifacts that could not be stored",
            &plane.artifact_failures,
        ),
        (
            "agent_reports_fenced",
            "Reports of agents that had been overtaken",
            &plane.fenced_reports,
        ),
        (
            "scheduler_failures",
            "Rounds of the scheduler that failed",
            &plane.scheduler_failures,
        ),
        ("cleanup_deleted", "Things that cleanup removed", &plane.cleanup_deleted),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, ConstCounter::new(counter.get()));
    }
    let runs: Family<Ended, prometheus_client::metrics::counter::Counter> = Family::default();
    for (status, counter) in [
        ("success", &plane.runs_succeeded),
        ("warned", &plane.runs_warned),
        ("error", &plane.runs_failed),
        ("cancelled", &plane.runs_cancelled),
    ] {
        runs.get_or_create(&Ended { status }).inc_by(counter.get());
    }
    registry.register("runs", "Runs that this process saw end", runs);
    registry.register(
        "runs_in_progress",
        "Runs that this process drives",
        ConstGauge::new(plane.runs_driven.get()),
    );
    registry.register(
        "run_queue_depth",
        "Runs that wait",
        ConstGauge::new(plane.queue_depth.get()),
    );
    registry.register_with_unit(
        "scheduler_dispatch_lag",
        "How late the last schedule fired",
        Unit::Seconds,
        ConstGauge::new(seconds(plane.dispatch_lag_micros.get())),
    );
    registry.register_with_unit(
        "scheduler_last_tick_timestamp",
        "When the scheduler last finished a round",
        Unit::Seconds,
        ConstGauge::new(seconds(plane.scheduler_tick_at.get())),
    );
    registry.register_with_unit(
        "http_request_duration",
        "Requests by route and status",
        Unit::Seconds,
        http.durations.clone(),
    );
    registry
}

/// Everything that was counted so far.
pub(crate) async fn scrape(State(app): State<App>) -> Result<Response, Fault> {
    let registry = register(app.plane.metrics(), &app.metrics);
    let mut body = String::new();
    text::encode(&mut body, &registry)
        .map_err(|error| dbtcloud_core::Error::corrupt("metrics cannot be written").because(error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}
