//! Every run of a copied database, and the objects that it has in the artifact store.
//!
//! The store goes on meanwhile. An object that came after the copy is taken or left, which is the same: nothing
//! speaks of it. One that went, retention took, and before the row that speaks of it: so it is asked of the live
//! database what became of the run, and the copy is made to agree.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use dbtcloud_core::ErrorKind;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{
    Area, ArtifactKey, ArtifactMeta, Artifacts, ByteRange, Clock, History, LogPart, RunPart, Runs,
};
use dbtcloud_core::run::RunStep;
use dbtcloud_core::{Timestamp, failpoint};
use dbtcloud_opendal::OpendalArtifacts;
use dbtcloud_runtime::plane;
use dbtcloud_sql::{SqlStorage, Walked};
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;
use tokio_util::io::StreamReader;

use super::explained;
use super::manifest::{OBJECTS, OBJECTS_LIST, Object, Sum};
use super::place::{Meter, Place, sum_of};

/// Runs that are read of the database at once.
const PAGE: u32 = 500;
/// Runs whose objects are copied at the same time.
const RUNS_AT_ONCE: usize = 4;
/// Objects of each that are.
const OBJECTS_AT_ONCE: usize = 2;
/// How long after its end the objects of a run may still change, clocks that differ and uploads that are on their way
/// and all.
const SETTLED_AFTER: Duration = Duration::from_secs(3600);
/// How long retention may take from an object to the row that speaks of it.
const GOING_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Logs that are waited for and do not go: after so many it is the store that lost them, and nobody waits any more.
const LOST_LIMIT: u32 = 8;
/// Names of what is amiss that are told.
const NAMED: usize = 100;

/// The lines of a list of objects, of one run after the other.
pub(super) struct List<R> {
    lines: tokio::io::Lines<R>,
    ahead: Option<Object>,
    number: u64,
}

impl<R: tokio::io::AsyncBufRead + Unpin> List<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            lines: tokio::io::AsyncBufReadExt::lines(reader),
            ahead: None,
            number: 0,
        }
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Object>> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        let line = self
            .lines
            .next_line()
            .await
            .with_context(|| format!("cannot read {OBJECTS_LIST}"))?;
        self.number += 1;
        let object = line.map(|line| serde_json::from_str(&line)).transpose();
        object.with_context(|| format!("{OBJECTS_LIST} is damaged: line {}", self.number))
    }

    /// The objects of a run; those of runs before it are passed over.
    pub(super) async fn of(&mut self, run: RunId) -> anyhow::Result<Vec<Object>> {
        let mut found = Vec::new();
        while let Some(object) = self.next().await? {
            if object.run > run.get() {
                self.ahead = Some(object);
                break;
            }
            if object.run == run.get() {
                found.push(object);
            }
        }
        Ok(found)
    }
}

type Reader = Box<dyn tokio::io::AsyncBufRead + Send + Unpin>;

/// An earlier backup.
pub(super) struct Base {
    list: List<Reader>,
    artifacts: OpendalArtifacts,
    at: Timestamp,
}

impl Base {
    pub(super) async fn open(place: Place) -> anyhow::Result<Self> {
        let manifest = place.manifest().await?;
        let Some(list) = place.files.open(OBJECTS_LIST).await.map_err(explained)? else {
            bail!("{OBJECTS_LIST} is missing in {}", place.name);
        };
        let reader = StreamReader::new(list.map_err(|error| std::io::Error::other(error.chain())));
        Ok(Self {
            list: List::new(Box::new(reader)),
            artifacts: place.files.artifacts(OBJECTS).map_err(explained)?,
            at: manifest.at,
        })
    }
}

/// What a walk met.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// Objects that did not have to be copied.
    pub(super) taken: u64,
    /// What retention took meanwhile, and the copy does not have either; the first of it.
    pub(super) gone: Vec<String>,
    pub(super) gone_count: u64,
    /// What the database speaks of and the store does not have; the first of them.
    pub(super) missing: Vec<String>,
    pub(super) missing_count: u64,
}

/// What is walked through.
pub(super) struct Walk<'a> {
    pub(super) live: &'a SqlStorage,
    pub(super) copy: &'a SqlStorage,
    pub(super) source: &'a OpendalArtifacts,
    pub(super) target: &'a OpendalArtifacts,
    /// When the first try of this backup was begun.
    pub(super) begun_at: Timestamp,
    pub(super) clock: &'a dyn Clock,
    /// Logs that were waited for in vain.
    pub(super) lost: AtomicU32,
}

