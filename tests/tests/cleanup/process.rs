//! Processes that only clean up are killed in the middle of moving a log, on both sides of the commit that lets it out of
//! the database; others go on, and so does `dbtcloud cleanup --once` beside the servers.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use dbtcloud_contract::wait::until;
use dbtcloud_tests::fake;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres::{self, Database};
use dbtcloud_tests::server::{self, Server};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What the one that goes on may say: an agent's last report may come while nobody serves it.
const EXPECTED: [&str; 1] = ["agent request failed"];

struct Stage {
    installation: Installation,
    database: Database,
    runs: Vec<i64>,
    _keys: tempfile::TempDir,
}

impl Stage {
    /// An installation whose runs have ended, with their logs in the database: nobody has cleaned up yet.
    async fn new(runs: usize) -> Self {
        let (database, keys) = (postgres::database(), tempfile::tempdir().unwrap());
        let (url, key) = (database.url(), server::key(keys.path()));
        let mut installation = Installation::with(&["--database-url", &url, "--key-file", &key, "--migrate"]);
        installation.environment = vec![
            ("DBTCLOUD_ROLE", "gateway,app,scheduler".to_owned()),
            ("DBTCLOUD_DRAIN_SECONDS", "0".to_owned()),
        ];
        installation.expected = EXPECTED.to_vec();
        fake::install(installation.path());
        installation.start().await;
        let repository = fake::repository(&installation.path().join("origin"));
        let job = installation.job(&repository, &["dbt build"]).await;
        let api = installation.api().clone();
        let mut ended = Vec::new();
        for _ in 0..runs {
            let run = api.ended(api.trigger(job).await, LIMIT).await;
            assert_eq!(run["status"], json!(10), "{run:#}");
            ended.push(run["id"].as_i64().unwrap());
        }
        Self {
            installation,
            database,
            runs: ended,
            _keys: keys,
        }
    }

    fn chunks(&self) -> String {
        let counted = self.database.ask("SELECT count(*) FROM log_chunks");
        counted.trim().to_owned()
    }

    /// The log of every run is whole, wherever it is.
    async fn whole(&self, when: &str) {
        for run in &self.runs {
            let seen = self.installation.api().run(*run).await.unwrap();
            let log = seen["run_steps"][3]["logs"].as_str().unwrap_or_default();
            assert!(fake::is_whole(log), "{when}: log of run {run}: {log}");
        }
    }

    /// What time alone would do: leases of the dead run out.
    fn let_time_pass(&self) {
        self.database
            .ask("UPDATE leases SET held_until = 1 WHERE held_until IS NOT NULL");
    }

    /// A process that only cleans up, which dies at this place.
    fn dies_at(&mut self, point: &str, number: usize) {
        self.let_time_pass();
        let of_servers = self.installation.environment.clone();
        self.installation.environment = vec![("DBTCLOUD_FAILPOINT", point.to_owned())];
        let mut cleanup = Server::new(&self.installation, "cleanup", number);
        cleanup.spawn(&self.installation);
        self.installation.environment = of_servers;
        let began = Instant::now();
        let ended = loop {
            if let Some(ended) = cleanup.ended() {
                break ended;
            }
            assert!(began.elapsed() < LIMIT, "{point} was not reached");
            std::thread::sleep(LOOK_AGAIN);
        };
        assert_eq!(ended.signal(), Some(9), "{point}: {ended}");
    }

    fn once(&self) -> Value {
        let output = self
            .installation
            .command("cleanup")
            .args(["--once", "--json", "--chore", "flush_logs"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        told["chores"][0].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleanup_is_killed_in_the_middle_and_another_goes_on() {
    let mut stage = Stage::new(2).await;
    let before = stage.chunks();
    assert_ne!(before, "0");
    stage.dies_at("sql.logs.moved.before_commit", 1);
    assert_eq!(stage.chunks(), before, "nothing is dropped before it is written down");
    stage.whole("killed before the commit").await;
    stage.dies_at("sql.logs.moved.after_commit", 2);
    assert_ne!(stage.chunks(), before);
    stage.whole("killed after the commit").await;

    // A command does not ask for the lease of the dead, and works beside servers.
    let told = stage.once();
    assert_eq!(told["error"], Value::Null);
    assert!(told["done"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(stage.chunks(), "0");
    stage.whole("moved").await;
    assert_eq!(stage.once()["done"], json!(0));
    stage.installation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_cleanups_one_is_killed_and_the_other_takes_over() {
    let mut stage = Stage::new(2).await;
    stage.dies_at("sql.logs.moved.before_commit", 1);
    stage.let_time_pass();
    let mut others = [2, 3].map(|number| Server::new(&stage.installation, "cleanup", number));
    for other in &mut others {
        other.spawn(&stage.installation);
    }
    until(LIMIT, || async {
        match stage.chunks().as_str() {
            "0" => Ok(()),
            left => Err(left.to_owned()),
        }
    })
    .await;
    stage.whole("moved by others").await;
    for other in &mut others {
        other.stop().await;
        stage.installation.check_log(&other.log);
    }
    stage.installation.stop().await;
}
