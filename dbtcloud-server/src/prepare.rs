//! `dbtcloud agent prepare`: builds a dbt environment into an image, so that nothing is fetched when a run starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dbtcloud_runtime::engine::{Environment, EnvironmentSpec, EnvironmentStore, find_uv};

/// What to build, and where.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// dbt version, as environments of the API name it: 1.11, 1.10.4, latest
    #[arg(long, value_name = "VERSION")]
    dbt: String,
    /// Adapter: duckdb, postgres, snowflake, …
    #[arg(long, value_name = "NAME")]
    adapter: String,
    /// Python, as uv understands it [default: that of agents]
    #[arg(long, value_name = "VERSION|PATH")]
    python: Option<String>,
    /// Where environments are; agents find them there when DBTCLOUD_DBT_ENVS says so
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

/// Builds it with the code and the settings of agents: what one builds, the other finds. A second call changes nothing.
///
/// `environment` are the variables that uv may be told: package indexes, proxies, certificates.
///
/// # Errors
/// When there is no uv, or uv says no.
pub async fn prepare(args: Args, environment: BTreeMap<String, String>) -> anyhow::Result<Environment> {
    let path = environment.get("PATH").map(String::as_str).unwrap_or_default();
    let uv = match environment.get("DBTCLOUD_UV") {
        Some(uv) => Some(PathBuf::from(uv)),
        None => find_uv(path.split(':').map(|folder| Path::new(folder).join("uv"))),
    };
    let uv = uv.ok_or_else(|| {
        anyhow::anyhow!("uv is needed to build an environment: put it on PATH, or name it by DBTCLOUD_UV")
    })?;
    let mut spec = EnvironmentSpec::new(args.dbt, args.adapter);
    if let Some(python) = args.python {
        spec.python = python;
    }
    Ok(EnvironmentStore::new(args.into, uv)
        .with_uv_env(environment)
        .ensure(&spec)
        .await?)
}
