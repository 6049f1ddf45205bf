//! Node events: what dbt says while it runs, as one small type whatever the backend.
//!
//! Two shapes are read: the compact lines of the engine's own Python child (`py/dbt_child.py`) and dbt's structured
//! log (`--log-format json`, v1 and v2). Unknown fields and unknown events are ignored; a line that is not JSON is
//! counted and never fatal. Everything but the kind is optional, because dbt 2.x leaves fields out.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest line that is looked at; longer ones count as bad.
pub const LINE_LIMIT: usize = 1024 * 1024;

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeEventKind {
    /// A thread took it.
    Started,
    /// It is number `index` of `total`.
    Progress,
    /// It is done, well or not: see `status`.
    Finished,
}

/// One event about one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// What happened.
    pub kind: NodeEventKind,
    /// dbt's unique id: `model.project.name`.
    pub unique_id: String,
    /// Short name.
    pub name: Option<String>,
    /// `model`, `test`, `seed`, …
    pub resource_type: Option<String>,
    /// `table`, `view`, …
    pub materialized: Option<String>,
    /// The relation it builds, quoted as the warehouse wants it.
    pub relation: Option<String>,
    /// dbt's word, open-ended: `success`, `error`, `fail`, `warn`, `skipped`, `started`, …
    pub status: Option<String>,
    /// dbt's message about the outcome. May quote warehouse data in an error: treat it as data.
    pub message: Option<String>,
    /// Failing rows of a test.
    pub failures: Option<i64>,
    /// Seconds it took.
    pub execution_time: Option<f64>,
    /// Position, from 1.
    pub index: Option<u32>,
    /// Nodes in this command.
    pub total: Option<u32>,
    /// When it started, as dbt wrote it (UTC, ISO 8601).
    pub started_at: Option<String>,
    /// When it finished, as dbt wrote it.
    pub finished_at: Option<String>,
    /// When the event was fired.
    pub at: Option<String>,
}

/// An event about the whole command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CommandEvent {
    /// dbt is up.
    Version {
        /// Its version.
        version: String,
        /// Its invocation id, the one artifacts carry.
        invocation_id: String,
    },
    /// dbt is done.
    Completed {
        /// Whether it thinks it succeeded.
        success: bool,
        /// Seconds it took.
        elapsed: Option<f64>,
    },
    /// dbt gave up, with its reason. May quote warehouse data.
    Error {
        /// The reason.
        message: String,
    },
}

/// A line understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// About a node.
    Node(Box<NodeEvent>),
    /// About the command.
    Command(CommandEvent),
    /// Valid, of no interest here.
    Other,
    /// Not valid.
    Bad,
}

