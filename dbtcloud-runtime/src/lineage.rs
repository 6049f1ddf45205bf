//! OpenLineage: what a run read and wrote, told to whoever keeps a catalog of it.
//!
//! A consumer of the outbox: a run's beginning is told when it begins, everything else when it has ended, from what was
//! written down. Every run, command and node has an id that follows from its name, so that an event that comes twice
//! is the same event. No SQL text and no message of a warehouse stands in them.

mod datasets;
mod story;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::connection::Connection;
use dbtcloud_core::environment::Environment;
use dbtcloud_core::ports::{Area, ArtifactKey, ByteRange, Delivery, Event, EventBody};
use dbtcloud_core::project::Project;
use dbtcloud_core::run::{Run, RunStatus};
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

pub use datasets::{Graph, namespace_of};
pub use story::{Story, begun};

use crate::dial::{Client, Dialer};
use crate::outbox::{Consume, Handled};
use crate::{ControlPlane, trace};

/// The largest `manifest.json` that is read for its datasets; a run with a larger one is told without them.
pub const MANIFEST_LIMIT_BYTES: usize = 256 * 1024 * 1024;
/// How long the service may take to take one event.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Events that are on their way at one time.
const WIDTH: usize = 8;

/// Tells an OpenLineage service of runs.
#[derive(Clone, Debug)]
pub struct Lineage {
    client: Client,
    url: String,
    key: Option<Secret>,
    namespace: String,
}

impl Lineage {
    /// A consumer that posts to `url`, with `/api/v1/lineage` behind it. `namespace` stands for the installation:
    /// names of jobs and ids of runs follow from it.
    ///
    /// # Errors
    /// `Invalid` or `Unavailable` when TLS cannot be set up.
    pub fn new(url: &str, key: Option<Secret>, namespace: impl Into<String>) -> Result<Self> {
        let dialer = if url.starts_with("https:") {
            Dialer::secure(None)?
        } else {
            Dialer::plain()
        };
        Ok(Self {
            client: dialer.client(),
            url: format!("{}/api/v1/lineage", url.trim_end_matches('/')),
            key,
            namespace: namespace.into(),
        })
    }

    async fn post(&self, event: &serde_json::Value) -> Result<()> {
        let wrong = |what: &str| Error::invalid("openlineage_url", format!("expected {what}"));
        let mut post = Request::post(&self.url).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            post = post.header(AUTHORIZATION, format!("Bearer {}", key.expose()));
        }
        let post = post
            .body(Body::from(event.to_string()))
            .map_err(|_| wrong("an address, and a key of visible characters"))?;
        let away = || Error::unavailable("the OpenLineage service does not answer");
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.client.request(post))
            .await
            .map_err(|_| away())?
            .map_err(|error| away().because(error))?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            status @ (401 | 403 | 408 | 429 | 500..=599) => {
                Err(Error::unavailable(format!("the OpenLineage service answered {status}")))
            }
            status => Err(Error::invalid(
                "event",
                format!("the OpenLineage service answered {status}"),
            )),
        }
    }

    /// All events of a run, as far as it has come.
    async fn events(&self, plane: &ControlPlane, run: &Run) -> Result<Vec<serde_json::Value>> {
        let account = run.new.account;
        let steps = plane.runs().steps(account, run.id).await?;
        let events = trace::events_of(plane, run).await?;
        let mut graphs = BTreeMap::new();
        let namespace = warehouse(plane, run).await?;
        for step in steps.iter().filter(|step| story::is_command(step)) {
            if let Some(manifest) = manifest(plane, run, step.state.index).await? {
                graphs.insert(step.state.index, Graph::read(&manifest, &namespace));
            }
        }
        Ok(Story {
            namespace: &self.namespace,
            run,
            steps: &steps,
            events: &events,
            graphs: &graphs,
        }
        .tell())
    }

    /// Tells what follows from one event of a run: its beginning, or everything once it has ended. A second time tells
    /// the same events, which have the same ids.
    ///
    /// # Errors
    /// `Unavailable` when the service cannot be had now or refuses the key; `Invalid` when it refuses an event; those of
    /// storage.
    pub async fn tell(&self, plane: &ControlPlane, event: &Event) -> Result<()> {
        let run = match plane.runs().get(event.account, event.run).await {
            Ok(run) => run,
            // Its history was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let events = match &event.body {
            EventBody::Run { status, .. } if status.is_terminal() => self.events(plane, &run).await?,
            EventBody::Run {
                status: RunStatus::Running,
                ..
            } => vec![begun(&self.namespace, &run)],
            _ => Vec::new(),
        };
        // A beginning before its end; apart from that the order says nothing.
        let (begins, ends): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event["eventType"] == "START");
        for group in [begins, ends] {
            futures::stream::iter(group)
                .map(|event| async move { self.post(&event).await })
                .buffer_unordered(WIDTH)
                .try_collect::<Vec<()>>()
                .await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Consume for Lineage {
    async fn consume(&self, plane: &ControlPlane, delivery: &Delivery) -> Result<Handled> {
        self.tell(plane, &delivery.event).await?;
        Ok(Handled::Delivered)
    }
}

/// What the datasets of a run's warehouse are named below. A connection that is gone leaves the adapter's name.
async fn warehouse(plane: &ControlPlane, run: &Run) -> Result<String> {
    let found = async {
        let catalog = plane.catalog();
        let environment = catalog
            .fetch::<Environment>(run.new.account, run.new.environment)
            .await?;
        let project = catalog.fetch::<Project>(run.new.account, run.new.project).await?;
        let Some(id) = environment.connection.or(project.connection) else {
            return Err(Error::not_found("connection of run", run.id));
        };
        let connection = catalog.fetch::<Connection>(run.new.account, id).await?;
        Ok(namespace_of(&connection.adapter, &connection.config))
    };
    match found.await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok("unknown".to_owned()),
        other => other,
    }
}

/// The manifest that a step left, or the newest one before it: files that did not change are not kept twice.
async fn manifest(plane: &ControlPlane, run: &Run, step: u32) -> Result<Option<Vec<u8>>> {
    let Ok(artifacts) = plane.artifacts() else {
        return Ok(None);
    };
    for step in (1..=step).rev() {
        let key = ArtifactKey {
            account: run.new.account,
            run: run.id,
            area: Area::Step(step),
            path: "manifest.json".parse()?,
        };
        let Some(meta) = artifacts.stat(&key).await? else {
            continue;
        };
        if meta.bytes > MANIFEST_LIMIT_BYTES as u64 {
            return Ok(None);
        }
        let stream = artifacts.open(&key, ByteRange::default()).await?;
        let chunks: Vec<_> = stream.try_collect().await?;
        return Ok(Some(chunks.concat()));
    }
    Ok(None)
}
