//! Removes executions whose run or session has ended, moved on, or never was. One that is young is left alone: who
//! started it may be about to say something.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::Result;
use dbtcloud_core::id::{RunId, SessionId};
use dbtcloud_core::ports::{ExecutionId, RunState};
use dbtcloud_core::session::SessionStatus;

use super::{Chore, Failures, PAGE, PAGES, Swept, Work};
use crate::ControlPlane;

/// How long an execution may exist before it can be called an orphan.
const ORPHAN_AGE: Duration = Duration::from_secs(120);

/// Removes executions. Every process looks at those that its own executor has.
#[derive(Debug)]
pub(super) struct RemoveExecutions;

#[async_trait]
impl Chore for RemoveExecutions {
    fn name(&self) -> &'static str {
        "remove_executions"
    }

    fn kind(&self) -> &'static str {
        "execution"
    }

    fn lease(&self) -> Option<&'static str> {
        None
    }

    fn every(&self, interval: Duration) -> Duration {
        interval
    }

    async fn sweep(&self, work: &Work<'_>, swept: &mut Swept) -> Result<()> {
        // What there is is listed first: what begins later is not in it, whatever storage says then.
        let executions = work.plane.executor().list().await?;
        swept.examined += executions.len() as u64;
        let mut old = Vec::with_capacity(executions.len());
        for execution in executions {
            if work.now.since(execution.started_at) > ORPHAN_AGE {
                old.push(execution.id);
            } else {
                swept.keep("young");
            }
        }
        old.truncate(PAGE as usize * PAGES);
        let of_session = |id: &ExecutionId| matches!(id, ExecutionId::Session { .. });
        let sessions = match old.iter().any(of_session) {
            true => open_sessions(work.plane).await?,
            false => BTreeMap::new(),
        };
        let mut failures = Failures::default();
        for page in old.chunks(PAGE as usize) {
            let runs: Vec<RunId> = page.iter().filter_map(run_of).collect();
            let states = work.plane.runs().states(&runs).await?;
            for id in page {
                let needed = match id {
                    ExecutionId::Run { run, attempt } => needed(&states, *run, *attempt),
                    ExecutionId::Session { session, generation } => sessions.get(session) == Some(generation),
                };
                if needed {
                    continue;
                }
                if work.acts() {
                    if failures.note(work.plane.executor().remove(*id).await)?.is_none() {
                        continue;
                    }
                    tracing::info!(execution = %id, "orphaned execution removed");
                }
                swept.done += 1;
            }
        }
        failures.end()
    }
}

const fn run_of(id: &ExecutionId) -> Option<RunId> {
    match id {
        ExecutionId::Run { run, .. } => Some(*run),
        ExecutionId::Session { .. } => None,
    }
}

/// Whether an attempt is one that somebody waits for. Gone for certain is what is terminal, overtaken, or unknown to a
/// storage that answered.
fn needed(states: &[RunState], run: RunId, attempt: u32) -> bool {
    let state = states.iter().find(|state| state.run == run);
    state.is_some_and(|state| !state.status.is_terminal() && state.attempt <= attempt)
}

/// The generation of every session that has a server, or may have one.
async fn open_sessions(plane: &ControlPlane) -> Result<BTreeMap<SessionId, u32>> {
    let states = [
        SessionStatus::Starting,
        SessionStatus::Running,
        SessionStatus::Suspending,
    ];
    let (mut open, mut after) = (BTreeMap::new(), SessionId::new(0));
    loop {
        let page = plane.sessions().scan(&states, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(open) };
        after = last.id;
        open.extend(page.iter().map(|session| (session.id, session.generation)));
    }
}
