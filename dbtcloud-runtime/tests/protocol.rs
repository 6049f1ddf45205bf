//! The wire between agents and servers, byte by byte: what is written, and what older releases wrote and is still read.
//!
//! A golden file of a protocol that a release has written stays as it is. What is written changes with
//! [`PROTOCOL_WRITTEN`] alone: then `UPDATE_GOLDEN=1 cargo test -p dbtcloud-runtime --test protocol` makes the new files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails loudly at the first surprise"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dbtcloud_core::Timestamp;
use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::ports::RunPatch;
use dbtcloud_core::run::{NodeReport, RunEvent, RunStatus, StepKind, StepPlan, StepState, StepStatus};
use dbtcloud_runtime::protocol::{
    Counted, Fields, GitLogin, GitSource, LogPart, PROTOCOL_READ, PROTOCOL_WRITTEN, ProfileSource, Redeem, Refusal,
    Report, ReportAck, RunPlan, StateUse, Stored,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

fn folder(protocol: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/protocol-{protocol}"))
}

/// What is written is what the golden file has.
fn written(name: &str, bytes: &[u8]) {
    let file = folder(PROTOCOL_WRITTEN).join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(folder(PROTOCOL_WRITTEN)).unwrap();
        std::fs::write(file, bytes).unwrap();
        return;
    }
    let golden = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(
        golden == bytes,
        "{name}: the release beside this one would read {}",
        String::from_utf8_lossy(bytes)
    );
}

/// What every protocol that is read had in its golden file can be read.
fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let one = |protocol| {
        let bytes = std::fs::read(folder(protocol).join(name)).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    PROTOCOL_READ.map(one).collect()
}

fn both<T: Serialize + DeserializeOwned>(name: &str, value: &T) {
    let pretty = |value: &T| serde_json::to_vec_pretty(value).unwrap();
    written(name, &pretty(value));
    let newest = read::<T>(name).pop().unwrap();
    assert_eq!(pretty(&newest), pretty(value), "{name}: something is lost on the way");
}

fn report() -> Report {
    let at = Timestamp::from_micros(1_790_000_000_000_000);
    Report {
        number: 7,
        steps: vec![StepState {
            index: 4,
            name: "Invoke dbt with `dbt build`".to_owned(),
            kind: StepKind::Command,
            status: StepStatus::Warned,
            started_at: Some(at),
            finished_at: Some(at),
            exit_code: Some(0),
            message: Some("one warning".to_owned()),
            backend: Some("warm".to_owned()),
        }],
        nodes: vec![NodeReport {
            step: 4,
            unique_id: "model.shop.orders".to_owned(),
            resource_type: "model".to_owned(),
            name: "orders".to_owned(),
            status: "success".to_owned(),
            message: Some("OK".to_owned()),
            execution_time: Some(0.25),
            index: Some(1),
            total: Some(2),
            at,
        }],
        logs: vec![
            LogPart {
                step: 4,
                offset: 10,
                bytes: Bytes::from_static(b"\x00\xff\n"),
            },
            LogPart {
                step: 5,
                offset: 0,
                bytes: Bytes::from_static(b"next\n"),
            },
        ],
        event: Some(RunEvent::Warned),
        patch: RunPatch {
            message: Some("done".to_owned()),
            git_branch: Some("main".to_owned()),
            git_sha: Some("0123".to_owned()),
            dbt_version: Some("1.11.0".to_owned()),
            artifacts_saved: Some(true),
            has_docs: Some(false),
            has_sources: None,
        },
        counted: vec![
            Counted::Nodes {
                resource_type: "model".to_owned(),
                status: "success".to_owned(),
                count: 2,
            },
            Counted::ParseState {
                result: "miss".to_owned(),
                reason: "version".to_owned(),
            },
            Counted::OrphanQueries { count: 1 },
        ],
    }
}

fn plan() -> RunPlan {
    let fields = |value: serde_json::Value| -> Fields { value.as_object().unwrap().clone() };
    RunPlan {
        account: AccountId::new(1),
        project: ProjectId::new(2),
        environment: EnvironmentId::new(3),
        job: JobId::new(4),
        run: RunId::new(5),
        attempt: 6,
        steps: vec![StepPlan {
            index: 1,
            name: "Invoke dbt with `dbt build`".to_owned(),
            kind: StepKind::Command,
            command: Some("dbt build".to_owned()),
        }],
        git: GitSource {
            url: "https://git.example/shop.git".to_owned(),
            branch: Some("main".to_owned()),
            commit: Some("0123".to_owned()),
            subdirectory: Some("dbt".to_owned()),
            login: GitLogin::Token {
                username: "token".to_owned(),
                token: "secret".to_owned(),
            },
        },
        profile: ProfileSource {
            connection_name: "Warehouse".to_owned(),
            adapter: "postgres".to_owned(),
            connection: fields(json!({"host": "db.example", "port": 5432})),
            credentials: fields(json!({"user": "dbt", "password": "secret"})),
            extended_attributes: fields(json!({"sslmode": "require"})),
            target_name: "prod".to_owned(),
            schema: Some("analytics".to_owned()),
            threads: 4,
        },
        dbt_version: "latest".to_owned(),
        variables: BTreeMap::from([("DBT_REGION".to_owned(), "eu".to_owned())]),
        secrets: vec!["secret".to_owned()],
        timeout_seconds: 300,
        state: Some(StateUse::Defer),
        grace_seconds: 10,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

#[test]
fn what_is_written_is_what_the_release_before_reads() {
    both(
        "redeem.json",
        &Redeem {
            ticket: "a ticket".to_owned(),
            key: "a key".to_owned(),
        },
    );
    both("plan.json", &plan());
    let status = RunStatus::Cancelling;
    both("ack.json", &ReportAck { number: 7, status });
    both("stored.json", &Stored { bytes: 12 });
    let message = "run 5 is no longer this agent's".to_owned();
    both("refusal.json", &Refusal { message });
    let frame = report().encode().unwrap();
    written("report.frame", &frame);
    assert_eq!(Report::decode(frame).unwrap(), report());
}

#[test]
fn every_protocol_that_is_read_can_be_read() {
    for protocol in PROTOCOL_READ {
        let frame = std::fs::read(folder(protocol).join("report.frame")).unwrap();
        let read = Report::decode(Bytes::from(frame)).unwrap();
        assert_eq!((read.number, read.steps.len(), read.logs.len()), (7, 1, 2));
    }
    for plan in read::<RunPlan>("plan.json") {
        assert_eq!(plan.run, RunId::new(5));
    }
    assert_eq!(read::<Redeem>("redeem.json").len(), PROTOCOL_READ.count());
}

/// Fields came since the first release; one that knows more is read too.
#[test]
fn fields_that_are_missing_or_new_change_nothing() {
    let mut plan = serde_json::to_value(plan()).unwrap();
    plan.as_object_mut().unwrap().remove("traceparent");
    plan["novelty"] = json!({"of": "later"});
    let plan: RunPlan = serde_json::from_value(plan).unwrap();
    assert_eq!((plan.traceparent, plan.attempt), (None, 6));

    let frame = report().encode().unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&frame[4..4 + length]).unwrap();
    header.as_object_mut().unwrap().remove("counted");
    header["novelty"] = json!(1);
    let header = serde_json::to_vec(&header).unwrap();
    let length = u32::try_from(header.len()).unwrap().to_be_bytes();
    let changed = [&length[..], &header, &frame[frame.len() - 8..]].concat();
    let read = Report::decode(Bytes::from(changed)).unwrap();
    assert_eq!((read.counted.len(), read.steps), (0, report().steps));
}
