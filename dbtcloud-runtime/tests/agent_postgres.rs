//! A run that is stopped on a real PostgreSQL leaves no session behind, even where dbt does not end in time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "tests fail loudly"
)]

mod agent_support;
mod engine_support;
mod protocol {
    pub use dbtcloud_runtime::protocol::*;
}

use agent_support::plane::Plane;
use agent_support::{LIMIT, config, plan, repository};
use dbtcloud_core::run::RunStatus;
use dbtcloud_runtime::agent::{self, AgentExit};
use engine_support::{Postgres, shared, until, uv, workspace};
use serde_json::json;

const PASSWORD: &str = "pa'ss {{ word }}";
const OURS: &str = "select count(*) from pg_stat_activity where application_name = 'dbtcloud_run_5'";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_in_the_database_is_terminated_and_counted() {
    let server = Postgres::start().await;
    // Makes sure that the environment is there; its interpreter also plays the session of a dbt that was lost.
    let python = shared("postgres", false).await.environment().unwrap().python();
    let dir = tempfile::tempdir().unwrap();
    let slow = "{{ config(materialized='table') }} select 1 as x from pg_sleep(600)";
    let repo = repository(
        dir.path(),
        &[("dbt_project.yml", "name: shop\n"), ("models/slow.sql", slow)],
    );
    let mut made = plan(&repo, &["dbt run"]);
    made.dbt_version = "latest".into();
    made.profile.adapter = "postgres".into();
    let connection = json!({"hostname": "127.0.0.1", "port": server.port, "dbname": "postgres"});
    made.profile.connection = connection.as_object().unwrap().clone();
    let credentials = json!({"username": "postgres", "password": PASSWORD});
    made.profile.credentials = credentials.as_object().unwrap().clone();
    made.secrets.push(PASSWORD.into());
    // No time at all: the sessions are ended before dbt could do so itself.
    made.grace_seconds = 0;
    let plane = Plane::new(dir.path(), Some(made));
    let mut config = config(dir.path(), &plane.server());
    std::fs::create_dir_all(&config.cache_dir).unwrap();
    std::os::unix::fs::symlink(workspace().join(".cache/dbt-envs"), config.cache_dir.join("dbt-envs")).unwrap();
    config.uv = Some(uv());

    let lost = "import psycopg2, sys; c = psycopg2.connect(sys.argv[1]).cursor(); c.execute('select pg_sleep(600)')";
    let address = format!(
        "host=127.0.0.1 port={} dbname=postgres user=postgres application_name=dbtcloud_run_5",
        server.port
    );
    let mut orphan = tokio::process::Command::new(python)
        .args(["-c", lost, &address])
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let cancel = async {
        until("dbt's query and the lost one run", || {
            server.query(&format!("{OURS} and query like '%pg_sleep%'")) == "2"
        })
        .await;
        plane.seen().status = Some(RunStatus::Cancelling);
    };
    let run = tokio::time::timeout(LIMIT * 2, agent::run(config));
    let (exit, ()) = tokio::join!(run, cancel);
    assert_eq!(exit.unwrap().unwrap(), AgentExit::Delivered);
    {
        let seen = plane.seen();
        assert_eq!((seen.status, &seen.wrong), (Some(RunStatus::Cancelled), &Vec::new()));
        let message = seen.patch.message.clone().unwrap();
        assert!(
            message.contains("killed after 0 s") && message.contains("terminated"),
            "{message}"
        );
    }
    assert!(
        !tokio::time::timeout(LIMIT, orphan.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    until("no session of the run is left", || server.query(OURS) == "0").await;
}
