//! `/metrics`: what was counted, as Prometheus text. Never labelled by run, job or account: those have no
//! bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use dbtcloud_runtime::metrics::{Counter, Counters, Gauge, Gauges, Labels, Metrics as PlaneMetrics, Spans};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
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

const fn status_class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

impl HttpMetrics {
    pub(crate) fn observe(&self, method: &Method, route: &str, status: u16, took: Duration) {
        let labels = Route {
            method: method_name(method),
            route: route.to_owned(),
            status: status_class(status),
        };
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An id for a request that brought none: unique in this process.
    pub(crate) fn next_id(&self) -> String {
        format!("r{:x}", self.requests.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What of a control plane is shown under one name.
enum Source<'a> {
    Count(&'a Counter),
    Counts(&'a [&'static str], Vec<(Vec<&'static str>, u64)>),
    Level(&'a Gauge),
    Levels(&'a [&'static str], Vec<(Vec<&'static str>, i64)>),
    /// Microseconds since the epoch.
    Instant(&'a Gauge),
    Instants(&'a [&'static str], Vec<(Vec<&'static str>, i64)>),
    /// Microseconds that something took, all together.
    Busy(&'a [&'static str], Vec<(Vec<&'static str>, u64)>),
    Spans(&'a Spans),
}

/// Rows with as many values as there are names.
fn rows<const N: usize, T>(rows: Vec<(Labels<N>, T)>) -> Vec<(Vec<&'static str>, T)> {
    rows.into_iter()
        .map(|(labels, value)| (labels.to_vec(), value))
        .collect()
}

fn counts<'a, const N: usize>(names: &'a [&'static str; N], counters: &Counters<N>) -> Source<'a> {
    Source::Counts(names, rows(counters.get()))
}

fn levels<'a, const N: usize>(names: &'a [&'static str; N], gauges: &Gauges<N>) -> Source<'a> {
    Source::Levels(names, rows(gauges.get()))
}

fn labels(names: &[&'static str], values: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    names.iter().copied().zip(values.iter().copied()).collect()
}

fn instant(micros: i64) -> f64 {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64()
}

impl Source<'_> {
    const fn kind(&self) -> MetricType {
        match self {
            Self::Count(_) | Self::Counts(..) | Self::Busy(..) => MetricType::Counter,
            Self::Level(_) | Self::Levels(..) | Self::Instant(_) | Self::Instants(..) => MetricType::Gauge,
            Self::Spans(_) => MetricType::Histogram,
        }
    }

    const fn unit(&self) -> Option<Unit> {
        match self {
            Self::Instant(_) | Self::Instants(..) | Self::Spans(_) | Self::Busy(..) => Some(Unit::Seconds),
            _ => None,
        }
    }

    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        match self {
            Self::Count(counter) => ConstCounter::new(counter.get()).encode(encoder),
            Self::Level(gauge) => ConstGauge::new(gauge.get()).encode(encoder),
            Self::Instant(gauge) => ConstGauge::new(instant(gauge.get())).encode(encoder),
            Self::Spans(spans) => {
                let buckets = spans.buckets();
                let count = buckets.iter().map(|(_, count)| count).sum();
                encoder.encode_histogram::<NoLabelSet>(spans.sum().as_secs_f64(), count, &buckets, None)
            }
            Self::Counts(names, rows) => rows.iter().try_for_each(|(values, count)| {
                ConstCounter::new(*count).encode(encoder.encode_family(&labels(names, values))?)
            }),
            Self::Levels(names, rows) => rows.iter().try_for_each(|(values, level)| {
                ConstGauge::new(*level).encode(encoder.encode_family(&labels(names, values))?)
            }),
            Self::Instants(names, rows) => rows.iter().try_for_each(|(values, micros)| {
                ConstGauge::new(instant(*micros)).encode(encoder.encode_family(&labels(names, values))?)
            }),
            Self::Busy(names, rows) => rows.iter().try_for_each(|(values, micros)| {
                let seconds = Duration::from_micros(*micros).as_secs_f64();
                ConstCounter::new(seconds).encode(encoder.encode_family(&labels(names, values))?)
            }),
        }
    }
}

/// Everything a control plane counts, by the names that `docs/observe.md` explains. A name with nothing under it yet is
/// told all the same.
fn named(plane: &PlaneMetrics) -> Vec<(&'static str, &'static str, Source<'_>)> {
    use Source::{Count, Instant, Level, Spans};
    vec![
        (
            "runs",
            "Runs that this process ended",
            counts(&["status", "trigger", "job_type"], &plane.runs_ended),
        ),
        (
            "runs_in_progress",
            "Runs that this process drives",
            Level(&plane.runs_driven),
        ),
        (
            "run_queue_depth",
            "Runs that wait, in all of the installation, by reason",
            levels(&["reason"], &plane.queue_depth),
        ),
        (
            "run_queue_wait",
            "From queued to out of the queue",
            Spans(&plane.queue_wait),
        ),
        (
            "run_prep",
            "From out of the queue to the beginning of the agent",
            Spans(&plane.run_prep),
        ),
        (
            "run_duration",
            "From the beginning of the agent to the end",
            Spans(&plane.run_duration),
        ),
        (
            "cancel",
            "From the wish to stop a live run to its confirmed end",
            Spans(&plane.cancel),
        ),
        (
            "cancel_orphan_queries",
            "Queries that went on in a warehouse after dbt was killed and were ended there",
            Count(&plane.orphan_queries),
        ),
        (
            "node_executions",
            "Nodes that dbt executed",
            counts(&["resource_type", "status"], &plane.node_executions),
        ),
        (
            "parse_cache_requests",
            "Parse states that runs asked for, by what came of it",
            counts(&["result", "miss_reason"], &plane.parse_cache),
        ),
        (
            "scheduler_dispatch_lag",
            "How late schedules fired",
            Spans(&plane.dispatch_lag),
        ),
        (
            "scheduler_last_tick_timestamp",
            "When the scheduler of this process last finished a round",
            Instant(&plane.scheduler_tick_at),
        ),
        (
            "scheduler_failures",
            "Rounds of the scheduler that failed",
            Count(&plane.scheduler_failures),
        ),
        (
            "outbox_deliveries",
            "Changes of runs that a consumer was told of",
            Count(&plane.deliveries),
        ),
        (
            "outbox_delivery_failures",
            "Tries to tell a consumer that failed; they are made again",
            Count(&plane.deliveries_failed),
        ),
        (
            "executor_pods",
            "Executions of the runs that this process drives, by phase",
            levels(&["phase"], &plane.executions),
        ),
        (
            "log_bytes_shipped",
            "Log bytes taken in from agents",
            Count(&plane.log_bytes),
        ),
        ("artifacts_stored", "Artifacts stored", Count(&plane.artifacts_stored)),
        (
            "artifact_upload_failures",
            "Uploads of artifacts that the store did not take; agents try again",
            Count(&plane.artifact_failures),
        ),
        (
            "agent_reports_fenced",
            "Reports of agents that had been overtaken",
            Count(&plane.fenced_reports),
        ),
        (
            "outbox_depth",
            "Deliveries that consumers have still to be given, in all of the installation",
            levels(&["consumer"], &plane.outbox_depth),
        ),
        (
            "dispatches",
            "Tries to send a webhook or a notification, by what came of them",
            counts(&["channel", "result"], &plane.dispatches),
        ),
        (
            "dispatches_waiting",
            "Webhooks and notifications that are still to be sent, in all of the installation",
            levels(&["channel"], &plane.dispatches_waiting),
        ),
        (
            "develop_sessions",
            "Develop sessions that have not ended, in all of the installation",
            levels(&["state"], &plane.sessions),
        ),
        (
            "cleanup_deleted",
            "Things that cleanup removed, moved or set right",
            counts(&["kind"], &plane.cleanup_deleted),
        ),
        (
            "cleanup_bytes",
            "Bytes that cleanup removed or moved",
            counts(&["chore"], &plane.cleanup_bytes),
        ),
        (
            "cleanup_sweeps",
            "Sweeps of cleanup",
            counts(&["chore"], &plane.cleanup_sweeps),
        ),
        (
            "cleanup_failures",
            "Sweeps of cleanup that failed; the next one tries again",
            counts(&["chore"], &plane.cleanup_failures),
        ),
        (
            "cleanup_busy",
            "Time that sweeps of cleanup took",
            Source::Busy(&["chore"], rows(plane.cleanup_busy.get())),
        ),
        (
            "cleanup_last_success_timestamp",
            "When a chore of cleanup last came to its end",
            Source::Instants(&["chore"], rows(plane.cleanup_done_at.get())),
        ),
        (
            "wakeups_listening",
            "Whether the bells of other processes are heard",
            Level(&plane.wakeups_listening),
        ),
        (
            "wakeups_lost",
            "How often the bells of other processes could not be heard any more",
            Count(&plane.wakeups_lost),
        ),
        (
            "leader",
            "Leases: 1 while this process holds it",
            levels(&["lease"], &plane.leader),
        ),
    ]
}

/// Shows a control plane's numbers and the database's connections.
#[derive(Debug)]
struct Shown(App);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        for (name, help, source) in named(self.0.plane.metrics()) {
            let unit = source.unit();
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), source.kind())?;
            source.encode(metric)?;
        }
        if let Some(connections) = &self.0.options.connections {
            let gauges = Gauges::<1>::default();
            let now = connections();
            gauges.set(["idle"], i64::from(now.idle));
            gauges.set(["used"], i64::from(now.used));
            let source = levels(&["state"], &gauges);
            let help = "Connections of this process to its database";
            let metric = encoder.encode_descriptor("db_pool_connections", help, None, source.kind())?;
            source.encode(metric)?;
        }
        Ok(())
    }
}

/// Everything that was counted so far.
pub(crate) async fn scrape(State(app): State<App>) -> Result<Response, Fault> {
    let mut registry = Registry::with_prefix("dbtcloud");
    registry.register_with_unit(
        "http_request_duration",
        "Requests by route and status class",
        Unit::Seconds,
        app.metrics.durations.clone(),
    );
    registry.register_collector(Box::new(Shown(app)));
    let mut body = String::new();
    text::encode(&mut body, &registry)
        .map_err(|error| dbtcloud_core::Error::corrupt("metrics cannot be written").because(error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}
