//! `dbtcloud restore`: looks at a backup, and makes an installation of it.

use std::path::PathBuf;

use anyhow::{Context, bail};
use dbtcloud_core::failpoint;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Artifacts, ByteRange, Clock, History, Runs};
use dbtcloud_opendal::OpendalArtifacts;
use dbtcloud_runtime::vault::KeyringVault;
use dbtcloud_sql::SqlStorage;
use futures::{StreamExt, TryStreamExt};
use tokio::io::BufReader;

use super::manifest::{DATABASE, MANIFEST, Manifest, OBJECTS, OBJECTS_LIST, Object, Sum, TablePart};
use super::place::{Place, differs, guarded, sum_of};
use super::walk::{List, log_files};
use super::{Scratch, artifacts, explained, open_file};
use crate::compose;
use crate::config::Settings;

/// Objects that are read at the same time.
const AT_ONCE: usize = 4;
/// Runs that are read of the database at once.
const PAGE: u32 = 500;
/// Problems that are told; more are counted.
const NAMED: usize = 100;
/// Numbers of runs that are left out behind those of the backup: runs that were queued after it may have left
/// executions and files somewhere, which a new run of the same id would take for its own.
const LEFT_OUT_RUNS: u32 = 100_000;

/// What `dbtcloud restore` is told.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The backup: a directory, or the URL of one or of a prefix in an object store.
    pub from: String,
    /// Whether the artifact store has its files still: those that are as in the backup stay, the others are put.
    pub objects_in_place: bool,
    /// Where the backup's database is worked on; the system's when absent.
    pub scratch: Option<PathBuf>,
}

/// What is amiss with a backup.
#[derive(Debug, Default)]
struct Problems {
    named: Vec<String>,
    count: u64,
}

impl Problems {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(what);
        }
    }

    fn end(self, from: &str) -> anyhow::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let more = self.count - self.named.len() as u64;
        let mut text = self.named.join("\n");
        if more > 0 {
            text.push_str(&format!("\nand {more} more"));
        }
        bail!("the backup in {from} cannot be restored whole:\n{text}")
    }
}

/// A backup that is being looked at, with a copy of its database and of its list.
struct Opened {
    place: Place,
    manifest: Manifest,
    scratch: Scratch,
}

