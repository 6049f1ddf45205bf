//! What all chores have in common.

use std::collections::BTreeMap;

use dbtcloud_contract::faults::Rates;
use dbtcloud_contract::suite::executor::plain_spec;
use dbtcloud_core::ErrorKind;
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{Draft, Kind};
use dbtcloud_core::id::{AccountId, ProjectId, RunId, UserId, WebhookId};
use dbtcloud_core::ports::{
    Addressee, Clock, Digest, Dispatch, DispatchId, DispatchState, ExecutionId, Executor, NewSession, Next, Owner,
    RunRequest, SessionChange, TicketIssue, Try,
};
use dbtcloud_core::session::SessionEvent;
use dbtcloud_runtime::Blueprint;
use dbtcloud_runtime::cleanup::{self, Mode, Report};

use crate::orphans;
use crate::stage::{BEGIN, DAY, Stage};

/// Calls that change nothing. What a dry run calls is in this list.
const READS: [&str; 20] = [
    "artifacts.list",
    "artifacts.runs",
    "artifacts.stat",
    "audit.entries",
    "catalog.get",
    "catalog.scan",
    "dispatches.old_dispatches",
    "executor.list",
    "history.ended",
    "history.months",
    "leases.over",
    "logs.unmoved",
    "runs.get",
    "runs.old_requests",
    "runs.states",
    "runs.step",
    "runs.steps",
    "schedules.of",
    "sessions.scan",
    "tickets.spent",
];

/// Something to do for every chore that can have something to do.
async fn untidy() -> Stage {
    let stage = Stage::new();
    stage.full(1).await;
    orphans::untidy(&stage).await;
    let session = NewSession {
        account: AccountId::new(1),
        project: ProjectId::new(1),
        user: UserId::new(1),
    };
    let session = stage.stores.sessions.open(session, BEGIN).await.unwrap();
    let close = SessionChange {
        from: session.status,
        event: SessionEvent::Close,
        generation: session.generation,
        address: None,
        active: false,
    };
    let closed = stage.stores.sessions.change(session.account, session.id, &close, BEGIN);
    closed.await.unwrap();
    stage.clock.advance(60 * DAY);
    // Of the first run only the run itself is left.
    stage.sweep(&["expire_logs", "expire_artifacts"], Mode::Act).await;
    stage.full(1).await;
    stage.clock.advance(58 * DAY);
    let run = stage.ended(1, b"a line\nanother\n").await;
    let issue = TicketIssue {
        ticket: Digest([1; 32]),
        account: run.new.account,
        run: run.id,
        attempt: 1,
        expires_at: BEGIN,
    };
    stage.stores.tickets.issue(&issue).await.unwrap();
    let owner = Owner::new("gone");
    stage
        .stores
        .leases
        .acquire("scheduler/gone", &owner, BEGIN, BEGIN)
        .await
        .unwrap();
    let execution = ExecutionId::Run {
        run: run.id,
        attempt: 1,
    };
    stage.executor.start(&plain_spec(execution)).await.unwrap();
    // What was sent long ago.
    let id = DispatchId {
        to: Addressee::Webhook(WebhookId::new(1)),
        run: run.id,
        sequence: 1,
        part: 0,
    };
    let sent = Dispatch {
        id,
        account: run.new.account,
        job: run.new.job,
        event: "job.run.started".to_owned(),
        body: String::new(),
        created_at: BEGIN.minus(40 * DAY),
    };
    let tried = Try {
        at: BEGIN,
        code: Some(200),
        error: String::new(),
        answer: String::new(),
    };
    let end = Next::End(DispatchState::Delivered);
    stage.stores.dispatches.post(&[sent]).await.unwrap();
    stage.stores.dispatches.settle(&id, &tried, end).await.unwrap();
    // A key that ran out long ago.
    let request = RunRequest {
        key: Digest([1; 32]),
        asked: Digest([1; 32]),
        until: BEGIN,
    };
    let again = stage
        .stores
        .runs
        .enqueue_for(&run.new, &request, stage.clock.now())
        .await
        .unwrap();
    let again = again.into_run();
    let stopped = stage
        .stores
        .runs
        .request_cancel(again.new.account, again.id, "Stopped.", again.created_at);
    stopped.await.unwrap();
    let folder = ExecutionId::Run {
        run: RunId::new(4),
        attempt: 2,
    };
    std::fs::create_dir(stage.work.path().join(folder.to_string())).unwrap();
    // A job whose hand was worked out from the version before.
    let blueprint = Blueprint::new("shop", "https://git.example/shop.git", "duckdb");
    let job = stage.plane.install(&blueprint).await.unwrap();
    let row = stage
        .stores
        .catalog
        .get(Kind::Job, job.account, job.id.get())
        .await
        .unwrap();
    let draft = Draft {
        kind: Kind::Job,
        account: row.account,
        project: row.project,
        parent: row.parent,
        name: row.name,
        lookup: row.lookup,
        deleted: row.deleted,
        body: row.body,
        at: BEGIN,
        by: Actor::System,
    };
    stage.stores.catalog.update(row.id, row.version, draft).await.unwrap();
    stage.clock.advance(2 * DAY);
    stage
}

