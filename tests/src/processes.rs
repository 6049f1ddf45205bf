//! Processes of this machine, by what they were started with. Tests end processes by id, never by name.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl Process {
    /// Sends it a signal. One that is gone is fine.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid), signal);
    }

    /// Whether one of its arguments contains this.
    pub fn mentions(&self, text: &str) -> bool {
        self.command.iter().any(|argument| argument.contains(text))
    }
}

impl Process {
    /// What a variable was when the program began.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let told = environment
            .split('\0')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        told.map(str::to_owned)
    }

    /// Whether it is an agent of the platform.
    pub fn is_agent(&self) -> bool {
        let program = self
            .command
            .first()
            .is_some_and(|program| program.ends_with("/dbtcloud"));
        program && self.command.get(1).is_some_and(|role| role == "agent")
    }
}

/// Runs a command to its end. One that has not ended by itself within `limit` is killed, and has no exit code.
///
/// # Panics
/// When it cannot be started.
pub fn ended_within(command: &mut Command, limit: Duration) -> Output {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    let (ended, waiting) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    output
}

/// Living processes whose arguments or environment mention `directory`, this one left out.
pub fn of(directory: &Path) -> Vec<Process> {
    let needle = directory.display().to_string();
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let (line, environment, status) = (read("cmdline"), read("environ"), read("status"));
        let zombie = String::from_utf8_lossy(&status)
            .lines()
            .any(|l| l.starts_with("State:") && l.contains('Z'));
        let mentioned = [&line, &environment]
            .iter()
            .any(|text| String::from_utf8_lossy(text).contains(&needle));
        if pid != own && mentioned && !zombie {
            let command = line
                .split(|byte| *byte == 0)
                .filter(|part| !part.is_empty())
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .collect();
            found.push(Process { pid, command });
        }
    }
    found
}

/// Ends everything that mentions `directory`.
pub fn end(directory: &Path) {
    for _ in 0..50 {
        let left = of(directory);
        if left.is_empty() {
            return;
        }
        for process in left {
            process.signal(Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Resident memory of a process in bytes, now and at its highest.
pub fn memory(pid: i32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}
