//! PostgreSQL's own load generator as a yardstick.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dbtcloud_tests::postgres::Cluster;

use crate::program;

/// A script of ours for it.
pub fn yardstick(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("yardstick").join(file)
}

fn on(cluster: &Cluster) -> Command {
    let mut command = Command::new(program::pgbench());
    let port = cluster.port().to_string();
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port]);
    command
}

/// Fills a database with what its own transactions need.
///
/// # Panics
/// When it cannot.
pub fn fill(cluster: &Cluster, database: &str) {
    program::said(on(cluster).args(["-i", "-q", "-s", "20", database]));
}

/// Transactions per second of so many connections: of a script, or of its own `-N`.
///
/// # Panics
/// When it fails.
pub fn rate(cluster: &Cluster, database: &str, workers: u64, script: Option<&str>, span: Duration) -> f64 {
    let mut command = on(cluster);
    command
        .args(["-n", "-M", "prepared", "-c", &workers.to_string()])
        .args(["-j", &workers.min(2).to_string(), "-T", &span.as_secs().to_string()]);
    match script {
        Some(file) => command.arg("-f").arg(yardstick(file)),
        None => command.arg("-N"),
    };
    let text = program::said(command.arg(database));
    let line = text
        .lines()
        .find(|line| line.starts_with("tps = "))
        .expect("pgbench tells tps");
    line["tps = ".len()..]
        .split(' ')
        .next()
        .and_then(|tps| tps.parse().ok())
        .expect("a number")
}