impl Opened {
    async fn new(what: &Restore) -> anyhow::Result<Self> {
        let place = Place::find(&what.from).context("--from")?;
        let manifest = place.manifest().await?;
        let scratch = Scratch::temporary(what.scratch.as_deref())?;
        Ok(Self {
            place,
            manifest,
            scratch,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Fetches a file, and says how it is not what the manifest tells.
    async fn fetch(&self, name: &str, expected: &Sum) -> anyhow::Result<Option<String>> {
        let got = self.place.fetch(name, &self.file(name)).await?;
        Ok(differs(name, expected, &got))
    }

    async fn list(&self) -> anyhow::Result<List<BufReader<tokio::fs::File>>> {
        let file = tokio::fs::File::open(self.file(OBJECTS_LIST)).await?;
        Ok(List::new(BufReader::new(file)))
    }

    /// Every object of the list that was not missing already, as it was read.
    async fn objects(&self) -> anyhow::Result<impl futures::Stream<Item = anyhow::Result<Object>> + use<>> {
        let objects = futures::stream::try_unfold(self.list().await?, |mut list| async move {
            anyhow::Ok(list.next().await?.map(|object| (object, list)))
        });
        Ok(objects.try_filter(|object| futures::future::ready(object.sum.is_some())))
    }
}

/// Keys that the backup needs and the key file does not have; `None` when it has all.
fn keys_missing(settings: &Settings, manifest: &Manifest) -> Option<String> {
    if manifest.keys.is_empty() {
        return None;
    }
    let path = settings.key_file.display();
    let ring = std::fs::read_to_string(&settings.key_file).map_err(anyhow::Error::from);
    let ring = ring.and_then(|text| KeyringVault::from_text(&text).map_err(explained));
    let ring = match ring {
        Ok(ring) => ring,
        Err(error) => {
            let keys = manifest.keys.join(", ");
            return Some(format!(
                "key file {path}: {error:#}; the backup's secrets need keys {keys}"
            ));
        }
    };
    let missing = manifest
        .keys
        .iter()
        .filter(|key| !ring.key_ids().any(|id| id == key.as_str()));
    let missing: Vec<_> = missing.map(String::as_str).collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        format!(
            "key file {path}: it lacks keys {missing}, which the backup's secrets need; give the installation's own"
        )
    })
}

/// How the copied database is not what the manifest tells.
async fn tables_differ(database: &SqlStorage, manifest: &Manifest) -> anyhow::Result<Vec<String>> {
    let version = database.schema_version().await.map_err(explained).context(DATABASE)?;
    if version != manifest.schema {
        return Ok(vec![format!(
            "{DATABASE} has schema {version}, not {}",
            manifest.schema
        )]);
    }
    let tables = database.digests().await.map_err(explained).context(DATABASE)?;
    let tables: Vec<TablePart> = tables.into_iter().map(TablePart::from).collect();
    let mut problems = Vec::new();
    for expected in &manifest.database.tables {
        match tables.iter().find(|table| table.table == expected.table) {
            Some(got) if got == expected => {}
            Some(got) => problems.push(format!(
                "{DATABASE}: table {} has {} rows, not the {} of the manifest or others",
                got.table, got.rows, expected.rows
            )),
            None => problems.push(format!("{DATABASE}: table {} is missing", expected.table)),
        }
    }
    Ok(problems)
}

/// Looks at all of a backup and changes nothing. Each line for the person who asked goes to `told`.
///
/// # Errors
/// All that is amiss, each naming its file.
pub async fn verify(settings: &Settings, what: &Restore, mut told: impl FnMut(String)) -> anyhow::Result<()> {
    let opened = Opened::new(what).await?;
    let manifest = &opened.manifest;
    let mut problems = Problems::default();
    keys_missing(settings, manifest)
        .into_iter()
        .for_each(|missing| problems.add(missing));
    let mut fetched = |result: anyhow::Result<Option<String>>| match result {
        Ok(None) => true,
        Ok(Some(problem)) => {
            problems.add(problem);
            false
        }
        Err(error) => {
            problems.add(format!("{error:#}"));
            false
        }
    };
    let database = fetched(opened.fetch(DATABASE, &manifest.database.file).await);
    let list = fetched(opened.fetch(OBJECTS_LIST, &manifest.objects.list).await);
    let database = match database {
        true => {
            let database = open_file(&opened.file(DATABASE)).await?;
            tables_differ(&database, manifest)
                .await?
                .into_iter()
                .for_each(|problem| problems.add(problem));
            Some(database)
        }
        false => None,
    };
    if list {
        let (mut count, mut bytes) = (0, 0);
        let artifacts = &opened.place.files.artifacts(OBJECTS).map_err(explained)?;
        let looked = opened
            .objects()
            .await?
            .map_ok(|object| async move { look_at(artifacts, object).await });
        let mut looked = std::pin::pin!(looked.try_buffer_unordered(AT_ONCE));
        while let Some(looked) = looked.next().await {
            match looked {
                Ok(sum) => {
                    count += 1;
                    bytes += sum.bytes;
                }
                Err(error) => problems.add(format!("{error:#}")),
            }
        }
        if problems.count == 0 && (count, bytes) != (manifest.objects.count, manifest.objects.bytes) {
            problems.add(format!(
                "{OBJECTS_LIST} has {count} objects of {bytes} bytes, {MANIFEST} tells others"
            ));
        }
    }
    if let Some(database) = &database
        && list
    {
        let unlisted = unlisted(database, opened.list().await?).await?;
        unlisted
            .into_iter()
            .for_each(|name| problems.add(format!("{OBJECTS_LIST} lacks {name}")));
    }
    if let Some(database) = database {
        database.close().await;
    }
    problems.end(&opened.place.name)?;
    told(format!(
        "the backup of {} by dbtcloud {} is whole: schema {}, {} rows, {} objects of {} bytes",
        manifest.date,
        manifest.dbtcloud,
        manifest.schema,
        manifest.database.tables.iter().map(|table| table.rows).sum::<u64>(),
        manifest.objects.count,
        manifest.objects.bytes
    ));
    if manifest.objects.missing > 0 {
        told(format!(
            "{} objects were missing in the artifact store already",
            manifest.objects.missing
        ));
    }
    opened.scratch.remove()
}

/// Reads an object, and compares it with its line of the list.
async fn look_at(artifacts: &OpendalArtifacts, object: Object) -> anyhow::Result<Sum> {
    let name = object.to_string();
    let stream = match artifacts.open(&object.key()?, ByteRange::default()).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == dbtcloud_core::ErrorKind::NotFound => bail!("{name} is missing"),
        Err(error) => return Err(explained(error).context(name)),
    };
    let got = sum_of(stream).await.map_err(explained).context(name.clone())?;
    if let Some(problem) = object.sum.as_ref().and_then(|expected| differs(&name, expected, &got)) {
        bail!(problem);
    }
    Ok(got)
}

/// Parts of logs that the database speaks of and the list does not have.
async fn unlisted(database: &SqlStorage, mut list: List<BufReader<tokio::fs::File>>) -> anyhow::Result<Vec<String>> {
    let (mut after, mut unlisted) = (RunId::new(0), Vec::new());
    // A database of an older schema is looked at once it is migrated.
    if database.schema_version().await.map_err(explained)? != SqlStorage::SCHEMA_VERSION {
        return Ok(unlisted);
    }
    loop {
        let page = database.walk_runs(after, PAGE).await.map_err(explained)?;
        let Some(last) = page.last() else { return Ok(unlisted) };
        after = last.run;
        for walked in page {
            let steps = database.steps(walked.account, walked.run).await.map_err(explained)?;
            let mut files = log_files(&steps, walked.account, walked.run)?;
            for object in list.of(walked.run).await? {
                files.remove(&object.key()?);
            }
            unlisted.extend(files.iter().map(|key| Object::new(key, None).to_string()));
        }
    }
}

