//! Cancelling against a real PostgreSQL: the query in the server must end too.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

mod engine_support;

use std::time::Duration;

use dbtcloud_runtime::engine::{Canceller, ExitStatus, Stopped};
use engine_support::*;

const SLEEPING: &str = "select count(*) from pg_stat_activity where application_name = 'dbtcloud_run_42' and state = 'active' and query like '%pg_sleep%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_query_in_the_server() {
    let server = Postgres::start().await;
    for name in ["cli", "warm"] {
        let prepared = shared("postgres", name == "warm").await;
        let project = Project::postgres(&server, "dbtcloud_run_42");
        let said = run(&prepared, &project.command(&["build"])).await;
        let reply = said.reply.unwrap();
        assert_eq!(
            (reply.exit.status, reply.backend),
            (ExitStatus::Code(0), name),
            "{:?} {}{}",
            reply.fallback_reason,
            said.stdout,
            said.stderr
        );
        assert_eq!(server.query("select count(*) from analytics.customers"), "3");

        project.model(
            "slow",
            "{{ config(materialized='table') }} select 1 as x from pg_sleep(600)\n",
        );
        let invocation = project.command(&["run", "--select", "slow"]);
        let canceller = Canceller::new();
        let task = tokio::spawn({
            let (prepared, canceller) = (prepared.clone(), canceller.clone());
            async move { run_with(&prepared, &invocation, &canceller).await }
        });
        until("the query runs, under the run's name", || server.query(SLEEPING) == "1").await;
        let stopped = canceller.stop(Duration::from_secs(30), async {}).await;
        assert_eq!(stopped, Stopped::Interrupted, "{name}");
        assert_eq!(
            task.await.unwrap().reply.unwrap().exit.status,
            ExitStatus::Code(2),
            "{name}"
        );
        until("the server's query is gone", || server.query(SLEEPING) == "0").await;
        assert!(project.path("target/run_results.json").exists());

        // The agent dies: dbt is interrupted by its leash, and with it the query.
        let invocation = project.command(&["run", "--select", "slow"]);
        let task = tokio::spawn(async move { run(&prepared, &invocation).await });
        until("the query runs again", || server.query(SLEEPING) == "1").await;
        task.abort();
        until("nobody asks, nothing runs", || server.query(SLEEPING) == "0").await;

        // What SIGKILL leaves behind is found by the run's name and ended.
        server.query("drop schema analytics cascade");
    }
}
