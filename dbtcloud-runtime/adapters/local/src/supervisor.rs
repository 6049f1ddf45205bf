//! Starting a supervisor: a shell in its own session that runs one command, waits for it and ends what it
//! leaves. Its text is `supervisor.sh`; here is how it comes to life and how it says that it lives.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal};
use tokio::process::Command;

use crate::processes;
use crate::spec::{DEFAULT_PATH, Plan};

/// The shell that every Linux has where POSIX tools expect it.
pub(crate) const SHELL: &str = "/bin/sh";

/// How long a supervisor may take to say that it lives; a machine that starts hundreds at once is slow.
const PATIENCE: Duration = Duration::from_secs(30);

const SCRIPT: &str = include_str!("supervisor.sh");
const ANSWER: &str = "started\n";

/// What became of a start.
pub(crate) enum Started {
    /// It runs, whatever happens to us now.
    Yes,
    /// The supervisor ended without starting anything.
    No,
}

#[expect(
    clippy::disallowed_types,
    reason = "a pair of sockets between us and our child connects to nothing"
)]
type Socket = std::os::unix::net::UnixStream;

/// Starts a supervisor for the execution in `directory`, which gets `lock` and `control` as its own.
pub(crate) fn start(name: &str, directory: &Path, plan: &Plan, lock: &File, control: File) -> io::Result<Started> {
    let (mut ours, theirs) = Socket::pair()?;
    let mut command = Command::new(SHELL);
    command
        .arg("-c")
        .arg(SCRIPT)
        .arg(format!("dbtcloud-supervisor {name}"))
        .args([&plan.lifetime, &plan.memory, &processes::oom_kills()])
        .args(&plan.command)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env(processes::MARKER, directory)
        .current_dir(directory)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(control))
        .stderr(Stdio::from(lock.try_clone()?))
        .kill_on_drop(false);
    own_session(&mut command);
    // Dropped at once: the runtime reaps it when it ends, and init does when we end first.
    drop(command.spawn()?);
    // What it was given stays open in `command`, and so would our copy of its end of the socket.
    drop(command);

    ours.set_write_timeout(Some(PATIENCE))?;
    ours.set_read_timeout(Some(PATIENCE))?;
    // A supervisor that died closes the socket; then the answer tells.
    let _ = ours.write_all(plan.environment.as_bytes());
    let _ = ours.shutdown(Shutdown::Write);
    let mut answer = String::new();
    match ours.read_to_string(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error),
    }
    Ok(if answer == ANSWER { Started::Yes } else { Started::No })
}

#[allow(unsafe_code)]
fn own_session(command: &mut Command) {
    let in_the_child = || {
        nix::unistd::setsid()?;
        // Kept over exec, not inherited: orphans below the supervisor become its children, none escapes.
        nix::sys::prctl::set_child_subreaper(true)?;
        // A server that was started in the background of a script ignores these, and exec would keep that.
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: sets a default action, which is async-signal-safe and runs no handler of ours.
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
        }
        // What the server holds open without knowing, such as a socket that systemd gave it, stays with it.
        // A kernel without this call (before 5.11) refuses it, and there it is as it always was.
        // SAFETY: marks descriptors of this child as to be closed by exec, and closes none now.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes nothing but system calls that are async-signal-safe
    // (setsid, prctl, sigaction, close_range); it allocates nothing, takes no lock and touches no state of
    // the parent.
    unsafe { command.pre_exec(in_the_child) };
}
