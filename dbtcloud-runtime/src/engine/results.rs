//! `run_results.json`, and who is right when it and the event stream disagree.
//!
//! The file outranks the stream, if it is of the same invocation: `target/` may still hold an older command's. Nodes
//! that were running when dbt was interrupted are in the stream only.
//!
//! Exit codes of dbt: **0** success (also when nothing was selected), **1** a node or a test failed, **2** anything
//! else: usage, parse error, no profile, database unreachable at start, interrupted. dbt 2.x says 1 when interrupted.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::EngineError;
use super::events::{NodeEvent, NodeEventKind};
use super::invocation::ExitStatus;

/// Largest `run_results.json` that is read.
pub const FILE_LIMIT: u64 = 1 << 30;
/// Longest message kept of one result, in bytes.
pub const MESSAGE_LIMIT: usize = 16 * 1024;

/// How a node ended, in five words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeOutcome {
    /// Done well: success, pass, no-op, reused, partial success without errors.
    Success,
    /// Done, with a warning.
    Warn,
    /// Failed: error, fail, runtime error.
    Error,
    /// Not run, because something before it failed.
    Skipped,
    /// Started, and dbt ended before it did.
    Interrupted,
}

impl NodeOutcome {
    /// Reads dbt's open-ended status word. An unknown word is no failure: the exit code decides then.
    pub fn of(status: &str) -> Self {
        match status {
            "error" | "fail" | "runtime error" | "partial success" => Self::Error,
            "warn" => Self::Warn,
            "skipped" => Self::Skipped,
            "started" | "compiling" | "executing" => Self::Interrupted,
            _ => Self::Success,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything is well.
    Success,
    /// Well, with warnings.
    Warn,
    /// Something failed.
    Error,
}

/// One node's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeResult {
    /// dbt's unique id.
    pub unique_id: String,
    /// dbt's word.
    pub status: String,
    /// Seconds.
    pub execution_time: Option<f64>,
    /// dbt's message, cut at [`MESSAGE_LIMIT`]. May quote warehouse data.
    pub message: Option<String>,
    /// Failing rows.
    pub failures: Option<i64>,
    /// The relation.
    pub relation_name: Option<String>,
}

/// A `run_results.json`, without the compiled SQL.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunResults {
    /// Of which invocation.
    pub invocation_id: Option<String>,
    /// dbt's version.
    pub dbt_version: Option<String>,
    /// Node results, in the order dbt wrote them.
    pub results: Vec<NodeResult>,
    /// Seconds of the command.
    pub elapsed_time: Option<f64>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    results: Vec<NodeResult>,
    elapsed_time: Option<f64>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    invocation_id: Option<String>,
    dbt_version: Option<String>,
}

/// Reads a `run_results.json`. Compiled SQL and timing are skipped, not held; memory is proportional to the nodes.
///
/// `Ok(None)`: there is no file. Blocking.
///
/// # Errors
/// [`EngineError::Io`] when it cannot be read, is no such file, or is larger than [`FILE_LIMIT`].
pub fn read_run_results(path: &Path) -> Result<Option<RunResults>, EngineError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(EngineError::io("opening", path)(error)),
    };
    let bounded = BufReader::with_capacity(64 * 1024, file).take(FILE_LIMIT);
    let mut file: File =
        serde_json::from_reader(bounded).map_err(|error| EngineError::io("parsing", path)(error.into()))?;
    for result in &mut file.results {
        if let Some(message) = &mut result.message {
            shorten(message);
        }
    }
    Ok(Some(RunResults {
        invocation_id: file.metadata.invocation_id,
        dbt_version: file.metadata.dbt_version,
        results: file.results,
        elapsed_time: file.elapsed_time,
    }))
}

fn shorten(message: &mut String) {
    if message.len() > MESSAGE_LIMIT {
        let mut end = MESSAGE_LIMIT;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
}

/// What an invocation came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Overall.
    pub outcome: Outcome,
    /// Per node, by unique id.
    pub nodes: BTreeMap<String, NodeVerdict>,
    /// Whether `run_results.json` was there and of this invocation.
    pub from_file: bool,
}

/// What a node came to.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeVerdict {
    /// In five words.
    pub outcome: NodeOutcome,
    /// In dbt's word, as far as there is one.
    pub status: String,
    /// Seconds.
    pub execution_time: Option<f64>,
    /// dbt's message.
    pub message: Option<String>,
    /// Failing rows.
    pub failures: Option<i64>,
}

