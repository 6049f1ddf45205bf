//! `dbtcloud backup`: a running installation as a directory, or a prefix of an object store, that `dbtcloud restore`
//! makes an installation of again.
//!
//! ```text
//! database.db      the database at one instant, as a SQLite file, whatever it was
//! objects/         the artifact store's files, laid out as there
//! objects.jsonl    one line per file, by run: its size and checksum
//! manifest.json    what the two above must be, written last: without it a backup is not whole
//! unfinished.json  until then
//! ```
//!
//! The database comes first, and the objects that it speaks of after it: what is put meanwhile does no harm, and
//! what is taken away meanwhile is taken away from the copy too (`walk`). Nothing here is secret that is not sealed:
//! keys are named, and never copied.

mod manifest;
mod place;
mod restore;
mod walk;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dbtcloud_core::ports::Clock;
use dbtcloud_core::{Timestamp, failpoint};
use dbtcloud_opendal::{OpendalArtifacts, Options as ArtifactOptions};
use dbtcloud_runtime::vault;
use dbtcloud_sql::{Options as SqlOptions, SqlStorage};
use serde::{Deserialize, Serialize};

pub use manifest::{FORMAT, Manifest, Sum};
pub use restore::{Restore, restore, verify};

use crate::compose;
use crate::config::Settings;
use crate::transfer::{explained, file_of};
use manifest::{DATABASE, DatabasePart, MANIFEST, OBJECTS, OBJECTS_LIST, ObjectsPart, TablePart, UNFINISHED};
use place::Place;

/// Where files stand while they are made, in a backup that is a directory.
const SCRATCH: &str = ".scratch";

/// What `dbtcloud backup` is told.
#[derive(Clone, Debug)]
pub struct Backup {
    /// A directory, or the URL of one or of a prefix in an object store: empty, or with a backup that broke off.
    pub to: String,
    /// An earlier backup whose files are taken where nothing can have changed.
    pub since: Option<String>,
    /// Where the database's copy is made, when `to` is no directory; the system's when absent.
    pub scratch: Option<PathBuf>,
}

/// Says that a backup has begun.
#[derive(Debug, Serialize, Deserialize)]
struct Unfinished {
    begun_at: Timestamp,
}

/// Makes a backup of the installation of the settings. Each line for the person who asked goes to `told`.
///
/// # Errors
/// What is in the way, and what to do about it. What was made so far is used by the next try.
pub async fn backup(
    settings: &Settings,
    what: &Backup,
    clock: &dyn Clock,
    mut told: impl FnMut(String),
) -> anyhow::Result<()> {
    if settings.is_embedded()
        && let Some(file) = file_of(&settings.database_url)
        && !file.is_file()
    {
        bail!("there is no installation: {} does not exist", file.display());
    }
    let source = artifacts(settings)?;
    source.check().await.map_err(explained).context("the artifact store")?;
    let live = compose::connect(settings).await?;
    let to = Place::make(&what.to).context("--to")?;
    to.files.check().await.map_err(explained).context("--to")?;
    let since = match &what.since {
        None => None,
        Some(since) => {
            let base = walk::Base::open(Place::find(since).context("--since")?).await;
            Some(base.context("--since")?)
        }
    };
    let begun_at = begin(&to, clock.now()).await?;
    let scratch = Scratch::new(&to, what.scratch.as_deref())?;
    let made = async {
        let at = clock.now();
        let file = scratch.path().join(DATABASE);
        let copy = open_file(&file).await?;
        let mut keys = std::collections::BTreeSet::new();
        let tables = live
            .snapshot_to(&copy, |text| keys.extend(vault::key_ids(text).map(str::to_owned)))
            .await
            .map_err(explained)
            .context("cannot copy the database")?;
        let rows: u64 = tables.iter().map(|table| table.rows).sum();
        told(format!("database: {rows} rows of {} tables, as of {at}", tables.len()));
        let walk = walk::Walk {
            live: &live,
            copy: &copy,
            source: &source,
            target: &to.files.artifacts(OBJECTS).map_err(explained)?,
            begun_at,
            clock,
            lost: Default::default(),
        };
        let list = scratch.path().join(OBJECTS_LIST);
        let walked = walk.all(since, &list).await?;
        told(format!(
            "objects: {} of {} bytes, {} of them taken from the earlier backup or try",
            walked.count, walked.bytes, walked.taken
        ));
        for gone in &walked.gone {
            told(format!(
                "{gone} was forgotten by retention meanwhile, and is not in the backup"
            ));
        }
        more(walked.gone_count, walked.gone.len(), &mut told);
        for missing in &walked.missing {
            told(format!("warning: {missing} is missing in the artifact store"));
        }
        more(walked.missing_count, walked.missing.len(), &mut told);
        let tables = if walked.gone_count == 0 {
            tables
        } else {
            copy.digests().await.map_err(explained)?
        };
        copy.close().await;
        let manifest = Manifest {
            format: FORMAT,
            dbtcloud: env!("CARGO_PKG_VERSION").to_owned(),
            schema: SqlStorage::SCHEMA_VERSION,
            at,
            date: at.to_string(),
            database: DatabasePart {
                file: to.keep(&file, DATABASE).await?,
                tables: tables.into_iter().map(TablePart::from).collect(),
            },
            objects: ObjectsPart {
                list: to.keep(&list, OBJECTS_LIST).await?,
                count: walked.count,
                bytes: walked.bytes,
                missing: walked.missing_count,
            },
            keys: keys.into_iter().collect(),
        };
        failpoint::reached("backup", "manifest", "before_put");
        to.write(MANIFEST, manifest.to_text()?).await?;
        to.files.remove(UNFINISHED).await.map_err(explained)?;
        anyhow::Ok(manifest)
    }
    .await;
    live.close().await;
    let manifest = made.with_context(|| format!("the backup in {} is not whole; run it again", to.name))?;
    scratch.remove()?;
    if !manifest.keys.is_empty() {
        told(format!(
            "the key file is not in the backup: keep a copy of it elsewhere; keys {} are needed",
            manifest.keys.join(", ")
        ));
    }
    told(format!("the backup in {} is whole", to.name));
    Ok(())
}

