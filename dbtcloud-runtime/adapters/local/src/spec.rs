//! What of a specification this executor can start, and how it is handed to the supervisor.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dbtcloud_core::ports::{ExecutionSpec, Workload};
use dbtcloud_core::{Error, Result};

use crate::processes::{DETACHED, MARKER};

/// Where programs are looked up when the specification's environment has no `PATH`.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest one argument or variable may be, its terminating zero included (Linux, `MAX_ARG_STRLEN`).
pub(crate) const STRING_LIMIT_BYTES: usize = 128 * 1024;

/// The longest command and environment may be together (Linux allows a quarter of the stack's limit,
/// 2 MiB by default, pointers included).
pub(crate) const SPEC_LIMIT_BYTES: usize = 1024 * 1024;

/// Longer spans are cut to this; some ten years, which `sleep` takes everywhere.
const SPAN_LIMIT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The last line of the environment; a supervisor that does not see it starts nothing.
const LAST_LINE: &str = ": complete";

/// A specification in the supervisor's words.
pub(crate) struct Plan {
    /// The program, by its path, and its arguments.
    pub(crate) command: Vec<String>,
    /// The environment as shell text. It may hold the ticket, so it goes through a socket and nowhere else.
    pub(crate) environment: String,
    /// The lifetime in seconds, or nothing.
    pub(crate) lifetime: String,
    /// The limit of a process's data in KiB, or nothing.
    pub(crate) memory: String,
}

/// Checks `spec` and translates it for an execution in `directory`.
pub(crate) fn plan(spec: &ExecutionSpec, directory: &Path, address_file: &Path) -> Result<Plan> {
    let mut environment = BTreeMap::new();
    for (name, value) in &spec.environment {
        if !is_name(name) {
            return Err(Error::invalid(
                "environment",
                format!("'{name}' is not letters, digits and underscores"),
            ));
        }
        if name == DETACHED {
            return Err(Error::invalid(
                "environment",
                format!("{DETACHED} is not for what is executed itself"),
            ));
        }
        environment.insert(name.as_str(), value.as_str());
    }
    let (marker, address) = (text(directory)?, text(address_file)?);
    environment.insert(MARKER, marker);
    if let Some(ticket) = &spec.ticket {
        environment.insert("DBTCLOUD_TICKET", ticket.expose());
    }
    if spec.workload == Workload::Service {
        environment.insert("DBTCLOUD_ADDRESS_FILE", address);
    }

    let Some((program, arguments)) = spec.command.split_first() else {
        return Err(Error::invalid("command", "expected a program"));
    };
    check_sizes(&spec.command, &environment)?;
    let mut command = vec![find(program, environment.get("PATH").copied().unwrap_or(DEFAULT_PATH))?];
    command.extend_from_slice(arguments);
    check_mounts(spec)?;

    let mut snippet = String::new();
    for (name, value) in environment {
        let _ = writeln!(snippet, "export {name}='{}'", value.replace('\'', "'\\''"));
    }
    snippet.push_str(LAST_LINE);
    Ok(Plan {
        command,
        environment: snippet,
        lifetime: spec.limits.lifetime.map(seconds).unwrap_or_default(),
        memory: spec
            .limits
            .memory_bytes
            .map(|bytes| (bytes / 1024).max(1).to_string())
            .unwrap_or_default(),
    })
}

/// A span as `sleep` reads it, rounded up to milliseconds.
pub(crate) fn seconds(span: Duration) -> String {
    let millis = span.min(SPAN_LIMIT).as_micros().div_ceil(1000);
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::invalid("directory", format!("expected UTF-8, got {}", path.display())))
}

fn check_sizes(command: &[String], environment: &BTreeMap<&str, &str>) -> Result<()> {
    let mut total = 0;
    let mut check = |field: &'static str, name: &str, length: usize, has_zero: bool| {
        total += length + size_of::<usize>();
        if has_zero {
            return Err(Error::invalid(field, format!("{name} has a zero byte")));
        }
        if length > STRING_LIMIT_BYTES {
            return Err(Error::invalid(
                field,
                format!("{name} is longer than {STRING_LIMIT_BYTES} bytes"),
            ));
        }
        if total > SPEC_LIMIT_BYTES {
            return Err(Error::invalid(
                field,
                format!("more than {SPEC_LIMIT_BYTES} bytes with what is before {name}"),
            ));
        }
        Ok(())
    };
    for (index, argument) in command.iter().enumerate() {
        check(
            "command",
            &format!("argument {index}"),
            argument.len() + 1,
            argument.contains('\0'),
        )?;
    }
    for (name, value) in environment {
        check("environment", name, name.len() + value.len() + 2, value.contains('\0'))?;
    }
    Ok(())
}

