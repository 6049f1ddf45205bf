//! Traces: request → run → step → node, in W3C's terms.
//!
//! A run's trace is fixed when the run is queued and is stored with it. Every span below has an id that follows from
//! its parent's and its own name, so that whoever knows the run knows the context of a step: the agent hands it to dbt
//! while nobody has written the span yet. The spans themselves are made once, from what was written down, by the
//! process that ended the run. No command line, SQL text or message stands in them.

use std::collections::BTreeMap;
use std::time::Duration;

use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Event, EventBody};
use dbtcloud_core::run::{Run, RunStatus, RunStep, StepKind, StepStatus};
use dbtcloud_core::{Result, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::ControlPlane;
use crate::engine::results::NodeOutcome;

/// Spans that one run may have.
pub const SPAN_LIMIT: usize = 10_000;
/// Events that are read at one time.
const PAGE: u32 = 1_000;

/// Where in a trace something happens: W3C's `traceparent`.
///
/// ```
/// use dbtcloud_runtime::trace::Context;
/// let caller = Context::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
/// let run = caller.child("run-42");
/// assert_eq!((run.trace, run), (caller.trace, caller.child("run-42")));
/// assert_eq!(Context::parse(&run.to_string()), Some(run));
/// assert_eq!(Context::parse("00-00000000000000000000000000000000-00f067aa0ba902b7-01"), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// Whether whoever began the trace wants it to be kept.
    pub sampled: bool,
}

impl Context {
    /// The beginning of a new trace; nothing when the operating system has no randomness.
    pub fn begin() -> Option<Self> {
        let trace = random::<16>().map(u128::from_be_bytes).filter(|trace| *trace != 0)?;
        Some(Self {
            trace,
            span: root(trace),
            sampled: true,
        })
    }

    /// A new span of the same trace.
    pub fn follow(self) -> Option<Self> {
        let span = random::<8>().map(u64::from_be_bytes).filter(|span| *span != 0)?;
        Some(Self { span, ..self })
    }

    /// Reads a `traceparent`. What is not one is nothing: a trace then begins here, as W3C has it.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |text: &str| text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
        let known = version != "ff" && (version != "00" || parts.next().is_none());
        if !lengths || !known || ![version, trace, span, flags].into_iter().all(hex) {
            return None;
        }
        let context = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        };
        (context.trace != 0 && context.span != 0).then_some(context)
    }

    /// The span of this name below this one: always the same.
    #[must_use]
    pub fn child(self, name: &str) -> Self {
        let mut digest = Sha256::new();
        digest.update(self.trace.to_be_bytes());
        digest.update(self.span.to_be_bytes());
        digest.update(name.as_bytes());
        Self {
            span: first_bytes(&digest.finalize()),
            ..self
        }
    }

    /// The span as a parent; nothing when there is no such span because the trace begins below it.
    fn as_parent(self) -> Option<u64> {
        (self.span != root(self.trace)).then_some(self.span)
    }
}

impl std::fmt::Display for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

fn random<const N: usize>() -> Option<[u8; N]> {
    use rand::TryRngCore as _;
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).ok().map(|()| bytes)
}

/// The span that stands for "nobody's child" in a trace that begins with its run.
fn root(trace: u128) -> u64 {
    first_bytes(&Sha256::digest(trace.to_be_bytes()))
}

fn first_bytes(digest: &[u8]) -> u64 {
    let bytes = digest.iter().take(8);
    // No span has the id 0.
    bytes.fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)).max(1)
}

/// The context of a run; nothing when it was queued without.
pub fn of_run(run: &Run) -> Option<Context> {
    let parent = Context::parse(run.new.trigger.traceparent.as_deref()?)?;
    Some(below(parent, run.id))
}

fn below(parent: Context, run: RunId) -> Context {
    parent.child(&format!("run-{run}"))
}