fn done(reports: &[Report]) -> BTreeMap<&'static str, u64> {
    for report in reports {
        assert!(report.error.is_none(), "{report:?}");
    }
    reports.iter().map(|report| (report.chore, report.swept.done)).collect()
}

#[tokio::test]
async fn a_dry_run_tells_what_is_done_then_and_changes_nothing() {
    let stage = untidy().await;
    stage.heard.take();
    let told = done(&stage.sweep(&[], Mode::DryRun).await);
    let changing: Vec<_> = stage
        .heard
        .take()
        .into_iter()
        .filter(|call| !READS.contains(call))
        .collect();
    assert_eq!(changing, [""; 0], "calls of a dry run that change something");
    assert!(std::fs::read_dir(stage.work.path()).unwrap().next().is_some());
    for (chore, count) in &told {
        let idle = ["make_months", "expire_audit"].contains(chore);
        assert_eq!(*count > 0, !idle, "{chore}: {count}");
    }
    let first = done(&stage.sweep(&[], Mode::Act).await);
    assert_eq!(first, told);
    for (chore, count) in done(&stage.sweep(&[], Mode::Act).await) {
        assert_eq!(count, 0, "a second sweep of {chore} has something to do");
    }
}

#[tokio::test]
async fn one_that_fails_is_counted_and_holds_up_no_other() {
    let stage = untidy().await;
    stage.outage.set(Rates {
        before: 100,
        ..Rates::CALM
    });
    let reports = cleanup::round(&stage.plane).await;
    assert_eq!(reports.len(), cleanup::chores().len());
    for report in &reports {
        let failed = report.error.as_ref().map(dbtcloud_core::Error::kind);
        let stored = [
            "expire_runs",
            "expire_logs",
            "expire_artifacts",
            "flush_logs",
            "remove_objects",
        ];
        let expected = stored.contains(&report.chore).then_some(ErrorKind::Unavailable);
        assert_eq!(failed, expected, "{report:?}");
    }
    let failures: Vec<_> = stage.plane.metrics().cleanup_failures.get();
    assert_eq!(failures.iter().map(|(_, count)| count).sum::<u64>(), 5, "{failures:?}");
    stage.outage.set(Rates::CALM);
    assert_eq!(done(&cleanup::round(&stage.plane).await)["flush_logs"], 1);
}

#[tokio::test]
async fn a_lease_spares_others_the_work_and_keeps_nobody_from_it() {
    let stage = untidy().await;
    let other = Owner::new("other");
    for chore in cleanup::chores() {
        if let Some(lease) = chore.lease() {
            let now = stage.clock.now();
            stage
                .stores
                .leases
                .acquire(lease, &other, now, now.plus(DAY))
                .await
                .unwrap();
        }
    }
    let spared = cleanup::round(&stage.plane).await;
    let here: Vec<_> = spared.iter().map(|report| report.chore).collect();
    assert_eq!(
        here,
        ["remove_executions", "remove_folders", "remove_volumes"],
        "these are of each host"
    );
    assert_eq!(done(&stage.sweep(&["flush_logs"], Mode::Act).await)["flush_logs"], 1);
}

#[tokio::test]
async fn an_unknown_chore_is_told_with_those_that_there_are() {
    let stage = untidy().await;
    stage.heard.take();
    let names = ["flush_logs".to_owned(), "flush".to_owned()];
    let error = cleanup::once(&stage.plane, &names, Mode::Act).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    for chore in cleanup::chores() {
        assert!(error.to_string().contains(chore.name()), "{error}");
    }
    assert_eq!(stage.heard.take(), [""; 0], "nothing was done");
}
