//! `dbtcloud demo`: a whole installation in a temporary directory, a real dbt project in a local git
//! repository, one job, watched from trigger to artifacts.
//!
//! It does what a user would do: it starts this same binary as a server and talks to it through the public
//! API alone.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a command whose purpose is to show something, as a user would: by starting programs"
)]

mod api;
mod server;
mod view;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use api::Api;
use server::Server;
use view::View;

/// What `dbtcloud demo` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Leave the server up afterwards and print its URL and token.
    #[arg(long)]
    pub keep: bool,
    /// Folder with the dbt project that is run.
    #[arg(long, default_value = "examples/projects/harbour")]
    pub project: PathBuf,
    /// Where the installation lives; a temporary directory when not said.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
}

/// Runs the demo. The exit code says whether the job succeeded.
///
/// # Errors
/// What kept it from getting as far as a finished run, in words for the person at the terminal.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let project = args
        .project
        .canonicalize()
        .with_context(|| format!("no dbt project at {}; say where with --project", args.project.display()))?;
    if !project.join("dbt_project.yml").is_file() {
        bail!(
            "{} has no dbt_project.yml; say where the project is with --project",
            project.display()
        );
    }
    let temporary;
    let data = match &args.data_dir {
        Some(directory) => {
            std::fs::create_dir_all(directory)?;
            directory.canonicalize()?
        }
        None => {
            temporary = tempfile::Builder::new().prefix("dbtcloud-demo-").tempdir()?;
            if args.keep {
                temporary.keep()
            } else {
                temporary.path().to_owned()
            }
        }
    };
    println!(
        "dbtcloud demo: one binary, SQLite, directories and processes in {}",
        data.display()
    );

    let repository = commit_project(&project, &data)?;
    println!(
        "  git       {} committed to a local repository",
        project.file_name().unwrap_or_default().display()
    );
    let server = Server::start(&data).await?;
    println!("  server    {} (pid {})", server.url, server.pid());
    let api = Api::new(&server.url, &server.token, server.account)?;

    let outcome = watch_job(&api, &repository, &data).await;
    if args.keep {
        println!(
            "\nThe server stays up:\n  url    {}\n  token  {}",
            server.url, server.token
        );
        println!("  stop   kill {}", server.pid());
        server.leave();
    } else {
        server.stop().await?;
    }
    outcome
}

