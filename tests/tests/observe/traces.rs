//! Traces: request → run → step → node, below whoever asked.

use std::collections::BTreeMap;
use std::time::Duration;

use dbtcloud_contract::wait;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::Value;

use crate::receiver::Receiver;
use crate::stage::{CALLER_SPAN, CALLER_TRACE, Played};

const LIMIT: Duration = Duration::from_secs(30);

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let text = |value: &Any| match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let pairs = span.attributes.iter();
    pairs
        .map(|pair| {
            let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
            (pair.key.clone(), value.map(text).unwrap())
        })
        .collect()
}

/// The run's span, once it is there.
async fn run_of(receiver: &Receiver, run: &Value) -> Span {
    let id = run["id"].to_string();
    wait::until(LIMIT, || async {
        let heard = receiver.heard();
        let found = heard
            .spans
            .iter()
            .find(|span| attributes(span).get("dbtcloud.run_id") == Some(&id));
        found.cloned().ok_or("no span of the run")
    })
    .await
}

fn children(receiver: &Receiver, parent: &Span) -> Vec<Span> {
    let mut children: Vec<Span> = receiver
        .heard()
        .spans
        .iter()
        .filter(|span| span.parent_span_id == parent.span_id && span.trace_id == parent.trace_id)
        .cloned()
        .collect();
    children.sort_by_key(|span| span.start_time_unix_nano);
    children
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

pub async fn check(receiver: &Receiver, runs: &Played) {
    let run = run_of(receiver, &runs.succeeded).await;
    assert_eq!(hex(&run.trace_id), CALLER_TRACE, "the caller's trace goes on");
    let request = wait::until(LIMIT, || async {
        let heard = receiver.heard();
        let found = heard.spans.iter().find(|span| span.span_id == run.parent_span_id);
        found.cloned().ok_or("no span of the request")
    })
    .await;
    assert_eq!(request.name, "POST /api/v2/accounts/{account}/jobs/{id}/run");
    assert_eq!(hex(&request.parent_span_id), CALLER_SPAN);
    assert_eq!(attributes(&request)["http.response.status_code"], "200");

    let steps = children(receiver, &run);
    assert_eq!(names(&steps), ["clone", "profile", "dbt deps", "dbt run", "dbt build"]);
    for step in &steps {
        assert!(step.start_time_unix_nano >= run.start_time_unix_nano);
        assert!(step.end_time_unix_nano <= run.end_time_unix_nano && step.end_time_unix_nano > 0);
    }
    let nodes = children(receiver, &steps[3]);
    let ids: Vec<String> = nodes
        .iter()
        .map(|node| attributes(node)["dbt.node.unique_id"].clone())
        .collect();
    assert_eq!(ids, ["model.well.one", "model.well.two"]);
    for node in &nodes {
        assert!(node.start_time_unix_nano >= steps[3].start_time_unix_nano);
        assert!(node.end_time_unix_nano <= steps[3].end_time_unix_nano);
    }

    // What dbt got: the context of its step, and where to send to.
    let log = runs.succeeded["run_steps"][3]["logs"].as_str().unwrap();
    let context = format!("00-{CALLER_TRACE}-{}-01", hex(&steps[3].span_id));
    assert!(log.contains(&format!("traceparent is {context}")), "{context}: {log}");
    assert!(log.contains(&format!("collector is {}", receiver.url)), "{log}");

    let failed = run_of(receiver, &runs.failed).await;
    assert_eq!(
        failed.status.as_ref().map(|status| status.code()),
        Some(StatusCode::Error)
    );
    let build = children(receiver, &failed).pop().unwrap();
    let wrong: Vec<bool> = children(receiver, &build)
        .iter()
        .map(|node| {
            node.status
                .as_ref()
                .is_some_and(|status| status.code() == StatusCode::Error)
        })
        .collect();
    assert_eq!(wrong.iter().filter(|wrong| **wrong).count(), 1, "{wrong:?}");
    let cancelled = run_of(receiver, &runs.cancelled).await;
    assert_eq!(attributes(&cancelled)["dbtcloud.run.status"], "cancelled");

    let heard = receiver.heard();
    let mut ids: Vec<_> = heard.spans.iter().map(|span| &span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), heard.spans.len(), "no span twice");
    for span in &heard.spans {
        let told = format!("{span:?}").to_lowercase();
        for secret in ["select ", "no_such_column", "--vars"] {
            assert!(!told.contains(secret), "{secret:?} in {told}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
