//! dbt projects in local git repositories, for jobs to run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The sample project of `examples/`.
pub fn harbour() -> PathBuf {
    workspace().join("examples/projects/harbour")
}

/// The top of the checkout.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs git in a folder.
///
/// # Panics
/// When it fails.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=test", "-c", "user.email=test@localhost"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A git repository with these files.
///
/// # Panics
/// When it cannot be made.
pub fn repository(folder: &Path, files: &[(&str, &str)]) -> String {
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    git(folder, &["init", "--quiet", "--initial-branch=main"]);
    git(folder, &["add", "--all"]);
    git(folder, &["commit", "--quiet", "--message=first"]);
    format!("file://{}", folder.display())
}

/// A copy of a folder as a git repository.
///
/// # Panics
/// When it cannot be made.
pub fn repository_of(source: &Path, folder: &Path) -> String {
    copy(source, folder);
    repository(folder, &[])
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if ["target", "logs", "dbt_packages", ".user.yml"]
            .iter()
            .any(|left| name == *left)
        {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(&name));
        } else {
            std::fs::copy(entry.path(), to.join(&name)).unwrap();
        }
    }
}

/// `dbt_project.yml` of a project of this name with nothing special.
pub fn dbt_project(name: &str) -> String {
    format!("name: {name}\nversion: '1.0.0'\nconfig-version: 2\nprofile: default\n")
}

/// A project that does nothing for as long as `seconds` per model in DuckDB, for `models` models one after
/// another: something to interrupt.
///
/// # Panics
/// When it cannot be made.
pub fn slow(folder: &Path, models: usize, rows: u64) -> String {
    let mut files = vec![("dbt_project.yml".to_owned(), dbt_project("slow"))];
    for n in 0..models {
        let after = if n == 0 {
            String::new()
        } else {
            format!("-- depends_on: {{{{ ref('m{}') }}}}\n", n - 1)
        };
        let sql = format!(
            "{{{{ config(materialized='table') }}}}\n{after}select count(*) as n, sum(hash(a.i, b.i)) as h from range({rows}) a(i), range(1000) b(i)"
        );
        files.push((format!("models/m{n}.sql"), sql));
    }
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    repository(folder, &files)
}
