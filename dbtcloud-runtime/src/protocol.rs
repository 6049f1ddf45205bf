//! What the agent of a run and the control plane say to each other, over HTTP on a unix socket or TCP.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /agent/v1/redeem` | [`Redeem`] | [`RunPlan`] |
//! | `POST /agent/v1/report` | [`Report`] frame | [`ReportAck`] |
//! | `PUT /agent/v1/artifacts/{step}/{path}` | bytes | [`Stored`] |
//! | `PUT /agent/v1/debug-logs/{step}` | bytes | [`Stored`] |
//! | `GET /agent/v1/state/{file}` | | bytes of the run that is deferred to or retried |
//!
//! All but `redeem` carry `Authorization: Bearer <key>`, the key that the agent bound to itself when it
//! redeemed its ticket. A refusal is a [`Refusal`] with the status of its kind: 400 invalid, 403 denied,
//! 404 not found, 409 conflict, 410 fenced (stop dbt and exit), 503 unavailable (try again).
//!
//! **Versions.** Each request and each answer says in the header [`PROTOCOL_HEADER`] which protocol it is written in;
//! without it, in protocol 1. An agent outlives the server that started it, and what it says may reach any server of
//! the installation, of this release or of the one beside it. So what is new is first only read: a release that
//! learns a protocol goes on writing the one before ([`PROTOCOL_READ`]), and the release after it writes the new one
//! ([`PROTOCOL_WRITTEN`]). Fields may be added within a protocol, as long as whoever does not know them can do without,
//! and read with a default; a new variant or meaning is a new protocol. Who cannot read what comes says so and is asked
//! again (503): another server may be able to.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::ports::{BATCH_LIMIT_BYTES, RunPatch};
use dbtcloud_core::run::{NodeReport, RunEvent, RunStatus, StepPlan, StepState};
use dbtcloud_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The header that says which protocol a request or an answer is written in.
pub const PROTOCOL_HEADER: &str = "dbtcloud-protocol";
/// The protocol that this release writes.
pub const PROTOCOL_WRITTEN: u32 = 1;
/// The protocols that this release reads: at least those that this release and the one before write.
pub const PROTOCOL_READ: std::ops::RangeInclusive<u32> = 1..=1;

/// Whether what says so in its header can be read.
///
/// # Errors
/// `Unavailable` when it is of a protocol that this release does not read; the text says what to do.
pub fn readable(header: Option<&str>) -> Result<()> {
    let written = header.map_or(Some(1), |text| text.parse().ok());
    match written {
        Some(protocol) if PROTOCOL_READ.contains(&protocol) => Ok(()),
        _ => Err(Error::unavailable(format!(
            "agent protocol {} is not read here, {} to {} are: agents and servers are more than one release apart; \
             upgrade the older ones",
            header.unwrap_or("1"),
            PROTOCOL_READ.start(),
            PROTOCOL_READ.end()
        ))),
    }
}

/// The longest a report's header may be, in bytes.
pub const HEADER_LIMIT_BYTES: usize = 8 * 1024 * 1024;
/// The longest a whole report frame may be, in bytes.
pub const FRAME_LIMIT_BYTES: usize = 4 + HEADER_LIMIT_BYTES + BATCH_LIMIT_BYTES;

/// Free-form fields.
pub type Fields = serde_json::Map<String, serde_json::Value>;

/// Trades a ticket for the plan and binds the attempt to `key`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Redeem {
    /// The ticket from `DBTCLOUD_TICKET`.
    pub ticket: String,
    /// At least 32 random bytes, as text, made by the agent. Sent again when an answer was lost.
    pub key: String,
}

impl std::fmt::Debug for Redeem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redeem(***)")
    }
}

/// Where the code is and how to get in. Secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GitLogin {
    /// Nothing is needed.
    Anonymous,
    /// User name and token over HTTPS.
    Token {
        /// User name.
        username: String,
        /// Token.
        token: String,
    },
    /// SSH private key in OpenSSH format.
    DeployKey {
        /// The key.
        private_key: String,
    },
}

/// What to clone.
#[derive(Clone, Serialize, Deserialize)]
pub struct GitSource {
    /// URL without credentials.
    pub url: String,
    /// Branch or tag; the remote's default when absent.
    pub branch: Option<String>,
    /// Commit; wins over the branch.
    pub commit: Option<String>,
    /// Folder of the repository that holds `dbt_project.yml`.
    pub subdirectory: Option<String>,
    /// How to get in.
    pub login: GitLogin,
}

