//! Driving one run: look at its execution, decide, act, record. Called again and again; every call does at
//! most one thing and leaves the rest to the next.

use std::time::Duration;

use dbtcloud_core::ports::{
    Bell, ExecutionId, ExecutionSpec, Exit, Observation, RunChange, RunPatch, TicketIssue, Workload, WorkloadLimits,
};
use dbtcloud_core::run::{Run, RunEvent, RunStatus};
use dbtcloud_core::{ErrorKind, Result, failpoint};

use crate::ControlPlane;
use crate::desk::digest;
use crate::plan;
use crate::scheduler::Driven;
use crate::vault::random_token;

/// Bytes of randomness in a ticket.
const TICKET_BYTES: usize = 32;
/// What the driver allows beyond the agent's own time-out or grace before it steps in.
const MARGIN: Duration = Duration::from_secs(15);
/// How long an agent whose run has ended may take to exit by itself.
const FAREWELL: Duration = Duration::from_secs(10);

/// Whether a run needs driving again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It does.
    Keep,
    /// It ended, and its execution is gone.
    Settled,
}

fn name_of(run: &Run) -> ExecutionId {
    ExecutionId::Run {
        run: run.id,
        attempt: run.attempt,
    }
}

/// Takes a run one step further.
pub(crate) async fn drive(plane: &ControlPlane, driven: &Driven) -> Result<Next> {
    let run = &driven.run;
    let seen = match plane.executor().observe(name_of(run)).await {
        // Who may not look may not start either: the run says so, and does not wait for nobody.
        Err(error) if run.status == RunStatus::Starting && error.kind() == ErrorKind::Denied => {
            return fail(
                plane,
                driven,
                format!("The run could not be started: {}", error.chain()),
            )
            .await;
        }
        seen => seen?,
    };
    plane.metrics().saw(&seen);
    if run.status.is_terminal() {
        return farewell(plane, driven, &seen).await;
    }
    match (&seen, run.status) {
        (Observation::Absent, RunStatus::Starting) => start(plane, driven).await,
        (Observation::Absent | Observation::Exited(_), _) => ended(plane, driven, &seen).await,
        (Observation::Pending { .. } | Observation::Running { .. }, RunStatus::Cancelling) => {
            insist(plane, driven).await
        }
        (Observation::Pending { reason }, _) => overdue(plane, driven, Some(reason)).await,
        (Observation::Running { .. }, _) => overdue(plane, driven, None).await,
    }
}

/// Starts the execution that is so named; a second start of the same name does nothing.
async fn start(plane: &ControlPlane, driven: &Driven) -> Result<Next> {
    let run = &driven.run;
    // Everything that can be wrong with the configuration is told by the run, not by a dead agent.
    if let Err(error) = plan::make(plane, run).await {
        return match error.kind() {
            ErrorKind::Unavailable if !late(plane, run) => Err(error),
            _ => fail(plane, driven, format!("The run cannot start: {}", error.chain())).await,
        };
    }
    let now = plane.clock().now();
    let ticket = random_token(TICKET_BYTES)?;
    let expires_at = now.plus(plane.config().provision_timeout);
    let issue = TicketIssue {
        ticket: digest(ticket.expose()),
        account: run.new.account,
        run: run.id,
        attempt: run.attempt,
        expires_at,
    };
    plane.tickets().issue(&issue).await?;
    let launch = &plane.config().agent;
    let id = name_of(run);
    let mut environment = launch.environment.clone();
    environment.insert("DBTCLOUD_SERVER".to_owned(), launch.server.clone());
    environment.insert(
        "DBTCLOUD_WORK_DIR".to_owned(),
        launch.work_dir.join(id.to_string()).display().to_string(),
    );
    environment.insert("DBTCLOUD_CACHE_DIR".to_owned(), launch.cache_dir.display().to_string());
    let lifetime = Duration::from_secs(run.new.spec.timeout_seconds)
        .saturating_add(plane.config().provision_timeout)
        .saturating_add(plane.config().grace.saturating_mul(4));
    let spec = ExecutionSpec {
        id,
        account: run.new.account,
        workload: Workload::Task,
        command: launch.command.clone(),
        environment,
        ticket: Some(ticket),
        mounts: Vec::new(),
        limits: WorkloadLimits {
            memory_bytes: None,
            lifetime: Some(lifetime),
        },
        placement: run.new.spec.placement.clone(),
    };
    failpoint::reached("driver", "start", "before");
    let started = plane.executor().start(&spec).await;
    failpoint::reached("driver", "start", "after");
    match started {
        Ok(()) => Ok(Next::Keep),
        Err(error) if error.kind() == ErrorKind::Unavailable && !late(plane, run) => Err(error),
        Err(error) => {
            fail(
                plane,
                driven,
                format!("The run could not be started: {}", error.chain()),
            )
            .await
        }
    }
}

fn late(plane: &ControlPlane, run: &Run) -> bool {
    let since = run.dequeued_at.unwrap_or(run.created_at);
    plane.clock().now().since(since) > plane.config().provision_timeout
}

