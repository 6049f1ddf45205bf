//! How long what is over is kept, and that it goes in the right order: nothing is in the artifact store that no run knows,
//! wherever it is interrupted.

use dbtcloud_contract::faults::Moment;
use dbtcloud_core::audit::{Action, Actor, Entry, Subject};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Artifacts, Clock, EndedFilter, NewSession, SessionChange, Storage};
use dbtcloud_core::retention::{Days, OwnRetention};
use dbtcloud_core::run::{Month, Run, RunEvent, StepStatus};
use dbtcloud_core::session::{SessionEvent, SessionStatus};
use dbtcloud_core::{ErrorKind, Page};
use dbtcloud_runtime::cleanup::{self, Mode};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres;
use futures::TryStreamExt;

use crate::stage::{BEGIN, DAY, Stage, days, fence, step, whole_log};

const CHORES: [&str; 3] = ["expire_runs", "expire_logs", "expire_artifacts"];

async fn sweep(stage: &Stage) -> u64 {
    let reports = stage.sweep(&CHORES, Mode::Act).await;
    for report in &reports {
        assert!(report.error.is_none(), "{report:?}");
    }
    reports.iter().map(|report| report.swept.done).sum()
}

async fn get(stage: &Stage, run: &Run) -> Option<Run> {
    match stage.stores.runs.get(run.new.account, run.id).await {
        Ok(run) => Some(run),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound);
            None
        }
    }
}

/// No file is there that no run knows.
async fn nothing_leaks(stage: &Stage, when: &str) {
    let stored: Vec<(AccountId, RunId)> = stage.artifacts.runs().await.unwrap().try_collect().await.unwrap();
    for (account, run) in stored {
        let known = stage.stores.runs.get(account, run).await;
        assert!(known.is_ok(), "{when}: files of run {run} that nobody knows");
    }
}

#[tokio::test]
async fn every_kind_goes_at_its_time_and_accounts_have_their_own() {
    let stage = Stage::new();
    let usual = stage.account("usual", OwnRetention::default()).await;
    let own = OwnRetention {
        runs: Some(Days::FOREVER),
        artifacts: Some(days(5)),
        ..OwnRetention::default()
    };
    let own = stage.account("own", own).await;
    let (theirs, ours) = (stage.full(usual).await, stage.full(own).await);
    let (live, _) = stage.working(usual, b"still here").await;
    let all = [
        "manifest.json",
        "manifest.json",
        "step-1.000000000000-000000000015.log.zst",
        "step-1.debug.log",
    ];
    assert_eq!(stage.files(&theirs).await, all);

    // On the day itself nothing goes, a moment later it does.
    stage.clock.advance(5 * DAY);
    assert_eq!(sweep(&stage).await, 0);
    stage.clock.advance(DAY / 24);
    assert_eq!(sweep(&stage).await, 1, "artifacts of the account that says so");
    assert_eq!(stage.files(&ours).await, all[2..]);
    let seen = get(&stage, &ours).await.unwrap();
    assert_eq!(seen.artifacts_expired_at, Some(stage.clock.now()));
    assert_eq!(seen.logs_expired_at, None);

    stage.clock.advance(15 * DAY);
    assert_eq!(sweep(&stage).await, 1, "artifacts of the others");
    assert_eq!(stage.files(&theirs).await, all[2..]);

    stage.clock.advance(30 * DAY);
    let log = whole_log(&stage.eye(), &stage.stores, &theirs).await.unwrap();
    assert_eq!(log, b"a line\nanother\n");
    assert_eq!(sweep(&stage).await, 2, "logs of both");
    for run in [&theirs, &ours] {
        assert_eq!(stage.files(run).await, [""; 0]);
        assert_eq!(whole_log(&stage.eye(), &stage.stores, run).await.unwrap(), b"");
        assert_eq!(get(&stage, run).await.unwrap().logs_expired_at, Some(stage.clock.now()));
        let step = stage
            .stores
            .runs
            .steps(run.new.account, run.id)
            .await
            .unwrap()
            .remove(0);
        assert_eq!(step.log_bytes, 15, "the length stays");
    }

    stage.clock.advance(50 * DAY);
    assert_eq!(
        sweep(&stage).await,
        1,
        "the run of the account that does not keep it for ever"
    );
    assert_eq!(get(&stage, &theirs).await, None);
    assert!(get(&stage, &ours).await.is_some());
    stage.clock.advance(1_000 * DAY);
    assert_eq!(sweep(&stage).await, 0);
    assert!(get(&stage, &ours).await.is_some());
    let log = whole_log(&stage.eye(), &stage.stores, &live).await.unwrap();
    assert_eq!(log, b"still here", "what executes is not touched, however old it is");
}