/// What is known of one run's objects.
#[derive(Default)]
struct OfRun {
    objects: Vec<Object>,
    taken: u64,
    gone: Option<String>,
}

impl Walk<'_> {
    /// Copies the objects of every run, and writes the list of them.
    pub(super) async fn all(&self, since: Option<Base>, list: &Path) -> anyhow::Result<Met> {
        let cannot = || format!("cannot write {}", list.display());
        let file = tokio::fs::File::create(list).await.with_context(cannot)?;
        let mut file = tokio::io::BufWriter::new(file);
        let (base, earlier) = match since {
            Some(base) => (Some((base.artifacts, base.at)), Some(base.list)),
            None => (None, None),
        };
        let base = base.as_ref();
        // In order, for the earlier list is.
        let state = (self.runs().boxed(), earlier);
        let known = futures::stream::try_unfold(state, |(mut runs, mut earlier)| async move {
            let Some(run) = runs.try_next().await? else {
                return Ok(None);
            };
            let before = match &mut earlier {
                Some(list) => list.of(run.run).await.context("--since")?,
                None => Vec::new(),
            };
            anyhow::Ok(Some(((run, before), (runs, earlier))))
        });
        let walked = known
            .map_ok(|(run, before)| async move { self.one(run, base, before).await })
            .try_buffered(RUNS_AT_ONCE);
        let mut walked = std::pin::pin!(walked);
        let mut met = Met::default();
        while let Some(run) = walked.try_next().await? {
            met.taken += run.taken;
            if let Some(gone) = run.gone {
                met.gone_count += 1;
                if met.gone.len() < NAMED {
                    met.gone.push(gone);
                }
            }
            for object in run.objects {
                match &object.sum {
                    Some(sum) => {
                        met.count += 1;
                        met.bytes += sum.bytes;
                    }
                    None => {
                        met.missing_count += 1;
                        if met.missing.len() < NAMED {
                            met.missing.push(object.to_string());
                        }
                    }
                }
                let mut line = serde_json::to_vec(&object)?;
                line.push(b'\n');
                file.write_all(&line).await.with_context(cannot)?;
            }
        }
        file.flush().await.with_context(cannot)?;
        Ok(met)
    }

    fn runs(&self) -> impl futures::Stream<Item = anyhow::Result<Walked>> + Send {
        let pages = futures::stream::try_unfold(RunId::new(0), move |after| async move {
            let page = self.copy.walk_runs(after, PAGE).await.map_err(explained)?;
            let last = page.last().map(|last| last.run);
            anyhow::Ok(last.map(|last| (futures::stream::iter(page).map(anyhow::Ok), last)))
        });
        pages.try_flatten()
    }

    async fn one(
        &self,
        walked: Walked,
        base: Option<&(OpendalArtifacts, Timestamp)>,
        before: Vec<Object>,
    ) -> anyhow::Result<OfRun> {
        let Walked { account, run, .. } = walked;
        let steps = self.copy.steps(account, run).await.map_err(explained)?;
        let mut absent = log_files(&steps, account, run)?;
        let listed = self.source.list(account, run, None).await.map_err(explained)?;
        let metas = listed.into_iter().filter(|meta| {
            // A part that was moved meanwhile: its bytes are in the copied database.
            let part = meta.area == Area::Logs && meta.path.as_str().ends_with(".log.zst");
            !part || absent.contains(&key(account, run, meta))
        });
        let metas: Vec<ArtifactMeta> = metas.collect();
        let before = &before;
        let copied = futures::stream::iter(metas)
            .map(|meta| async move {
                let key = key(account, run, &meta);
                let sum = self.object(&walked, &key, meta.bytes, base, before).await?;
                anyhow::Ok((key, sum))
            })
            .buffered(OBJECTS_AT_ONCE);
        let copied: Vec<_> = copied.try_collect().await?;
        let mut of_run = OfRun::default();
        for (key, sum) in copied {
            if let Some((sum, taken)) = sum {
                absent.remove(&key);
                of_run.taken += u64::from(taken);
                of_run.objects.push(Object::new(&key, Some(sum)));
            }
        }
        if absent.is_empty() {
            return Ok(of_run);
        }
        match self.became(account, run, &absent).await? {
            Became::Forgotten => {
                self.copy.forget(&[run]).await.map_err(explained)?;
                self.target.remove(account, run, None).await.map_err(explained)?;
                of_run.objects.clear();
                of_run.gone = Some(format!("run {run}"));
            }
            Became::Discarded => {
                let expired = self.copy.expire(account, run, RunPart::Logs, self.begun_at).await;
                expired.map_err(explained)?;
                of_run.gone = Some(format!("the log of run {run}"));
            }
            Became::Lost => of_run.objects.extend(absent.iter().map(|key| Object::new(key, None))),
        }
        Ok(of_run)
    }

    /// Sees to it that an object is in the backup; `None` when it is gone, and whether it was there already.
    async fn object(
        &self,
        walked: &Walked,
        key: &ArtifactKey,
        bytes: u64,
        base: Option<&(OpendalArtifacts, Timestamp)>,
        before: &[Object],
    ) -> anyhow::Result<Option<(Sum, bool)>> {
        let settled = |at: Timestamp| walked.finished_at.is_some_and(|end| end.plus(SETTLED_AFTER) < at);
        if settled(self.begun_at)
            && let Some(there) = self.target.stat(key).await.map_err(explained)?
            && there.bytes == bytes
        {
            let stream = self.target.open(key, ByteRange::default()).await.map_err(explained)?;
            return Ok(Some((sum_of(stream).await.map_err(explained)?, true)));
        }
        if let Some((artifacts, at)) = base
            && settled(*at)
            && let Some(sum) = before.iter().find_map(|object| of_key(object, key))
            && sum.bytes == bytes
            && self.target.link(artifacts, key).await.map_err(explained)?
        {
            return Ok(Some((sum.clone(), true)));
        }
        let meter = Meter::default();
        let copied = match self.source.open(key, ByteRange::default()).await {
            Ok(stream) => self.target.put(key, meter.on(stream)).await,
            Err(error) => Err(error),
        };
        match copied {
            Ok(_) => {
                failpoint::reached("backup", "object", "after_put");
                Ok(Some((meter.sum(), false)))
            }
            Err(error) => match self.source.stat(key).await.map_err(explained)? {
                None => Ok(None),
                Some(_) => Err(explained(error)),
            },
        }
    }

    /// What became of a run whose log is not in the store.
    async fn became(&self, account: AccountId, run: RunId, absent: &BTreeSet<ArtifactKey>) -> anyhow::Result<Became> {
        let until = self.clock.now().plus(GOING_LIMIT);
        loop {
            let steps = match self.live.steps(account, run).await {
                Ok(steps) => steps,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Became::Forgotten),
                Err(error) => return Err(explained(error)),
            };
            if log_files(&steps, account, run)?.is_disjoint(absent) {
                return Ok(Became::Discarded);
            }
            if self.clock.now() > until || self.lost.load(Ordering::Relaxed) >= LOST_LIMIT {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return Ok(Became::Lost);
            }
            self.clock.sleep(LOOK_AGAIN).await;
        }
    }
}