/// Tells how many are not named.
fn more(all: u64, named: usize, told: &mut impl FnMut(String)) {
    let more = all.saturating_sub(named as u64);
    if more > 0 {
        told(format!("and {more} more"));
    }
}

/// Makes sure that the place is empty or has a backup that broke off; when that was begun, or now.
async fn begin(to: &Place, now: Timestamp) -> anyhow::Result<Timestamp> {
    if to.read(MANIFEST).await?.is_some() {
        bail!("--to: {} has a whole backup; choose another place", to.name);
    }
    if let Some(text) = to.read(UNFINISHED).await? {
        let unfinished: Unfinished = serde_json::from_slice(&text)
            .with_context(|| format!("--to: {UNFINISHED} in {} is damaged; empty the place", to.name))?;
        return Ok(unfinished.begun_at);
    }
    if !to.files.is_empty().await.map_err(explained)? {
        bail!(
            "--to: {} is not empty, and has no backup that broke off; choose another place",
            to.name
        );
    }
    let text = serde_json::to_vec(&Unfinished { begun_at: now })?;
    to.write(UNFINISHED, text).await?;
    Ok(now)
}

/// The artifact store of the settings; nothing is asked of it.
fn artifacts(settings: &Settings) -> anyhow::Result<OpendalArtifacts> {
    let options = ArtifactOptions::new().with_standard_credentials();
    OpendalArtifacts::from_url(&settings.artifacts_url, &options).map_err(explained)
}

/// A SQLite file, made when it is not there.
async fn open_file(file: &Path) -> anyhow::Result<SqlStorage> {
    let url = format!("sqlite://{}", file.display());
    let opened = SqlStorage::connect(&url, SqlOptions::new().with_pool_size(2)).await;
    opened
        .map_err(explained)
        .with_context(|| format!("cannot open {}", file.display()))
}

/// A directory for files that are being made. What a process that was killed left in it is removed by the next.
enum Scratch {
    Own(
        PathBuf,
        #[expect(dead_code, reason = "held: it keeps a second backup away")] std::fs::File,
    ),
    Temporary(tempfile::TempDir),
}

impl Scratch {
    /// In the backup itself where that is a directory, so that a file gets there by its name alone.
    fn new(to: &Place, elsewhere: Option<&Path>) -> anyhow::Result<Self> {
        let Some(directory) = to.files.directory() else {
            return Self::temporary(elsewhere);
        };
        let path = directory.join(SCRATCH);
        let made = || -> std::io::Result<std::fs::File> {
            std::fs::create_dir_all(&path)?;
            std::fs::File::create(path.join("lock"))
        };
        let lock = made().with_context(|| format!("cannot write in {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!("--to: another backup into {} is being made", to.name);
        }
        for entry in std::fs::read_dir(&path)?.flatten() {
            if entry.file_name() != "lock" {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self::Own(path, lock))
    }

    fn temporary(below: Option<&Path>) -> anyhow::Result<Self> {
        let made = match below {
            Some(below) => tempfile::tempdir_in(below),
            None => tempfile::tempdir(),
        };
        made.map(Self::Temporary)
            .context("cannot make a directory for the database's copy (--scratch-dir)")
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(path, _) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }

    fn remove(self) -> anyhow::Result<()> {
        match self {
            Self::Own(path, _) => std::fs::remove_dir_all(path)?,
            Self::Temporary(directory) => directory.close()?,
        }
        Ok(())
    }
}
