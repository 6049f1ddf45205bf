//! Which plans PostgreSQL makes: the server itself writes down the plan of every statement (`auto_explain`), over a
//! history of months that was just loaded. What belongs to one run touches one month; nothing reads a table of
//! history or the queue from end to end, whether statistics are there or not.

use bytes::Bytes;
use dbtcloud_core::page::COUNT_LIMIT;
use dbtcloud_core::ports::{
    Consumer, Firing, History, Journal, LogChunk, Logs, Outbox, RunChange, RunFilter, RunPatch, RunSort, Runs,
    ScheduleEntry, Schedules,
};
use dbtcloud_core::run::{Admission, Limits, Month, NewRun, RunEvent, RunStatus, StepStatus, admit};
use dbtcloud_core::{Direction, Page};
use dbtcloud_sql::{Options, SqlStorage};
use dbtcloud_tests::postgres::Cluster;

use crate::subjects::{ACCOUNT, agent, at, batch, new_run, owner, step};

/// Of each month, for 20 accounts.
const ENDED: usize = 20_000;
/// That wait now, of the same accounts.
const WAITING: usize = 5_000;

/// History of this month out of one run of it, whose columns that do not matter are copied.
fn ended(month: Month) -> String {
    let (first, start) = (month.first_id().get() + 1_000, month.start().as_micros());
    format!(
        "INSERT INTO runs (id, account_id, project_id, environment_id, job_id, cause_body, spec_body, exclusive, \
            takes_slot, due_at, status, created_at, updated_at, finished_at, last_sequence) \
         SELECT {first} + i, i % 20 + 1, 1, 1, i % 500 + 1, one.cause_body, one.spec_body, TRUE, FALSE, \
            {start} + i, 'success', {start} + i, {start} + i, {start} + i, 1 \
         FROM generate_series(1, {ENDED}) AS i, (SELECT * FROM runs ORDER BY id LIMIT 1) AS one; \
         INSERT INTO journal (run_id, sequence, account_id, at, body) \
         SELECT {first} + i, 1, i % 20 + 1, {start} + i, one.body FROM generate_series(1, {ENDED}) AS i, \
            (SELECT * FROM journal ORDER BY run_id LIMIT 1) AS one; \
         INSERT INTO run_steps (run_id, step_index, name, kind, status, created_at, updated_at, log_bytes) \
         SELECT {first} + i, 1, 'dbt build', 'command', 'success', {start}, {start}, 0 \
         FROM generate_series(1, {ENDED}) AS i;"
    )
}

fn waiting(month: Month) -> String {
    let (first, due) = (month.first_id().get() + 1_000_000, at(0).as_micros());
    format!(
        "INSERT INTO runs (id, account_id, project_id, environment_id, job_id, cause_body, spec_body, exclusive, \
            takes_slot, due_at, status, created_at, updated_at, last_sequence) \
         SELECT {first} + i, i % 20 + 1, 1, 1, i + 1000, one.cause_body, one.spec_body, TRUE, FALSE, {due}, \
            'queued', {due}, {due}, 1 \
         FROM generate_series(1, {WAITING}) AS i, (SELECT * FROM runs ORDER BY id LIMIT 1) AS one; \
         INSERT INTO run_queue (run_id, account_id, job_id, exclusive, takes_slot, state, due_at, epoch, attempt) \
         SELECT id, account_id, job_id, exclusive, takes_slot, 'queued', due_at, 0, 0 FROM runs WHERE id > {first} \
            AND status = 'queued';"
    )
}

