//! `/metrics`: names, types and values.

use dbtcloud_tests::scrape::Scrape;

use crate::stage::Played;

/// What users were promised: name and type. `docs/observe.md` explains them.
pub const PROMISED: [(&str, &str); 35] = [
    ("dbtcloud_runs", "counter"),
    ("dbtcloud_runs_in_progress", "gauge"),
    ("dbtcloud_run_queue_depth", "gauge"),
    ("dbtcloud_run_queue_wait_seconds", "histogram"),
    ("dbtcloud_run_prep_seconds", "histogram"),
    ("dbtcloud_run_duration_seconds", "histogram"),
    ("dbtcloud_node_executions", "counter"),
    ("dbtcloud_scheduler_dispatch_lag_seconds", "histogram"),
    ("dbtcloud_scheduler_last_tick_timestamp_seconds", "gauge"),
    ("dbtcloud_scheduler_failures", "counter"),
    ("dbtcloud_cancel_seconds", "histogram"),
    ("dbtcloud_cancel_orphan_queries", "counter"),
    ("dbtcloud_executor_pods", "gauge"),
    ("dbtcloud_parse_cache_requests", "counter"),
    ("dbtcloud_artifacts_stored", "counter"),
    ("dbtcloud_artifact_upload_failures", "counter"),
    ("dbtcloud_log_bytes_shipped", "counter"),
    ("dbtcloud_agent_reports_fenced", "counter"),
    ("dbtcloud_develop_sessions", "gauge"),
    ("dbtcloud_http_request_duration_seconds", "histogram"),
    ("dbtcloud_db_pool_connections", "gauge"),
    ("dbtcloud_cleanup_deleted", "counter"),
    ("dbtcloud_cleanup_bytes", "counter"),
    ("dbtcloud_cleanup_sweeps", "counter"),
    ("dbtcloud_cleanup_failures", "counter"),
    ("dbtcloud_cleanup_busy_seconds", "counter"),
    ("dbtcloud_cleanup_last_success_timestamp_seconds", "gauge"),
    ("dbtcloud_wakeups_listening", "gauge"),
    ("dbtcloud_wakeups_lost", "counter"),
    ("dbtcloud_leader", "gauge"),
    ("dbtcloud_outbox_deliveries", "counter"),
    ("dbtcloud_outbox_depth", "gauge"),
    ("dbtcloud_outbox_delivery_failures", "counter"),
    ("dbtcloud_dispatches", "counter"),
    ("dbtcloud_dispatches_waiting", "gauge"),
];
/// Labels that would have no bound.
const FORBIDDEN: [&str; 7] = ["account", "account_id", "job", "job_id", "run", "run_id", "project_id"];

/// A server that has done nothing tells every name all the same.
pub fn before(scrape: &Scrape) {
    for (name, kind) in PROMISED {
        let family = scrape.0.get(name).unwrap_or_else(|| panic!("{name} is not told"));
        assert_eq!(family.kind, kind, "{name}");
        assert_eq!(family.unit.is_some(), name.ends_with("_seconds"), "{name}");
    }
    assert_eq!(scrape.sum("dbtcloud_runs", &[]), 0.0);
}

pub fn after(scrape: &Scrape, runs: &Played) {
    for (name, family) in &scrape.0 {
        for (_, labels, _) in &family.samples {
            let wrong: Vec<_> = labels
                .keys()
                .filter(|label| FORBIDDEN.contains(&label.as_str()))
                .collect();
            assert!(wrong.is_empty(), "{name} is labelled by {wrong:?}");
        }
    }
    let is = |name: &str, labels: &[(&str, &str)], value: f64| {
        assert_eq!(
            scrape.sum(name, labels),
            value,
            "{name} {labels:?}: {:#?}",
            scrape.0[name]
        );
    };
    let of_api = |status| [("status", status), ("trigger", "api"), ("job_type", "other")];
    is("dbtcloud_runs", &[], 3.0);
    is("dbtcloud_runs", &of_api("success"), 1.0);
    is("dbtcloud_runs", &of_api("error"), 1.0);
    is("dbtcloud_runs", &of_api("cancelled"), 1.0);
    is("dbtcloud_run_queue_depth", &[], 0.0);
    for name in ["run_queue_wait", "run_prep", "run_duration"] {
        is(&format!("dbtcloud_{name}_seconds"), &[], 3.0);
    }
    is("dbtcloud_cancel_seconds", &[], 1.0);
    is("dbtcloud_scheduler_dispatch_lag_seconds", &[], 0.0);

    // Two models run and then built; of three one well, one failed, one skipped; of four the first interrupted.
    let models = |status| [("resource_type", "model"), ("status", status)];
    is("dbtcloud_node_executions", &models("success"), 5.0);
    // An interrupted node is dbt's to name: an error, or nothing at all, which we call interrupted.
    let interrupted = scrape.sum("dbtcloud_node_executions", &models("interrupted"));
    is("dbtcloud_node_executions", &models("error"), 2.0 - interrupted);
    let skipped = scrape.sum("dbtcloud_node_executions", &models("skipped"));
    assert!(skipped >= 1.0, "{skipped}");
    is(
        "dbtcloud_parse_cache_requests",
        &[("result", "miss"), ("miss_reason", "absent")],
        3.0,
    );

    let logs: usize = [&runs.succeeded, &runs.failed, &runs.cancelled]
        .iter()
        .flat_map(|run| run["run_steps"].as_array().unwrap())
        .map(|step| step["logs"].as_str().unwrap_or_default().len())
        .sum();
    let shipped = scrape.sum("dbtcloud_log_bytes_shipped", &[]);
    assert!(logs > 0 && shipped >= logs as f64, "{shipped} of {logs}");
    assert!(scrape.sum("dbtcloud_artifacts_stored", &[]) >= 4.0);
    is("dbtcloud_artifact_upload_failures", &[], 0.0);
    let triggered = [
        ("method", "POST"),
        ("route", "/api/v2/accounts/{account}/jobs/{id}/run"),
        ("status", "2xx"),
    ];
    is("dbtcloud_http_request_duration_seconds", &triggered, 3.0);
    assert!(scrape.sum("dbtcloud_db_pool_connections", &[]) >= 1.0);
    assert!(scrape.sum("dbtcloud_scheduler_last_tick_timestamp_seconds", &[]) > 1.7e9);
}
