//! What tests of the agent share: a control plane, a repository, a plan, and a dbt that is a shell script.
#![allow(dead_code)]

pub mod plane;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dbtcloud_core::id::{AccountId, EnvironmentId, JobId, ProjectId, RunId};
use dbtcloud_core::run::{StepKind, StepPlan};
use dbtcloud_runtime::agent::{AgentConfig, AgentExit};
use dbtcloud_runtime::engine::{EnvironmentSpec, EnvironmentStore};
use dbtcloud_runtime::protocol::{GitLogin, GitSource, ProfileSource, RunPlan};
use serde_json::json;

pub const LIMIT: Duration = Duration::from_secs(60);

pub fn git(dir: &Path, args: &[&str]) -> String {
    let out = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "commit.gpgsign=false",
        ])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A repository with these files on `main`.
pub fn repository(dir: &Path, files: &[(&str, &str)]) -> PathBuf {
    let repo = dir.join("repo");
    std::fs::create_dir_all(&repo).unwrap();
    git(&repo, &["init", "--quiet", "-b", "main"]);
    for (name, text) in files {
        let path = repo.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "--quiet", "-m", "first"]);
    repo
}

pub fn plan(repo: &Path, commands: &[&str]) -> RunPlan {
    let mut steps = vec![
        (StepKind::Clone, None),
        (StepKind::Profile, None),
        (StepKind::Deps, Some("dbt deps".to_owned())),
    ];
    steps.extend(commands.iter().map(|command| {
        let kind = match *command {
            "dbt docs generate" => StepKind::Docs,
            "dbt source freshness" => StepKind::Freshness,
            _ => StepKind::Command,
        };
        (kind, Some((*command).to_owned()))
    }));
    RunPlan {
        account: AccountId::new(1),
        project: ProjectId::new(2),
        environment: EnvironmentId::new(3),
        job: JobId::new(4),
        run: RunId::new(5),
        attempt: 1,
        steps: (1..)
            .zip(steps)
            .map(|(index, (kind, command))| StepPlan {
                index,
                name: format!("step {index}"),
                kind,
                command,
            })
            .collect(),
        git: GitSource {
            url: format!("file://{}", repo.display()),
            branch: Some("main".to_owned()),
            commit: None,
            subdirectory: None,
            login: GitLogin::Anonymous,
        },
        profile: ProfileSource {
            connection_name: "duck".to_owned(),
            adapter: "duckdb".to_owned(),
            connection: json!({"path": repo.parent().unwrap().join("dw.duckdb")})
                .as_object()
                .unwrap()
                .clone(),
            credentials: serde_json::Map::new(),
            extended_attributes: serde_json::Map::new(),
            target_name: "prod".to_owned(),
            schema: Some("analytics".to_owned()),
            threads: 2,
        },
        dbt_version: "1.11".to_owned(),
        variables: BTreeMap::new(),
        secrets: vec!["hunter2-hunter2".to_owned()],
        timeout_seconds: 300,
        state: None,
        grace_seconds: 2,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

pub fn config(dir: &Path, server: &str) -> AgentConfig {
    let vars = [
        ("DBTCLOUD_TICKET", "ticket".to_owned()),
        ("DBTCLOUD_SERVER", server.to_owned()),
        ("DBTCLOUD_WORK_DIR", dir.join("work").display().to_string()),
        ("DBTCLOUD_CACHE_DIR", dir.join("cache").display().to_string()),
        ("DBTCLOUD_WARM", "false".to_owned()),
        ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
    ];
    let vars = vars.into_iter().map(|(name, value)| (name.to_owned(), value));
    AgentConfig::from_environment(vars).unwrap().unwrap()
}

/// Puts a dbt in place that runs `fake.sh` of the project instead. It finds its arguments in `$@`, its events go to
/// descriptor 0.
pub fn fake_dbt(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let store = EnvironmentStore::new(dir.join("cache/dbt-envs"), "uv");
    let root = store.path(&EnvironmentSpec::new("1.11", "duckdb")).unwrap();
    std::fs::create_dir_all(root.join("bin")).unwrap();
    let python = root.join("bin/python");
    std::fs::write(&python, "#!/bin/bash\nshift 7\nexec bash ./fake.sh \"$@\"\n").unwrap();
    std::fs::set_permissions(&python, PermissionsExt::from_mode(0o755)).unwrap();
    let info =
        json!({"dbt_version": "1.11.99", "adapter_version": "1.11.98", "adapter": "duckdb", "python_version": "3"});
    std::fs::write(root.join(".complete"), info.to_string()).unwrap();
}

/// Everything for a run of a fake dbt.
pub struct Stage {
    pub dir: tempfile::TempDir,
    pub plane: plane::Plane,
    pub config: AgentConfig,
}

impl Stage {
    pub fn new(script: &str, commands: &[&str], adjust: impl FnOnce(&mut RunPlan)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = [("dbt_project.yml", "name: shop\n"), ("fake.sh", script)];
        let repo = repository(dir.path(), &files);
        fake_dbt(dir.path());
        let mut plan = plan(&repo, commands);
        adjust(&mut plan);
        let plane = plane::Plane::new(dir.path(), Some(plan));
        let config = config(dir.path(), &plane.server());
        Self { dir, plane, config }
    }

    pub async fn run(&self) -> AgentExit {
        let run = dbtcloud_runtime::agent::run(self.config.clone());
        let exit = tokio::time::timeout(LIMIT * 2, run)
            .await
            .expect("the agent ends")
            .unwrap();
        assert_eq!(self.plane.seen().wrong, Vec::<String>::new());
        assert!(!self.dir.path().join("work").exists(), "scratch space is removed");
        exit
    }
}
