//! What servers and retention do between the two parts of a backup.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use dbtcloud_core::Timestamp;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, Artifacts, Clock, History, RunPart};
use dbtcloud_opendal::OpendalArtifacts;
use dbtcloud_server::backup::{Backup, backup};
use dbtcloud_server::config::{Given, Settings};
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::fake;

use crate::stage::{Base, Stage, said};

/// A clock by which everything takes a twentieth of its time.
struct Hurried(Instant);

#[async_trait]
impl Clock for Hurried {
    fn now(&self) -> Timestamp {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let began = i64::try_from((now - self.0.elapsed()).as_micros()).unwrap();
        Timestamp::from_micros(began).plus(self.0.elapsed() * 20)
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration / 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_and_retention_between_the_two_parts_leave_nothing_dangling() {
    let mut stage = Stage::new(Base::Embedded).await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(stage.run_quick().await);
    }
    let [forgotten, being_forgotten, discarded, lost, kept] = runs[..] else {
        panic!()
    };
    stage.flush(kept).await;
    let unflushed = stage.run_quick().await;
    let before = stage.told(&[kept, unflushed]).await;
    let account = AccountId::new(stage.installation.api().account);
    stage.installation.stop().await;

    let text = |path: std::path::PathBuf| Some(path.display().to_string());
    let given = Given {
        data_dir: text(stage.installation.path().to_owned()),
        key_file: text(stage.home.path().join("key")),
        ..Given::default()
    };
    let settings = Settings::resolve(&given, None, stage.home.path()).unwrap();
    let store = OpendalArtifacts::from_url(&settings.artifacts_url, &Default::default()).unwrap();
    let live = SqlStorage::connect(&settings.database_url, Default::default())
        .await
        .unwrap();
    let to = stage.home.path().join("backup").display().to_string();
    let what = Backup {
        to: to.clone(),
        since: None,
        scratch: None,
    };
    let mut told = Vec::new();
    let between = async || {
        let id = |run: i64| RunId::new(run);
        // A flush: what was in the database is in the store now, and only there.
        let cleaned = stage.command("cleanup", &["--once"]).output().unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        let left = format!("SELECT CAST(count(*) AS TEXT) FROM log_chunks WHERE run_id = {unflushed}");
        assert_eq!(stage.ask(&left).await, ["0"]);
        // Retention, which has come to its end, or is between its two steps.
        store.remove(account, id(forgotten), None).await.unwrap();
        assert_eq!(live.forget(&[id(forgotten)]).await.unwrap(), 1);
        store.remove(account, id(discarded), Some(Area::Logs)).await.unwrap();
        live.expire(account, id(discarded), RunPart::Logs, Hurried(Instant::now()).now())
            .await
            .unwrap();
        store.remove(account, id(being_forgotten), None).await.unwrap();
        let slower = live.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            slower.forget(&[id(being_forgotten)]).await
        });
        // And what nobody knows to be gone.
        store.remove(account, id(lost), Some(Area::Logs)).await.unwrap();
    };
    let clock = Hurried(Instant::now());
    let made = backup(&settings, &what, &clock, |line| {
        if line.starts_with("database: ") {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(between()));
        }
        told.push(line);
    });
    made.await.unwrap();
    let told = told.join("\n");
    for line in [
        format!("run {forgotten} was forgotten by retention meanwhile"),
        format!("run {being_forgotten} was forgotten by retention meanwhile"),
        format!("the log of run {discarded} was forgotten by retention meanwhile"),
        format!("objects/{account}/{lost}/logs/step-4."),
    ] {
        assert!(told.contains(&line), "{line}: {told}");
    }
    let told = said(&stage.verify(&to));
    assert!(told.contains("were missing in the artifact store already"), "{told}");

    live.close().await;
    stage.installation.spawn();
    stage.lose();
    said(&stage.command("restore", &["--from", &to]).output().unwrap());
    stage.installation.start().await;
    assert_eq!(stage.told(&[kept, unflushed]).await, before);
    let api = stage.installation.api().clone();
    assert!(api.run(forgotten).await.is_none());
    assert!(api.run(being_forgotten).await.is_none());
    let run = api.run(discarded).await.unwrap();
    let log = run["run_steps"][3]["logs"].as_str().unwrap();
    assert!(log.starts_with("[This log has expired: "), "{log}");
    let run = api.run(unflushed).await.unwrap();
    assert!(fake::is_whole(run["run_steps"][3]["logs"].as_str().unwrap()), "{run:#}");
    stage.installation.expected.push("server.log");
    stage.installation.stop().await;
}
