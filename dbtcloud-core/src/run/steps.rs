//! The steps of a run, in order, with dbt Cloud's names.

use serde::{Deserialize, Serialize};

use super::RunSpec;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Clones and checks out.
    Clone,
    /// Writes `profiles.yml`.
    Profile,
    /// `dbt deps`.
    Deps,
    /// `dbt source freshness`; its failure does not stop the run.
    Freshness,
    /// One of the job's commands.
    Command,
    /// `dbt docs generate`; its failure does not fail the run.
    Docs,
}

impl StepKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Clone,
        Self::Profile,
        Self::Deps,
        Self::Freshness,
        Self::Command,
        Self::Docs,
    ];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Profile => "profile",
            Self::Deps => "deps",
            Self::Freshness => "freshness",
            Self::Command => "command",
            Self::Docs => "docs",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a failure of this step fails the run and stops what comes after. Source: dbt Cloud's
    /// documentation, "Job commands": docs and freshness check boxes do not.
    pub const fn decides(self) -> bool {
        !matches!(self, Self::Freshness | Self::Docs)
    }
}

/// A step that is to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Position, from 1.
    pub index: u32,
    /// dbt Cloud's name for it; clients parse it.
    pub name: String,
    /// What it does.
    pub kind: StepKind,
    /// The dbt command line (`dbt …`), where there is one.
    pub command: Option<String>,
}

/// The steps of a run: clone, profile and deps first, then freshness, the commands, and docs last.
///
/// ```
/// # use dbtcloud_core::job::JobType;
/// # use dbtcloud_core::run::{RunSpec, plan_steps};
/// let spec = RunSpec {
///     commands: vec!["dbt build".into()], generate_docs: true, source_freshness: false,
///     dbt_version: "latest".into(), threads: 4, target_name: "default".into(), schema: None,
///     timeout_seconds: 3600, git_branch: None, git_sha: None, job_type: JobType::Other,
///     placement: Default::default(),
/// };
/// let names: Vec<_> = plan_steps(&spec, "Warehouse").into_iter().map(|step| step.name).collect();
/// assert_eq!(names, [
///     "Clone git repository",
///     "Create profile from connection Warehouse",
///     "Invoke dbt with `dbt deps`",
///     "Invoke dbt with `dbt build`",
///     "Invoke dbt with `dbt docs generate`",
/// ]);
/// ```
pub fn plan_steps(spec: &RunSpec, connection: &str) -> Vec<StepPlan> {
    let mut steps: Vec<(StepKind, Option<String>)> = vec![
        (StepKind::Clone, None),
        (StepKind::Profile, None),
        (StepKind::Deps, Some("dbt deps".to_owned())),
    ];
    if spec.source_freshness {
        steps.push((StepKind::Freshness, Some("dbt source freshness".to_owned())));
    }
    steps.extend(
        spec.commands
            .iter()
            .map(|command| (StepKind::Command, Some(command.clone()))),
    );
    if spec.generate_docs {
        steps.push((StepKind::Docs, Some("dbt docs generate".to_owned())));
    }
    (1u32..)
        .zip(steps)
        .map(|(index, (kind, command))| {
            let name = match (&command, kind) {
                (Some(command), _) => format!("Invoke dbt with `{command}`"),
                (None, StepKind::Profile) => format!("Create profile from connection {connection}"),
                (None, _) => "Clone git repository".to_owned(),
            };
            StepPlan {
                index,
                name,
                kind,
                command,
            }
        })
        .collect()
}
