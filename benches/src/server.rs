//! The release build of the server, as an installation of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use dbtcloud_tests::installation::Installation;
use serde_json::Value;

/// How often a run is asked for: often enough not to blur seconds, seldom enough not to be the load.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The longest a run of a benchmark may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Builds the server as users run it, if it is not built. `cargo bench` builds its own package only.
///
/// # Panics
/// When it does not build.
pub fn build() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--quiet", "--package", "dbtcloud-server"])
        .current_dir(dbtcloud_tests::project::workspace())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "the server does not build");
}

/// Triggers a job and waits for the end of the run, through the API: the run, and the seconds from before
/// the request to the answer that tells of the end.
///
/// # Panics
/// When the API refuses or the run takes too long.
pub async fn run(installation: &Installation, job: i64) -> (Value, f64) {
    let began = Instant::now();
    let run = installation.api().trigger(job).await;
    loop {
        let seen = installation.api().get(&format!("v2/accounts/{{a}}/runs/{run}/")).await;
        if seen["is_complete"] == Value::Bool(true) {
            return (seen, began.elapsed().as_secs_f64());
        }
        assert!(began.elapsed() < LIMIT, "run {run} does not end: {seen:#}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
