//! `dbtcloud cleanup --once`: the background chores, now, and what came of them for people or programs.

use std::fmt::Write;

use dbtcloud_runtime::ControlPlane;
use dbtcloud_runtime::cleanup::{self, Mode, Report};
use serde_json::{Value, json};

/// What became of the chores.
#[derive(Debug)]
pub struct Told {
    reports: Vec<Report>,
    dry_run: bool,
}

/// Sweeps once with the chores of these names, or with all when there are none.
///
/// # Errors
/// A name that no chore has, with the names that there are; nothing was done then.
pub async fn once(plane: &ControlPlane, chores: &[String], dry_run: bool) -> anyhow::Result<Told> {
    let mode = if dry_run { Mode::DryRun } else { Mode::Act };
    let reports = cleanup::once(plane, chores, mode).await;
    let reports = reports.map_err(|error| anyhow::anyhow!("{}", error.chain()))?;
    Ok(Told { reports, dry_run })
}

fn kept(report: &Report) -> String {
    let kept = report.swept.kept.iter();
    kept.map(|(why, count)| format!("{count} {why}"))
        .collect::<Vec<_>>()
        .join(", ")
}

impl Told {
    /// Whether every chore came to its end.
    pub fn whole(&self) -> bool {
        self.reports.iter().all(|report| report.error.is_none())
    }

    /// For people: a line for each chore.
    pub fn table(&self) -> String {
        let done = if self.dry_run { "would do" } else { "done" };
        let mut text = format!(
            "{:<20} {:>10} {:>10} {:>16}  kept\n",
            "chore", "examined", done, "bytes"
        );
        for report in &self.reports {
            let swept = &report.swept;
            let line = format!(
                "{:<20} {:>10} {:>10} {:>16}  {}",
                report.chore,
                swept.examined,
                swept.done,
                swept.bytes,
                kept(report)
            );
            text.push_str(line.trim_end());
            text.push('\n');
            if let Some(error) = &report.error {
                // Writing into a text never fails.
                let _ = writeln!(text, "  failed: {}", error.chain());
            }
        }
        if self.dry_run {
            text.push_str("nothing was changed\n");
        }
        text
    }

    /// For programs: one object.
    pub fn json(&self) -> Value {
        let chore = |report: &Report| {
            json!({
                "chore": report.chore,
                "examined": report.swept.examined,
                "done": report.swept.done,
                "bytes": report.swept.bytes,
                "kept": report.swept.kept,
                "seconds": report.took.as_secs_f64(),
                "error": report.error.as_ref().map(dbtcloud_core::Error::chain),
            })
        };
        json!({
            "dry_run": self.dry_run,
            "chores": self.reports.iter().map(chore).collect::<Vec<_>>(),
        })
    }
}