/// What the profile is made of. Secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct ProfileSource {
    /// Display name of the connection.
    pub connection_name: String,
    /// dbt adapter.
    pub adapter: String,
    /// Fields of the connection, secret ones among them.
    pub connection: Fields,
    /// Fields of the credentials, secret ones among them.
    pub credentials: Fields,
    /// Merged over the target, at top level.
    pub extended_attributes: Fields,
    /// Target name.
    pub target_name: String,
    /// Target schema.
    pub schema: Option<String>,
    /// dbt's threads.
    pub threads: u32,
}

/// The earlier run whose artifacts this one needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateUse {
    /// `manifest.json` for `--defer --state`.
    Defer,
    /// `manifest.json` and `run_results.json` for `dbt retry`.
    Retry,
}

/// Everything an agent needs. It holds secrets and prints none.
#[derive(Clone, Serialize, Deserialize)]
pub struct RunPlan {
    /// Whose.
    pub account: AccountId,
    /// Of which project.
    pub project: ProjectId,
    /// In which environment.
    pub environment: EnvironmentId,
    /// Of which job.
    pub job: JobId,
    /// Which run.
    pub run: RunId,
    /// Which attempt.
    pub attempt: u32,
    /// The steps, in order.
    pub steps: Vec<StepPlan>,
    /// What to clone.
    pub git: GitSource,
    /// What the profile is made of.
    pub profile: ProfileSource,
    /// Which dbt, as the environment says it.
    pub dbt_version: String,
    /// The environment of every dbt command: the project's variables and those dbt Cloud injects.
    pub variables: BTreeMap<String, String>,
    /// Every secret value, for redaction.
    pub secrets: Vec<String>,
    /// The longest the whole run may take, in seconds.
    pub timeout_seconds: u64,
    /// Whether artifacts of an earlier run are to be fetched, and for what.
    pub state: Option<StateUse>,
    /// Time between SIGINT and SIGKILL when the run is stopped, in seconds.
    pub grace_seconds: u64,
    /// The run in its trace, as W3C's `traceparent`.
    #[serde(default)]
    pub traceparent: Option<String>,
}

impl std::fmt::Debug for RunPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunPlan")
            .field("run", &self.run)
            .field("attempt", &self.attempt)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// Log bytes of one step inside a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// The step's index.
    pub step: u32,
    /// Where they begin in the step's log.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// Something that an agent counted since its last report. It is taken in once, as the report is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Counted {
    /// Nodes of a command that is over.
    Nodes {
        /// dbt's word for what they are.
        resource_type: String,
        /// dbt's word for how they ended.
        status: String,
        /// How many.
        count: u64,
    },
    /// A parse state was asked for.
    ParseState {
        /// `hit`, `partial` (another commit's) or `miss`.
        result: String,
        /// Which part of its key differed; empty unless it is a miss.
        reason: String,
    },
    /// Queries that went on in the warehouse after dbt was killed, and were ended there.
    OrphanQueries {
        /// How many.
        count: u64,
    },
}

/// What an agent reports at one time; numbered from 1.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Report {
    /// Its number.
    pub number: u64,
    /// Steps that changed.
    pub steps: Vec<StepState>,
    /// Nodes that began or ended.
    pub nodes: Vec<NodeReport>,
    /// Log bytes.
    pub logs: Vec<LogPart>,
    /// What happened to the run.
    pub event: Option<RunEvent>,
    /// Fields of the run that are known now.
    pub patch: RunPatch,
    /// What was counted.
    pub counted: Vec<Counted>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    number: u64,
    steps: Vec<StepState>,
    nodes: Vec<NodeReport>,
    logs: Vec<(u32, u64, u32)>,
    event: Option<RunEvent>,
    patch: RunPatch,
    #[serde(default)]
    counted: Vec<Counted>,
}

