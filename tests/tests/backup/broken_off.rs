//! Backups and restores that are killed or find no room: they say so, are not taken for whole, and go on.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;

use dbtcloud_contract::wait::until;
use dbtcloud_tests::disk::SmallDisk;
use dbtcloud_tests::{postgres, s3};

use crate::stage::{Base, LIMIT, Stage, refused, said};

/// Makes everything look as if it had happened two hours ago.
async fn age(stage: &Stage) {
    stage
        .ask("UPDATE runs SET finished_at = finished_at - 7200000000 WHERE finished_at IS NOT NULL RETURNING 'x'")
        .await;
}

async fn is_killed(stage: &Stage, name: &str, arguments: &[&str], place: &str) {
    let output = stage
        .command(name, arguments)
        .env("DBTCLOUD_FAILPOINT", place)
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(9), "{place} is not reached: {output:?}");
}

async fn goes_on(base: Base, to: String) {
    let mut stage = Stage::new(base).await;
    let run = stage.run_quick().await;
    stage.flush(run).await;
    let second = stage.run_quick().await;
    age(&stage).await;
    let before = stage.told(&[run, second]).await;
    let (to, from) = (["--to", &to], ["--from", &to]);
    for place in [
        "sql.snapshot_page.after_commit:5",
        "backup.object.after_put:1",
        "backup.object.after_put:2",
        "backup.manifest.before_put",
    ] {
        is_killed(&stage, "backup", &to, place).await;
        let told = refused(&stage.verify(from[1]));
        assert!(told.contains("broke off and is not whole; run it again"), "{told}");
    }
    let told = said(&stage.command("backup", &to).output().unwrap());
    assert!(
        !told.contains(", 0 of them taken"),
        "what is there already stays: {told}"
    );
    let told = refused(&stage.command("backup", &to).output().unwrap());
    assert!(told.contains("has a whole backup; choose another place"), "{told}");
    said(&stage.verify(from[1]));

    stage.lose();
    for place in [
        "restore.object.after_put:2",
        "sql.copy_page.after_commit:3",
        "sql.end_copy.before_commit",
    ] {
        is_killed(&stage, "restore", &from, place).await;
        // Nobody serves half of an installation.
        stage.installation.spawn();
        until(LIMIT, || {
            let ended = stage.installation.ended();
            async move { ended.map(drop).ok_or("serves") }
        })
        .await;
        let log = std::fs::read_to_string(stage.installation.log()).unwrap();
        assert!(
            log.contains("is not whole; run the same command again to its end"),
            "{log}"
        );
        std::fs::remove_file(stage.installation.log()).unwrap();
    }
    said(&stage.command("restore", &from).output().unwrap());
    stage.installation.start().await;
    assert_eq!(stage.told(&[run, second]).await, before);
    stage.run_quick().await;
    stage.installation.stop().await;
}

#[tokio::test]
async fn what_was_killed_goes_on() {
    let home = tempfile::tempdir().unwrap();
    goes_on(Base::Embedded, home.path().join("backup").display().to_string()).await;
}

#[tokio::test]
async fn what_was_killed_goes_on_in_a_bucket() {
    let elsewhere = s3::bucket();
    goes_on(Base::Shared(postgres::database(), s3::bucket()), elsewhere.url()).await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_an_earlier_backup_spares_room() {
    let mut stage = Stage::new(Base::Embedded).await;
    let run = stage.run_quick().await;
    stage.flush(run).await;
    age(&stage).await;
    let at = |name: &str| stage.home.path().join(name).display().to_string();
    let (small, first, second) = (at("small"), at("first"), at("second"));
    {
        let _disk = SmallDisk::mount(small.as_ref(), 1);
        std::fs::write(format!("{small}/lost+found"), "").unwrap();
        let told = refused(&stage.command("backup", &["--to", &small]).output().unwrap());
        assert!(
            told.contains("is not empty, and has no backup that broke off"),
            "{told}"
        );
        std::fs::remove_file(format!("{small}/lost+found")).unwrap();
        // The database does not fit; it is the first thing that is made.
        std::fs::write(format!("{small}/.scratch"), "").unwrap();
        std::fs::remove_file(format!("{small}/.scratch")).unwrap();
        stage.ask(&format!(
            "INSERT INTO log_chunks SELECT {run}, 1000 + value, 0, 65536, zeroblob(65536) \
             FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 32) SELECT value FROM n) \
             RETURNING 'x'"
        )).await;
        let output = stage.command("backup", &["--to", &small]).output().unwrap();
        let told = refused(&output);
        assert!(
            told.contains(&format!("the backup in {small} is not whole; run it again: ")),
            "{told}"
        );
        assert!(told.contains("the disk is full; make room on it"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        stage
            .ask("DELETE FROM log_chunks WHERE step_index > 1000 RETURNING 'x'")
            .await;
    }
    said(&stage.command("backup", &["--to", &first]).output().unwrap());
    // A backup is of the past before it can be built upon.
    age(&stage).await;
    let later = stage.run_quick().await;
    let told = said(
        &stage
            .command("backup", &["--to", &second, "--since", &first])
            .output()
            .unwrap(),
    );
    assert!(!told.contains(", 0 of them taken"), "{told}");
    let links = |of: &str, run: i64| {
        let account = stage.installation.api().account;
        let file = format!("{of}/objects/{account}/{run}/steps/4/run_results.json");
        std::fs::metadata(&file)
            .unwrap_or_else(|error| panic!("{file}: {error}"))
            .nlink()
    };
    assert_eq!(
        (links(&first, run), links(&second, run), links(&second, later)),
        (2, 2, 1)
    );
    // Each is whole by itself.
    std::fs::remove_dir_all(&first).unwrap();
    said(&stage.verify(&second));
    stage.installation.stop().await;
}
