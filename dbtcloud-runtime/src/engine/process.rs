//! A child process in its own group: signalled as a group, waited for with its cost, killed whole at the end.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::invocation::{Canceller, ExitStatus, Stop, Usage};

/// A started process group.
#[derive(Debug)]
pub(super) struct Group {
    pid: Pid,
    /// Whether the leader has been reaped; from then on its number may be somebody else's.
    reaped: Arc<Mutex<bool>>,
    done: oneshot::Receiver<std::io::Result<(ExitStatus, Usage)>>,
}

fn held(reaped: &Mutex<bool>) -> MutexGuard<'_, bool> {
    reaped.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// Starts `command` as the leader of a new process group. The command is dropped, and our copies of its pipes
    /// with it, so that they end when the process does.
    pub(super) fn spawn(mut command: Command) -> std::io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        drop(command);
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(std::io::Error::other)?);
        let reaped = Arc::new(Mutex::new(false));
        let (send, done) = oneshot::channel();
        let flag = reaped.clone();
        // Its own thread: a blocking task would hold up the end of the runtime.
        std::thread::Builder::new().name("dbt-wait".into()).spawn(move || {
            let _ = send.send(wait(pid, &flag));
        })?;
        Ok(Self { pid, reaped, done })
    }

    /// Signals the group, if its leader has not been reaped.
    pub(super) fn signal(&self, signal: Signal) {
        let reaped = held(&self.reaped);
        if !*reaped {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Waits for the end, passing on what `canceller` says.
    pub(super) async fn wait(&mut self, canceller: &Canceller) -> std::io::Result<(ExitStatus, Usage)> {
        let mut stop = canceller.watch();
        let mut sent = Stop::No;
        loop {
            let stage = *stop.borrow_and_update();
            if stage > sent {
                self.signal(if stage == Stop::Kill {
                    Signal::SIGKILL
                } else {
                    Signal::SIGINT
                });
                sent = stage;
            }
            tokio::select! {
                done = &mut self.done => return done.unwrap_or_else(|_| Err(std::io::Error::other("the waiting thread is gone"))),
                _ = stop.changed() => {}
            }
        }
    }
}

fn wait(pid: Pid, reaped: &Mutex<bool>) -> std::io::Result<(ExitStatus, Usage)> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut reaped = held(reaped);
    // What is left of the group goes while the dead leader still holds the number.
    let _ = killpg(pid, Signal::SIGKILL);
    let end = wait4(pid);
    *reaped = true;
    end
}

/// Reaps a dead child and reads its cost, which neither std nor nix offer.
#[allow(unsafe_code)]
fn wait4(pid: Pid) -> std::io::Result<(ExitStatus, Usage)> {
    let mut status: libc::c_int = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live, properly aligned locals of the types wait4 writes; an all-zero rusage is
        // a valid value, so reading it is sound whatever the kernel filled in.
        let (result, usage) = unsafe {
            (
                libc::wait4(pid.as_raw(), &mut status, 0, usage.as_mut_ptr()),
                usage.assume_init_ref(),
            )
        };
        if result == pid.as_raw() {
            let micros = |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0);
            let usage = Usage {
                user_us: micros(usage.ru_utime),
                system_us: micros(usage.ru_stime),
                max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
            };
            let status = if libc::WIFSIGNALED(status) {
                ExitStatus::Signal(libc::WTERMSIG(status))
            } else {
                ExitStatus::Code(libc::WEXITSTATUS(status))
            };
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(std::process::Stdio::null());
        command
    }

    #[tokio::test]
    async fn codes_and_signals_are_told_apart() {
        let canceller = Canceller::new();
        let (status, usage) = Group::spawn(shell("exit 3")).unwrap().wait(&canceller).await.unwrap();
        assert_eq!(status, ExitStatus::Code(3));
        assert!(usage.max_rss_kib > 0);
        let (status, _) = Group::spawn(shell("kill -9 $$"))
            .unwrap()
            .wait(&canceller)
            .await
            .unwrap();
        assert_eq!(status, ExitStatus::Signal(9));
    }

    #[tokio::test]
    async fn the_group_goes_with_its_leader() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = shell("sleep 1000 & exit 0");
        command.stdout(writer);
        let (status, _) = Group::spawn(command).unwrap().wait(&Canceller::new()).await.unwrap();
        assert_eq!(status, ExitStatus::Code(0));
        // The sleeper held the pipe: its end is the proof.
        let read = tokio::task::spawn_blocking(move || std::io::Read::read(&mut reader, &mut [0]))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read, 0);
    }

    #[tokio::test]
    async fn a_canceller_reaches_the_group() {
        let canceller = Canceller::new();
        canceller.kill();
        let (status, _) = Group::spawn(shell("sleep 1000"))
            .unwrap()
            .wait(&canceller)
            .await
            .unwrap();
        assert_eq!(status, ExitStatus::Signal(9));
    }
}
