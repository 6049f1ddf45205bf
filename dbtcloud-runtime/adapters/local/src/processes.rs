//! Finding and ending the processes of an execution whose supervisor is gone.
//!
//! The supervisor is a subreaper and loses nothing; this is for when it was itself killed. Then what is left
//! is found by the marker that every process of an execution has in its environment, and by descent.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The environment variable that marks every process of an execution: the execution's directory.
pub(crate) const MARKER: &str = "DBTCLOUD_EXECUTION";

/// The environment variable by which a process that others share stays when its execution ends.
pub(crate) const DETACHED: &str = "DBTCLOUD_DETACHED";

const PAUSE: Duration = Duration::from_millis(5);

struct Process {
    parent: i32,
    born: u64,
    marked: bool,
    detached: bool,
    zombie: bool,
}

/// Kills everything marked with `directory`, and what descends from it, until there is nothing or `patience`
/// is over; the answer says which.
pub(crate) fn end(directory: &Path, patience: Duration) -> io::Result<bool> {
    let marker = format!("{MARKER}={}", directory.display());
    let deadline = Instant::now() + patience;
    loop {
        let all = scan(marker.as_bytes())?;
        let doomed = belonging(&all);
        if doomed.is_empty() {
            return Ok(true);
        }
        for pid in doomed {
            // The pid may have been given to another process since the scan.
            if all.get(&pid).map(|process| process.born) == stat(pid).map(|(_, born, _)| born) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        pause();
    }
}

/// Waits a moment before looking again. Only on threads that may block.
#[expect(
    clippy::disallowed_methods,
    reason = "called by what runs in `spawn_blocking`, on no worker of the runtime"
)]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}

fn belonging(all: &HashMap<i32, Process>) -> Vec<i32> {
    let mut found: HashSet<i32> = HashSet::new();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|(pid, process)| {
                !found.contains(pid) && !process.detached && (process.marked || found.contains(&process.parent))
            })
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found
        .into_iter()
        .filter(|pid| all.get(pid).is_some_and(|process| !process.zombie))
        .collect()
}

fn scan(marker: &[u8]) -> io::Result<HashMap<i32, Process>> {
    let detached = format!("{DETACHED}=1");
    let mut all = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some((parent, born, zombie)) = stat(pid) else {
            continue;
        };
        // Not ours to read is not ours to end.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |wanted: &[u8]| environment.split(|byte| *byte == 0).any(|variable| variable == wanted);
        let process = Process {
            parent,
            born,
            zombie,
            marked: has(marker),
            detached: has(detached.as_bytes()),
        };
        all.insert(pid, process);
    }
    Ok(all)
}

/// Parent, start time and whether it is only a zombie.
fn stat(pid: i32) -> Option<(i32, u64, bool)> {
    let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((
        fields.get(1)?.parse().ok()?,
        fields.get(19)?.parse().ok()?,
        matches!(fields.first(), Some(&("Z" | "X"))),
    ))
}

/// How many processes the kernel has killed for want of memory since it booted; empty when it does not tell.
pub(crate) fn oom_kills() -> String {
    std::fs::read_to_string("/proc/vmstat")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("oom_kill ").map(str::to_owned))
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(parent: i32, marked: bool, detached: bool) -> Process {
        Process {
            parent,
            born: 0,
            marked,
            detached,
            zombie: false,
        }
    }

    #[test]
    fn descent_counts_and_stops_at_the_detached() {
        let all = HashMap::from([
            (1, process(0, false, false)),
            (10, process(1, true, false)),
            (11, process(10, false, false)),
            (12, process(11, false, false)),
            (20, process(10, true, true)),
            (21, process(20, true, true)),
            (22, process(20, false, false)),
            (30, process(1, false, false)),
        ]);
        let mut found = belonging(&all);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12]);
    }

    #[test]
    fn reads_its_own_stat() {
        let (parent, born, zombie) = stat(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(parent > 0 && born > 0 && !zombie);
    }
}
