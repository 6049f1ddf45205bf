//! From a backup that was made while it worked, an installation comes back with every byte of what had ended, and goes
//! on.

use dbtcloud_tests::{postgres, s3};
use serde_json::json;

use crate::stage::{Base, LIMIT, Stage, refused, said};

async fn comes_back(base: Base, to: impl Fn(&Stage) -> String) {
    let mut stage = Stage::new(base).await;
    let flushed = stage.run_quick().await;
    stage.flush(flushed).await;
    let unflushed = stage.run_quick().await;
    let live = stage.run_slow().await;
    let moved = |run: i64| {
        format!("SELECT CAST(count(*) AS TEXT) FROM run_steps WHERE run_id = {run} AND log_parts IS NOT NULL")
    };
    assert_ne!(stage.ask(&moved(flushed)).await, ["0"]);
    assert_eq!(stage.ask(&moved(unflushed)).await, ["0"]);

    let to = to(&stage);
    let told = stage.backup(&to);
    assert!(told.contains("is whole"), "{told}");
    assert!(told.contains("the key file is not in the backup"), "{told}");
    said(&stage.verify(&to));
    let before = stage.told(&[flushed, unflushed]).await;
    let after_it = stage.run_quick().await;
    let error = refused(&stage.command("restore", &["--from", &to]).output().unwrap());
    assert!(
        error.contains("another dbtcloud") || error.contains("a server works") || error.contains("already"),
        "{error}"
    );

    stage.lose();
    let told = said(&stage.command("restore", &["--from", &to]).output().unwrap());
    assert!(told.contains("1 runs were at work"), "{told}");
    let error = refused(&stage.command("restore", &["--from", &to]).output().unwrap());
    assert!(error.contains("there is an installation already"), "{error}");
    stage.installation.start().await;
    assert_eq!(stage.told(&[flushed, unflushed]).await, before);

    // The run whose agent is gone ends, and says so.
    let api = stage.installation.api().clone();
    let ended = api.ended(live, LIMIT).await;
    assert_eq!(ended["status"], json!(20), "{ended:#}");
    assert!(
        ended["status_message"].as_str().is_some_and(|why| !why.is_empty()),
        "{ended:#}"
    );
    // What came after the backup is not there, and its number is not given again.
    assert!(api.run(after_it).await.is_none());
    std::fs::write(&stage.enough, "").unwrap();
    let next = stage.run_quick().await;
    assert!(next > after_it, "{next} is not behind {after_it}");
    let again = api.trigger(stage.slow).await;
    assert_eq!(api.ended(again, LIMIT).await["status"], json!(10));
    stage.installation.stop().await;
}

#[tokio::test]
async fn embedded() {
    comes_back(Base::Embedded, |stage| {
        stage.home.path().join("backup").display().to_string()
    })
    .await;
}

#[tokio::test]
async fn postgres_and_a_bucket() {
    let elsewhere = s3::bucket();
    let to = elsewhere.url();
    comes_back(Base::Shared(postgres::database(), s3::bucket()), |_| to.clone()).await;
}
