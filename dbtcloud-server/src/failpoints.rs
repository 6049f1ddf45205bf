//! What happens at fail points of the binary that tests start: the process notes that it was there, and ends itself as
//! SIGKILL would where it was told to. And how often it calls the outside.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use dbtcloud_core::failpoint::{self, Repeat};
use dbtcloud_server::twice::CALLS;

#[cfg(not(debug_assertions))]
compile_error!("a release has no fail points: build it with `-p dbtcloud-server`, away from the tests' package");

/// Where the process ends: the name of a place, and after a colon the how manyth time (the first when not said).
const KILL: &str = "DBTCLOUD_FAILPOINT";
/// A file to which the name of every place is appended that is reached.
const SEEN: &str = dbtcloud_server::twice::SEEN;

struct Armed {
    place: String,
    /// How many more times it is passed by.
    left: AtomicU64,
    seen: Option<std::fs::File>,
    /// How calls to the outside are made: `answered`, `together` or `lost`; once each by any other word.
    calls: String,
    /// How often each was made.
    made: Mutex<BTreeMap<String, u64>>,
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
        calls: std::env::var(CALLS).unwrap_or_default(),
        made: Mutex::default(),
    });
    failpoint::install(reached);
    failpoint::install_repeats(repeated);
}

fn repeated(call: &str) -> Repeat {
    let Some(armed) = ARMED.get() else { return Repeat::Not };
    match armed.calls.as_str() {
        "answered" => Repeat::Answered,
        "together" => Repeat::Together,
        // Every other time, so that who calls again is answered.
        "lost" => {
            let mut made = armed.made.lock().unwrap_or_else(PoisonError::into_inner);
            let count = made.entry(call.to_owned()).or_default();
            *count += 1;
            if *count % 2 == 1 { Repeat::Lost } else { Repeat::Not }
        }
        _ => Repeat::Not,
    }
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
