//! `dbtcloud storage copy`: moves an installation's database to another one, of whatever engine.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dbtcloud_core::Timestamp;
use dbtcloud_sql::{Options, SqlStorage};

use crate::compose;

/// Copies the database at `from` to the one at `to` and compares them; with `dry_run` it tells what it would
/// do. Each line for the person who asked goes to `told`.
///
/// # Errors
/// What is in the way, and what to do about it; never a URL.
pub async fn copy(
    from: &str,
    to: &str,
    dry_run: bool,
    now: Timestamp,
    mut told: impl FnMut(String),
) -> anyhow::Result<()> {
    if from == to {
        bail!("--from and --to name the same database");
    }
    // A server of an embedded database holds its directory, and so do we while we read it.
    let _alone = [from, to].into_iter().filter_map(directory_of).map(|folder| {
        let held = if folder.is_dir() {
            Some(compose::alone(&folder)?)
        } else {
            None
        };
        Ok(held)
    });
    let _alone = _alone.collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(file) = file_of(from)
        && !file.is_file()
    {
        bail!("--from: there is no file {}", file.display());
    }
    let source = open(from).await.context("--from")?;
    let target = open(to).await.context("--to")?;
    // An installation that is there already is not migrated by the way.
    let is_new = target.schema_version().await.map_err(explained).context("--to")? == 0;
    if is_new && !dry_run {
        target.migrate().await.map_err(explained).context("--to")?;
    }
    if is_new && dry_run {
        source.check().await.map_err(explained).context("--from")?;
    } else {
        source.can_copy_to(&target, now).await.map_err(explained)?;
    }
    if dry_run {
        for (table, rows) in source.tables().await.map_err(explained)? {
            told(format!("{table}: {rows} rows"));
        }
        told("nothing was changed".to_owned());
        return Ok(());
    }
    let copied = source
        .copy_to(&target, now, |table, rows| tracing::debug!(table, rows, "copied"))
        .await
        .map_err(explained)?;
    for table in copied {
        told(format!("{}: {} rows, sha256 {}", table.table, table.rows, table.digest));
    }
    told("the target has the same rows; point database_url at it, and give its servers the same key file".to_owned());
    target.close().await;
    Ok(())
}

async fn open(url: &str) -> anyhow::Result<SqlStorage> {
    SqlStorage::connect(url, Options::new()).await.map_err(explained)
}

/// An error of ours with its causes, for a person.
pub(crate) fn explained(error: dbtcloud_core::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", error.chain())
}

/// The file of an embedded database.
pub(crate) fn file_of(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite://")?.split('?').next()?;
    (!path.is_empty()).then(|| Path::new(path).to_owned())
}

fn directory_of(url: &str) -> Option<PathBuf> {
    file_of(url)?.parent().map(Path::to_owned)
}
