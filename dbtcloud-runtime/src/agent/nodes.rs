//! The nodes of one command: told as they begin and end, and set right by `run_results.json` when it is over.

use std::collections::BTreeMap;
use std::path::Path;

use dbtcloud_core::Timestamp;
use dbtcloud_core::run::NodeReport;

use crate::engine::events::{NodeEvent, NodeEventKind};
use crate::engine::invocation::ExitStatus;
use crate::engine::results::{self, NodeOutcome, Verdict};
use crate::protocol::Counted;

/// Names of failed nodes that a message holds.
const NAMED: usize = 5;
/// The status of a node that had begun when dbt ended.
pub(crate) const INTERRUPTED: &str = "interrupted";

/// What is known of the nodes of one command.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    events: Vec<NodeEvent>,
    told: BTreeMap<String, Told>,
}

#[derive(Debug, Default)]
struct Told {
    status: String,
    index: Option<u32>,
    total: Option<u32>,
    kind: Option<String>,
    name: Option<String>,
}

impl Nodes {
    /// Takes an event in; what there is to report of it.
    pub(super) fn take(&mut self, step: u32, event: NodeEvent, at: Timestamp) -> Option<NodeReport> {
        let told = self.told.entry(event.unique_id.clone()).or_default();
        told.index = event.index.or(told.index);
        told.total = event.total.or(told.total);
        told.kind = event.resource_type.clone().or(told.kind.take());
        told.name = event.name.clone().or(told.name.take());
        // A start is told with its position, which comes in an event of its own right after it.
        let status = match event.kind {
            NodeEventKind::Started => None,
            NodeEventKind::Progress if told.status.is_empty() => Some("started".to_owned()),
            NodeEventKind::Progress => None,
            NodeEventKind::Finished => Some(event.status.clone().unwrap_or_else(|| "unknown".to_owned())),
        };
        let report = status.map(|status| {
            told.status.clone_from(&status);
            NodeReport {
                step,
                resource_type: kind_of(&event.unique_id, told.kind.as_deref()),
                name: name_of(&event.unique_id, told.name.as_deref()),
                unique_id: event.unique_id.clone(),
                status,
                message: event.message.clone(),
                execution_time: event.execution_time,
                index: told.index,
                total: told.total,
                at,
            }
        });
        if event.kind != NodeEventKind::Progress {
            self.events.push(event);
        }
        report
    }

    /// The command is over: its verdict, and the reports that set right what was told. Blocking.
    pub(super) fn settle(
        &mut self,
        step: u32,
        exit: ExitStatus,
        invocation: Option<&str>,
        target: &Path,
        at: Timestamp,
    ) -> (Verdict, Vec<NodeReport>) {
        let file = results::read_run_results(&target.join("run_results.json")).unwrap_or_else(|error| {
            tracing::warn!(error = %super::dbt::chain(&error), "run_results.json is no evidence");
            None
        });
        // Without the id of this command the file may be an older one's.
        let file = file.filter(|_| invocation.is_some());
        let verdict = results::reconcile(exit, invocation, &self.events, file.as_ref());
        let mut reports = Vec::new();
        for (unique_id, node) in &verdict.nodes {
            let status = if node.outcome == NodeOutcome::Interrupted {
                INTERRUPTED
            } else {
                &node.status
            };
            let told = self.told.entry(unique_id.clone()).or_default();
            if told.status == status {
                continue;
            }
            status.clone_into(&mut told.status);
            reports.push(NodeReport {
                step,
                unique_id: unique_id.clone(),
                resource_type: kind_of(unique_id, told.kind.as_deref()),
                name: name_of(unique_id, told.name.as_deref()),
                status: status.to_owned(),
                message: node.message.clone(),
                execution_time: node.execution_time,
                index: told.index,
                total: told.total,
                at,
            });
        }
        (verdict, reports)
    }
}

/// How many nodes of each type ended in each way.
pub(super) fn counts(verdict: &Verdict) -> Vec<Counted> {
    let mut counts = BTreeMap::<(String, String), u64>::new();
    for (unique_id, node) in &verdict.nodes {
        let status = if node.outcome == NodeOutcome::Interrupted {
            INTERRUPTED
        } else {
            &node.status
        };
        *counts.entry((kind_of(unique_id, None), status.to_owned())).or_default() += 1;
    }
    let counted = counts
        .into_iter()
        .map(|((resource_type, status), count)| Counted::Nodes {
            resource_type,
            status,
            count,
        });
    counted.collect()
}

