//! A dbt that is none, for tests of everything but dbt: a run of it takes a fraction of a second. The agent, git, the
//! protocol and the stores are the real ones.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dbtcloud_runtime::engine::{EnvironmentSpec, EnvironmentStore};
use serde_json::json;

use crate::project;

/// The log that a command prints has so many numbered lines.
pub const LINES: u32 = 200;
/// The interpreter of the environment: runs the project's script in place of dbt.
const INTERPRETER: &str = "#!/bin/bash\nshift 7\nexec bash ./fake.sh \"$@\"\n";
/// What stands in for dbt: `run-operation` lasts, `run --select FILE` says its lines slowly until there is such a file,
/// `test` fails, everything else is quick.
const SCRIPT: &str = r#"
[ "$1" = run-operation ] && sleep 20
for ((i = 0; i < LINES; i++)); do
  echo "counted $i"
  [ "$1" = run ] && [ ! -e "$3" ] && sleep 0.5
done
mkdir -p "$DBT_TARGET_PATH"
echo '{"metadata": {}, "results": []}' > "$DBT_TARGET_PATH/run_results.json"
[ "$1" = test ] && echo '{"nodes": {}}' > "$DBT_TARGET_PATH/manifest.json" && exit 1
exit 0
"#;

/// What stands in for dbt where somebody looks whether it ran once: it writes down when it begins, works and ends, by
/// the name of its execution, and says its name in every line.
const MARKING: &str = r#"
[[ "$DBT_TARGET_PATH $PWD" =~ run-[0-9]+-[0-9]+ ]] && name=${BASH_REMATCH[0]}
command=$1
mark() { echo "$EPOCHREALTIME $1 $name $command $$" >> MARKS; }
mark begins
for ((i = 0; i < LINES; i++)); do
  echo "$name $command says $i"
  (( i % 50 == 0 )) && [ "$command" = build ] && sleep 0.$((RANDOM % 8 + 1)) && mark works
done
mkdir -p "$DBT_TARGET_PATH"
echo '{"metadata": {}, "results": []}' > "$DBT_TARGET_PATH/run_results.json"
mark ends
"#;

/// What a [`marking`] command says of an execution.
pub fn said(execution: &str, command: &str) -> String {
    (0..LINES)
        .map(|number| format!("{execution} {command} says {number}\n"))
        .collect()
}

/// Puts the environment in place of the shared real ones of an installation's data directory.
///
/// # Panics
/// When it cannot be made.
pub fn install(data: &Path) {
    let store = data.join("cache/dbt-envs");
    let _ = std::fs::remove_file(&store);
    for (name, text) in environment() {
        let path = store.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// The environment's files, by their paths in a store. Its interpreter is to be executable.
///
/// # Panics
/// Never.
pub fn environment() -> [(String, String); 2] {
    let root = EnvironmentStore::new("", "uv")
        .path(&EnvironmentSpec::new("latest", "duckdb"))
        .unwrap();
    let info = json!({
        "dbt_version": "1.11.99", "adapter_version": "1.11.98", "adapter": "duckdb", "python_version": "3",
    });
    let path = |name: &str| root.join(name).display().to_string();
    [
        (path("bin/python"), INTERPRETER.to_owned()),
        (path(".complete"), info.to_string()),
    ]
}

/// A project for it.
pub fn repository(folder: &Path) -> String {
    project_of(folder, SCRIPT)
}

/// A project for it whose commands leave marks in a file: the instant in seconds, what happens, execution, command and
/// process.
pub fn marking(folder: &Path, marks: &Path) -> String {
    project_of(folder, &MARKING.replace("MARKS", &marks.display().to_string()))
}

fn project_of(folder: &Path, script: &str) -> String {
    let script = script.replace("LINES", &LINES.to_string());
    project::repository(
        folder,
        &[("dbt_project.yml", &project::dbt_project("fake")), ("fake.sh", &script)],
    )
}

/// Whether the log of a command is whole: every number once, in order.
pub fn is_whole(log: &str) -> bool {
    let numbers = log.lines().filter_map(|line| line.strip_prefix("counted "));
    numbers.filter_map(|number| number.parse::<u32>().ok()).eq(0..LINES)
}
