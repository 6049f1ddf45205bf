//! A backup is of no engine, no store and no version of its own.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dbtcloud_contract::wait::until;
use dbtcloud_server::backup::{Manifest, Sum};
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::api::Api;
use dbtcloud_tests::s3::ADMIN;
use dbtcloud_tests::{postgres, s3};
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{ConnectOptions as _, Row as _};

use crate::stage::{Base, LIMIT, Stage, refused, said, told};

/// From a file and a directory to PostgreSQL and a bucket, and back.
#[tokio::test]
async fn from_one_engine_to_the_other_and_back() {
    let mut here = Stage::new(Base::Embedded).await;
    let run = here.run_quick().await;
    here.flush(run).await;
    let second = here.run_quick().await;
    let before = here.told(&[run, second]).await;
    let (at, back) = (here.home.path().join("here"), here.home.path().join("there"));
    let (at, back) = (at.display().to_string(), back.display().to_string());
    here.backup(&at);
    let api = here.installation.api().clone();

    let mut there = Stage::new(Base::Shared(postgres::database(), s3::bucket())).await;
    there.lose();
    std::fs::copy(here.home.path().join("key"), there.home.path().join("key")).unwrap();
    said(&there.command("restore", &["--from", &at]).output().unwrap());
    there.installation.start().await;
    let there_api = Api::new(&there.installation.url(), api.token(), api.account);
    assert_eq!(told(&there_api, &[run, second]).await, before);
    let third = there_api.trigger(here.quick).await;
    assert_eq!(there_api.ended(third, LIMIT).await["status"], json!(10));
    let with_third = told(&there_api, &[run, second, third]).await;
    there.backup(&back);
    there.installation.stop().await;

    here.lose();
    said(&here.command("restore", &["--from", &back]).output().unwrap());
    // It is done hours after the backup was made: what was due meanwhile is due once.
    let path = format!("v2/accounts/{{a}}/jobs/{}/", here.quick);
    here.installation.start().await;
    assert_eq!(here.told(&[run, second, third]).await, with_third);
    let mut job = api.get(&path).await;
    job["triggers"]["schedule"] = json!(true);
    job["schedule"] = json!({"cron": "*/5 * * * *", "date": {"type": "custom_cron", "cron": "*/5 * * * *"}});
    api.post(&path, &job).await;
    let hours = here.home.path().join("hours").display().to_string();
    here.backup(&hours);
    here.lose();
    said(&here.command("restore", &["--from", &hours]).output().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let due = (now - Duration::from_secs(3 * 3600)).as_micros();
    here.ask(&format!(
        "UPDATE schedules SET next_at = {due} WHERE next_at IS NOT NULL RETURNING 'x'"
    ))
    .await;
    here.installation.start().await;
    let stage = &here;
    until(LIMIT, || async move {
        let ahead = stage
            .ask(&format!(
                "SELECT CAST(next_at > {} AS TEXT) FROM schedules WHERE next_at IS NOT NULL",
                now.as_micros()
            ))
            .await;
        if ahead == ["1"] { Ok(()) } else { Err(ahead) }
    })
    .await;
    let fired = "SELECT CAST(count(*) AS TEXT) FROM runs WHERE scheduled_for IS NOT NULL";
    let fired = here.ask(fired).await;
    assert!(
        fired == ["1"] || fired == ["2"],
        "one for what was missed, and one if five minutes came round: {fired:?}"
    );
    here.installation.stop().await;
}

/// What the release before would have made: a database of an older schema.
async fn made_older(backup: &Path) {
    let (file, new) = (backup.join("database.db"), backup.join("new.db"));
    std::fs::rename(&file, &new).unwrap();
    let url = format!("sqlite://{}", file.display());
    let storage = SqlStorage::connect(&url, Default::default()).await.unwrap();
    let schema = SqlStorage::SCHEMA_VERSION - 1;
    storage.migrate_to(schema).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&file)
        .foreign_keys(false);
    let mut connection = options.connect().await.unwrap();
    let attach = format!("ATTACH '{}' AS new", new.display());
    sqlx::query(sqlx::AssertSqlSafe(attach))
        .execute(&mut connection)
        .await
        .unwrap();
    let columns = "SELECT t.name, group_concat(c.name) FROM main.sqlite_schema t, pragma_table_info(t.name, 'main') c \
        WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name <> 'schema_migrations' GROUP BY t.name";
    for row in sqlx::query(columns).fetch_all(&mut connection).await.unwrap() {
        let (table, columns): (String, String) = (row.get(0), row.get(1));
        let copy =
            format!("DELETE FROM main.{table}; INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(copy))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    sqlx::Connection::close(connection).await.unwrap();
    let tables = storage.digests().await.unwrap();
    storage.close().await;
    std::fs::remove_file(&new).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let at = backup.join("manifest.json");
    let mut manifest = Manifest::from_text(&std::fs::read(&at).unwrap()).unwrap();
    manifest.schema = schema;
    manifest.database.tables = tables.into_iter().map(Into::into).collect();
    manifest.database.file = Sum {
        bytes: bytes.len() as u64,
        sha256: Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    };
    std::fs::write(&at, manifest.to_text().unwrap()).unwrap();
}

#[tokio::test]
async fn a_backup_of_an_older_schema_is_brought_up_to_date() {
    let mut stage = Stage::new(Base::Embedded).await;
    let run = stage.run_quick().await;
    stage.flush(run).await;
    let before = stage.told(&[run]).await;
    let backup = stage.home.path().join("backup");
    let from = backup.display().to_string();
    stage.backup(&from);
    made_older(&backup).await;
    said(&stage.verify(&from));
    stage.lose();
    said(&stage.command("restore", &["--from", &from]).output().unwrap());
    stage.installation.start().await;
    assert_eq!(stage.told(&[run]).await, before);
    stage.run_quick().await;
    stage.installation.stop().await;
}

/// Only the database is lost: files and agents are where they were.
fn lose_the_database(stage: &mut Stage) {
    stage.installation.kill_server();
    for name in ["dbtcloud.db", "dbtcloud.db-wal", "dbtcloud.db-shm"] {
        let _ = std::fs::remove_file(stage.installation.path().join(name));
    }
}

#[tokio::test]
async fn an_agent_that_lives_goes_on_or_is_told_to_end() {
    let mut stage = Stage::new(Base::Embedded).await;
    let ended = stage.run_quick().await;
    stage.flush(ended).await;
    let before = stage.told(&[ended]).await;
    let run = stage.run_slow().await;
    // What the agent has to say meanwhile is in its spool.
    stage.installation.kill_server();
    let from = stage.home.path().join("first").display().to_string();
    stage.backup(&from);
    stage.installation.spawn();
    lose_the_database(&mut stage);
    let told = refused(&stage.command("restore", &["--from", &from]).output().unwrap());
    assert!(
        told.contains("say --objects-in-place when these are the installation's own"),
        "{told}"
    );
    let in_place = |from: &str| {
        said(
            &stage
                .command("restore", &["--objects-in-place", "--from", from])
                .output()
                .unwrap(),
        )
    };
    in_place(&from);
    stage.installation.start().await;
    assert_eq!(stage.told(&[ended]).await, before);
    std::fs::write(&stage.enough, "").unwrap();
    let api = stage.installation.api().clone();
    let whole = api.ended(run, LIMIT).await;
    assert_eq!(whole["status"], json!(10), "{whole:#}");
    assert!(dbtcloud_tests::fake::is_whole(
        whole["run_steps"][3]["logs"].as_str().unwrap()
    ));

    // One that was heard after the backup cannot say again what was lost.
    std::fs::remove_file(&stage.enough).unwrap();
    let run = stage.run_slow().await;
    let from = stage.home.path().join("second").display().to_string();
    stage.backup(&from);
    let length = |run: &serde_json::Value| run["run_steps"][3]["logs"].as_str().map_or(0, str::len);
    let then = length(&api.run(run).await.unwrap());
    api.until(run, LIMIT, |run| length(run) > then).await;
    lose_the_database(&mut stage);
    said(
        &stage
            .command("restore", &["--objects-in-place", "--from", &from])
            .output()
            .unwrap(),
    );
    stage.installation.start().await;
    let cut = api.ended(run, LIMIT).await;
    assert_eq!(cut["status"], json!(20), "{cut:#}");
    until(LIMIT, || {
        let left = stage.installation.processes();
        async move { if left.is_empty() { Ok(()) } else { Err(left) } }
    })
    .await;
    std::fs::write(&stage.enough, "").unwrap();
    stage.run_quick().await;
    stage.installation.stop().await;
}

/// In one bucket the store itself copies what an earlier backup has.
#[tokio::test]
async fn an_earlier_backup_in_the_same_bucket_is_copied_there() {
    let elsewhere = s3::bucket();
    let mut stage = Stage::new(Base::Embedded).await;
    stage.installation.environment = elsewhere.environment(ADMIN);
    let run = stage.run_quick().await;
    stage.flush(run).await;
    let ago = "UPDATE runs SET finished_at = finished_at - 7200000000 WHERE finished_at IS NOT NULL RETURNING 'x'";
    stage.ask(ago).await;
    let url = |name: &str| elsewhere.url().replace("some/prefix", name);
    let (first, second) = (url("first"), url("second/deeper"));
    stage.backup(&first);
    // Its files are not read again: they are not there.
    let account = stage.installation.api().account;
    let objects = stage
        .installation
        .path()
        .join(format!("artifacts/{account}/{run}/steps/4/run_results.json"));
    let length = std::fs::metadata(&objects).unwrap().len();
    std::fs::write(&objects, vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
    let told = said(
        &stage
            .command("backup", &["--to", &second, "--since", &first])
            .output()
            .unwrap(),
    );
    assert!(!told.contains(", 0 of them taken"), "{told}");
    said(&stage.verify(&second));
    said(&stage.verify(&first));
    stage.installation.stop().await;
}