async fn watch_job(api: &Api, repository: &str, data: &Path) -> anyhow::Result<ExitCode> {
    let job = configure(api, repository, data).await?;
    println!("  api       project, repository, connection, environment and job {job} created\n");
    let run = api
        .post(
            &format!("v2/accounts/{{a}}/jobs/{job}/run/"),
            &json!({"cause": "dbtcloud demo"}),
        )
        .await?;
    let id = run["id"].as_i64().context("the trigger's answer has no run id")?;
    println!("Run {id}: {}", run["href"].as_str().unwrap_or_default());

    let mut view = View::new();
    api.follow(id, |event, data| view.take(event, data)).await?;
    view.finish();

    let run = api
        .get(&format!("v2/accounts/{{a}}/runs/{id}/?include_related=[\"run_steps\"]"))
        .await?;
    print_steps(&run);
    view.print_nodes();
    let success = run["is_success"].as_bool() == Some(true);
    if success {
        print_artifacts(api, id).await?;
    }
    print_next(api, id);
    let message = run["status_message"].as_str().unwrap_or_default();
    let word = run["status_humanized"].as_str().unwrap_or("?");
    println!(
        "\nRun {id}: {word} in {} {message}",
        run["duration"].as_str().unwrap_or("?")
    );
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Copies the project into a new git repository and commits it. Returns its URL.
fn commit_project(project: &Path, data: &Path) -> anyhow::Result<String> {
    let repository = data.join("repository");
    copy(project, &repository)?;
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["add", "--all"],
        &[
            "-c",
            "user.name=dbtcloud demo",
            "-c",
            "user.email=demo@localhost",
            "commit",
            "--quiet",
            "-m",
            "The sample project",
        ],
    ] {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(&repository)
            .output()
            .context("git cannot be started; is it installed?")?;
        if !output.status.success() {
            bail!(
                "git {}: {}",
                arguments[0],
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(format!("file://{}", repository.display()))
}

/// What a dbt project leaves behind and nobody commits.
const NOT_COPIED: [&str; 5] = [".git", "target", "dbt_packages", "logs", ".user.yml"];

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| NOT_COPIED.contains(&name)) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(name))?;
        } else {
            std::fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

/// Creates everything through the API, as a user or Terraform would. Returns the job's id.
async fn configure(api: &Api, repository: &str, data: &Path) -> anyhow::Result<i64> {
    let id = |value: &Value| value["id"].as_i64().context("an answer of the API has no id");
    let project = id(&api
        .post("v3/accounts/{a}/projects/", &json!({"name": "Harbour"}))
        .await?)?;
    let repository = json!({"project_id": project, "remote_url": repository, "git_clone_strategy": "deploy_key"});
    let repository = id(&api
        .post(
            &format!("v3/accounts/{{a}}/projects/{project}/repositories/"),
            &repository,
        )
        .await?)?;
    let mut whole = api.get(&format!("v3/accounts/{{a}}/projects/{project}/")).await?;
    whole["repository_id"] = json!(repository);
    api.post(&format!("v3/accounts/{{a}}/projects/{project}/"), &whole)
        .await?;
    let warehouse = data.join("warehouse.duckdb");
    let connection = json!({
        "name": "DuckDB", "adapter_version": "duckdb_v0", "config": {"path": warehouse.display().to_string()},
    });
    let connection = id(&api.post("v3/accounts/{a}/connections/", &connection).await?)?;
    let credentials = json!({
        "project_id": project, "adapter_version": "duckdb_v0", "schema": "analytics", "threads": 4,
    });
    let credentials = id(&api
        .post(
            &format!("v3/accounts/{{a}}/projects/{project}/credentials/"),
            &credentials,
        )
        .await?)?;
    let environment = json!({
        "name": "Production", "type": "deployment", "deployment_type": "production", "dbt_version": "latest",
        "connection_id": connection, "credentials_id": credentials, "project_id": project,
    });
    let environment = id(&api
        .post(
            &format!("v3/accounts/{{a}}/projects/{project}/environments/"),
            &environment,
        )
        .await?)?;
    let job = json!({
        "project_id": project, "environment_id": environment, "name": "Nightly build",
        "execute_steps": ["dbt build"], "generate_docs": true,
        "settings": {"threads": 4, "target_name": "prod"},
    });
    id(&api.post("v2/accounts/{a}/jobs/", &job).await?)
}

fn print_steps(run: &Value) {
    println!("\n  {:<3} {:<52} {:<10} {:>9}", "#", "step", "status", "time");
    for step in run["run_steps"].as_array().into_iter().flatten() {
        println!(
            "  {:<3} {:<52} {:<10} {:>9}",
            step["index"],
            step["name"].as_str().unwrap_or("?"),
            step["status_humanized"].as_str().unwrap_or("?"),
            step["duration"].as_str().unwrap_or("-"),
        );
    }
}

/// Rows of the artifact list that are shown.
const ARTIFACT_ROWS: usize = 8;

async fn print_artifacts(api: &Api, run: i64) -> anyhow::Result<()> {
    let artifacts = api.get(&format!("v2/accounts/{{a}}/runs/{run}/artifacts/")).await?;
    let paths: Vec<&str> = artifacts
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    println!("\n  {} artifacts, the first of them:", paths.len());
    for path in paths.iter().take(ARTIFACT_ROWS) {
        println!("    {path}");
    }
    if !paths.contains(&"manifest.json") {
        bail!("the run left no manifest.json");
    }
    Ok(())
}

fn print_next(api: &Api, run: i64) {
    let base = api.account_url();
    println!("\n  Look further (make demo KEEP=1 leaves the server up):");
    println!("    curl -H 'Authorization: Token <token>' '{base}/runs/{run}/?include_related=run_steps'");
    println!("    curl -H 'Authorization: Token <token>' {base}/runs/{run}/artifacts/run_results.json");
}
