//! Servers that all tests of a run share: one per test process, or one per run where a runner starts a process
//! for each test (nextest says so by `NEXTEST_RUN_ID`). The first comer starts it.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Ends whatever must not outlive its watcher: `$1` is the process that is watched, `$2` the server, `$3`
/// the server's directory, `$4` the signal that ends it. A static of a test process is never dropped, and
/// tests of a run may be many processes; so a shared server is watched from outside.
const GUARDIAN: &str = r#"
while kill -0 "$1" 2>/dev/null && kill -0 "$2" 2>/dev/null; do sleep 0.3; done
kill -"$4" "$2" 2>/dev/null
while kill -0 "$2" 2>/dev/null; do sleep 0.1; done
rm -rf "$3"
"#;

/// The note that `start` left of the shared server `name`: where to find it. `start` is given the server's
/// directory, and is called by the first comer alone; `signal` ends the server.
///
/// # Panics
/// When it cannot be started.
#[expect(
    clippy::zombie_processes,
    reason = "both end after this process: the guardian sees to the server, init to the guardian"
)]
pub(crate) fn shared(name: &str, signal: &str, start: impl FnOnce(PathBuf) -> (Child, String)) -> String {
    let own = std::process::id();
    let (key, watched) = match std::env::var("NEXTEST_RUN_ID") {
        Ok(run) => (run, std::os::unix::process::parent_id()),
        Err(_) => (own.to_string(), own),
    };
    let directory = std::env::temp_dir().join(format!("dbtcloud-{name}-{key}"));
    fs::create_dir_all(&directory).expect("a directory");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("lock"))
        .expect("a lock");
    lock.lock().expect("the lock");
    let note = directory.join("note");
    if let Ok(mut file) = File::open(&note) {
        let mut text = String::new();
        file.read_to_string(&mut text).expect("a note");
        return text;
    }
    let (server, text) = start(directory.clone());
    Command::new("sh")
        .args(["-c", GUARDIAN, "guardian"])
        .args([watched.to_string(), server.id().to_string()])
        .arg(&directory)
        .arg(signal)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a guardian");
    fs::write(&note, &text).expect("the note is written");
    text
}

/// A port of the loopback that was free just now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}
