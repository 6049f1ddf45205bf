//! A database of schema 1 with everything in it, brought to the newest from every schema on the way.

use dbtcloud_core::ErrorKind;
use dbtcloud_core::catalog::Kind;
use dbtcloud_core::id::{AccountId, JobId, RunId, SessionId};
use dbtcloud_core::ports::{Catalog, Fence, Holder, Journal, Logs, RunFilter, Runs, Schedules, Sessions};
use dbtcloud_core::run::{Admission, CauseCategory, RunEvent, RunStatus, StepStatus};
use dbtcloud_core::{Page, Timestamp};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::{postgres, released};

use crate::subjects::{ACCOUNT, batch, new_run, owner, sqlite_url};

/// After everything that the rows tell of; leases have run out.
const NOW: Timestamp = Timestamp::from_micros(1_795_600_000_000_000);
/// The run that executes, and one that waits for it.
const LIVE: RunId = RunId::new(4);
const WAITS: RunId = RunId::new(5);

/// Tables and columns of schema 1, with a query each that tells all rows as texts.
async fn tables(url: &str) -> Vec<(String, String)> {
    let (columns, quote) = if url.starts_with("sqlite") {
        (
            "SELECT t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c \
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' ORDER BY t.name, c.cid",
            "quote",
        )
    } else {
        (
            "SELECT table_name || '.' || column_name FROM information_schema.columns \
             WHERE table_schema = current_schema() ORDER BY table_name, ordinal_position",
            "quote_nullable",
        )
    };
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for line in released::ask(url, columns).await {
        let (table, column) = line.split_once('.').unwrap();
        let told = format!("{quote}({column})");
        match tables.last_mut() {
            Some((last, columns)) if last == table => columns.push(told),
            _ => tables.push((table.to_owned(), vec![told])),
        }
    }
    let query = |(table, columns): (String, Vec<String>)| {
        let all = columns.join(" || ' ' || ");
        (
            table.clone(),
            format!("SELECT {all} AS told FROM {table} ORDER BY told"),
        )
    };
    tables.into_iter().map(query).collect()
}

async fn rows(url: &str, tables: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    for (table, query) in tables.iter().filter(|(table, _)| table != "schema_migrations") {
        rows.push((table.clone(), released::ask(url, query).await));
    }
    rows
}

async fn upgrades(url: &str, from: u32) {
    released::load(url, from).await;
    let tables = tables(url).await;
    let before = rows(url, &tables).await;
    let count = |name: &str| before.iter().find(|(table, _)| table == name).unwrap().1.len();
    let counts = [
        "runs",
        "run_queue",
        "run_steps",
        "log_chunks",
        "sessions",
        "variables",
        "jobs",
    ]
    .map(count);
    assert_eq!(counts, [6, 2, 16, 16, 1, 2, 4]);
    let storage = SqlStorage::connect(url, Options::new()).await.unwrap();
    assert_eq!(storage.schema_version().await.unwrap(), from);
    if from < SqlStorage::SCHEMA_VERSION {
        let refused = storage.check().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(refused.to_string().contains("run `dbtcloud migrate`"), "{refused}");
    }
    storage.migrate().await.unwrap();
    storage.check().await.unwrap();
    assert_eq!(
        rows(url, &tables).await,
        before,
        "from schema {from}: something changed"
    );

    reads(&storage).await;
    goes_on(&storage, url).await;
}

