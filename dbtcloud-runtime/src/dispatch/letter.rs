//! What people are told by mail of how a run ended: plain text, the same on every try.

use dbtcloud_core::run::{RunStatus, RunStep, StepStatus};
use serde::{Deserialize, Serialize};

use super::Told;

/// The longest message of a run or step that a letter has, in characters.
const MESSAGE_LIMIT: usize = 2_000;
/// Failed steps that a letter names.
const STEPS_LIMIT: usize = 20;

/// What a dispatch to a person carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) subject: String,
    pub(crate) text: String,
}

const fn word_of(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Success => "Success",
        RunStatus::Warned => "Success with warnings",
        RunStatus::Error => "Error",
        RunStatus::Cancelled => "Cancelled",
        RunStatus::Queued | RunStatus::Starting | RunStatus::Running | RunStatus::Cancelling => "Running",
    }
}

/// The beginning of a text, without what a mail may not have.
fn beginning(text: &str) -> String {
    let legal = |c: &char| *c == '\n' || !c.is_control();
    text.trim().chars().filter(legal).take(MESSAGE_LIMIT).collect()
}

/// A text in one line.
fn line(text: &str) -> String {
    beginning(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Told<'_> {
    /// What a person is told. `base` is the URL of this installation, for a link to the run.
    pub(crate) fn letter(&self, base: Option<&str>, steps: &[RunStep]) -> Letter {
        let (run, new, word) = (self.run, &self.run.new, word_of(self.status));
        let job = match line(self.job) {
            name if name.is_empty() => format!("job {}", new.job),
            name => name,
        };
        let mut text = format!(
            "Job: {job}\nProject: {}\nEnvironment: {}\nRun: {}\nStatus: {word}\n",
            line(self.project),
            line(self.environment),
            run.id
        );
        if let Some(base) = base {
            let base = base.trim_end_matches('/');
            text += &format!(
                "{base}/deploy/{}/projects/{}/runs/{}/\n",
                new.account, new.project, run.id
            );
        }
        if let Some(message) = self.message.map(beginning).filter(|message| !message.is_empty()) {
            text += &format!("\n{message}\n");
        }
        let failed: Vec<_> = steps
            .iter()
            .filter(|step| step.state.status == StepStatus::Error)
            .collect();
        if !failed.is_empty() {
            text += "\nFailed steps:\n";
        }
        for step in failed.iter().take(STEPS_LIMIT) {
            text += &match step.state.message.as_deref().map(line) {
                Some(message) if !message.is_empty() => format!("- {}: {message}\n", line(&step.state.name)),
                _ => format!("- {}\n", line(&step.state.name)),
            };
        }
        if let Some(more) = failed.len().checked_sub(STEPS_LIMIT).filter(|more| *more > 0) {
            text += &format!("- and {more} more\n");
        }
        Letter {
            subject: format!("[dbtcloud] {job} {word}"),
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_a_line_of_a_header() {
        assert_eq!(line("Nightly\r\nBcc: x@example.com\0"), "Nightly Bcc: x@example.com");
        assert_eq!(beginning("\u{1b}[31mred\nmore"), "[31mred\nmore");
        assert_eq!(beginning(&"x".repeat(9_000)).len(), MESSAGE_LIMIT);
    }
}