impl Report {
    /// The report as a frame: length of the header (4 bytes, big-endian), header as JSON, log bytes.
    ///
    /// # Errors
    /// `Invalid` when header or log bytes are longer than their limits.
    pub fn encode(&self) -> Result<Bytes> {
        let logs: usize = self.logs.iter().map(|part| part.bytes.len()).sum();
        let header = Header {
            number: self.number,
            steps: self.steps.clone(),
            nodes: self.nodes.clone(),
            logs: self
                .logs
                .iter()
                .map(|part| {
                    (
                        part.step,
                        part.offset,
                        u32::try_from(part.bytes.len()).unwrap_or(u32::MAX),
                    )
                })
                .collect(),
            event: self.event,
            patch: self.patch.clone(),
            counted: self.counted.clone(),
        };
        let header = serde_json::to_vec(&header)
            .map_err(|e| Error::new(ErrorKind::Invalid, "report cannot be written as JSON").because(e))?;
        if header.len() > HEADER_LIMIT_BYTES || logs > BATCH_LIMIT_BYTES {
            return Err(Error::invalid(
                "report",
                format!(
                    "expected at most {HEADER_LIMIT_BYTES} header and {BATCH_LIMIT_BYTES} log bytes, got {} and {logs}",
                    header.len()
                ),
            ));
        }
        let mut frame = BytesMut::with_capacity(4 + header.len() + logs);
        frame.put_u32(u32::try_from(header.len()).unwrap_or(u32::MAX));
        frame.put_slice(&header);
        for part in &self.logs {
            frame.put_slice(&part.bytes);
        }
        Ok(frame.freeze())
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// `Invalid` when it is not what [`Report::encode`] makes.
    pub fn decode(mut frame: Bytes) -> Result<Self> {
        let bad = |what: &str| Error::invalid("report", what.to_owned());
        if frame.len() < 4 {
            return Err(bad("expected a 4-byte header length"));
        }
        let length = frame.get_u32() as usize;
        if length > HEADER_LIMIT_BYTES || length > frame.len() {
            return Err(bad("expected a header as long as its length says"));
        }
        let header: Header =
            serde_json::from_slice(&frame.split_to(length)).map_err(|e| bad("expected a JSON header").because(e))?;
        let mut logs = Vec::with_capacity(header.logs.len());
        for (step, offset, bytes) in header.logs {
            if bytes as usize > frame.len() {
                return Err(bad("expected as many log bytes as the header says"));
            }
            logs.push(LogPart {
                step,
                offset,
                bytes: frame.split_to(bytes as usize),
            });
        }
        if !frame.is_empty() {
            return Err(bad("expected no bytes after the last log part"));
        }
        Ok(Self {
            number: header.number,
            steps: header.steps,
            nodes: header.nodes,
            logs,
            event: header.event,
            patch: header.patch,
            counted: header.counted,
        })
    }
}

/// The answer to a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    /// The highest number that has been taken in.
    pub number: u64,
    /// Where the run stands. `Cancelling`: interrupt dbt, report what was confirmed, end.
    pub status: RunStatus,
}

/// The answer to a stored file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its length.
    pub bytes: u64,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What went wrong, one line, without secrets.
    pub message: String,
}

/// The HTTP status that stands for a kind of error.
pub const fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid => 400,
        ErrorKind::Denied => 403,
        ErrorKind::NotFound => 404,
        ErrorKind::AlreadyExists | ErrorKind::Conflict => 409,
        ErrorKind::Fenced => 410,
        ErrorKind::Corrupt => 500,
        _ => 503,
    }
}

/// The kind of error that an HTTP status stands for; whatever is not known here is worth another try.
pub const fn kind_of(status: u16) -> ErrorKind {
    match status {
        400 | 413 | 415 | 422 => ErrorKind::Invalid,
        401 | 403 => ErrorKind::Denied,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        410 => ErrorKind::Fenced,
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_no_protocol_that_is_read_is_refused() {
        for (header, fine) in [
            (None, true),
            (Some("1"), true),
            (Some("0"), false),
            (Some("2"), false),
            (Some("new"), false),
        ] {
            assert_eq!(readable(header).is_ok(), fine, "{header:?}");
        }
        assert!(PROTOCOL_READ.contains(&PROTOCOL_WRITTEN));
    }

    #[test]
    fn a_report_survives_its_frame() {
        let report = Report {
            number: 7,
            logs: vec![
                LogPart {
                    step: 1,
                    offset: 10,
                    bytes: Bytes::from_static(b"\x00\xff\n"),
                },
                LogPart {
                    step: 2,
                    offset: 0,
                    bytes: Bytes::new(),
                },
            ],
            event: Some(RunEvent::Started),
            patch: RunPatch::message("hello"),
            ..Report::default()
        };
        let frame = report.encode().ok();
        assert_eq!(frame.and_then(|frame| Report::decode(frame).ok()), Some(report));
    }

    #[test]
    fn a_broken_frame_is_refused() {
        for frame in [
            &b""[..],
            b"\x00\x00\x00\x09{}",
            b"\x00\x00\x00\x02{}",
            b"\xff\xff\xff\xff",
        ] {
            assert!(Report::decode(Bytes::copy_from_slice(frame)).is_err());
        }
    }
}
