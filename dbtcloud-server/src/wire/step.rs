//! Steps of a run.

use dbtcloud_core::Timestamp;
use dbtcloud_core::id::AccountId;
use dbtcloud_core::run::RunStep;
use serde_json::{Map, Value, json};

use super::{codes, time};

/// Lines of a debug log that are shown unless all of it is asked for (dbt Cloud's number).
pub(crate) const DEBUG_LINES: usize = 1_000;

/// The logs of a step, as far as they were asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepLogs {
    /// The console log.
    pub(crate) console: String,
    /// The debug log, if it was asked for.
    pub(crate) debug: Option<String>,
    /// The end of the debug log, if it was looked up.
    pub(crate) debug_tail: Option<String>,
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str, lines: usize) -> &str {
    let trimmed = text.strip_suffix('\n').unwrap_or(text);
    match trimmed.rmatch_indices('\n').nth(lines.saturating_sub(1)) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

/// The command inside ``Invoke dbt with `…` ``.
fn command(name: &str) -> Option<&str> {
    name.strip_prefix("Invoke dbt with `")?.strip_suffix('`')
}

/// A step.
pub(crate) fn view(step: &RunStep, account: AccountId, logs: &StepLogs, now: Timestamp) -> Map<String, Value> {
    let state = &step.state;
    let code = codes::step(state.status);
    let span = state
        .started_at
        .map(|from| state.finished_at.unwrap_or(now).since(from))
        .unwrap_or_default();
    let color = match code.number {
        10 => "success",
        20 => "error",
        30 => "cancelled",
        3 => "running",
        _ => "default",
    };
    let moved = step.log_object.is_some() || !step.log_parts.is_empty();
    object! {
        "id": step.id.get(),
        "run_id": step.run.get(),
        "account_id": account.get(),
        "index": state.index,
        "name": state.name,
        "status": code.number,
        "status_humanized": code.word,
        "status_color": color,
        "logs": logs.console,
        "debug_logs": logs.debug,
        "truncated_debug_logs": logs.debug_tail,
        "log_path": Value::Null,
        "debug_log_path": Value::Null,
        "log_location": if moved { "s3" } else { "db" },
        "log_archive_type": if moved { "scribe" } else { "db_flushed" },
        "started_at": state.started_at.map(time::spaced),
        "finished_at": state.finished_at.map(time::spaced),
        "created_at": time::spaced(step.created_at),
        "updated_at": time::spaced(step.updated_at),
        "duration": time::clock(span),
        "duration_humanized": time::humanized(span),
        "run_step_command": command(&state.name)
            .map(|command| json!({ "run_step_id": step.id.get(), "dbt_command": command })),
        "run_step_invocation": Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_text() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a\nb\n", 5), "a\nb\n");
        assert_eq!(last_lines("", 5), "");
    }
}