/// Looks a program up as `execvp` would, but now, so that the caller learns of a missing one.
fn find(program: &str, search: &str) -> Result<String> {
    let runs = |path: &Path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return match Path::new(program) {
            path if !path.is_absolute() => Err(Error::invalid(
                "command",
                format!("expected a name or an absolute path, got '{program}'"),
            )),
            path if !runs(path) => Err(Error::invalid("command", format!("no program at {program}"))),
            _ => Ok(program.to_owned()),
        };
    }
    search
        .split(':')
        .filter(|directory| directory.starts_with('/') && !program.is_empty())
        .map(|directory| PathBuf::from(directory).join(program))
        .find(|path| runs(path))
        .and_then(|path| path.to_str().map(str::to_owned))
        .ok_or_else(|| Error::invalid("command", format!("no program '{program}' in {search}")))
}

/// A process sees a directory where it is; there is nothing to attach, only to check.
fn check_mounts(spec: &ExecutionSpec) -> Result<()> {
    for mount in &spec.mounts {
        let source = Path::new(&mount.source);
        if source != mount.target || !source.is_absolute() {
            let expected = format!(
                "a process sees {} only there, not at {}",
                mount.source,
                mount.target.display()
            );
            return Err(Error::invalid("mounts", expected));
        }
        if !source.is_dir() {
            return Err(Error::unavailable(format!(
                "directory {} of execution {} is not there",
                mount.source, spec.id
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dbtcloud_core::ErrorKind;
    use dbtcloud_core::id::{AccountId, RunId};
    use dbtcloud_core::ports::{ExecutionId, Mount, WorkloadLimits};
    use dbtcloud_core::secret::Secret;

    use super::*;

    fn spec(command: &[&str]) -> ExecutionSpec {
        ExecutionSpec {
            id: ExecutionId::Run {
                run: RunId::new(1),
                attempt: 1,
            },
            account: AccountId::new(1),
            workload: Workload::Task,
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            environment: BTreeMap::new(),
            ticket: None,
            mounts: Vec::new(),
            limits: WorkloadLimits::default(),
            placement: Default::default(),
        }
    }

    fn plan_of(spec: &ExecutionSpec) -> Result<Plan> {
        plan(spec, Path::new("/x"), Path::new("/x/address"))
    }

    fn refused(spec: &ExecutionSpec) -> String {
        let error = plan_of(spec).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    }

    #[test]
    fn finds_the_program_and_quotes_the_environment() {
        let mut spec = spec(&["sh", "-c", "true"]);
        spec.environment.insert("QUOTE".into(), "it's\n$HOME".into());
        spec.ticket = Some(Secret::new("t"));
        let plan = plan_of(&spec).unwrap();
        assert!(plan.command[0].starts_with('/') && plan.command[0].ends_with("/sh"));
        assert!(plan.environment.contains("export QUOTE='it'\\''s\n$HOME'\n"));
        assert!(plan.environment.contains("export DBTCLOUD_TICKET='t'\n"));
        assert!(!plan.environment.contains("ADDRESS_FILE"));
        assert!(plan.environment.ends_with("\n: complete"));
    }

    #[test]
    fn refuses_what_can_never_start() {
        assert!(refused(&spec(&[])).contains("expected a program"));
        assert!(refused(&spec(&["no-such-program"])).contains("no-such-program"));
        assert!(refused(&spec(&["/etc/hostname-or-not"])).contains("no program at"));
        assert!(refused(&spec(&["./sh"])).contains("absolute"));
        assert!(refused(&spec(&[""])).contains("no program"));
        assert!(refused(&spec(&["sh", "a\0b"])).contains("zero byte"));
        assert!(refused(&spec(&["sh", &"x".repeat(STRING_LIMIT_BYTES)])).contains("longer than"));
        let part = "x".repeat(STRING_LIMIT_BYTES - 10);
        let mut many = vec!["sh"];
        many.extend(std::iter::repeat_n(part.as_str(), 9));
        assert!(refused(&spec(&many)).contains("more than"));
        for name in ["A.B", "1A", "", "A=B", "A;rm", DETACHED] {
            let mut spec = spec(&["sh"]);
            spec.environment.insert(name.into(), "1".into());
            assert!(refused(&spec).contains("environment"), "{name}");
        }
        let mut elsewhere = spec(&["sh"]);
        elsewhere.mounts.push(Mount {
            source: "/tmp".into(),
            target: "/work".into(),
        });
        assert!(refused(&elsewhere).contains("/work"));
    }

    #[test]
    fn spans_are_what_sleep_reads() {
        assert_eq!(seconds(Duration::ZERO), "0.000");
        assert_eq!(seconds(Duration::from_micros(1)), "0.001");
        assert_eq!(seconds(Duration::from_millis(61_500)), "61.500");
        assert_eq!(seconds(Duration::MAX), "315360000.000");
    }
}
