//! JSON log lines: what concerns a run names its ids at the top.

use std::path::Path;

use serde_json::{Map, Value};

use crate::stage::Played;

fn read(path: &Path) -> Vec<Map<String, Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

pub fn check(log: &Path, account: i64, runs: &Played) {
    let lines = read(log);
    for line in &lines {
        for key in ["timestamp", "level", "target", "message"] {
            assert!(line.get(key).is_some_and(Value::is_string), "{key} in {line:?}");
        }
        for nested in ["span", "spans", "fields", "run", "job"] {
            assert!(!line.contains_key(nested), "{nested} in {line:?}");
        }
        if line["target"] == "dbtcloud::access" {
            assert!(line["request_id"].is_string() && line["status"].is_number(), "{line:?}");
        }
    }
    for run in [&runs.succeeded, &runs.failed, &runs.cancelled] {
        let of_run: Vec<_> = lines
            .iter()
            .filter(|line| line.get("run_id") == Some(&run["id"]))
            .collect();
        for line in &of_run {
            assert_eq!(line.get("account_id"), Some(&account.into()), "{line:?}");
            // A delivery that fails may fail because its run cannot be read.
            if line["target"] != "dbtcloud_runtime::outbox" {
                assert_eq!(line.get("job_id"), Some(&run["job_definition_id"]), "{line:?}");
            }
        }
        for said in ["run begins", "run ended"] {
            let count = of_run.iter().filter(|line| line["message"] == said).count();
            assert_eq!(count, 1, "{said} of run {}: {of_run:?}", run["id"]);
        }
    }
}