/// The context of a step of an attempt.
#[must_use]
pub fn of_step(run: Context, attempt: u32, step: u32) -> Context {
    run.child(&format!("step-{attempt}-{step}"))
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// Something that took time and is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it is.
    pub context: Context,
    /// The span it belongs to.
    pub parent: Option<u64>,
    /// What it is; few different ones.
    pub name: String,
    /// Whether it answers somebody outside.
    pub serves: bool,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// What else is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Whether it went wrong.
    pub failed: bool,
}

/// Where spans go. Installed by the program, never by a library.
pub trait Tracer: Send + Sync {
    /// Takes spans. It never waits: what cannot be held or sent is lost, and nothing but the trace suffers.
    fn take(&self, spans: Vec<Span>);
}

/// The spans of a run that has ended. Pure: the same whoever makes them.
pub fn spans(run: &Run, steps: &[RunStep], events: &[Event]) -> Vec<Span> {
    let trigger = run.new.trigger.traceparent.as_deref();
    let Some(parent) = trigger.and_then(Context::parse).filter(|parent| parent.sampled) else {
        return Vec::new();
    };
    let context = below(parent, run.id);
    let ended_at = run.finished_at.unwrap_or(run.updated_at);
    let mut attributes = vec![
        ("dbtcloud.account_id", run.new.account.get().into()),
        ("dbtcloud.project_id", run.new.project.get().into()),
        ("dbtcloud.environment_id", run.new.environment.get().into()),
        ("dbtcloud.job_id", run.new.job.get().into()),
        ("dbtcloud.run_id", run.id.get().into()),
        ("dbtcloud.run.status", run.status.name().into()),
        ("dbtcloud.run.attempt", i64::from(run.attempt).into()),
    ];
    let waited = run.dequeued_at.unwrap_or(ended_at).since(run.created_at);
    attributes.push(("dbtcloud.run.queued_ms", millis(waited).into()));
    if let Some(version) = &run.dbt_version {
        attributes.push(("dbt.version", version.as_str().into()));
    }
    let mut spans = vec![Span {
        context,
        parent: parent.as_parent(),
        name: "run".to_owned(),
        serves: false,
        began_at: run.created_at,
        ended_at,
        attributes,
        failed: run.status == RunStatus::Error,
    }];
    let mut of_steps = BTreeMap::new();
    for step in steps {
        let Some(began_at) = step.state.started_at else {
            continue;
        };
        let here = of_step(context, run.attempt, step.state.index);
        of_steps.insert(step.state.index, here);
        spans.push(Span {
            context: here,
            parent: Some(context.span),
            name: step_name(step),
            serves: false,
            began_at,
            ended_at: step.state.finished_at.unwrap_or(ended_at).max(began_at),
            attributes: vec![
                ("dbtcloud.step.index", i64::from(step.state.index).into()),
                ("dbtcloud.step.status", step.state.status.name().into()),
            ],
            failed: step.state.status == StepStatus::Error,
        });
    }
    for ((step, unique_id), node) in nodes(events) {
        let Some(parent) = of_steps.get(&step) else { continue };
        if spans.len() >= SPAN_LIMIT {
            break;
        }
        spans.push(Span {
            context: parent.child(unique_id),
            parent: Some(parent.span),
            name: node.resource_type.to_owned(),
            serves: false,
            began_at: node.began_at,
            ended_at: node.ended_at,
            attributes: vec![
                ("dbt.node.unique_id", unique_id.into()),
                ("dbt.node.status", node.status.into()),
            ],
            failed: NodeOutcome::of(node.status) == NodeOutcome::Error,
        });
    }
    spans
}

/// A node as the events of a run have it in the end.
pub(crate) struct Node<'a> {
    pub(crate) resource_type: &'a str,
    pub(crate) status: &'a str,
    pub(crate) began_at: Timestamp,
    pub(crate) ended_at: Timestamp,
}