/// A scheduled run and one by hand, from their firing to their end, and everything that is read of them.
async fn everything(storage: &SqlStorage, minute: i64) {
    let now = at(60 * minute);
    let entry = ScheduleEntry {
        account: ACCOUNT,
        job: (900 + minute).into(),
        job_version: 1,
        next_at: Some(now),
    };
    storage.put(&entry, now).await.unwrap();
    assert!(!storage.due(now, 10).await.unwrap().is_empty());
    let scheduled = NewRun {
        scheduled_for: Some(now),
        trigger: dbtcloud_core::run::Trigger::new(dbtcloud_core::run::CauseCategory::Scheduled, "scheduled"),
        ..new_run(900 + minute)
    };
    let firing = Firing {
        job: entry.job,
        seen: now,
        job_version: 1,
        next: None,
        run: Some(scheduled),
    };
    storage.fire(&[firing], now).await.unwrap();
    let run = storage.enqueue(&new_run(800 + minute), now).await.unwrap().into_run();
    let snapshot = storage.queue(now, 10, None).await.unwrap();
    let mut admitted = admit(
        &snapshot,
        &Limits {
            capacity: 50,
            ..Limits::default()
        },
    )
    .admitted;
    if admitted.iter().all(|admission| admission.run != run.id) {
        admitted.push(Admission {
            run: run.id,
            slot: None,
        });
    }
    let count = admitted.len();
    let claimed = storage
        .claim(&owner("me"), &admitted, now, at(60 * minute + 30))
        .await
        .unwrap();
    assert_eq!(claimed.len(), count);
    let fences: Vec<_> = claimed.iter().map(|claimed| claimed.fence).collect();
    assert_eq!(storage.renew(&fences, at(60 * minute + 40)).await.unwrap().len(), count);
    assert_eq!(storage.reclaim(&owner("you"), now, at(1), 10).await.unwrap().len(), 0);
    let mine = claimed.iter().find(|claimed| claimed.run.id == run.id).unwrap();
    let mut report = batch(1);
    report.event = Some(RunEvent::Started);
    report.steps = vec![step(1, StepStatus::Running)];
    report.logs = vec![LogChunk {
        step: 1,
        offset: 0,
        bytes: Bytes::from_static(b"one line\n"),
    }];
    storage.report(&agent(mine), &report).await.unwrap();
    for claimed in &claimed {
        let status = storage
            .get(claimed.run.new.account, claimed.run.id)
            .await
            .unwrap()
            .status;
        let end = RunChange::new(status, RunEvent::Failed, RunPatch::message("over"), now).unwrap();
        storage.change(&claimed.fence, &end).await.unwrap();
    }
    let ids: Vec<_> = claimed.iter().map(|claimed| claimed.run.id).collect();
    assert_eq!(storage.states(&ids).await.unwrap().len(), count);
    let step = storage.steps(ACCOUNT, run.id).await.unwrap().remove(0);
    storage.step(ACCOUNT, step.id).await.unwrap();
    storage.read(ACCOUNT, run.id, 1, 0, 100).await.unwrap();
    storage.of_run(ACCOUNT, run.id, 0, 100).await.unwrap();
    storage.newest(ACCOUNT, &[7.into(), 900.into()]).await.unwrap();
    storage.queue_of(ACCOUNT, 10).await.unwrap();
    let taken = storage
        .take(Consumer::Follow, now, at(60 * minute + 30), 10)
        .await
        .unwrap();
    for delivery in taken {
        let event = delivery.event;
        storage
            .delivered(Consumer::Follow, event.run, event.sequence)
            .await
            .unwrap();
    }
    let queued = storage.enqueue(&new_run(700 + minute), now).await.unwrap().into_run();
    storage
        .request_cancel(ACCOUNT, queued.id, "not wanted", now)
        .await
        .unwrap();
}

/// Every way a list is asked for.
async fn lists(storage: &SqlStorage) {
    let plain = RunFilter {
        direction: Direction::Descending,
        ..RunFilter::default()
    };
    let filters = [
        plain.clone(),
        RunFilter {
            job: Some(7.into()),
            ..plain.clone()
        },
        RunFilter {
            environment: Some(1.into()),
            ..plain.clone()
        },
        RunFilter {
            statuses: Some(vec![RunStatus::Error]),
            ..plain.clone()
        },
        RunFilter {
            sort: RunSort::CreatedAt,
            ..plain.clone()
        },
        RunFilter {
            sort: RunSort::FinishedAt,
            ..RunFilter::default()
        },
        RunFilter {
            finished_within: Some((at(0), at(600))),
            ..plain.clone()
        },
        RunFilter {
            created_within: Some((at(0), at(600))),
            sort: RunSort::CreatedAt,
            ..plain
        },
    ];
    for filter in &filters {
        storage.list(ACCOUNT, filter, Page::new(10, 0)).await.unwrap();
    }
}

/// Pages that one statement of all above may look at; fifty runs are the most that one is about.
const PAGES_LIMIT: u64 = 2_000;

