//! OpenLineage events: shape, parents, ends and datasets.

use std::collections::BTreeMap;
use std::time::Duration;

use dbtcloud_contract::wait;
use serde_json::Value;

use crate::receiver::Receiver;
use crate::stage::{LINEAGE_KEY, LINEAGE_NAMESPACE, Played};

const LIMIT: Duration = Duration::from_secs(30);

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    let found = value.pointer(path).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {path} of {value:#}"))
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.bytes().all(|c| c == b'-' || c.is_ascii_hexdigit())
}

/// The rules of OpenLineage's schema for a run event, as far as they concern what is sent here.
fn check_shape(event: &Value) {
    assert!(
        ["START", "COMPLETE", "ABORT", "FAIL"].contains(&text(event, "/eventType")),
        "{event:#}"
    );
    let time = text(event, "/eventTime");
    assert!(
        time.len() == 27 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
        "{time}"
    );
    for url in ["/producer", "/schemaURL"] {
        assert!(text(event, url).starts_with("https://"), "{event:#}");
    }
    assert!(is_uuid(text(event, "/run/runId")), "{event:#}");
    assert!(!text(event, "/job/namespace").is_empty() && !text(event, "/job/name").is_empty());
    let facets = ["/run/facets", "/job/facets"].into_iter();
    for facet in facets.flat_map(|path| event.pointer(path).unwrap().as_object().unwrap().values()) {
        assert!(text(facet, "/_producer").starts_with("https://"));
        assert!(text(facet, "/_schemaURL").starts_with("https://openlineage.io/spec/facets/"));
    }
    for side in ["/inputs", "/outputs"] {
        for dataset in event.pointer(side).unwrap().as_array().unwrap() {
            assert!(!text(dataset, "/namespace").is_empty() && !text(dataset, "/name").is_empty());
        }
    }
    if let Some(parent) = event.pointer("/run/facets/parent") {
        assert!(is_uuid(text(parent, "/run/runId")) && is_uuid(text(&parent["root"], "/run/runId")));
        assert!(!text(parent, "/job/name").is_empty() && !text(&parent["root"], "/job/name").is_empty());
    }
    if let Some(error) = event.pointer("/run/facets/errorMessage") {
        assert!(!text(error, "/message").is_empty() && text(error, "/programmingLanguage") == "SQL");
    }
    assert_eq!(text(event, "/job/facets/jobType/processingType"), "BATCH");
    assert_eq!(text(event, "/job/facets/jobType/integration"), "DBT");
}

/// Every event of a run's job, once the run's own end is there.
async fn of(receiver: &Receiver, account: i64, run: &Value) -> Vec<Value> {
    let job = format!("account.{account}.job.{}", run["job_definition_id"]);
    wait::until(LIMIT, || async {
        let heard = receiver.heard();
        let of_job = |event: &&Value| {
            let name = text(event, "/job/name");
            name == job || name.starts_with(&format!("{job}."))
        };
        let events: Vec<Value> = heard.events.iter().filter(of_job).cloned().collect();
        let ended = events
            .iter()
            .any(|event| text(event, "/job/name") == job && event["eventType"] != "START");
        ended.then_some(events).ok_or("the run's end is not told")
    })
    .await
}

/// How each job's runs ended, by what is behind the name of the run's job.
fn ends(events: &[Value], job: &str) -> BTreeMap<String, Vec<String>> {
    let mut ends = BTreeMap::<String, Vec<String>>::new();
    for event in events.iter().filter(|event| event["eventType"] != "START") {
        let name = text(event, "/job/name")
            .strip_prefix(job)
            .unwrap()
            .trim_start_matches('.');
        ends.entry(name.to_owned())
            .or_default()
            .push(text(event, "/eventType").to_owned());
    }
    ends
}

fn expected(pairs: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, ends)| ((*name).to_owned(), ends.iter().map(|end| (*end).to_owned()).collect()))
        .collect()
}

pub async fn check(receiver: &Receiver, account: i64, runs: &Played) {
    let succeeded = of(receiver, account, &runs.succeeded).await;
    let job = format!("account.{account}.job.{}", runs.succeeded["job_definition_id"]);
    assert_eq!(
        ends(&succeeded, &job),
        expected(&[
            ("", &["COMPLETE"]),
            ("model.well.one", &["COMPLETE", "COMPLETE"]),
            ("model.well.two", &["COMPLETE", "COMPLETE"]),
            ("step.4.dbt-run", &["COMPLETE"]),
            ("step.5.dbt-build", &["COMPLETE"]),
        ])
    );
    let two = succeeded
        .iter()
        .find(|event| text(event, "/job/name").ends_with("model.well.two"))
        .unwrap();
    let (input, output) = (&two["inputs"][0], &two["outputs"][0]);
    assert!(text(input, "/namespace").starts_with("duckdb:///"), "{two:#}");
    assert_eq!(text(input, "/name"), "warehouse.main.one");
    assert_eq!(text(output, "/name"), "warehouse.main.two");
    let command = succeeded
        .iter()
        .find(|event| event.pointer("/run/runId") == two.pointer("/run/facets/parent/run/runId"))
        .unwrap();
    assert_eq!(text(command, "/job/facets/jobType/jobType"), "COMMAND");
    let root = text(&two["run"]["facets"]["parent"]["root"], "/run/runId");
    assert_eq!(text(command, "/run/facets/parent/run/runId"), root);

    let failed = of(receiver, account, &runs.failed).await;
    let job = format!("account.{account}.job.{}", runs.failed["job_definition_id"]);
    assert_eq!(
        ends(&failed, &job),
        expected(&[
            ("", &["FAIL"]),
            ("model.broken.one", &["COMPLETE"]),
            ("model.broken.two", &["FAIL"]),
            ("step.4.dbt-build", &["FAIL"]),
        ]),
        "what was skipped did not fail"
    );
    let cancelled = of(receiver, account, &runs.cancelled).await;
    let job = format!("account.{account}.job.{}", runs.cancelled["job_definition_id"]);
    let of_cancelled = ends(&cancelled, &job);
    assert_eq!(of_cancelled[""], ["ABORT"]);
    assert_eq!(of_cancelled["step.4.dbt-run"], ["ABORT"]);
    assert_eq!(of_cancelled["model.slow.m0"], ["ABORT"], "{of_cancelled:?}");

    let heard = receiver.heard();
    let key = Some(format!("Bearer {LINEAGE_KEY}"));
    assert!(heard.authorization.iter().all(|sent| *sent == key));
    let mut started = BTreeMap::<&str, &Value>::new();
    for event in heard.events.iter() {
        check_shape(event);
        assert_eq!(text(event, "/job/namespace"), LINEAGE_NAMESPACE);
        let told = event.to_string().to_lowercase();
        assert!(!told.contains("no_such_column") && !told.contains("select "), "{told}");
        // Told again, a start is the same start.
        if event["eventType"] == "START"
            && let Some(before) = started.insert(text(event, "/run/runId"), event)
        {
            assert_eq!(before, event);
        }
    }
    for event in heard.events.iter() {
        assert!(
            started.contains_key(text(event, "/run/runId")),
            "an end without a start: {event:#}"
        );
    }
}
