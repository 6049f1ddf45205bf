//! `dbtcloud doctor`: looks at an installation as it is configured and says what to mend. Nothing it does stays: it
//! makes no file, changes no schema, and takes away the object that it tries the artifact store with.
//!
//! A check says one thing about one component. What cannot be looked at because something else is wrong says so, and
//! is not taken for fine.

mod checks;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Problems, Settings};

/// How long one check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(20);

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be; what was seen.
    Fine(String),
    /// It works, and somebody should look at it.
    Doubt(String),
    /// What is wrong, and what to do about it.
    Wrong(String),
    /// It was not looked at, and why.
    Unseen(String),
}

impl Verdict {
    const fn word(&self) -> &'static str {
        match self {
            Self::Fine(_) => "ok",
            Self::Doubt(_) => "warning",
            Self::Wrong(_) => "wrong",
            Self::Unseen(_) => "not seen",
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Fine(text) | Self::Doubt(text) | Self::Wrong(text) | Self::Unseen(text) => text,
        }
    }

    fn of(answer: anyhow::Result<String>) -> Self {
        match answer {
            Ok(seen) => Self::Fine(seen),
            Err(error) => Self::Wrong(format!("{error:#}")),
        }
    }
}

/// What was found, in the order of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Name of each check, and what it found.
    pub findings: Vec<(&'static str, Verdict)>,
}

impl Report {
    /// Looks at an installation. `environment` is this process's.
    pub async fn of(settings: &Settings, environment: &BTreeMap<String, String>) -> Self {
        let mut report = Self::default();
        report.add("settings", Verdict::Fine("understood".to_owned()));
        checks::all(&mut report, settings, environment).await;
        report
    }

    /// What there is to say of settings that are not understood: nothing else can be looked at.
    pub fn of_problems(problems: &Problems) -> Self {
        let wrong = |problem: &crate::config::Problem| ("settings", Verdict::Wrong(problem.to_string()));
        Self {
            findings: problems.0.iter().map(wrong).collect(),
        }
    }

    fn add(&mut self, name: &'static str, verdict: Verdict) {
        self.findings.push((name, verdict));
    }

    /// Adds what a check says in time.
    async fn look(&mut self, name: &'static str, check: impl Future<Output = Verdict>) {
        self.add(name, within(CHECK_LIMIT, check).await);
    }

    /// Whether nothing is wrong. What was not seen is not wrong: what hid it is.
    pub fn is_well(&self) -> bool {
        let wrong = |(_, verdict): &(_, Verdict)| matches!(verdict, Verdict::Wrong(_));
        !self.findings.iter().any(wrong)
    }

    /// For people: a line for each check.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let width = self.findings.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, verdict) in &self.findings {
            // Writing into a text never fails.
            let _ = writeln!(text, "{:<9} {name:<width$}  {}", verdict.word(), verdict.text());
        }
        let wrong = self.findings.iter().filter(|(_, v)| matches!(v, Verdict::Wrong(_)));
        let _ = match wrong.count() {
            0 => writeln!(text, "nothing is wrong"),
            1 => writeln!(text, "1 thing is wrong"),
            many => writeln!(text, "{many} things are wrong"),
        };
        text
    }

    /// For programs: one object.
    pub fn json(&self) -> Value {
        let finding = |(name, verdict): &(&str, Verdict)| json!({ "check": name, "verdict": verdict.word(), "text": verdict.text() });
        json!({
            "well": self.is_well(),
            "checks": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
}

async fn within(limit: Duration, check: impl Future<Output = Verdict>) -> Verdict {
    let late = |_| Verdict::Wrong(format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, check).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_counted_and_what_was_not_seen_is_not() {
        let mut report = Report::default();
        report.add("settings", Verdict::Fine("understood".to_owned()));
        report.add("mail", Verdict::Doubt("slow".to_owned()));
        report.add("schema", Verdict::Unseen("no database".to_owned()));
        assert!(report.is_well());
        assert!(
            report
                .table()
                .ends_with("not seen  schema    no database\nnothing is wrong\n")
        );
        report.add("database", Verdict::Wrong("gone; bring it back".to_owned()));
        assert!(!report.is_well());
        assert!(
            report
                .table()
                .ends_with("wrong     database  gone; bring it back\n1 thing is wrong\n")
        );
        assert_eq!(report.json()["checks"][3]["verdict"], "wrong");
    }

    #[tokio::test]
    async fn a_check_that_does_not_end_is_wrong() {
        let verdict = within(Duration::ZERO, std::future::pending()).await;
        assert_eq!(verdict, Verdict::Wrong("no answer within 0ns".to_owned()));
    }
}
