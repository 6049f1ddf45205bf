//! The `dbtcloud` program: a server, and the few commands around it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command says to the person who ran it"
)]

#[cfg(feature = "failpoints")]
#[path = "../failpoints.rs"]
mod failpoints;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::Clock;
use dbtcloud_core::retention::OwnRetention;
use dbtcloud_runtime::agent::{self, AgentConfig};
use dbtcloud_runtime::clock::SystemClock;
use dbtcloud_server::backup::{self, Backup, Restore};
use dbtcloud_server::bootstrap::Bootstrap;
use dbtcloud_server::compose;
use dbtcloud_server::config::{Given, LogFormat, Problem, Problems, Settings};
use dbtcloud_server::demo;
use dbtcloud_server::retention::{self, Saying};
use dbtcloud_server::{cleanup, doctor, prepare, serve, telemetry, transfer};
use dbtcloud_sql::SqlStorage;

/// A self-hosted dbt platform that speaks dbt Cloud's API
#[derive(Parser)]
#[command(name = "dbtcloud", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT
    Serve(Given),
    /// Looks at settings without starting anything
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Looks at everything the settings lead to, database, store, programs, and says what to mend; changes nothing
    Doctor(DoctorArgs),
    /// Brings the database's schema up to date
    Migrate(MigrateArgs),
    /// Moves what a server keeps
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Does the background chores now, beside whatever servers there are
    Cleanup(CleanupArgs),
    /// Copies a running installation, database and objects, to where nothing else is
    Backup(BackupArgs),
    /// Makes an empty installation what a backup says; its servers are started afterwards
    Restore(RestoreArgs),
    /// Tells how long what is over is kept, and lets an account say otherwise
    Retention(RetentionArgs),
    /// Makes the first account, its administrator and a token, which is printed once
    Bootstrap(BootstrapArgs),
    /// Shows a run from beginning to end, from nothing
    Demo(demo::Args),
    /// Works as the agent of one run; started by the server
    #[command(hide = true)]
    Agent(AgentArgs),
}

#[derive(Args)]
struct AgentArgs {
    #[command(subcommand)]
    command: Option<AgentCommand>,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Builds a dbt environment for agents to find, for an image of theirs
    Prepare(prepare::Args),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Tells every problem there is; the exit code is not 0 when there is one
    Check(Given),
    /// Prints the settings in force, without secrets
    Show(Given),
}

#[derive(Subcommand)]
enum StorageCommand {
    /// Copies a database into an empty one and compares them; a copy that was interrupted goes on
    Copy(CopyArgs),
}

#[derive(Args)]
struct CopyArgs {
    /// The database with everything: sqlite:///… or postgres://…; no server may work on it
    #[arg(long, env = "DBTCLOUD_COPY_FROM", value_name = "URL", hide_env_values = true)]
    from: String,
    /// The empty one; its schema is made
    #[arg(long, env = "DBTCLOUD_COPY_TO", value_name = "URL", hide_env_values = true)]
    to: String,
    /// Tell what would be copied, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct BackupArgs {
    #[command(flatten)]
    given: Given,
    /// Empty, or with a backup that broke off: a directory, or a URL as --artifacts-url has it
    #[arg(long, env = "DBTCLOUD_BACKUP_TO", value_name = "DIR|URL")]
    to: String,
    /// An earlier backup: files that cannot have changed are taken from it
    #[arg(long, value_name = "DIR|URL")]
    since: Option<String>,
    /// Directory with room for the database, when --to is none [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch_dir: Option<PathBuf>,
}

#[derive(Args)]
struct RestoreArgs {
    #[command(flatten)]
    given: Given,
    /// The backup: a directory, or a URL as --artifacts-url has it
    #[arg(long, value_name = "DIR|URL")]
    from: String,
    /// Look at every byte of the backup and whether the key file has its keys, and change nothing
    #[arg(long)]
    verify: bool,
    /// The artifact store was not lost: what is there stays when it is as in the backup
    #[arg(long, conflicts_with = "verify")]
    objects_in_place: bool,
    /// Directory with room for the database [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch_dir: Option<PathBuf>,
}