#[tokio::test]
async fn nothing_leaks_wherever_retention_dies() {
    for moment in [Moment::Before, Moment::After] {
        for number in 0.. {
            let stage = Stage::new();
            let mut runs = Vec::new();
            // The last of a month that goes as a whole, two of one that does not, and one whose logs go.
            for span in [0, 20, 1, 70] {
                stage.clock.advance(span * DAY);
                runs.push(stage.full(1).await);
            }
            stage.clock.set(BEGIN.plus(123 * DAY));
            let died = stage.dies_at(number, moment, stage.sweep(&CHORES, Mode::Act)).await;
            let when = format!("after the {number}th call, {moment:?}");
            nothing_leaks(&stage, &when).await;
            let names = CHORES.map(str::to_owned);
            for report in cleanup::once(&stage.eye(), &names, Mode::Act).await.unwrap() {
                assert!(report.error.is_none(), "{when}: {report:?}");
            }
            nothing_leaks(&stage, &when).await;
            for run in &runs[..3] {
                assert_eq!(get(&stage, run).await, None, "{when}");
                assert_eq!(stage.files(run).await, [""; 0], "{when}");
            }
            let last = get(&stage, &runs[3]).await.unwrap();
            assert!(last.logs_expired_at.is_none(), "{when}");
            assert!(last.artifacts_expired_at.is_some(), "{when}");
            assert_eq!(stage.files(&runs[3]).await.len(), 2, "{when}");
            if !died {
                assert!(number > 15, "only {number} calls");
                break;
            }
        }
    }
}

/// A month that nobody keeps a run of goes at a stroke, unless a run of it executes or ended late.
async fn months(stage: &Stage) {
    stage.sweep(&["make_months"], Mode::Act).await;
    let (first, second) = (stage.full(1).await, stage.full(2).await);
    stage.clock.advance(30 * DAY);
    let (late, mut batch) = stage.working(1, b"takes long").await;
    let beside = stage.full(1).await;
    stage.clock.advance(30 * DAY);
    let other = stage.full(1).await;
    stage.clock.advance(30 * DAY);
    batch.at = stage.clock.now();
    (batch.number, batch.event) = (batch.number + 1, Some(RunEvent::Succeeded));
    batch.logs.clear();
    batch.steps = vec![step(StepStatus::Success, batch.at)];
    stage.stores.runs.report(&fence(late.id), &batch).await.unwrap();
    stage.clock.advance(60 * DAY);

    let month = |run: &Run| Month::of_run(run.id).unwrap();
    assert_eq!(month(&late), month(&beside));
    let before = [month(&first), month(&late), month(&other)];
    assert_eq!(stage.stores.history.months().await.unwrap(), before);
    stage.heard.take();
    let reports = stage.sweep(&["expire_runs"], Mode::Act).await;
    assert!(reports[0].error.is_none(), "{reports:?}");
    assert_eq!(reports[0].swept.done, 3);
    let drops = stage.heard.take();
    let drops = drops.iter().filter(|call| **call == "history.drop_month").count();
    assert_eq!(drops, 2, "the first month, and the one in which a run ended late");
    assert_eq!(stage.stores.history.months().await.unwrap(), before[1..]);
    for run in [&first, &second, &beside] {
        assert_eq!(get(stage, run).await, None);
        assert_eq!(stage.files(run).await, [""; 0]);
    }
    let kept = EndedFilter::ALL;
    let left = stage.stores.history.ended(&kept, 10).await.unwrap();
    assert_eq!(left, [(late.new.account, late.id), (other.new.account, other.id)]);
    let log = whole_log(&stage.eye(), &stage.stores, &late).await.unwrap();
    assert_eq!(log, b"takes long");
    nothing_leaks(stage, "in the end").await;
}

