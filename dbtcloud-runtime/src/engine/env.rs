//! The environment store: one Python environment per (Python, dbt, adapter, extras), built on demand by uv.
//!
//! An environment is a directory named by the digest of everything that went into it. It is built beside its final
//! place and renamed, so a directory that exists is complete; once there it is used without uv and without network.
//! Environments are relocatable (`uv venv --relocatable`), which is what makes the rename safe.
//!
//! An image brings environments along: they are looked for in a directory of their own, which may be read-only, before
//! one is built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::EngineError;
use super::files;
use super::version::{self, DbtVersion};

/// Marks a complete environment and holds its [`EnvironmentInfo`].
const COMPLETE: &str = ".complete";
/// Changed when environments built by older code must not be reused.
const LAYOUT: u32 = 1;
/// Longest tail of uv's message that is kept.
pub const UV_MESSAGE_LIMIT: usize = 4096;
/// How long a build may take, network included.
pub const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// What an environment must contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentSpec {
    /// Python as uv understands it: `3.11`, or a path.
    pub python: String,
    /// dbt version as the API spells it; see [`version::resolve`].
    pub dbt_version: String,
    /// Adapter: `duckdb`, `postgres`, `snowflake`, …
    pub adapter: String,
    /// More requirements, one per entry: `dbt-utils-plugin==1.0`.
    #[serde(default)]
    pub extra_requirements: Vec<String>,
}

impl EnvironmentSpec {
    /// A specification with the default Python.
    pub fn new(dbt_version: impl Into<String>, adapter: impl Into<String>) -> Self {
        Self {
            python: version::DEFAULT_PYTHON.into(),
            dbt_version: dbt_version.into(),
            adapter: adapter.into(),
            extra_requirements: Vec::new(),
        }
    }
}

/// What an environment contains, read from package metadata when it was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentInfo {
    /// Installed dbt-core.
    pub dbt_version: String,
    /// Installed adapter package.
    pub adapter_version: String,
    /// Adapter.
    pub adapter: String,
    /// Python, `3.11.7`.
    pub python_version: String,
}

/// A complete environment on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Its directory.
    pub root: PathBuf,
    /// Digest of its contents' specification.
    pub digest: String,
    /// What is in it.
    pub info: EnvironmentInfo,
}

impl Environment {
    /// Its Python interpreter.
    pub fn python(&self) -> PathBuf {
        self.root.join("bin").join("python")
    }

    /// Its `dbt` command.
    pub fn dbt(&self) -> PathBuf {
        self.root.join("bin").join("dbt")
    }
}

/// Builds and finds environments under one root directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EnvironmentStore {
    root: PathBuf,
    ready: Option<PathBuf>,
    uv: PathBuf,
    uv_env: BTreeMap<String, String>,
    build_limit: Duration,
}