/// Everything is still there for whoever asks as ever.
async fn reads(storage: &SqlStorage) {
    let mut kinds = 0;
    for kind in Kind::ALL {
        kinds += usize::from(!Catalog::scan(storage, kind, 0, 100).await.unwrap().is_empty());
    }
    assert_eq!(kinds, 10, "kinds of records");
    let runs = Runs::list(storage, ACCOUNT, &RunFilter::default(), Page::default())
        .await
        .unwrap();
    let mut seen: Vec<_> = runs.items.iter().map(|run| (run.id.get(), run.status)).collect();
    seen.sort_by_key(|(id, _)| *id);
    use RunStatus::{Cancelled, Error, Queued, Running, Success};
    assert_eq!(
        seen,
        [
            (1, Success),
            (2, Error),
            (3, Success),
            (4, Running),
            (5, Queued),
            (6, Cancelled)
        ]
    );
    let run = Runs::get(storage, ACCOUNT, RunId::new(1)).await.unwrap();
    assert_eq!(run.new.spec.commands, ["dbt build"]);
    assert_eq!(run.new.trigger.category, CauseCategory::Api);
    let steps = storage.steps(ACCOUNT, run.id).await.unwrap();
    assert_eq!(steps.len(), 4);
    assert!(steps.iter().all(|step| step.state.status == StepStatus::Success));
    let log = storage.read(ACCOUNT, run.id, 4, 0, 10_000).await.unwrap();
    let text = String::from_utf8(log.bytes.to_vec()).unwrap();
    assert!(text.contains("counted 0\n") && text.contains("counted 4\n"), "{text}");
    let events = storage.of_run(ACCOUNT, run.id, 0, 1_000).await.unwrap();
    assert!(events.len() > 10, "{}", events.len());
    assert!(events.iter().map(|event| event.sequence).eq(1..=events.len() as u64));
    let hand = storage.of(&[JobId::new(4)]).await.unwrap();
    assert!(hand[0].next_at.is_some(), "{hand:?}");
    Sessions::get(storage, AccountId::new(1), SessionId::new(1))
        .await
        .unwrap();
}

/// The run that was live is taken over, its agent reports its end, and the one behind it starts. New runs are new.
async fn goes_on(storage: &SqlStorage, url: &str) {
    let until = Timestamp::from_micros(NOW.as_micros() + 60_000_000);
    let taken = storage.reclaim(&owner("later"), NOW, until, 10).await.unwrap();
    assert_eq!(taken.iter().map(|one| one.run.id).collect::<Vec<_>>(), [LIVE]);
    assert_eq!(taken[0].run.attempt, 1);
    let blocked = [Admission {
        run: WAITS,
        slot: Some(1),
    }];
    assert!(
        storage
            .claim(&owner("later"), &blocked, NOW, until)
            .await
            .unwrap()
            .is_empty()
    );

    let numbers = released::ask(url, "SELECT CAST(batch_number AS TEXT) FROM runs WHERE id = 4").await;
    let mut last = batch(numbers[0].parse::<u64>().unwrap() + 1);
    (last.at, last.event) = (NOW, Some(RunEvent::Succeeded));
    let agent = Fence::issue(LIVE, Holder::Agent { attempt: 1 });
    storage.report(&agent, &last).await.unwrap();
    assert_eq!(
        Runs::get(storage, ACCOUNT, LIVE).await.unwrap().status,
        RunStatus::Success
    );
    let claimed = storage.claim(&owner("later"), &blocked, NOW, until).await.unwrap();
    assert_eq!(claimed[0].run.id, WAITS);

    // An instant that had a run has one for good.
    let mut again = new_run(1);
    (again.scheduled_for, again.trigger.category) = (
        Some(Timestamp::from_micros(1_795_500_000_000_000)),
        CauseCategory::Scheduled,
    );
    assert_eq!(storage.enqueue(&again, NOW).await.unwrap().into_run().id, RunId::new(3));
    let fresh = storage.enqueue(&new_run(1), NOW).await.unwrap().into_run();
    assert_eq!(fresh.id.get() / 100_000_000, 202_611, "{}", fresh.id);
    let newest = Runs::list(storage, ACCOUNT, &RunFilter::default(), Page::default())
        .await
        .unwrap();
    assert_eq!((newest.items.last().unwrap().id, newest.total), (fresh.id, 7));
}

#[tokio::test]
async fn nothing_is_lost_between_schema_1_and_the_newest_on_sqlite() {
    for from in 1..=SqlStorage::SCHEMA_VERSION {
        let home = tempfile::tempdir().unwrap();
        let url = sqlite_url(home.path());
        // A new file.
        SqlStorage::connect(&url, Options::new()).await.unwrap().close().await;
        upgrades(&url, from).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_between_schema_1_and_the_newest_on_postgres() {
    for from in 1..=SqlStorage::SCHEMA_VERSION {
        let home = tokio::task::spawn_blocking(postgres::schema).await.unwrap();
        upgrades(&home.url(), from).await;
    }
}
