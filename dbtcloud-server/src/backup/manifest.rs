//! What a backup says of itself.

use anyhow::{Context, bail};
use dbtcloud_core::Timestamp;
use dbtcloud_core::ports::{Area, ArtifactKey};
use dbtcloud_sql::{Copied, SqlStorage};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The form of a backup that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// The database.
pub(super) const DATABASE: &str = "database.db";
/// The folder of the objects.
pub(super) const OBJECTS: &str = "objects";
/// What is in it, one JSON object a line.
pub(super) const OBJECTS_LIST: &str = "objects.jsonl";
/// Written last.
pub(super) const MANIFEST: &str = "manifest.json";
/// There until the manifest is.
pub(super) const UNFINISHED: &str = "unfinished.json";

/// Length and checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sum {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// A table of the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TablePart {
    /// Its name.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 over all of them; see [`Copied::digest`].
    pub sha256: String,
}

impl From<Copied> for TablePart {
    fn from(copied: Copied) -> Self {
        Self {
            table: copied.table,
            rows: copied.rows,
            sha256: copied.digest,
        }
    }
}

/// The database, `database.db`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabasePart {
    /// The file.
    pub file: Sum,
    /// Its tables.
    pub tables: Vec<TablePart>,
}

/// The objects below `objects/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectsPart {
    /// The list of them, `objects.jsonl`.
    pub list: Sum,
    /// How many there are.
    pub count: u64,
    /// How long they are together.
    pub bytes: u64,
    /// How many more the list names that were missing in the artifact store already.
    pub missing: u64,
}

/// What a backup is, told by `manifest.json`, together with a checksum of this itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// The version that made it.
    pub dbtcloud: String,
    /// The schema of the database.
    pub schema: u32,
    /// The instant that the database is of, in microseconds since the Unix epoch.
    pub at: Timestamp,
    /// The same for people.
    pub date: String,
    /// The database.
    pub database: DatabasePart,
    /// The objects.
    pub objects: ObjectsPart,
    /// Ids of the keys that sealed its secrets. The keys are not in the backup.
    pub keys: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    manifest: Manifest,
    sha256: String,
}

/// What every version can read of a manifest.
#[derive(Deserialize)]
struct Signature {
    manifest: Origin,
}

#[derive(Deserialize)]
struct Origin {
    format: u32,
    schema: u32,
    dbtcloud: String,
}

impl Manifest {
    /// The text of its file.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_text(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(&Signed {
            sha256: self.digest()?,
            manifest: self.clone(),
        })?;
        text.push(b'\n');
        Ok(text)
    }

    /// Understands the text of its file.
    ///
    /// # Errors
    /// When it is damaged, or of a version that this one does not know.
    pub fn from_text(text: &[u8]) -> anyhow::Result<Self> {
        let damaged = || format!("{MANIFEST} is damaged");
        let Signature { manifest: origin } = serde_json::from_slice(text).with_context(damaged)?;
        if origin.format > FORMAT || origin.schema > SqlStorage::SCHEMA_VERSION {
            bail!(
                "{MANIFEST}: the backup was made by dbtcloud {} (format {}, schema {}), which is newer than this one \
                 (format {FORMAT}, schema {}); use that version",
                origin.dbtcloud,
                origin.format,
                origin.schema,
                SqlStorage::SCHEMA_VERSION
            );
        }
        let signed: Signed = serde_json::from_slice(text).with_context(damaged)?;
        if signed.manifest.digest()? != signed.sha256 {
            bail!("{MANIFEST} is damaged: it has not the checksum that it tells");
        }
        Ok(signed.manifest)
    }

    fn digest(&self) -> anyhow::Result<String> {
        Ok(hex::encode(Sha256::digest(serde_json::to_vec(self)?)))
    }
}

/// A line of the list of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Object {
    account: i64,
    pub(super) run: i64,
    /// `logs`, or the index of a step.
    area: String,
    pub(super) path: String,
    /// Absent when it was missing in the artifact store.
    pub(super) sum: Option<Sum>,
}

impl Object {
    pub(super) fn new(key: &ArtifactKey, sum: Option<Sum>) -> Self {
        Self {
            account: key.account.get(),
            run: key.run.get(),
            area: match key.area {
                Area::Logs => "logs".to_owned(),
                Area::Step(step) => step.to_string(),
            },
            path: key.path.as_str().to_owned(),
            sum,
        }
    }

    pub(super) fn key(&self) -> anyhow::Result<ArtifactKey> {
        let area = match self.area.as_str() {
            "logs" => Area::Logs,
            step => Area::Step(
                step.parse()
                    .with_context(|| format!("{OBJECTS_LIST} names a step {step}"))?,
            ),
        };
        Ok(ArtifactKey {
            account: self.account.into(),
            run: self.run.into(),
            area,
            path: self.path.parse().map_err(super::explained)?,
        })
    }
}

/// What a message calls an object.
impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            account,
            run,
            area,
            path,
            ..
        } = self;
        match area.as_str() {
            "logs" => write!(f, "{OBJECTS}/{account}/{run}/logs/{path}"),
            step => write!(f, "{OBJECTS}/{account}/{run}/steps/{step}/{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let sum = |bytes| Sum {
            bytes,
            sha256: hex::encode(Sha256::digest(b"text")),
        };
        Manifest {
            format: FORMAT,
            dbtcloud: "0.1.0".to_owned(),
            schema: SqlStorage::SCHEMA_VERSION,
            at: Timestamp::from_micros(1_774_738_800_000_000),
            date: "2026-03-28T23:00:00.000000Z".to_owned(),
            database: DatabasePart {
                file: sum(7),
                tables: vec![TablePart {
                    table: "runs".to_owned(),
                    rows: 17,
                    sha256: sum(1).sha256,
                }],
            },
            objects: ObjectsPart {
                list: sum(3),
                count: 2,
                bytes: 20,
                missing: 0,
            },
            keys: vec!["0badcafe".to_owned()],
        }
    }

    #[test]
    fn a_manifest_comes_back_and_no_bit_of_it_may_change() {
        let text = manifest().to_text().unwrap();
        assert_eq!(Manifest::from_text(&text).unwrap(), manifest());
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[at] ^= 1 << bit;
                let error = Manifest::from_text(&damaged).unwrap_err().to_string();
                assert!(error.starts_with(MANIFEST), "byte {at}, bit {bit}: {error}");
            }
            // The line break at the end is no part of it.
            if at + 1 < text.len() {
                assert!(Manifest::from_text(&text[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn what_is_newer_says_what_to_do() {
        let mut newer = manifest();
        newer.schema += 1;
        newer.dbtcloud = "9.9.9".to_owned();
        let mut text = String::from_utf8(newer.to_text().unwrap()).unwrap();
        // With something that this version does not know.
        text = text.replace("\"keys\"", "\"more\": 1, \"keys\"");
        let error = Manifest::from_text(text.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("dbtcloud 9.9.9") && error.contains("use that version"),
            "{error}"
        );
    }

    #[test]
    fn an_object_says_its_key_and_comes_back() {
        for area in [Area::Logs, Area::Step(3)] {
            let key = ArtifactKey {
                account: 1.into(),
                run: 20_261_100_000_001.into(),
                area,
                path: "a/b c.sql".parse().unwrap(),
            };
            let object = Object::new(&key, None);
            let line = serde_json::to_string(&object).unwrap();
            assert_eq!(serde_json::from_str::<Object>(&line).unwrap().key().unwrap(), key);
        }
    }
}
