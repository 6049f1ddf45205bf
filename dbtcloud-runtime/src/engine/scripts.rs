//! The Python side of the engine, embedded in the binary and written out where an interpreter can read it.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::EngineError;
use super::files;

const CHILD: &str = include_str!("py/dbt_child.py");
const COLD: &str = include_str!("py/cold_child.py");
const WARM: &str = include_str!("py/warm_parent.py");

/// The scripts on disk.
#[derive(Clone, Debug)]
pub(super) struct Scripts {
    /// Digest of all of them: a warm parent of other scripts is not ours.
    pub(super) digest: String,
    pub(super) cold: PathBuf,
    pub(super) warm: PathBuf,
}

/// Writes the scripts under `dir`, or repairs them. Safe beside other processes doing the same.
pub(super) fn install(dir: &Path) -> Result<Scripts, EngineError> {
    let mut hash = Sha256::new();
    for text in [CHILD, COLD, WARM] {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    let digest = hex::encode(&hash.finalize()[..8]);
    let dir = dir.join(format!("py-{digest}"));
    files::private_dir(&dir)?;
    for (name, text) in [
        ("dbt_child.py", CHILD),
        ("cold_child.py", COLD),
        ("warm_parent.py", WARM),
    ] {
        files::write_if_different(&dir.join(name), text.as_bytes())?;
    }
    Ok(Scripts {
        digest,
        cold: dir.join("cold_child.py"),
        warm: dir.join("warm_parent.py"),
    })
}