fn text(value: &Value, key: &str) -> Option<String> {
    value
        .get(key)?
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

fn small(value: &Value, key: &str) -> Option<u32> {
    value.get(key)?.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// Reads one line of either shape.
///
/// ```
/// use dbtcloud_runtime::engine::events::{parse_line, Parsed};
/// assert!(matches!(parse_line(br#"{"k":"start","id":"model.a.b"}"#), Parsed::Node(_)));
/// assert_eq!(parse_line(b"not json"), Parsed::Bad);
/// ```
pub fn parse_line(line: &[u8]) -> Parsed {
    if line.len() > LINE_LIMIT {
        return Parsed::Bad;
    }
    match serde_json::from_slice::<Value>(line) {
        Ok(value) if value.get("k").is_some() => parse_compact(&value),
        Ok(value) if value.get("info").is_some() => parse_structured(&value),
        Ok(Value::Object(_)) => Parsed::Other,
        _ => Parsed::Bad,
    }
}

fn parse_compact(value: &Value) -> Parsed {
    let kind = match value["k"].as_str() {
        Some("start") => NodeEventKind::Started,
        Some("progress") => NodeEventKind::Progress,
        Some("finish") => NodeEventKind::Finished,
        Some("version") => {
            return Parsed::Command(CommandEvent::Version {
                version: text(value, "version").unwrap_or_default(),
                invocation_id: text(value, "invocation").unwrap_or_default(),
            });
        }
        Some("completed") => {
            return Parsed::Command(CommandEvent::Completed {
                success: value["success"].as_bool().unwrap_or(false),
                elapsed: value["seconds"].as_f64(),
            });
        }
        Some("error") => {
            return Parsed::Command(CommandEvent::Error {
                message: text(value, "message").unwrap_or_default(),
            });
        }
        Some("bad") => return Parsed::Bad,
        _ => return Parsed::Other,
    };
    let Some(unique_id) = text(value, "id") else {
        return Parsed::Other;
    };
    let finished = kind == NodeEventKind::Finished;
    Parsed::Node(Box::new(NodeEvent {
        kind,
        unique_id,
        name: text(value, "name"),
        resource_type: text(value, "type"),
        materialized: text(value, "mat"),
        relation: text(value, "relation"),
        status: text(value, "result").or_else(|| text(value, "status")),
        message: text(value, "message"),
        failures: value["failures"].as_i64().filter(|_| finished),
        execution_time: value["seconds"].as_f64().filter(|_| finished),
        index: small(value, "index"),
        total: small(value, "total"),
        started_at: text(value, "started"),
        finished_at: text(value, "finished"),
        at: text(value, "ts"),
    }))
}

fn parse_structured(value: &Value) -> Parsed {
    let (info, data) = (&value["info"], &value["data"]);
    let kind = match info["name"].as_str() {
        Some("NodeStart") => NodeEventKind::Started,
        Some("LogStartLine") => NodeEventKind::Progress,
        Some("NodeFinished") => NodeEventKind::Finished,
        Some("MainReportVersion") => {
            return Parsed::Command(CommandEvent::Version {
                version: text(data, "version")
                    .unwrap_or_default()
                    .trim_start_matches('=')
                    .to_owned(),
                invocation_id: text(info, "invocation_id").unwrap_or_default(),
            });
        }
        Some("CommandCompleted") => {
            return Parsed::Command(CommandEvent::Completed {
                success: data["success"].as_bool().unwrap_or(false),
                elapsed: data["elapsed"].as_f64(),
            });
        }
        Some("MainEncounteredError") => {
            return Parsed::Command(CommandEvent::Error {
                message: text(info, "msg").unwrap_or_default(),
            });
        }
        _ => return Parsed::Other,
    };
    let node = &data["node_info"];
    let Some(unique_id) = text(node, "unique_id") else {
        return Parsed::Other;
    };
    let result = &data["run_result"];
    Parsed::Node(Box::new(NodeEvent {
        kind,
        unique_id,
        name: text(node, "node_name"),
        resource_type: text(node, "resource_type"),
        materialized: text(node, "materialized"),
        relation: text(&node["node_relation"], "relation_name"),
        status: text(result, "status").or_else(|| text(node, "node_status")),
        message: text(result, "message"),
        failures: result["num_failures"].as_i64(),
        execution_time: result["execution_time"].as_f64(),
        index: small(data, "index"),
        total: small(data, "total"),
        started_at: text(node, "node_started_at"),
        finished_at: text(node, "node_finished_at"),
        at: text(info, "ts"),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn both_shapes_say_the_same() {
        let compact = br#"{"k":"finish","ts":"t","result":"fail","message":"Got 1","seconds":0.5,"failures":1,"id":"test.a.b","name":"b","type":"test","status":"fail","started":"s","finished":"f","new":1}"#;
        let structured = br#"{"info":{"name":"NodeFinished","ts":"t","extra":{}},"data":{"node_info":{"unique_id":"test.a.b","node_name":"b","resource_type":"test","node_status":"fail","node_started_at":"s","node_finished_at":"f","meta":{}},"run_result":{"status":"fail","message":"Got 1","execution_time":0.5,"num_failures":1}}}"#;
        assert_eq!(parse_line(compact), parse_line(structured));
        let Parsed::Node(node) = parse_line(compact) else {
            panic!("not a node")
        };
        assert_eq!((node.status.as_deref(), node.failures), (Some("fail"), Some(1)));
    }

    #[test]
    fn commands_are_read() {
        assert_eq!(
            parse_line(br#"{"info":{"name":"MainReportVersion","invocation_id":"i"},"data":{"version":"=1.11.16"}}"#),
            Parsed::Command(CommandEvent::Version {
                version: "1.11.16".into(),
                invocation_id: "i".into()
            })
        );
        assert!(matches!(
            parse_line(br#"{"k":"completed","success":true}"#),
            Parsed::Command(CommandEvent::Completed { success: true, .. })
        ));
    }

    #[test]
    fn odd_lines_are_not_fatal() {
        assert_eq!(parse_line(b""), Parsed::Bad);
        assert_eq!(parse_line(b"[1]"), Parsed::Bad);
        assert_eq!(parse_line(b"{}"), Parsed::Other);
        assert_eq!(parse_line(br#"{"k":"later"}"#), Parsed::Other);
        assert_eq!(parse_line(br#"{"k":"start"}"#), Parsed::Other);
        assert_eq!(parse_line(&vec![b'x'; LINE_LIMIT + 1]), Parsed::Bad);
    }
}