#[tokio::test]
async fn a_month_goes_at_a_stroke() {
    months(&Stage::new()).await;
}

async fn migrated(url: &str) -> impl Storage {
    let storage = SqlStorage::connect(url, Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    storage
}

#[tokio::test]
async fn a_month_goes_at_a_stroke_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/test.db", folder.path().display());
    months(&Stage::told(migrated(&url).await, |_| {})).await;
}

#[tokio::test]
async fn a_month_goes_at_a_stroke_on_postgres() {
    let database = tokio::task::spawn_blocking(postgres::database).await.unwrap();
    let stage = Stage::told(migrated(&database.url()).await, |_| {});
    months(&stage).await;
    let parts =
        "SELECT relname FROM pg_class WHERE relname IN ('runs_202311', 'journal_202311', 'runs_202312') ORDER BY 1";
    let parts = tokio::task::spawn_blocking(move || database.ask(parts)).await.unwrap();
    assert_eq!(parts.trim(), "runs_202312", "the parts of the month are dropped");
}

#[tokio::test]
async fn sessions_that_ended_are_forgotten_and_open_ones_are_not() {
    let stage = Stage::new();
    let open = |user| NewSession {
        account: AccountId::new(1),
        project: dbtcloud_core::id::ProjectId::new(1),
        user: dbtcloud_core::id::UserId::new(user),
    };
    let sessions = &stage.stores.sessions;
    for user in 1..=3 {
        let session = sessions.open(open(user), BEGIN).await.unwrap();
        if user == 3 {
            continue;
        }
        let close = SessionChange {
            from: session.status,
            event: SessionEvent::Close,
            generation: session.generation,
            address: None,
            active: false,
        };
        let ended_at = BEGIN.plus(5 * DAY * u32::try_from(user).unwrap());
        sessions
            .change(session.account, session.id, &close, ended_at)
            .await
            .unwrap();
    }
    stage.clock.set(BEGIN.plus(16 * DAY));
    let swept = stage.sweep(&["expire_sessions"], Mode::Act).await.remove(0).swept;
    assert_eq!((swept.examined, swept.done), (2, 1));
    let left = sessions
        .scan(&SessionStatus::ALL, dbtcloud_core::id::SessionId::new(0), 10)
        .await
        .unwrap();
    let left: Vec<_> = left.iter().map(|session| session.user.get()).collect();
    assert_eq!(left, [2, 3]);
}

#[tokio::test]
async fn audit_entries_go_at_their_time_and_accounts_have_their_own() {
    let stage = Stage::new();
    let usual = stage.account("usual", OwnRetention::default()).await;
    let own = OwnRetention {
        audit: Some(Days::FOREVER),
        ..OwnRetention::default()
    };
    let own = stage.account("own", own).await;
    let audit = &stage.stores.audit;
    let entry = async |account: i64| Entry {
        account: AccountId::new(account),
        at: stage.clock.now(),
        by: Actor::Operator,
        action: Action::Triggered,
        subject: Subject::Run,
        id: 1,
        name: "a test".to_owned(),
        project: None,
    };
    let left = async |account| {
        let entries = audit.entries(AccountId::new(account), None, None, Page::default());
        entries.await.unwrap().total
    };
    for account in [usual, usual, own] {
        audit.note(&entry(account).await).await.unwrap();
    }
    stage.clock.advance(150 * DAY);
    audit.note(&entry(usual).await).await.unwrap();
    let before = (left(usual).await, left(own).await);
    stage.clock.advance(51 * DAY);
    let told = stage.sweep(&["expire_audit"], Mode::DryRun).await.remove(0).swept;
    assert_eq!((left(usual).await, left(own).await), before);
    let swept = stage.sweep(&["expire_audit"], Mode::Act).await.remove(0).swept;
    assert_eq!((told.done, swept.done), (before.0 - 1, before.0 - 1));
    assert_eq!((left(usual).await, left(own).await), (1, before.1));
}
