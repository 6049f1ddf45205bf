//! Keeping dbt's parse state (`partial_parse.msgpack`) between runs, and saying why it could not be used.
//!
//! One file per scope (an environment and branch, as the caller defines it), with the key it was made under. dbt itself
//! compares file checksums, so state of another commit is worth having; state of another dbt, target or set of
//! variables would be thrown away by dbt, and is a miss here. A damaged file is no harm: dbt re-parses in full.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::EngineError;
use super::files;

/// Parse state larger than this is not kept.
pub const FILE_LIMIT: u64 = 1 << 30;

/// A part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The project's commit.
    Commit,
    /// dbt and its version.
    Engine,
    /// The adapter and its version.
    Adapter,
    /// The target, with what of it is not secret.
    Target,
    /// `--vars`.
    Vars,
    /// Environment variables that are not secret.
    Env,
}

/// What parse state depends on, each part as a digest: keys can be stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParseKey {
    commit: String,
    engine: String,
    adapter: String,
    target: String,
    vars: String,
    env: String,
}

/// The parts of a [`ParseKey`], plain.
#[derive(Clone, Copy, Debug)]
pub struct ParseInputs<'a> {
    /// The project's commit.
    pub commit: &'a str,
    /// dbt and its version; an environment's digest is best.
    pub engine: &'a str,
    /// The adapter and its version.
    pub adapter: &'a str,
    /// Target name and schema, or the whole profile text (it holds no secret).
    pub target: &'a str,
    /// `--vars` as given.
    pub vars: &'a str,
    /// The whole environment. Secret and per-run variables are left out here.
    pub env: &'a BTreeMap<String, String>,
}

/// Variables that differ in every run and that no model should depend on; dbt tracks those that do by itself.
fn is_volatile(name: &str) -> bool {
    name.starts_with("DBT_ENV_SECRET")
        || name.starts_with("DBT_ENV_CUSTOM_ENV_")
        || name.starts_with("DBT_CLOUD_RUN_")
        || matches!(
            name,
            "DBT_TARGET_PATH"
                | "DBT_LOG_PATH"
                | "DBT_PROFILES_DIR"
                | "DBT_PARTIAL_PARSE_FILE_PATH"
                | "DBT_CLOUD_GIT_SHA"
                | "PATH"
                | "HOME"
        )
}

fn short(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..10])
}

impl ParseKey {
    /// The key of these parts.
    pub fn new(inputs: &ParseInputs<'_>) -> Self {
        let env: BTreeMap<_, _> = inputs.env.iter().filter(|(name, _)| !is_volatile(name)).collect();
        Self {
            commit: short(inputs.commit),
            engine: short(inputs.engine),
            adapter: short(inputs.adapter),
            target: short(inputs.target),
            vars: short(inputs.vars),
            env: short(&format!("{env:?}")),
        }
    }

    /// One digest of all parts.
    pub fn digest(&self) -> String {
        short(&format!("{self:?}"))
    }

    /// The parts in which `self` and `previous` differ. Empty: the same key.
    pub fn difference(&self, previous: &Self) -> Vec<Part> {
        [
            (Part::Commit, &self.commit, &previous.commit),
            (Part::Engine, &self.engine, &previous.engine),
            (Part::Adapter, &self.adapter, &previous.adapter),
            (Part::Target, &self.target, &previous.target),
            (Part::Vars, &self.vars, &previous.vars),
            (Part::Env, &self.env, &previous.env),
        ]
        .into_iter()
        .filter(|(_, ours, theirs)| ours != theirs)
        .map(|(part, ..)| part)
        .collect()
    }
}

/// What [`ParseCache::restore`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// State of this very key is in place.
    Exact,
    /// State that differs in the commit only is in place; dbt parses the files that changed.
    OtherCommit,
    /// There is none for this scope.
    Nothing,
    /// There is one, of no use: it differs in these parts.
    Differs(Vec<Part>),
}

/// Parse state in a directory, shared by the agents of an account. Blocking; files are small.
#[derive(Clone, Debug)]
pub struct ParseCache {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Pointer {
    key: ParseKey,
    file: String,
}

impl ParseCache {
    /// In `dir`, which is created when something is stored.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn pointer(&self, scope: &str) -> PathBuf {
        self.dir.join(format!("{}.json", short(scope)))
    }

    fn read(&self, scope: &str) -> Option<Pointer> {
        let pointer: Pointer = serde_json::from_slice(&std::fs::read(self.pointer(scope)).ok()?).ok()?;
        // The name is ours, whatever the file says.
        (!pointer.file.contains('/')).then_some(pointer)
    }