/// Plans in the server's log that read one of these tables from end to end, or look at more pages than `most`.
fn scans(log: &str, most: u64) -> Vec<String> {
    let tables = [
        "on runs_",
        "on journal_",
        "on run_steps_",
        "on log_chunks_",
        "on run_queue",
        "on schedules",
    ];
    let mut found = Vec::new();
    for plan in log.split("duration: ").filter(|plan| plan.contains("Query Text: ")) {
        let bad = |line: &&str| {
            line.contains("Seq Scan")
                && tables.iter().any(|table| line.contains(table))
                && !line.contains("(never executed)")
        };
        // The first is that of the whole plan.
        let pages = plan.split_once("Buffers: shared hit=").map_or(0, |(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u64>().unwrap_or(0)
        });
        if plan.lines().any(|line| bad(&line)) || pages > most {
            found.push(plan.to_owned());
        }
    }
    found
}

#[tokio::test]
async fn nothing_reads_a_table_from_end_to_end() {
    let mut cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let database = cluster.database();
    let storage = SqlStorage::connect(&database.url(), Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    let months = [at(-90 * 86_400), at(-60 * 86_400), at(-30 * 86_400), at(0)];
    for now in months {
        storage.prepare(now).await.unwrap();
    }
    storage.enqueue(&new_run(1), months[0]).await.unwrap();
    storage.close().await;
    database.ask(&format!(
        "ALTER DATABASE {0} SET session_preload_libraries = 'auto_explain'; \
         ALTER DATABASE {0} SET auto_explain.log_min_duration = 0; \
         ALTER DATABASE {0} SET auto_explain.log_analyze = on; \
         ALTER DATABASE {0} SET auto_explain.log_buffers = on",
        database.name()
    ));

    // Plans that were made for empty tables are kept by their connections; then a herd comes, which the server has
    // not counted; then it has.
    let storage = SqlStorage::connect(&database.url(), Options::new()).await.unwrap();
    let mut told = 0;
    for (minute, what) in (1..).zip(["empty", "full", "counted"]) {
        match what {
            "empty" => {}
            "full" => {
                for now in months {
                    database.ask(&ended(Month::of(now)));
                }
                database.ask(&waiting(Month::of(at(0))));
            }
            _ => drop(database.ask("VACUUM ANALYZE")),
        }
        let before = cluster.log().len();
        everything(&storage, minute).await;
        let after = cluster.log().len();
        lists(&storage).await;
        let log = cluster.log();
        told += log[before..].matches("Query Text: ").count();
        let mut bad = scans(&log[before..after], PAGES_LIMIT);
        // A total counts up to its limit, each row perhaps in a page of its own.
        bad.extend(scans(&log[after..], COUNT_LIMIT));
        assert!(bad.is_empty(), "{what}\n{}", bad.join("\n---\n"));
    }
    assert!(told > 300, "{told} plans in the log");
    storage.close().await;
    cluster.kill();
}

/// Totals are exact as far as it is said, and pages can be turned beyond.
#[tokio::test]
async fn totals_end_where_they_are_said_to() {
    let home = tokio::task::spawn_blocking(dbtcloud_tests::postgres::database)
        .await
        .unwrap();
    let storage = SqlStorage::connect(&home.url(), Options::new()).await.unwrap();
    storage.migrate().await.unwrap();
    storage.enqueue(&new_run(1), at(0)).await.unwrap();
    let total = |offset: u32| {
        let storage = storage.clone();
        async move {
            let page = storage
                .list(ACCOUNT, &RunFilter::default(), Page::new(100, offset))
                .await
                .unwrap();
            (page.items.len(), page.total)
        }
    };
    let more = |count: u64| {
        format!(
            "INSERT INTO runs (id, account_id, project_id, environment_id, job_id, cause_body, spec_body, exclusive, \
            takes_slot, due_at, status, created_at, updated_at, last_sequence) \
         SELECT (SELECT max(id) FROM runs) + i, 1, 1, 1, 1, one.cause_body, one.spec_body, TRUE, FALSE, 0, 'success', \
            0, 0, 1 FROM generate_series(1, {count}) AS i, (SELECT * FROM runs LIMIT 1) AS one"
        )
    };
    home.ask(&more(COUNT_LIMIT - 1));
    assert_eq!(total(0).await, (100, COUNT_LIMIT));
    assert_eq!(total(9_950).await, (50, COUNT_LIMIT));
    home.ask(&more(250));
    assert_eq!(total(0).await, (100, COUNT_LIMIT + 1));
    assert_eq!(total(10_100).await, (100, 10_201), "there are more");
    assert_eq!(total(10_200).await, (50, 10_250), "the last page tells");
    assert_eq!(total(20_000).await.0, 0);
}
