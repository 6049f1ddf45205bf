//! Files that runs left behind: raw, by step, never whole in memory.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{Area, ArtifactKey, ArtifactPath, ByteRange, RunFilter};
use dbtcloud_core::run::Run;
use dbtcloud_core::{Direction, ErrorKind, Page};
use futures::TryStreamExt;
use serde_json::Value;

use super::resource::fetch;
use super::runs::fetch_run;
use crate::call::{Answer, Call};
use crate::wire::envelope;
use crate::wire::fault::Fault;
use crate::wire::time::day;

/// Runs of a job that are looked through for a file.
const RUNS_LOOKED_THROUGH: u32 = 100;

/// Paths of all steps, each once. Not paged: clients read all of it.
pub(crate) async fn list(call: Call) -> Answer {
    let run = fetch_run(&call).await?;
    let step = call.params.int("step")?;
    let kept = call.plane().artifacts()?.list(call.account, run.id, None).await?;
    let paths: BTreeSet<String> = kept
        .into_iter()
        .filter(|kept| match kept.area {
            Area::Step(index) => step.is_none_or(|step| i64::from(index) == step),
            Area::Logs => false,
        })
        .map(|kept| kept.path.as_str().to_owned())
        .collect();
    let page = call.params.page()?;
    Ok(envelope::whole(
        paths.into_iter().map(Value::from).collect(),
        call.params.extra(page),
    ))
}

fn path(call: &Call) -> Result<ArtifactPath, Fault> {
    call.text("path")
        .parse()
        .map_err(|_| Fault::not_found(format!("artifact {} not found", call.text("path"))))
}

/// What a browser may do with a file. A run's files are its author's: nothing in them may run here.
fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("json") => "application/json",
        Some("parquet") => "application/x-parquet",
        Some("html") => "text/html; charset=utf-8",
        Some("sql" | "txt" | "log" | "md" | "csv" | "yml" | "yaml" | "py") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

async fn send(call: &Call, run: &Run, step: u32, path: ArtifactPath) -> Answer {
    let store = call.plane().artifacts()?;
    let missing = || Fault::not_found(format!("artifact {path} of run {} not found", run.id));
    let key = ArtifactKey {
        account: call.account,
        run: run.id,
        area: Area::Step(step),
        path: path.clone(),
    };
    let meta = store.stat(&key).await?.ok_or_else(missing)?;
    let stream = match store.open(&key, ByteRange::default()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
        other => other?,
    };
    let body = Body::from_stream(stream.map_err(|error| std::io::Error::other(error.to_string())));
    let mut response: Response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(content_type(path.as_str())),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(meta.bytes));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    Ok(response)
}

/// That retention let the artifacts of a run go.
fn expired(run: &Run) -> Result<(), Fault> {
    let Some(at) = run.artifacts_expired_at else {
        return Ok(());
    };
    let what = format!(
        "The artifacts of run {} have expired: they were removed on {}.",
        run.id,
        day(at)
    );
    Err(Fault::new(StatusCode::NOT_FOUND, what))
}

/// A file of a run: of the step that was named (from 1), or of the last one that left it.
pub(crate) async fn of_run(call: Call) -> Answer {
    let run = fetch_run(&call).await?;
    expired(&run)?;
    let path = path(&call)?;
    let step = match call.params.int("step")? {
        Some(step) => u32::try_from(step).map_err(|_| Fault::field("step", "expected the index of a step, from 1"))?,
        None => call.plane().newest_step_with(&run, path.as_str()).await?,
    };
    send(&call, &run, step, path).await
}

/// A file of the newest run of a job that left it.
pub(crate) async fn of_job(call: Call) -> Answer {
    let job = fetch::<Job>(&call, call.id("id")?).await?;
    let path = path(&call)?;
    let filter = RunFilter {
        job: Some(job.id),
        direction: Direction::Descending,
        ..RunFilter::default()
    };
    let runs = call
        .plane()
        .runs()
        .list(call.account, &filter, Page::new(RUNS_LOOKED_THROUGH, 0))
        .await?;
    for run in runs
        .items
        .iter()
        .filter(|run| run.artifacts_saved || run.status.is_live())
    {
        match call.plane().newest_step_with(run, path.as_str()).await {
            Ok(step) => return send(&call, run, step, path).await,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Fault::not_found(format!("artifact {path} of job {} not found", job.id)))
}