    /// Keeps `file` as the state of `scope`. A missing file, or one over [`FILE_LIMIT`], is not kept and no error.
    ///
    /// A reader beside it sees the old state or the new one. Of two writers the later wins.
    ///
    /// # Errors
    /// [`EngineError::Io`].
    pub fn store(&self, scope: &str, key: &ParseKey, file: &Path) -> Result<(), EngineError> {
        if !file
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_LIMIT)
        {
            return Ok(());
        }
        files::private_dir(&self.dir)?;
        let before = self.read(scope).map(|pointer| pointer.file);
        let name = format!(
            "{}-{}-{:08x}.msgpack",
            short(scope),
            key.digest(),
            rand::random::<u32>()
        );
        let target = self.dir.join(&name);
        copy_atomic(file, &target)?;
        let pointer = Pointer {
            key: key.clone(),
            file: name,
        };
        files::write_atomic(&self.pointer(scope), &serde_json::to_vec(&pointer).unwrap_or_default())?;
        if let Some(before) = before {
            let _ = std::fs::remove_file(self.dir.join(before));
        }
        Ok(())
    }

    /// Puts the state of `scope` at `target`, if it is of use under `key`.
    ///
    /// # Errors
    /// [`EngineError::Io`] when `target` cannot be written.
    pub fn restore(&self, scope: &str, key: &ParseKey, target: &Path) -> Result<Restored, EngineError> {
        let Some(pointer) = self.read(scope) else {
            return Ok(Restored::Nothing);
        };
        let differs = key.difference(&pointer.key);
        if differs.iter().any(|part| *part != Part::Commit) {
            return Ok(Restored::Differs(differs));
        }
        let source = self.dir.join(&pointer.file);
        if !source.is_file() {
            return Ok(Restored::Nothing);
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(EngineError::io("creating", parent))?;
        }
        match copy_atomic(&source, target) {
            // Replaced by a newer one between look and copy.
            Err(_) if !source.is_file() => Ok(Restored::Nothing),
            Err(error) => Err(error),
            Ok(()) if differs.is_empty() => Ok(Restored::Exact),
            Ok(()) => Ok(Restored::OtherCommit),
        }
    }
}

fn copy_atomic(source: &Path, target: &Path) -> Result<(), EngineError> {
    let dir = target.parent().unwrap_or(Path::new("."));
    let mut from = std::fs::File::open(source).map_err(EngineError::io("opening", source))?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(EngineError::io("writing in", dir))?;
    std::io::copy(&mut from, &mut file).map_err(EngineError::io("copying", source))?;
    file.persist(target)
        .map_err(|error| EngineError::io("renaming", target)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(commit: &str, vars: &str, env: &[(&str, &str)]) -> ParseKey {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        ParseKey::new(&ParseInputs {
            commit,
            engine: "e",
            adapter: "a",
            target: "t",
            vars,
            env: &env,
        })
    }

    #[test]
    fn a_miss_says_which_part_differed() {
        let base = key("c", "v", &[("DBT_X", "1")]);
        assert!(
            base.difference(&key(
                "c",
                "v",
                &[("DBT_X", "1"), ("DBT_CLOUD_RUN_ID", "9"), ("DBT_ENV_SECRET_P", "s")]
            ))
            .is_empty()
        );
        assert_eq!(base.difference(&key("d", "v", &[("DBT_X", "1")])), [Part::Commit]);
        assert_eq!(
            base.difference(&key("c", "w", &[("DBT_X", "2")])),
            [Part::Vars, Part::Env]
        );
        assert_ne!(base.digest(), key("d", "v", &[("DBT_X", "1")]).digest());
    }

    #[test]
    fn state_is_kept_per_scope() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ParseCache::new(dir.path().join("cache"));
        let (made, back) = (dir.path().join("made"), dir.path().join("target/partial_parse.msgpack"));
        let first = key("c", "v", &[]);
        assert_eq!(cache.restore("env 1, main", &first, &back).unwrap(), Restored::Nothing);
        cache.store("env 1, main", &first, &made).unwrap();
        assert_eq!(
            cache.restore("env 1, main", &first, &back).unwrap(),
            Restored::Nothing,
            "nothing was made"
        );
        std::fs::write(&made, b"one").unwrap();
        cache.store("env 1, main", &first, &made).unwrap();
        assert_eq!(cache.restore("env 1, main", &first, &back).unwrap(), Restored::Exact);
        assert_eq!(std::fs::read(&back).unwrap(), b"one");
        assert_eq!(
            cache.restore("env 1, main", &key("d", "v", &[]), &back).unwrap(),
            Restored::OtherCommit
        );
        assert_eq!(
            cache.restore("env 1, main", &key("d", "w", &[]), &back).unwrap(),
            Restored::Differs(vec![Part::Commit, Part::Vars])
        );
        assert_eq!(cache.restore("env 2, main", &first, &back).unwrap(), Restored::Nothing);
        std::fs::write(&made, b"two").unwrap();
        cache.store("env 1, main", &key("d", "v", &[]), &made).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path().join("cache")).unwrap().count(),
            2,
            "one pointer, one file"
        );
    }

    #[test]
    fn a_damaged_pointer_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ParseCache::new(dir.path());
        std::fs::write(cache.pointer("s"), b"{").unwrap();
        assert_eq!(
            cache.restore("s", &key("c", "v", &[]), &dir.path().join("x")).unwrap(),
            Restored::Nothing
        );
    }
}