/// The first of `candidates` that is an executable file. Callers name the places; nothing is read from `PATH` here.
pub fn find_uv<I, P>(candidates: I) -> Option<PathBuf>
where
    I: IntoIterator<Item = P>,
    P: AsRef<Path>,
{
    use std::os::unix::fs::PermissionsExt;
    candidates
        .into_iter()
        .map(|path| path.as_ref().to_path_buf())
        .find(|path| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

struct Plan {
    python: String,
    core: String,
    requirements: Vec<String>,
    constraints: Vec<&'static str>,
    overrides: &'static str,
}

fn plan(spec: &EnvironmentSpec) -> Result<Plan, EngineError> {
    let invalid = |field, reason: &str| EngineError::Invalid {
        field,
        reason: reason.into(),
    };
    let DbtVersion::Python {
        specifier,
        minor,
        tested,
    } = version::resolve(&spec.dbt_version)?
    else {
        return Err(invalid(
            "dbt_version",
            "dbt 2.x is a binary and has no Python environment",
        ));
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if spec.adapter.is_empty() || !spec.adapter.bytes().all(plain) || spec.adapter.starts_with('-') {
        return Err(invalid("adapter", "expected lower-case letters, digits, - and _"));
    }
    if spec.python.is_empty() || spec.python.starts_with('-') {
        return Err(invalid("python", "expected a version or a path"));
    }
    let core = format!("dbt-core{specifier}");
    let mut requirements = vec![core.clone(), version::adapter_requirement(&spec.adapter, minor, tested)];
    for extra in &spec.extra_requirements {
        let extra = extra.trim();
        if extra.is_empty() || extra.starts_with('-') || extra.contains(['\n', '\r']) {
            return Err(invalid(
                "extra_requirements",
                "expected one requirement per entry, no options",
            ));
        }
        requirements.push(extra.into());
    }
    Ok(Plan {
        python: spec.python.clone(),
        core,
        requirements,
        constraints: if tested {
            version::TESTED_CONSTRAINTS.to_vec()
        } else {
            Vec::new()
        },
        overrides: if minor >= 12 { version::OVERRIDE_1_12 } else { "" },
    })
}

fn digest(plan: &Plan) -> String {
    let text = format!(
        "{LAYOUT}\n{}\n{:?}\n{:?}\n{}",
        plan.python, plan.requirements, plan.constraints, plan.overrides
    );
    hex::encode(&Sha256::digest(text.as_bytes())[..10])
}

impl EnvironmentStore {
    /// A store under `root` that builds with the uv at `uv`.
    pub fn new(root: impl Into<PathBuf>, uv: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            ready: None,
            uv: uv.into(),
            uv_env: BTreeMap::new(),
            build_limit: BUILD_LIMIT,
        }
    }

    /// Adds variables to the otherwise minimal environment uv runs in: certificates, proxies, `UV_INDEX_URL`.
    #[must_use]
    pub fn with_uv_env(mut self, env: BTreeMap<String, String>) -> Self {
        self.uv_env = env;
        self
    }

    /// Looks for an environment in `ready`, another store's root, before one is built. Nothing is written there.
    #[must_use]
    pub fn with_ready(mut self, ready: Option<PathBuf>) -> Self {
        self.ready = ready;
        self
    }

    /// Limits one build.
    #[must_use]
    pub fn with_build_limit(mut self, limit: Duration) -> Self {
        self.build_limit = limit;
        self
    }

    /// Where the environment of `spec` is or would be.
    ///
    /// # Errors
    /// As [`EnvironmentStore::ensure`], for a specification that cannot be right.
    pub fn path(&self, spec: &EnvironmentSpec) -> Result<PathBuf, EngineError> {
        let plan = plan(spec)?;
        Ok(self.root.join(self.name(spec, &plan)))
    }

    fn name(&self, spec: &EnvironmentSpec, plan: &Plan) -> String {
        let label = plan.core.trim_start_matches("dbt-core").trim_start_matches(['=', '~']);
        format!("{}-{}-{}", digest(plan), label, spec.adapter)
    }

    /// Finds or builds the environment of `spec`.
    ///
    /// On `Ok` the environment is complete and usable offline. A second call starts no process, nor does one for what
    /// [`EnvironmentStore::with_ready`] has. Concurrent calls, in
    /// this process or others, build once: the rest wait. Cancelling the future leaves no half-built environment in
    /// place; its temporary directory is removed by the next build.
    ///
    /// # Errors
    /// [`EngineError::UnknownVersion`] and [`EngineError::Invalid`]: the specification is wrong.
    /// [`EngineError::NotInstallable`]: uv says no, in its own words. [`EngineError::Uv`], [`EngineError::Timeout`]
    /// and [`EngineError::Io`]: this machine; retry later.
    pub async fn ensure(&self, spec: &EnvironmentSpec) -> Result<Environment, EngineError> {
        let plan = plan(spec)?;
        let name = self.name(spec, &plan);
        let target = self.root.join(&name);
        let digest = digest(&plan);
        let ready = self.ready.as_ref().map(|ready| ready.join(&name));
        if let Some(found) = ready.iter().chain([&target]).find_map(|at| read_complete(at, &digest)) {
            return Ok(found);
        }
        std::fs::create_dir_all(&self.root).map_err(EngineError::io("creating", &self.root))?;
        let _lock = files::lock(&self.root.join(format!(".{digest}.lock")), self.build_limit).await?;
        if let Some(found) = read_complete(&target, &digest) {
            return Ok(found);
        }
        self.sweep(&digest);
        if target.exists() {
            // Not ours to trust: a renamed directory always carries its mark.
            std::fs::remove_dir_all(&target).map_err(EngineError::io("removing", &target))?;
        }
        let building = self
            .root
            .join(format!(".building-{digest}-{:016x}", rand::random::<u64>()));
        let built = tokio::time::timeout(self.build_limit, self.build(spec, &plan, &building)).await;
        let info = match built {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => {
                let _ = std::fs::remove_dir_all(&building);
                return Err(error);
            }
            Err(_) => {
                let _ = std::fs::remove_dir_all(&building);
                return Err(EngineError::Timeout {
                    what: "building a dbt environment",
                    seconds: self.build_limit.as_secs(),
                });
            }
        };
        std::fs::rename(&building, &target).map_err(EngineError::io("renaming", &building))?;
        tracing::info!(environment = %name, dbt = %info.dbt_version, "dbt environment built");
        Ok(Environment {
            root: target,
            digest,
            info,
        })
    }

    /// Removes what builds that were killed left behind. Called under the lock of `digest`.
    fn sweep(&self, digest: &str) {
        let prefix = format!(".building-{digest}-");
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    async fn build(
        &self,
        spec: &EnvironmentSpec,
        plan: &Plan,
        building: &Path,
    ) -> Result<EnvironmentInfo, EngineError> {
        let refused = |detail: String| EngineError::NotInstallable {
            dbt_version: plan.core.clone(),
            adapter: spec.adapter.clone(),
            python: spec.python.clone(),
            detail,
        };
        let path = building.to_string_lossy().into_owned();
        let venv = [
            "venv",
            "--quiet",
            "--relocatable",
            "--no-project",
            "--no-config",
            "--python",
            &plan.python,
            &path,
        ];
        self.uv(&venv).await?.map_err(refused)?;

        let python = building.join("bin").join("python");
        let mut install: Vec<String> = [
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--no-config",
            "--python",
        ]
        .map(String::from)
        .to_vec();
        install.push(python.to_string_lossy().into_owned());
        for (flag, file, text) in [
            ("--constraint", "constraints.txt", plan.constraints.join("\n")),
            ("--override", "overrides.txt", plan.overrides.to_owned()),
        ] {
            if !text.is_empty() {
                let file = building.join(file);
                std::fs::write(&file, text + "\n").map_err(EngineError::io("writing", &file))?;
                install.extend([flag.to_owned(), file.to_string_lossy().into_owned()]);
            }
        }
        install.push("--".into());
        install.extend(plan.requirements.iter().cloned());
        let install: Vec<&str> = install.iter().map(String::as_str).collect();
        self.uv(&install).await?.map_err(refused)?;

        // `dbt --version` would ask the package index; the metadata does not.
        let script = "import importlib.metadata as m, json, platform, sys\n\
            print(json.dumps({'dbt_version': m.version('dbt-core'), 'adapter': sys.argv[1],\n\
            'adapter_version': m.version('dbt-' + sys.argv[1]), 'python_version': platform.python_version()}))";
        let output = tokio::process::Command::new(&python)
            .args(["-I", "-c", script, &spec.adapter])
            .env_clear()
            .kill_on_drop(true)
            .output()
            .await
            .map_err(EngineError::io("starting", &python))?;
        let info: EnvironmentInfo = serde_json::from_slice(&output.stdout)
            .map_err(|_| refused(tail(&String::from_utf8_lossy(&output.stderr))))?;
        let mark = building.join(COMPLETE);
        let text = serde_json::to_vec(&info).unwrap_or_default();
        std::fs::write(&mark, text).map_err(EngineError::io("writing", &mark))?;
        std::fs::File::open(&mark)
            .and_then(|file| file.sync_all())
            .map_err(EngineError::io("syncing", &mark))?;
        Ok(info)
    }

    /// Runs uv. The inner error is the end of its message.
    async fn uv(&self, args: &[&str]) -> Result<Result<(), String>, EngineError> {
        let output = tokio::process::Command::new(&self.uv)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.root)
            // Beside the environments: one filesystem, so files are linked and not copied.
            .env("UV_CACHE_DIR", self.root.join(".uv-cache"))
            .env("UV_NO_PROGRESS", "1")
            .env("NO_COLOR", "1")
            .envs(&self.uv_env)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| EngineError::Uv {
                path: self.uv.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        Ok(Err(tail(&String::from_utf8_lossy(&output.stderr))))
    }
}

fn read_complete(target: &Path, digest: &str) -> Option<Environment> {
    let info = serde_json::from_slice(&std::fs::read(target.join(COMPLETE)).ok()?).ok()?;
    Some(Environment {
        root: target.to_path_buf(),
        digest: digest.to_owned(),
        info,
    })
}

/// The end of a message, at most [`UV_MESSAGE_LIMIT`] bytes, cut at a character.
fn tail(text: &str) -> String {
    let text = text.trim();
    let mut start = text.len().saturating_sub(UV_MESSAGE_LIMIT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_digest_covers_what_goes_in_and_nothing_else() {
        let spec = EnvironmentSpec::new("1.11", "duckdb");
        let base = digest(&plan(&spec).unwrap());
        assert_eq!(
            base,
            digest(&plan(&EnvironmentSpec::new("latest", "duckdb")).unwrap()),
            "two names of one version"
        );
        for other in [
            EnvironmentSpec {
                python: "3.12".into(),
                ..spec.clone()
            },
            EnvironmentSpec {
                dbt_version: "1.10".into(),
                ..spec.clone()
            },
            EnvironmentSpec {
                adapter: "postgres".into(),
                ..spec.clone()
            },
            EnvironmentSpec {
                extra_requirements: vec!["x==1".into()],
                ..spec.clone()
            },
        ] {
            assert_ne!(base, digest(&plan(&other).unwrap()), "{other:?}");
        }
    }

    #[test]
    fn options_do_not_pass_for_requirements() {
        let spec = EnvironmentSpec::new("1.11", "duckdb");
        for bad in [
            EnvironmentSpec {
                python: "--foo".into(),
                ..spec.clone()
            },
            EnvironmentSpec {
                adapter: "duckdb --index-url x".into(),
                ..spec.clone()
            },
            EnvironmentSpec {
                adapter: String::new(),
                ..spec.clone()
            },
            EnvironmentSpec {
                extra_requirements: vec!["--index-url=x".into()],
                ..spec.clone()
            },
            EnvironmentSpec {
                extra_requirements: vec!["a\n-r /etc/passwd".into()],
                ..spec.clone()
            },
            EnvironmentSpec {
                dbt_version: "2.0".into(),
                ..spec
            },
        ] {
            assert!(plan(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tail_is_bounded_and_whole() {
        let text = "é".repeat(UV_MESSAGE_LIMIT);
        assert!(tail(&text).len() <= UV_MESSAGE_LIMIT && tail(&text).starts_with('é'));
    }
}
