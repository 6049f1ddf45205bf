//! What the binary tells of itself: log lines, and traces by OTLP. The libraries write events and make spans; this is
//! where they go, and the one place that installs anything.

use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use dbtcloud_core::Timestamp;
use dbtcloud_runtime::trace::{Span, Tracer, Value};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanProcessor};
use serde_json::Map;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Now};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

/// Spans that wait to be sent; beyond it they are lost.
const QUEUE_LIMIT: usize = 65_536;
/// Spans in one request.
const BATCH_LIMIT: usize = 2_048;
/// The longest that spans wait for more to go with them.
const COALESCE: Duration = Duration::from_secs(1);
/// How long a collector may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the last spans may take to be sent when the server stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// A library that logs what it also answers with: whoever asked tells it, once. A filter that names it has its way.
const TOLD_ELSEWHERE: &str = "kube_client";

/// Sends log lines to stderr.
///
/// # Errors
/// When the filter cannot be read, or there is a subscriber already.
pub fn log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let mut filter: tracing_subscriber::EnvFilter = filter.parse().context("log")?;
    if !filter.to_string().contains(TOLD_ELSEWHERE) {
        filter = filter.add_directive(format!("{TOLD_ELSEWHERE}=off").parse().context("log")?);
    }
    // A log that nobody reads any more must not end what is being logged.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false);
    let installed = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.fmt_fields(JsonFields::new()).event_format(JsonLines).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("the log cannot be set up: {error}"))
}

/// One JSON object a line. The fields of all spans around an event are fields of its line, so that a line that
/// concerns a run has its ids at the top, wherever it was written.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Map::new();
        let mut now = String::new();
        Now.format_time(&mut Writer::new(&mut now))?;
        line.insert("timestamp".to_owned(), now.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && let Ok(fields) = serde_json::from_str::<Map<_, _>>(&fields.fields)
            {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

struct Fields<'a>(&'a mut Map<String, serde_json::Value>);

impl Fields<'_> {
    fn set(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}

/// Sends spans to a collector by OTLP over HTTP, in the background.
#[derive(Debug)]
pub struct Otlp {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Otlp {
    /// A sender to the collector at `endpoint`, which is not asked for yet. It works as long as the runtime in which
    /// it was made.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn new(endpoint: &str, instance: &str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector {
                client: reqwest::Client::builder().timeout(ANSWER_LIMIT).build()?,
                runtime: tokio::runtime::Handle::current(),
                away: AtomicBool::new(false),
            })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(ANSWER_LIMIT)
            .build()
            .context("otlp_endpoint")?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_LIMIT)
            .with_max_export_batch_size(BATCH_LIMIT)
            .with_scheduled_delay(COALESCE)
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        let version = env!("CARGO_PKG_VERSION");
        processor.set_resource(
            &Resource::builder_empty()
                .with_attributes([
                    KeyValue::new("service.name", "dbtcloud"),
                    KeyValue::new("service.version", version),
                    KeyValue::new("service.instance.id", instance.to_owned()),
                ])
                .build(),
        );
        let scope = InstrumentationScope::builder("dbtcloud").with_version(version).build();
        Ok(Self { processor, scope })
    }

    /// Sends what waits, for a short while. Blocking.
    pub fn close(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(FAREWELL) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

impl Tracer for Otlp {
    fn take(&self, spans: Vec<Span>) {
        for span in spans {
            self.processor.on_end(data(span, &self.scope));
        }
    }
}

fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let flags = if span.context.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::default()
    };
    let id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
    let attribute = |(name, value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, number),
    };
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(span.context.trace.to_be_bytes()),
            id(span.context.span),
            flags,
            false,
            TraceState::NONE,
        ),
        parent_span_id: span.parent.map_or(SpanId::INVALID, id),
        parent_span_is_remote: span.serves && span.parent.is_some(),
        span_kind: if span.serves {
            SpanKind::Server
        } else {
            SpanKind::Internal
        },
        name: span.name.into(),
        start_time: instant(span.began_at),
        end_time: instant(span.ended_at),
        attributes: span.attributes.into_iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: if span.failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope.clone(),
    }
}

fn instant(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_micros()).unwrap_or(0))
}

/// Posts to the collector out of the exporter's own thread, which has no runtime.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
    /// Whether it did not answer the last time: told when it changes.
    away: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let posting = async move {
            let (head, body) = request.into_parts();
            let post = client.request(head.method, head.uri.to_string()).headers(head.headers);
            let answer = post.body(body).send().await?;
            let response = Response::builder().status(answer.status());
            Ok::<_, HttpError>(response.body(answer.bytes().await?)?)
        };
        let answer = self.runtime.spawn(posting).await?;
        let fault = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("answered {}", answer.status())),
            Err(_) => Some("does not answer".to_owned()),
        };
        let was_away = self.away.swap(fault.is_some(), Ordering::Relaxed);
        match fault {
            Some(fault) if !was_away => tracing::warn!(fault, "the trace collector cannot be used; spans are lost"),
            None if was_away => tracing::info!("the trace collector can be used again"),
            _ => {}
        }
        answer
    }
}