fn kind_of(unique_id: &str, told: Option<&str>) -> String {
    told.or_else(|| unique_id.split('.').next())
        .unwrap_or_default()
        .to_owned()
}

fn name_of(unique_id: &str, told: Option<&str>) -> String {
    told.or_else(|| unique_id.splitn(3, '.').nth(2))
        .unwrap_or(unique_id)
        .to_owned()
}

/// Which nodes failed, in a sentence, if any did.
pub(super) fn failures(verdict: &Verdict) -> Option<String> {
    let failed: Vec<String> = verdict
        .nodes
        .iter()
        .filter(|(_, node)| node.outcome == NodeOutcome::Error)
        .map(|(unique_id, _)| name_of(unique_id, None))
        .collect();
    if failed.is_empty() {
        return None;
    }
    let mut text = format!("{} of {} nodes failed: ", failed.len(), verdict.nodes.len());
    text.push_str(&failed[..failed.len().min(NAMED)].join(", "));
    if failed.len() > NAMED {
        text.push_str(&format!(" and {} more", failed.len() - NAMED));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::events::{Parsed, parse_line};

    fn event(json: &str) -> NodeEvent {
        match parse_line(json.as_bytes()) {
            Parsed::Node(node) => *node,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nodes_are_told_once_and_set_right_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Nodes::default();
        let at = Timestamp::EPOCH;
        assert!(
            nodes
                .take(
                    4,
                    event(r#"{"k":"start","id":"model.p.a","name":"a","type":"model"}"#),
                    at
                )
                .is_none()
        );
        let started = nodes
            .take(4, event(r#"{"k":"progress","id":"model.p.a","index":1,"total":2}"#), at)
            .unwrap();
        assert_eq!(
            (started.status.as_str(), started.index, started.total),
            ("started", Some(1), Some(2))
        );
        let done = nodes
            .take(
                4,
                event(r#"{"k":"finish","id":"model.p.a","result":"success","seconds":0.5}"#),
                at,
            )
            .unwrap();
        assert_eq!(
            (done.status.as_str(), done.index, done.name.as_str()),
            ("success", Some(1), "a")
        );
        assert!(nodes.take(4, event(r#"{"k":"start","id":"model.p.b"}"#), at).is_none());
        std::fs::write(
            dir.path().join("run_results.json"),
            r#"{"metadata":{"invocation_id":"i"},"results":[{"unique_id":"model.p.a","status":"error"},{"unique_id":"test.p.t.x","status":"warn"}]}"#,
        )
        .unwrap();
        let (verdict, reports) = nodes.settle(4, ExitStatus::Code(2), Some("i"), dir.path(), at);
        let said: Vec<_> = reports
            .iter()
            .map(|node| (node.name.as_str(), node.status.as_str(), node.resource_type.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                ("a", "error", "model"),
                ("b", "interrupted", "model"),
                ("t.x", "warn", "test")
            ]
        );
        assert_eq!(failures(&verdict).unwrap(), "1 of 3 nodes failed: a");
        let counted = |resource_type: &str, status: &str| Counted::Nodes {
            resource_type: resource_type.to_owned(),
            status: status.to_owned(),
            count: 1,
        };
        assert_eq!(
            counts(&verdict),
            [
                counted("model", "error"),
                counted("model", "interrupted"),
                counted("test", "warn")
            ]
        );
    }

    #[test]
    fn an_older_file_is_no_evidence() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("run_results.json"),
            r#"{"metadata":{"invocation_id":"old"},"results":[{"unique_id":"model.p.a","status":"error"}]}"#,
        )
        .unwrap();
        for invocation in [Some("new"), None] {
            let (verdict, reports) =
                Nodes::default().settle(1, ExitStatus::Code(2), invocation, dir.path(), Timestamp::EPOCH);
            assert!(verdict.nodes.is_empty() && reports.is_empty());
        }
    }
}