/// Makes the installation of the settings, which must be empty, what a backup says. A second call after one that was
/// interrupted goes on where that one stood. Each line for the person who asked goes to `told`.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn restore(
    settings: &Settings,
    what: &Restore,
    clock: &dyn Clock,
    mut told: impl FnMut(String),
) -> anyhow::Result<()> {
    let opened = Opened::new(what).await?;
    let manifest = &opened.manifest;
    if let Some(missing) = keys_missing(settings, manifest) {
        bail!(missing);
    }
    let _alone = match settings.is_embedded() {
        true => Some(compose::alone_in(&settings.data_dir)?),
        false => None,
    };
    // The backup's part of the work first: nothing is touched before it is known to be good.
    for (name, expected) in [
        (DATABASE, &manifest.database.file),
        (OBJECTS_LIST, &manifest.objects.list),
    ] {
        if let Some(problem) = opened.fetch(name, expected).await? {
            bail!(problem);
        }
    }
    let database = open_file(&opened.file(DATABASE)).await?;
    if let Some(problem) = tables_differ(&database, manifest).await?.into_iter().next() {
        bail!(problem);
    }
    database
        .migrate()
        .await
        .map_err(explained)
        .context("cannot bring the backup's schema up to date")?;
    let live = database.settle(LEFT_OUT_RUNS).await.map_err(explained)?;

    let target = compose::connect(settings).await?;
    let store = artifacts(settings)?;
    store.check().await.map_err(explained).context("the artifact store")?;
    if target.schema_version().await.map_err(explained)? == 0 {
        target.migrate().await.map_err(explained)?;
    }
    database
        .can_copy_to(&target, clock.now())
        .await
        .map_err(|error| match error.kind() {
            dbtcloud_core::ErrorKind::AlreadyExists => anyhow::anyhow!(
                "the database is not empty, there is an installation already; restore into an empty one, or drop this one"
            ),
            _ => explained(error),
        })?;
    let goes_on = target.is_half_copied().await.map_err(explained)?;
    if !goes_on && !what.objects_in_place && has_objects(&store).await? {
        bail!(
            "the artifact store is not empty; give an empty one, or say --objects-in-place when these are the \
             installation's own files"
        );
    }
    target.begin_copy().await.map_err(explained)?;
    put_objects(&opened, &store, goes_on || what.objects_in_place, &mut told).await?;
    let copied = database
        .copy_to(&target, clock.now(), |_, _| {})
        .await
        .map_err(explained)?;
    target.prepare(clock.now()).await.map_err(explained)?;
    database.close().await;
    target.close().await;
    told(format!(
        "database: {} rows of {} tables, compared",
        copied.iter().map(|table| table.rows).sum::<u64>(),
        copied.len()
    ));
    if live > 0 {
        told(format!(
            "{live} runs were at work; the first scheduler takes them over, and ends those whose agent is gone"
        ));
    }
    told(format!(
        "the installation is as of {}; start its servers",
        manifest.date
    ));
    opened.scratch.remove()
}

async fn has_objects(store: &OpendalArtifacts) -> anyhow::Result<bool> {
    let mut runs = store.runs().await.map_err(explained)?;
    Ok(runs.try_next().await.map_err(explained)?.is_some())
}

/// Puts every object of the backup into the store, and compares it.
async fn put_objects(
    opened: &Opened,
    store: &OpendalArtifacts,
    some_are_there: bool,
    told: &mut impl FnMut(String),
) -> anyhow::Result<()> {
    let backup = &opened.place.files.artifacts(OBJECTS).map_err(explained)?;
    let put = opened.objects().await?.map_ok(|object| async move {
        let (key, name) = (object.key()?, object.to_string());
        let Some(sum) = object.sum else { return Ok(0) };
        if some_are_there
            && let Some(there) = store.stat(&key).await.map_err(explained)?
            && there.bytes == sum.bytes
            && sum_of(store.open(&key, ByteRange::default()).await.map_err(explained)?)
                .await
                .map_err(explained)?
                == sum
        {
            return Ok(sum.bytes);
        }
        let stream = match backup.open(&key, ByteRange::default()).await {
            Ok(stream) => guarded(stream, sum, name),
            Err(error) if error.kind() == dbtcloud_core::ErrorKind::NotFound => bail!("{name} is missing"),
            Err(error) => return Err(explained(error)),
        };
        let length = store.put(&key, stream).await.map_err(explained)?;
        failpoint::reached("restore", "object", "after_put");
        Ok(length)
    });
    let mut put = std::pin::pin!(put.try_buffer_unordered(AT_ONCE));
    let (mut count, mut bytes) = (0_u64, 0);
    while let Some(length) = put.try_next().await? {
        count += 1;
        bytes += length;
    }
    let expected = &opened.manifest.objects;
    if (count, bytes) != (expected.count, expected.bytes) {
        bail!("{OBJECTS_LIST} has {count} objects of {bytes} bytes, {MANIFEST} tells others");
    }
    told(format!("objects: {count} of {bytes} bytes, compared"));
    Ok(())
}
