//! From what was written down of a run to its OpenLineage events. Pure: the same whenever it is asked.

use std::collections::BTreeMap;

use dbtcloud_core::Timestamp;
use dbtcloud_core::ports::Event;
use dbtcloud_core::run::{Run, RunStatus, RunStep, StepKind, StepStatus};
use serde_json::{Value, json};
use uuid::Uuid;

use super::datasets::Graph;
use crate::agent::{EXECUTING, INTERRUPTED};
use crate::engine::results::NodeOutcome;
use crate::trace::{Node, command_name, nodes};

const PRODUCER: &str = concat!("https://github.com/dbtcloud/dbtcloud/tree/v", env!("CARGO_PKG_VERSION"));
const SCHEMA: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";

/// Everything that is known of a run.
#[derive(Clone, Copy, Debug)]
pub struct Story<'a> {
    /// The installation's.
    pub namespace: &'a str,
    /// The run, which has ended.
    pub run: &'a Run,
    /// Its steps.
    pub steps: &'a [RunStep],
    /// Its events.
    pub events: &'a [Event],
    /// What nodes read and write, by step.
    pub graphs: &'a BTreeMap<u32, Graph>,
}

/// A run, a command or a node by name and id.
struct Subject {
    id: Uuid,
    job: String,
    kind: String,
}

/// How something ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Fail,
    Abort,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::Complete => "COMPLETE",
            Self::Fail => "FAIL",
            Self::Abort => "ABORT",
        }
    }
}

fn id(namespace: &str, name: &str) -> Uuid {
    let installation = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("dbtcloud:{namespace}").as_bytes());
    Uuid::new_v5(&installation, name.as_bytes())
}

fn of_run(namespace: &str, run: &Run) -> Subject {
    Subject {
        id: id(namespace, &format!("run/{}", run.id)),
        job: format!("account.{}.job.{}", run.new.account, run.new.job),
        kind: "JOB".to_owned(),
    }
}

/// Whether a step is a dbt command that is told of.
pub(super) fn is_command(step: &RunStep) -> bool {
    !matches!(step.state.kind, StepKind::Clone | StepKind::Profile | StepKind::Deps)
}

/// The event of a run that has begun.
#[must_use]
pub fn begun(namespace: &str, run: &Run) -> Value {
    let began_at = run.started_at.unwrap_or(run.created_at);
    event(namespace, "START", began_at, &of_run(namespace, run), &[], json!({}))
}

fn facet(kind: &str, version: &str, mut fields: Value) -> Value {
    fields["_producer"] = PRODUCER.into();
    fields["_schemaURL"] = format!("https://openlineage.io/spec/facets/{version}/{kind}.json#/$defs/{kind}").into();
    fields
}

/// An event. `above` are what the subject is part of, the nearest first.
fn event(namespace: &str, kind: &str, at: Timestamp, subject: &Subject, above: &[&Subject], more: Value) -> Value {
    let named = |subject: &Subject| json!({"run": {"runId": subject.id.to_string()}, "job": {"namespace": namespace, "name": subject.job}});
    let mut run_facets = json!({});
    if let [nearest, .., root] | [nearest @ root] = above {
        let mut parent = named(nearest);
        parent["root"] = named(root);
        run_facets["parent"] = facet("ParentRunFacet", "1-1-0", parent);
    }
    if kind == "FAIL" {
        // What dbt or the warehouse said may quote rows: it stays in the platform.
        let text = format!("{} failed", subject.job);
        run_facets["errorMessage"] = facet(
            "ErrorMessageRunFacet",
            "1-0-1",
            json!({"message": text, "programmingLanguage": "SQL"}),
        );
    }
    let job_type = json!({"processingType": "BATCH", "integration": "DBT", "jobType": subject.kind});
    let mut event = json!({
        "eventType": kind,
        "eventTime": at.to_string(),
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
        "run": {"runId": subject.id.to_string(), "facets": run_facets},
        "job": {
            "namespace": namespace,
            "name": subject.job,
            "facets": {"jobType": facet("JobTypeJobFacet", "2-0-3", job_type)},
        },
        "inputs": [],
        "outputs": [],
    });
    if let (Value::Object(event), Value::Object(more)) = (&mut event, more) {
        event.extend(more);
    }
    event
}