fn how(exit: &Exit) -> String {
    let end = match (exit.code, exit.signal) {
        _ if exit.out_of_memory => "was ended for using too much memory".to_owned(),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (Some(code), None) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    };
    if exit.message.is_empty() {
        end
    } else {
        format!("{end}: {}", exit.message)
    }
}

/// The execution is gone while its run is not over: the run ends too.
async fn ended(plane: &ControlPlane, driven: &Driven, seen: &Observation) -> Result<Next> {
    // The agent's last report may have come in between; what it said counts.
    let run = plane.runs().get(driven.run.new.account, driven.run.id).await?;
    if run.status.is_terminal() {
        return Ok(Next::Keep);
    }
    let end = match seen {
        Observation::Exited(exit) => how(exit),
        _ => "is gone".to_owned(),
    };
    if run.status == RunStatus::Cancelling {
        let said = run.message.clone().unwrap_or_else(|| "Cancelled.".to_owned());
        let message = format!("{said} Confirmed: nothing of the run is executing any more; its agent {end}.");
        return change(plane, driven, &run, RunEvent::Stopped, message).await;
    }
    let message = if run.status == RunStatus::Starting {
        format!("The run's agent {end} before it began.")
    } else {
        format!("The run's agent {end} before the run was over; its dbt processes were ended with it.")
    };
    // What the agent started ends with its execution: removed before the run says so.
    plane.executor().remove(name_of(&run)).await?;
    failpoint::reached("driver", "ended", "after_remove");
    change(plane, driven, &run, RunEvent::Failed, message).await
}

/// The run is to be stopped. The agent does it; if it does not in time, the executor does.
async fn insist(plane: &ControlPlane, driven: &Driven) -> Result<Next> {
    let run = &driven.run;
    let asked = run.cancel_requested_at.unwrap_or(run.updated_at);
    let patience = plane.config().grace.saturating_add(MARGIN);
    if run.started_at.is_none() || plane.clock().now().since(asked) > patience {
        plane.executor().cancel(name_of(run), plane.config().grace).await?;
    }
    Ok(Next::Keep)
}

/// The execution is there. It is ended when it does not begin, is silent, or takes too long.
async fn overdue(plane: &ControlPlane, driven: &Driven, waits_for: Option<&String>) -> Result<Next> {
    let run = &driven.run;
    let (now, config) = (plane.clock().now(), plane.config());
    if run.status == RunStatus::Starting {
        if !late(plane, run) {
            return Ok(Next::Keep);
        }
        plane.executor().cancel(name_of(run), Duration::ZERO).await?;
        let reason = waits_for.map_or("its agent did not report", String::as_str);
        let limit = config.provision_timeout.as_secs();
        return fail(
            plane,
            driven,
            format!("The run did not begin within {limit} s: {reason}."),
        )
        .await;
    }
    let began = run.started_at.unwrap_or(run.created_at);
    let limit = Duration::from_secs(run.new.spec.timeout_seconds);
    if now.since(began) > limit.saturating_add(config.grace).saturating_add(MARGIN) {
        let message = format!("Timed out after {} s.", limit.as_secs());
        return change(plane, driven, run, RunEvent::CancelRequested, message).await;
    }
    if now.since(run.heartbeat_at.unwrap_or(began)) > config.heartbeat_timeout {
        plane.executor().cancel(name_of(run), config.grace).await?;
    }
    Ok(Next::Keep)
}

async fn fail(plane: &ControlPlane, driven: &Driven, message: String) -> Result<Next> {
    change(plane, driven, &driven.run, RunEvent::Failed, message).await
}

async fn change(plane: &ControlPlane, driven: &Driven, run: &Run, event: RunEvent, message: String) -> Result<Next> {
    let now = plane.clock().now();
    let change = RunChange::new(run.status, event, RunPatch::message(message), now)?;
    let changed = plane.runs().change(&driven.fence, &change).await?;
    // A change that had been made before is answered with its own instant.
    if changed.updated_at == now {
        plane.moved(run.status, &changed);
    }
    plane.ring(Bell::Reports);
    plane.ring(Bell::Queue);
    plane.ring(Bell::Outbox);
    Ok(Next::Keep)
}

/// The run has ended: wait for its execution to leave and forget it. What else follows is the outbox's.
async fn farewell(plane: &ControlPlane, driven: &Driven, seen: &Observation) -> Result<Next> {
    let run = &driven.run;
    let ended = run.finished_at.unwrap_or(run.updated_at);
    let lingers = matches!(seen, Observation::Pending { .. } | Observation::Running { .. });
    if lingers && plane.clock().now().since(ended) < FAREWELL {
        return Ok(Next::Keep);
    }
    plane.executor().remove(name_of(run)).await?;
    failpoint::reached("driver", "farewell", "after_remove");
    plane.runs().release(&[driven.fence], plane.clock().now()).await?;
    Ok(Next::Settled)
}