/// What became of a log that is not in the store.
enum Became {
    Forgotten,
    Discarded,
    Lost,
}

fn key(account: AccountId, run: RunId, meta: &ArtifactMeta) -> ArtifactKey {
    ArtifactKey {
        account,
        run,
        area: meta.area,
        path: meta.path.clone(),
    }
}

fn of_key<'a>(object: &'a Object, key: &ArtifactKey) -> Option<&'a Sum> {
    let sum = object.sum.as_ref()?;
    object.key().is_ok_and(|other| other == *key).then_some(sum)
}

/// The files that the logs of a run's steps are in, as far as they are not in the database.
pub(super) fn log_files(steps: &[RunStep], account: AccountId, run: RunId) -> anyhow::Result<BTreeSet<ArtifactKey>> {
    let mut files = BTreeSet::new();
    for step in steps {
        let index = step.state.index;
        let mut start = 0;
        let mut paths = Vec::new();
        for end in &step.log_parts {
            paths.push(plane::log_part_path(index, LogPart { start, end: *end }).map_err(explained)?);
            start = *end;
        }
        if step.log_object.is_some() {
            paths.push(plane::log_path(index).map_err(explained)?);
        }
        files.extend(paths.into_iter().map(|path| ArtifactKey {
            account,
            run,
            area: Area::Logs,
            path,
        }));
    }
    Ok(files)
}
