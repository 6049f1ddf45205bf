//! Programs that stand beside us as yardsticks.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Seconds that a command takes, from before its start to its end; it is quiet and must succeed.
///
/// # Panics
/// When it cannot be started or fails.
pub fn seconds(command: &mut Command) -> f64 {
    let began = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    let took = began.elapsed().as_secs_f64();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    took
}

/// What a command prints; it must succeed.
///
/// # Panics
/// When it cannot be started or fails.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// PostgreSQL's own load generator, of the newest installed version or of the `PATH`.
pub fn pgbench() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = installed
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin/pgbench"),
            ))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    found.sort();
    found.pop().map_or_else(|| PathBuf::from("pgbench"), |(_, path)| path)
}

/// Resident and proportional memory of a process, in MiB.
///
/// # Panics
/// When it cannot be read.
pub fn memory(process: &str) -> (f64, f64) {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("smaps_rollup");
    parse_memory(&rollup)
}

/// The same from the text of a `smaps_rollup`.
///
/// # Panics
/// When a field is missing.
pub fn parse_memory(rollup: &str) -> (f64, f64) {
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).expect("the field");
        let kib: f64 = line
            .split_whitespace()
            .nth(1)
            .expect("a number")
            .parse()
            .expect("a number");
        kib / 1024.0
    };
    (field("Rss:"), field("Pss:"))
}
