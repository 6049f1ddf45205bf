//! Runs a dbt project from a Rust program: no server, no configuration, twenty lines.
//!
//! `cargo run --example embed -- <git URL or path> <data directory>`; the project runs on DuckDB.

use dbtcloud_core::run::{CauseCategory, Trigger};
use dbtcloud_local::LocalExecutor;
use dbtcloud_opendal::OpendalArtifacts;
use dbtcloud_runtime::{AgentLaunch, Blueprint, Config, ControlPlane, Roles, agent};
use dbtcloud_sql::SqlStorage;

async fn submit(repository: String, data: std::path::PathBuf) -> anyhow::Result<()> {
    let storage = SqlStorage::connect(
        &format!("sqlite://{}", data.join("plane.db").display()),
        Default::default(),
    )
    .await?;
    storage.migrate().await?;
    let program = std::env::current_exe()?.display().to_string();
    let config = Config::new("embedded", AgentLaunch::local(vec![program], &data, std::env::vars()));
    let plane = ControlPlane::builder(storage, LocalExecutor::new(data.join("executions"))?, config)
        .artifacts(OpendalArtifacts::from_url(
            &format!("file://{}", data.join("artifacts").display()),
            &Default::default(),
        )?)
        .build();
    let running = plane.start(Roles::ALL).await?;
    let warehouse = data.join("warehouse.duckdb").display().to_string();
    let job = plane
        .install(&Blueprint::new("shop", repository, "duckdb").connect("path", warehouse))
        .await?;
    let run = plane
        .trigger(job.account, job.id, Trigger::new(CauseCategory::Api, "embedded"))
        .await?;
    let run = plane.wait(job.account, run.id).await?;
    println!(
        "run {} ended: {:?} {}",
        run.id,
        run.status,
        run.message.unwrap_or_default()
    );
    running.stop().await?;
    Ok(())
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    // The same program is started again in the role of the run's agent.
    if let Some(config) = agent::AgentConfig::from_environment(std::env::vars())? {
        return Ok(agent::main(config));
    }
    let mut arguments = std::env::args().skip(1);
    let (Some(repository), Some(data)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: embed <git URL or path> <data directory>");
    };
    std::fs::create_dir_all(&data)?;
    let data = std::fs::canonicalize(data)?;
    tokio::runtime::Runtime::new()?.block_on(submit(repository, data))?;
    Ok(std::process::ExitCode::SUCCESS)
}