pub(crate) fn nodes(events: &[Event]) -> BTreeMap<(u32, &str), Node<'_>> {
    let mut nodes = BTreeMap::new();
    for event in events {
        let EventBody::Node { node } = &event.body else {
            continue;
        };
        let took = node
            .execution_time
            .filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let took = Duration::try_from_secs_f64(took.unwrap_or(0.0)).unwrap_or_default();
        let known = nodes.entry((node.step, node.unique_id.as_str())).or_insert(Node {
            resource_type: &node.resource_type,
            status: &node.status,
            began_at: node.at.minus(took),
            ended_at: node.at,
        });
        // What sets a status right in the end does not make the node longer.
        if known.status == "started" {
            known.ended_at = node.at;
        }
        known.status = &node.status;
    }
    nodes
}

/// What a step does, in few different words: `dbt build`, without the arguments.
fn step_name(step: &RunStep) -> String {
    match step.state.kind {
        StepKind::Clone => "clone".to_owned(),
        StepKind::Profile => "profile".to_owned(),
        _ => command_name(&step.state.name),
    }
}

/// `dbt` and its subcommand out of a step's name.
pub(crate) fn command_name(name: &str) -> String {
    let command = name.split('`').nth(1).unwrap_or_default();
    let mut words = command.split_whitespace().skip(1);
    let plain = |word: &&str| word.bytes().all(|c| c.is_ascii_lowercase() || c == b'-') && !word.starts_with('-');
    match words.next().filter(plain) {
        Some(word) => format!("dbt {word}"),
        None => "dbt".to_owned(),
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// What every line that is logged about a run names. Not even a filter for errors alone takes it off.
pub(crate) fn log_span(run: &Run) -> tracing::Span {
    tracing::error_span!(
        "run",
        account_id = run.new.account.get(),
        job_id = run.new.job.get(),
        run_id = run.id.get()
    )
}

/// Everything that is written down of a run, nodes up to [`SPAN_LIMIT`] events.
pub(crate) async fn events_of(plane: &ControlPlane, run: &Run) -> Result<Vec<Event>> {
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let page = plane.journal().of_run(run.new.account, run.id, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.sequence;
        let whole = page.len() < PAGE as usize;
        events.extend(page);
        if whole || events.len() >= 4 * SPAN_LIMIT {
            break;
        }
    }
    Ok(events)
}

/// Makes the spans of a run that this process ended, and hands them over.
pub(crate) async fn tell(plane: &ControlPlane, tracer: &dyn Tracer, run: &Run) {
    let told = async {
        let steps = plane.runs().steps(run.new.account, run.id).await?;
        Ok::<_, dbtcloud_core::Error>(spans(run, &steps, &events_of(plane, run).await?))
    };
    match told.await {
        Ok(spans) => tracer.take(spans),
        Err(error) => tracing::debug!(error = %error.chain(), "the trace of a run cannot be made"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_traceparent_is_nothing() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert!(Context::parse(good).is_some_and(|context| !context.sampled));
        assert!(Context::parse(&format!("cc{}-more", &good[2..])).is_some());
        for bad in [
            "",
            "x",
            &good[1..],
            &format!("{good}-more"),
            &format!("ff{}", &good[2..]),
            &good.to_uppercase(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_trace_that_begins_here_has_no_parent() {
        let begun = Context::begin().unwrap();
        assert_eq!(begun.as_parent(), None);
        assert_eq!(Context::parse(&begun.to_string()), Some(begun));
        assert_eq!(begun.child("a").as_parent(), Some(begun.child("a").span));
        assert_ne!(begun.follow().map(|next| next.span), Some(begun.span));
    }

    #[test]
    fn arguments_are_left_out() {
        for (name, is) in [
            ("Invoke dbt with `dbt build --vars '{password: x}'`", "dbt build"),
            ("Invoke dbt with `dbt --debug run`", "dbt"),
            ("Invoke dbt with `dbt`", "dbt"),
            ("Clone git repository", "dbt"),
        ] {
            assert_eq!(command_name(name), is);
        }
    }
}