/// Puts the exit, the event stream and the file together. Pure.
///
/// The file is used if `invocation_id` is unknown or equal to the file's. A node in both gets the file's result; a
/// node that finished in the stream only keeps that; a node that only started is [`NodeOutcome::Interrupted`]. The
/// exit decides over everything: not 0 is an error, 0 is a success, or a warning if a node warned.
pub fn reconcile(
    exit: ExitStatus,
    invocation_id: Option<&str>,
    events: &[NodeEvent],
    file: Option<&RunResults>,
) -> Verdict {
    let file = file.filter(|file| match (invocation_id, file.invocation_id.as_deref()) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => true,
    });
    let mut nodes = BTreeMap::new();
    for event in events {
        if event.kind == NodeEventKind::Progress {
            continue;
        }
        let finished = event.kind == NodeEventKind::Finished;
        if !finished && nodes.contains_key(&event.unique_id) {
            continue; // a start that arrived after its finish says nothing
        }
        let status = event
            .status
            .clone()
            .unwrap_or_else(|| if finished { "unknown" } else { "started" }.into());
        let outcome = if finished {
            NodeOutcome::of(&status)
        } else {
            NodeOutcome::Interrupted
        };
        nodes.insert(
            event.unique_id.clone(),
            NodeVerdict {
                outcome,
                status,
                execution_time: event.execution_time,
                message: event.message.clone(),
                failures: event.failures,
            },
        );
    }
    for result in file.into_iter().flat_map(|file| &file.results) {
        nodes.insert(
            result.unique_id.clone(),
            NodeVerdict {
                outcome: NodeOutcome::of(&result.status),
                status: result.status.clone(),
                execution_time: result.execution_time,
                message: result.message.clone(),
                failures: result.failures,
            },
        );
    }
    let outcome = match exit {
        ExitStatus::Code(0) if nodes.values().any(|node| node.outcome == NodeOutcome::Warn) => Outcome::Warn,
        ExitStatus::Code(0) => Outcome::Success,
        _ => Outcome::Error,
    };
    Verdict {
        outcome,
        nodes,
        from_file: file.is_some(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::events::{Parsed, parse_line};
    use super::*;

    fn event(json: &str) -> NodeEvent {
        let Parsed::Node(node) = parse_line(json.as_bytes()) else {
            unreachable!()
        };
        *node
    }

    fn file(invocation: &str, results: &[(&str, &str)]) -> RunResults {
        RunResults {
            invocation_id: Some(invocation.into()),
            results: results
                .iter()
                .map(|(id, status)| NodeResult {
                    unique_id: (*id).into(),
                    status: (*status).into(),
                    execution_time: Some(1.0),
                    message: None,
                    failures: None,
                    relation_name: None,
                })
                .collect(),
            ..RunResults::default()
        }
    }

    #[test]
    fn the_file_outranks_the_stream() {
        let events = [
            event(r#"{"k":"start","id":"m.a"}"#),
            event(r#"{"k":"finish","id":"m.a","result":"success"}"#),
        ];
        let file = file("i", &[("m.a", "error")]);
        let verdict = reconcile(ExitStatus::Code(1), Some("i"), &events, Some(&file));
        assert_eq!(verdict.nodes["m.a"].outcome, NodeOutcome::Error);
        assert!(verdict.from_file);
    }

    #[test]
    fn a_file_of_another_invocation_is_not_evidence() {
        let events = [event(r#"{"k":"start","id":"m.a"}"#)];
        let file = file("older", &[("m.a", "success")]);
        let verdict = reconcile(ExitStatus::Signal(9), Some("i"), &events, Some(&file));
        assert_eq!(verdict.nodes["m.a"].outcome, NodeOutcome::Interrupted);
        assert!(!verdict.from_file);
        assert_eq!(verdict.outcome, Outcome::Error);
    }

    #[test]
    fn interrupted_nodes_come_from_the_stream() {
        let events = [
            event(r#"{"k":"finish","id":"m.a","result":"success"}"#),
            event(r#"{"k":"start","id":"m.a"}"#),
            event(r#"{"k":"start","id":"m.b"}"#),
        ];
        let verdict = reconcile(
            ExitStatus::Code(2),
            Some("i"),
            &events,
            Some(&file("i", &[("m.a", "success")])),
        );
        assert_eq!(verdict.nodes["m.a"].outcome, NodeOutcome::Success);
        assert_eq!(verdict.nodes["m.b"].outcome, NodeOutcome::Interrupted);
    }

    #[test]
    fn the_exit_decides_and_warnings_show() {
        let warned = file("i", &[("t.a", "warn"), ("t.b", "pass")]);
        assert_eq!(
            reconcile(ExitStatus::Code(0), None, &[], Some(&warned)).outcome,
            Outcome::Warn
        );
        assert_eq!(
            reconcile(ExitStatus::Code(1), None, &[], Some(&warned)).outcome,
            Outcome::Error
        );
        assert_eq!(
            reconcile(ExitStatus::Code(0), None, &[], None).outcome,
            Outcome::Success
        );
        assert_eq!(NodeOutcome::of("a word of tomorrow"), NodeOutcome::Success);
    }

    #[test]
    fn a_file_is_read_without_its_bulk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run_results.json");
        assert_eq!(read_run_results(&path).unwrap(), None);
        let long = "é".repeat(MESSAGE_LIMIT);
        std::fs::write(&path, format!(r#"{{"metadata":{{"invocation_id":"i","env":{{}}}},"results":[{{"unique_id":"m.a","status":"error","timing":[{{}}],"compiled_code":"select 1","message":"{long}","failures":null}}],"elapsed_time":1.5,"args":{{}}}}"#)).unwrap();
        let read = read_run_results(&path).unwrap().unwrap();
        assert_eq!(
            (read.invocation_id.as_deref(), read.elapsed_time),
            (Some("i"), Some(1.5))
        );
        assert!(read.results[0].message.as_ref().unwrap().len() <= MESSAGE_LIMIT);
        std::fs::write(&path, r#"{"metadata":{"#).unwrap();
        assert!(read_run_results(&path).is_err());
    }
}
