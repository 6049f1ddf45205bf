//! What happens at fail points of the binary that tests start: the process notes that it was there, and ends itself as
//! SIGKILL would where it was told to.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use dbtcloud_core::failpoint;

#[cfg(not(debug_assertions))]
compile_error!("a release has no fail points: build it with `-p dbtcloud-server`, away from the tests' package");

/// Where the process ends: the name of a place, and after a colon the how manyth time (the first when not said).
const KILL: &str = "DBTCLOUD_FAILPOINT";
/// A file to which the name of every place is appended that is reached.
const SEEN: &str = "DBTCLOUD_FAILPOINTS_SEEN";

struct Armed {
    place: String,
    /// How many more times it is passed by.
    left: AtomicU64,
    seen: Option<std::fs::File>,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Arms what the environment names.
#[expect(
    clippy::disallowed_methods,
    reason = "tests tell it by variables, so that no flag exists"
)]
pub(crate) fn arm() {
    let told = std::env::var(KILL).unwrap_or_default();
    let (place, time) = told.split_once(':').unwrap_or((&told, "1"));
    let seen = std::env::var(SEEN)
        .ok()
        .and_then(|path| std::fs::File::options().create(true).append(true).open(path).ok());
    let _ = ARMED.set(Armed {
        place: place.to_owned(),
        left: AtomicU64::new(time.parse().unwrap_or(1)),
        seen,
    });
    failpoint::install(reached);
}

fn reached(place: &str) {
    let Some(armed) = ARMED.get() else { return };
    if let Some(mut seen) = armed.seen.as_ref() {
        let _ = seen.write_all(format!("{place}\n").as_bytes());
    }
    if place == armed.place && armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}