#[derive(Args)]
struct MigrateArgs {
    #[command(flatten)]
    given: Given,
    /// Change nothing; the exit code is not 0 when this version cannot work with the schema
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct CleanupArgs {
    #[command(flatten)]
    given: Given,
    /// Sweep once and end; servers with the role cleanup do it all the time
    #[arg(long, required = true)]
    once: bool,
    /// Tell what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Only this chore; repeatable [default: all]
    #[arg(long, value_name = "NAME")]
    chore: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DoctorArgs {
    #[command(flatten)]
    given: Given,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RetentionArgs {
    #[command(flatten)]
    given: Given,
    /// Id of the account [default: what the installation says]
    #[arg(long, value_name = "ID")]
    account: Option<i64>,
    /// What the account says: runs, logs, artifacts or sessions, and for how many days (0: for ever; default: as the
    /// installation); repeatable
    #[arg(long, value_name = "KIND=DAYS", requires = "account")]
    set: Vec<Saying>,
}

#[derive(Args)]
struct BootstrapArgs {
    #[command(flatten)]
    given: Given,
    /// Do nothing when there is an account already
    #[arg(long)]
    if_missing: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Name of the account
    #[arg(long, default_value = "dbtcloud")]
    account: String,
    /// Login of the administrator
    #[arg(long, default_value = "admin@localhost")]
    email: String,
    /// Given name of the administrator
    #[arg(long, default_value = "Admin")]
    first_name: String,
    /// Family name of the administrator
    #[arg(long, default_value = "")]
    last_name: String,
}

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    failpoints::arm();
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(given) => serving(&understood(&given)?),
        Command::Config(ConfigCommand::Check(given)) => Ok(check(&given)),
        Command::Config(ConfigCommand::Show(given)) => {
            print!("{}", understood(&given)?.show());
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate(args) => {
            let settings = understood(&args.given)?;
            log(&settings)?;
            runtime()?.block_on(migrate(&settings, args.check))
        }
        Command::Storage(StorageCommand::Copy(args)) => runtime()?.block_on(async {
            transfer::copy(&args.from, &args.to, args.dry_run, SystemClock.now(), told).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Cleanup(args) => {
            let settings = understood(&args.given)?;
            log(&settings)?;
            runtime()?.block_on(clean(&settings, &args))
        }
        Command::Doctor(args) => runtime()?.block_on(examine(&args)),
        Command::Backup(args) => {
            let settings = understood(&args.given)?;
            log(&settings)?;
            private();
            let what = Backup {
                to: args.to,
                since: args.since,
                scratch: args.scratch_dir,
            };
            runtime()?.block_on(backup::backup(&settings, &what, &SystemClock, told))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Restore(args) => {
            let settings = understood(&args.given)?;
            log(&settings)?;
            private();
            let what = Restore {
                from: args.from,
                objects_in_place: args.objects_in_place,
                scratch: args.scratch_dir,
            };
            runtime()?.block_on(async {
                match args.verify {
                    true => backup::verify(&settings, &what, told).await,
                    false => backup::restore(&settings, &what, &SystemClock, told).await,
                }
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Retention(args) => {
            let settings = understood(&args.given)?;
            log(&settings)?;
            runtime()?.block_on(retain(&settings, &args))
        }
        Command::Bootstrap(args) => {
            let settings = understood(&args.given)?;
            log(&settings)?;
            runtime()?.block_on(bootstrap(&settings, args))
        }
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
        Command::Agent(AgentArgs { command: None }) => work(),
        Command::Agent(AgentArgs {
            command: Some(AgentCommand::Prepare(args)),
        }) => {
            telemetry::log("info", LogFormat::Text)?;
            let built = runtime()?.block_on(prepare::prepare(args, environment().collect()))?;
            println!("{}", built.root.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// For the person who ran a command.
fn told(line: String) {
    println!("{line}");
}

/// From here on what this process writes is for its user alone.
fn private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn understood(given: &Given) -> anyhow::Result<Settings> {
    settings(given).map_err(|problems| anyhow::anyhow!("the settings are wrong:\n{problems}"))
}

fn serving(settings: &Settings) -> anyhow::Result<ExitCode> {
    log(settings)?;
    runtime()?.block_on(async {
        let shutdown = serve::on_signal()?;
        if settings.is_gateway_alone() {
            serve::gateway(settings, shutdown).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let composed = compose::compose(settings, program, environment()).await?;
        serve::serve(settings, composed, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Works as an agent. It is told what it needs by the server that started it.
fn work() -> anyhow::Result<ExitCode> {
    let told = |wanted: &str| environment().find_map(|(name, value)| (name == wanted).then_some(value));
    let format = match told(compose::AGENT_LOG_FORMAT).as_deref() {
        Some("json") => LogFormat::Json,
        _ => LogFormat::Text,
    };
    telemetry::log(&told(compose::AGENT_LOG).unwrap_or_else(|| "info".to_owned()), format)?;
    match AgentConfig::from_environment(environment()) {
        Ok(Some(config)) => Ok(agent::main(config)),
        Ok(None) => bail!("DBTCLOUD_TICKET is not set: agents are started by a server, not by hand"),
        Err(error) => bail!("{}", error.chain()),
    }
}

/// This process's environment, as far as it is text.
#[expect(
    clippy::disallowed_methods,
    reason = "what agents inherit, and what an agent is told; filtered where it is used"
)]
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn settings(given: &Given) -> Result<Settings, Problems> {
    let text = match &given.config {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
            Problems(vec![Problem {
                key: "config".to_owned(),
                what: format!("cannot read {}: {error}", path.display()),
            }])
        })?),
    };
    let file = given.config.as_deref().zip(text.as_deref());
    #[expect(clippy::disallowed_methods, reason = "paths on the command line are below it")]
    let base = std::env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned());
    Settings::resolve(given, file, &base)
}

fn check(given: &Given) -> ExitCode {
    match settings(given) {
        Ok(_) => {
            println!("the settings are right");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in &problems.0 {
                eprintln!("{problem}");
            }
            ExitCode::FAILURE
        }
    }
}

fn log(settings: &Settings) -> anyhow::Result<()> {
    telemetry::log(&settings.log, settings.log_format)
}

async fn migrate(settings: &Settings, check: bool) -> anyhow::Result<ExitCode> {
    let storage = compose::connect(settings).await?;
    let told = |error: dbtcloud_core::Error| anyhow::anyhow!("{}", error.chain());
    if check {
        storage.check().await.map_err(told)?;
        let version = storage.schema_version().await.map_err(told)?;
        println!(
            "the schema is version {version}; this binary is of version {}",
            SqlStorage::SCHEMA_VERSION
        );
    } else {
        compose::migrate(&storage).await?;
        println!(
            "the schema is version {}",
            storage.schema_version().await.map_err(told)?
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn retain(settings: &Settings, args: &RetentionArgs) -> anyhow::Result<ExitCode> {
    let everybody = settings.retention;
    let Some(account) = args.account else {
        print!("{}", retention::told(everybody, &OwnRetention::default()));
        return Ok(ExitCode::SUCCESS);
    };
    let told = |error: dbtcloud_core::Error| anyhow::anyhow!("{}", error.chain());
    let storage = compose::beside_storage(settings, &compose::instance()).await?;
    let (account, now) = (AccountId::new(account), SystemClock.now());
    let said = retention::say(&storage, everybody, account, &args.set, now).await;
    print!("{}", said.map_err(told)?);
    Ok(ExitCode::SUCCESS)
}

async fn clean(settings: &Settings, args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let plane = compose::beside(settings, program, environment()).await?;
    let told = cleanup::once(&plane, &args.chore, args.dry_run).await?;
    match args.json {
        true => println!("{}", told.json()),
        false => print!("{}", told.table()),
    }
    Ok(if told.whole() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = match settings(&args.given) {
        Ok(settings) => doctor::Report::of(&settings, &environment().collect()).await,
        Err(problems) => doctor::Report::of_problems(&problems),
    };
    match args.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.table()),
    }
    Ok(if report.is_well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn bootstrap(settings: &Settings, args: BootstrapArgs) -> anyhow::Result<ExitCode> {
    let told = |error: dbtcloud_core::Error| anyhow::anyhow!("{}", error.chain());
    let storage = compose::connect(settings).await?;
    if settings.is_embedded() || settings.migrate {
        compose::migrate(&storage).await?;
    }
    storage.check().await.map_err(told)?;
    let bootstrap = Bootstrap {
        account: args.account,
        email: args.email,
        first_name: args.first_name,
        last_name: args.last_name,
    };
    let made = bootstrap.run(&storage, SystemClock.now()).await;
    // SQLite's file is whole again when the last connection has closed.
    storage.close().await;
    match made.map_err(told)? {
        Some(made) if args.json => {
            let made = serde_json::json!({
                "account_id": made.account.id.get(),
                "user_id": made.user.id.get(),
                "token": made.token.expose(),
            });
            println!("{made}");
            Ok(ExitCode::SUCCESS)
        }
        Some(made) => {
            println!("account_id={}", made.account.id);
            println!("user_id={}", made.user.id);
            println!("token={}", made.token.expose());
            eprintln!("The token is shown this once. Keep it.");
            Ok(ExitCode::SUCCESS)
        }
        None if args.if_missing => {
            eprintln!("There is an account already; nothing was changed.");
            Ok(ExitCode::SUCCESS)
        }
        None => bail!("there is an account already; nothing was changed (--if-missing makes this no error)"),
    }
}
