//! The profile of a run: written without secrets, and read back to end database sessions that dbt left behind.

use std::collections::BTreeMap;
use std::path::Path;

use dbtcloud_core::id::RunId;
use dbtcloud_core::secret::Secret;
use serde_json::Value;

use super::command::PROFILE;
use super::process;
use crate::engine::profile::{Profile, ProfileInput, generate};
use crate::protocol::RunPlan;

/// Ends the sessions of a run, from dbt's own interpreter. Secrets come by the environment.
const END_SESSIONS: &str = r#"
import json, os
import psycopg2
target = json.loads(os.environ["DBTCLOUD_TARGET"])
names = {"host": "host", "port": "port", "user": "user", "password": "password", "pass": "password",
         "dbname": "dbname", "database": "dbname", "sslmode": "sslmode", "sslcert": "sslcert", "sslkey": "sslkey",
         "sslrootcert": "sslrootcert"}
known = {names[k]: v for k, v in target.items() if k in names and v not in (None, "")}
link = psycopg2.connect(connect_timeout=5, application_name="dbtcloud_stop", **known)
link.autocommit = True
with link.cursor() as cursor:
    cursor.execute("select pg_terminate_backend(pid) from pg_stat_activity"
                   " where application_name = %s and pid <> pg_backend_pid()", (os.environ["DBTCLOUD_APPLICATION"],))
    print(sum(1 for (ended,) in cursor.fetchall() if ended))
"#;

/// The name by which the database sessions of a run can be found.
pub(super) fn application_name(run: RunId) -> String {
    format!("dbtcloud_run_{run}")
}

/// Makes the profile of a plan. The error is a sentence for a person.
pub(super) fn make(plan: &RunPlan) -> Result<Profile, String> {
    let source = &plan.profile;
    generate(&ProfileInput {
        profile: PROFILE,
        target: &source.target_name,
        adapter: &source.adapter,
        connection: &source.connection,
        credentials: &source.credentials,
        schema: source.schema.as_deref(),
        threads: source.threads,
        extended_attributes: &source.extended_attributes,
        application_name: Some(&application_name(plan.run)),
    })
    .map_err(|error| error.to_string())
}

/// Writes `profiles.yml` into `dir`, for its owner only.
pub(super) fn write(profile: &Profile, dir: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(dir.join("profiles.yml"))?;
    file.write_all(profile.text.as_bytes())
}

/// The target as dbt sees it, variables put in.
fn target(profile: &Profile, name: &str) -> Option<Value> {
    let file: Value = serde_json::from_str(&profile.text).ok()?;
    let mut target = file.get(PROFILE)?.get("outputs")?.get(name)?.clone();
    for value in target.as_object_mut()?.values_mut() {
        let variable = value
            .as_str()
            .and_then(|text| text.strip_prefix("{{ env_var('")?.strip_suffix("') }}"));
        if let Some(secret) = variable.and_then(|variable| profile.env.get(variable)) {
            *value = secret.expose().into();
        }
    }
    Some(target)
}

/// Ends the database sessions of a run, where the adapter can; how many, or why it is not known.
/// `None` when the adapter has no way to.
pub(super) async fn end_sessions(
    plan: &RunPlan,
    profile: &Profile,
    python: &Path,
    passed_on: &BTreeMap<String, Secret>,
) -> Option<Result<u64, String>> {
    let target = target(profile, &plan.profile.target_name)?;
    if target.get("type").and_then(Value::as_str) != Some("postgres") {
        return None;
    }
    let mut command = std::process::Command::new(python);
    command
        .args(["-I", "-c", END_SESSIONS])
        .env_clear()
        .envs(passed_on.iter().map(|(name, value)| (name, value.expose())))
        .env("DBTCLOUD_TARGET", target.to_string())
        .env("DBTCLOUD_APPLICATION", application_name(plan.run));
    Some(match process::run(command, None).await {
        Ok(ran) if ran.success => ran.stdout.trim().parse().map_err(|_| "no count came back".to_owned()),
        Ok(ran) => {
            let line = ran.stderr.trim().lines().last().unwrap_or("no reason given");
            Err(line.to_owned())
        }
        Err(error) => Err(error.to_string()),
    })
}