impl Story<'_> {
    /// All events of the run: a start and an end for it, for each command that began, and for each node that was
    /// executed. A node that was skipped has none.
    #[must_use]
    pub fn tell(&self) -> Vec<Value> {
        let whole = of_run(self.namespace, self.run);
        let ended_at = self.run.finished_at.unwrap_or(self.run.updated_at);
        let mut events = vec![begun(self.namespace, self.run)];
        let nodes = nodes(self.events);
        for step in self.steps.iter().filter(|step| is_command(step)) {
            let (Some(began_at), Some(end)) = (step.state.started_at, self.end_of_step(step)) else {
                continue;
            };
            let index = step.state.index;
            let command = command_name(&step.state.name);
            let subject = Subject {
                id: id(self.namespace, &format!("run/{}/step/{index}", self.run.id)),
                job: format!("{}.step.{index}.{}", whole.job, command.replace(' ', "-")),
                kind: "COMMAND".to_owned(),
            };
            let step_ended_at = step.state.finished_at.unwrap_or(ended_at).max(began_at);
            let above = [&whole];
            events.push(event(self.namespace, "START", began_at, &subject, &above, json!({})));
            let subcommand = command.strip_prefix("dbt ").unwrap_or_default();
            if EXECUTING.contains(&subcommand) {
                for ((_, unique_id), node) in nodes.iter().filter(|((of, _), _)| *of == index) {
                    self.tell_node(unique_id, node, (&subject, end, index), &whole, &mut events);
                }
            }
            events.push(event(
                self.namespace,
                end.name(),
                step_ended_at,
                &subject,
                &above,
                json!({}),
            ));
        }
        let end = match self.run.status {
            RunStatus::Success | RunStatus::Warned => End::Complete,
            RunStatus::Cancelled => End::Abort,
            _ => End::Fail,
        };
        events.push(event(self.namespace, end.name(), ended_at, &whole, &[], json!({})));
        events
    }

    fn end_of_step(&self, step: &RunStep) -> Option<End> {
        match step.state.status {
            StepStatus::Success | StepStatus::Warned => Some(End::Complete),
            StepStatus::Error => Some(End::Fail),
            StepStatus::Cancelled => Some(End::Abort),
            // Its agent was lost with it.
            StepStatus::Running if self.run.status == RunStatus::Cancelled => Some(End::Abort),
            StepStatus::Running => Some(End::Fail),
            StepStatus::Pending | StepStatus::Skipped => None,
        }
    }

    fn tell_node(
        &self,
        unique_id: &str,
        node: &Node<'_>,
        (command, step_end, step): (&Subject, End, u32),
        whole: &Subject,
        events: &mut Vec<Value>,
    ) {
        let stopped = self.run.cancel_requested_at.is_some_and(|at| node.ended_at >= at);
        let unfinished = matches!(node.status, INTERRUPTED | "started");
        let end = match NodeOutcome::of(node.status) {
            NodeOutcome::Skipped => return,
            // dbt calls a node that it was interrupted in an error.
            NodeOutcome::Error if step_end == End::Abort && stopped => End::Abort,
            NodeOutcome::Error => End::Fail,
            _ if unfinished && step_end == End::Abort => End::Abort,
            _ if unfinished => End::Fail,
            _ => End::Complete,
        };
        let subject = Subject {
            id: id(
                self.namespace,
                &format!("run/{}/step/{step}/node/{unique_id}", self.run.id),
            ),
            job: format!("{}.{unique_id}", whole.job),
            kind: node.resource_type.to_uppercase(),
        };
        let graph = self.graphs.get(&step);
        let datasets = graph.map_or_else(
            || json!({}),
            |graph| json!({"inputs": graph.inputs(unique_id), "outputs": graph.outputs(unique_id)}),
        );
        let above = [command, whole];
        for (kind, at) in [("START", node.began_at), (end.name(), node.ended_at)] {
            events.push(event(self.namespace, kind, at, &subject, &above, datasets.clone()));
        }
    }
}
