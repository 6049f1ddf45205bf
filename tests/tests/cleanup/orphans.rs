//! What nobody knows any more: files of runs that are not there, volumes of what was deleted. And what only looks so.

use dbtcloud_contract::suite::executor::plain_spec;
use dbtcloud_core::ErrorKind;
use dbtcloud_core::account::User;
use dbtcloud_core::catalog::{CatalogExt, draft};
use dbtcloud_core::id::{AccountId, ProjectId, RunId, SessionId, UserId};
use dbtcloud_core::ports::{Area, Artifacts, Clock, ExecutionId, Executor, NewSession, Volume, VolumeId};
use dbtcloud_core::project::Project;
use dbtcloud_core::run::Month;
use dbtcloud_runtime::cleanup::Mode;
use futures::TryStreamExt;

use crate::stage::{BEGIN, DAY, Stage};

const ACCOUNT: AccountId = AccountId::new(1);

/// A volume of a project that is deleted now, or not.
async fn volume(stage: &Stage, deleted: bool) -> VolumeId {
    let now = stage.clock.now();
    let catalog = &stage.stores.catalog;
    let user = User {
        email: format!("{}@localhost", stage.volumes.list().await.unwrap().len()),
        first_name: "A".to_owned(),
        last_name: "B".to_owned(),
        is_admin: false,
    };
    let user = catalog.create(ACCOUNT, &user, now).await.unwrap();
    let project: Project = serde_json::from_value(serde_json::json!({"name": "Shop"})).unwrap();
    let project = catalog.create(ACCOUNT, &project, now).await.unwrap();
    if deleted {
        let gone = draft(ACCOUNT, &project.body, true, now).unwrap();
        catalog.update(project.id.get(), project.version, gone).await.unwrap();
    }
    let id = VolumeId {
        account: ACCOUNT,
        project: project.id,
        user: user.id,
    };
    stage.volumes.ensure(id).await.unwrap();
    id
}

/// Files of a run that nobody knows, and a volume of a project that is deleted.
pub async fn untidy(stage: &Stage) {
    let run = Month::of(BEGIN).run_id(99_999);
    stage.keep(1, run, Area::Step(1), "manifest.json").await;
    volume(stage, true).await;
}

async fn stored(stage: &Stage) -> Vec<(AccountId, RunId)> {
    stage.artifacts.runs().await.unwrap().try_collect().await.unwrap()
}

#[tokio::test]
async fn files_of_no_run_go_once_their_month_is_over() {
    let stage = Stage::new();
    let known = stage.full(1).await;
    let (now, later) = (Month::of(BEGIN), Month::of(BEGIN).next());
    for (run, area) in [
        (now.run_id(500), Area::Step(1)),
        (now.run_id(501), Area::Logs),
        (later.run_id(502), Area::Step(1)),
        (RunId::new(3), Area::Step(1)),
    ] {
        stage.keep(2, run, area, "file").await;
    }
    let sweep = async || stage.sweep(&["remove_objects"], Mode::Act).await.remove(0).swept;
    let young = sweep().await;
    assert_eq!(
        (young.done, young.kept["young"]),
        (1, 3),
        "only what is older than months are"
    );
    // The first of December and a week, and a minute before.
    stage.clock.set(later.start().plus(7 * DAY).minus(DAY / 1440));
    assert_eq!(sweep().await.done, 0);
    stage.clock.set(later.start().plus(7 * DAY));
    let swept = sweep().await;
    assert_eq!((swept.examined, swept.done, swept.bytes), (4, 2, 10));
    let left = [(ACCOUNT, known.id), (AccountId::new(2), later.run_id(502))];
    assert_eq!(stored(&stage).await, left);
}

#[tokio::test]
async fn the_store_of_another_database_is_left_alone() {
    let stage = Stage::new();
    stage.full(1).await;
    for number in 0..150 {
        stage
            .keep(1, Month::of(BEGIN).run_id(1_000 + number), Area::Step(1), "file")
            .await;
    }
    stage.clock.advance(60 * DAY);
    let reports = stage.sweep(&["remove_objects"], Mode::Act).await;
    let error = reports[0].error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("belong together"), "{error}");
    assert_eq!(stored(&stage).await.len(), 151, "nothing was removed");
}

#[tokio::test]
async fn volumes_of_what_was_deleted_go_after_a_week() {
    let stage = Stage::new();
    let (deleted, used, kept) = (
        volume(&stage, true).await,
        volume(&stage, true).await,
        volume(&stage, false).await,
    );
    let unknown = VolumeId {
        account: ACCOUNT,
        project: ProjectId::new(987),
        user: UserId::new(1),
    };
    stage.volumes.ensure(unknown).await.unwrap();
    let open = NewSession {
        account: used.account,
        project: used.project,
        user: used.user,
    };
    stage.stores.sessions.open(open, BEGIN).await.unwrap();
    let sweep = async || stage.sweep(&["remove_volumes"], Mode::Act).await.remove(0).swept;
    let lately = sweep().await;
    assert_eq!((lately.done, lately.kept["deleted lately"]), (0, 2));
    stage.clock.advance(7 * DAY);
    let swept = sweep().await;
    assert_eq!(swept.done, 1);
    assert_eq!(swept.kept["with an open session"], 1);
    assert_eq!(swept.kept["of an unknown project or user"], 1);
    let mut left = stage.volumes.list().await.unwrap();
    left.sort();
    let mut expected = [used, kept, unknown];
    expected.sort();
    assert_eq!(left, expected);
    assert!(!left.contains(&deleted));
}

#[tokio::test]
async fn executions_go_when_nobody_waits_for_them() {
    let stage = Stage::new();
    let (live, _) = stage.working(1, b"").await;
    let ended = stage.ended(1, b"").await;
    let session = NewSession {
        account: ACCOUNT,
        project: ProjectId::new(1),
        user: UserId::new(1),
    };
    let session = stage.stores.sessions.open(session, BEGIN).await.unwrap();
    let run = |run, attempt| ExecutionId::Run { run, attempt };
    let serving = |session, generation| ExecutionId::Session { session, generation };
    let wanted = [run(live.id, 1), serving(session.id, 1)];
    let orphans = [
        run(live.id, 0),
        run(ended.id, 1),
        run(RunId::new(12), 1),
        serving(session.id, 7),
        serving(SessionId::new(99), 1),
    ];
    for id in wanted.into_iter().chain(orphans) {
        stage.executor.start(&plain_spec(id)).await.unwrap();
    }
    let sweep = async || stage.sweep(&["remove_executions"], Mode::Act).await.remove(0).swept;
    assert_eq!((sweep().await.done, sweep().await.kept["young"]), (0, 7));
    stage.clock.advance(DAY / 24);
    assert_eq!(sweep().await.done, 5);
    let left: Vec<_> = stage.executor.list().await.unwrap();
    let mut left: Vec<_> = left.into_iter().map(|execution| execution.id).collect();
    left.sort();
    assert_eq!(left, wanted);
}
