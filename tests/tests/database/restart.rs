//! The database restarts under a server that has runs in flight: it says so, comes back, and no loop is lost.

use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_tests::fake;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres::Cluster;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// What a server whose database is away has to say.
const AWAY: [&str; 10] = [
    "testing the connection on-release",
    "terminating connection due to",
    "not ready",
    "bells of other processes are not heard",
    "agent request failed",
    "cleanup failed",
    "database: ",
    "tick failed",
    "is tried again",
    "answered status=503",
];

struct World {
    installation: Installation,
}

impl World {
    async fn ready(&self) -> Value {
        let answer = reqwest::get(format!("{}/readyz", self.installation.url()))
            .await
            .unwrap();
        answer.json().await.unwrap()
    }

    /// Waits until `/readyz` is of this mind, and its components as well.
    async fn until_ready(&self, ready: bool) -> Value {
        until(LIMIT, || async {
            let told = self.ready().await;
            let listens = told["components"]["wakeups"] == json!("ok");
            let agreed = told["ready"] == json!(ready) && listens == ready;
            agreed.then_some(told.clone()).ok_or(told)
        })
        .await
    }

    /// The run of a job that another's end has started.
    async fn chained(&self, job: i64, count: usize) -> Value {
        let path = format!("v2/accounts/{{a}}/runs/?job_definition_id={job}");
        let runs = until(LIMIT, || async {
            let runs = self.installation.api().get(&path).await;
            let enough = runs.as_array().unwrap().len() == count;
            enough.then_some(runs.clone()).ok_or(runs)
        })
        .await;
        let run = runs
            .as_array()
            .unwrap()
            .iter()
            .max_by_key(|run| run["id"].as_i64())
            .unwrap();
        self.installation.api().ended(run["id"].as_i64().unwrap(), LIMIT).await
    }
}

fn is_whole(run: &Value) {
    assert_eq!(run["status"], json!(10), "{run:#}");
    let log = run["run_steps"][3]["logs"].as_str().unwrap_or_default();
    assert!(fake::is_whole(log), "{log}");
}

/// Does something with the cluster that blocks.
async fn off(mut cluster: Cluster, what: fn(&mut Cluster)) -> Cluster {
    let done = tokio::task::spawn_blocking(move || {
        what(&mut cluster);
        cluster
    });
    done.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_restarts_delays_and_loses_nothing() {
    let (mut cluster, database) = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::start();
        let database = cluster.database();
        (cluster, database)
    })
    .await
    .unwrap();
    let mut installation = Installation::on(&database.url(), &[]);
    installation.expected = AWAY.to_vec();
    fake::install(installation.path());
    installation.start().await;
    let api = installation.api().clone();
    let repository = fake::repository(&installation.path().join("origin"));
    let quick = installation.job(&repository, &["dbt build"]).await;
    let enough = installation.path().join("enough");
    let slow = format!("dbt run --select {}", enough.display());
    let slow = installation.job(&repository, &[&slow]).await;
    let project = api.get(&format!("v2/accounts/{{a}}/jobs/{slow}/")).await;
    let follows = json!({
        "project_id": project["project_id"], "environment_id": project["environment_id"], "name": "Follows",
        "execute_steps": ["dbt build"],
        "job_completion_trigger_condition": {
            "condition": {"job_id": slow, "project_id": project["project_id"], "statuses": [10]}
        },
    });
    let follows = api.post("v2/accounts/{a}/jobs/", &follows).await["id"]
        .as_i64()
        .unwrap();
    let world = World { installation };
    world.until_ready(true).await;

    for (round, stop) in [Cluster::stop as fn(&mut Cluster), Cluster::kill]
        .into_iter()
        .enumerate()
    {
        let live = api.trigger(slow).await;
        let lines = |run: &Value| {
            let log = run["run_steps"][3]["logs"].as_str().unwrap_or_default();
            log.contains("counted 1")
        };
        api.until(live, LIMIT, lines).await;
        // Waits for the first, as they are of one job.
        let waits = api.trigger(slow).await;
        cluster = off(cluster, stop).await;
        let told = world.until_ready(false).await;
        let why = told["components"]["database"].as_str().unwrap();
        assert!(why.contains("database"), "{told}");
        let why = told["components"]["wakeups"].as_str().unwrap();
        assert!(why.contains("degraded: polling"), "{told}");
        let asked = reqwest::Client::new()
            .get(api.url(&format!("v2/accounts/{{a}}/runs/{live}/")))
            .header("Authorization", format!("Token {}", api.token()));
        assert_eq!(asked.send().await.unwrap().status(), 503);

        cluster = off(cluster, Cluster::resume).await;
        world.until_ready(true).await;
        std::fs::write(&enough, "").unwrap();
        for run in [live, waits] {
            is_whole(&api.ended(run, LIMIT).await);
        }
        // The scheduler starts and the outbox delivers; at the end cleanup has moved the logs.
        is_whole(&api.ended(api.trigger(quick).await, LIMIT).await);
        is_whole(&world.chained(follows, 2 * (round + 1)).await);
        std::fs::remove_file(&enough).unwrap();
    }
    until(LIMIT, || async {
        let left = database.ask("SELECT count(*) FROM log_chunks");
        (left == "0").then_some(()).ok_or(left)
    })
    .await;
    let told = world.ready().await;
    assert!(told["scheduler_idle_seconds"].as_i64().unwrap() < 10, "{told}");
    let runs = database.ask("SELECT count(*), max(attempt), min(status), max(status) FROM runs");
    assert_eq!(runs, "10|1|success|success");
    let mut installation = world.installation;
    installation.stop().await;
}
