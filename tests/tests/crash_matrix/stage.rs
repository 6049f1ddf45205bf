//! One installation that is killed again and again, what it has to do each time, and what must hold afterwards.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use dbtcloud_contract::wait::until;
use dbtcloud_tests::fake;
use dbtcloud_tests::hooks::Endpoint;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres::Database;
use dbtcloud_tests::server;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Row as _};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What a log may say around a kill: others find the server gone, and it finds what the dead one left.
const EXPECTED: [&str; 6] = [
    "agent request failed",
    "tried again",
    "upload broke off",
    "lease",
    "cut off",
    "closed",
];

/// Settings on both databases: logs and artifacts go before their runs do.
const OTHERS: [&str; 6] = [
    "--webhook-targets",
    "any",
    "--retain-logs-days",
    "30",
    "--retain-artifacts-days",
    "30",
];
/// How often the workload is done until it has reached what it is to reach.
const ROUNDS: u32 = 5;
const DAY_MICROS: u128 = 24 * 3_600 * 1_000_000;
/// Ids of runs that are made older than they are, are below.
const LONG_AGO: i64 = 20_210_000_000_000;
/// Tables that hang on a run.
const HANGING: [&str; 7] = [
    "run_steps",
    "log_chunks",
    "journal",
    "run_instants",
    "tickets",
    "agent_keys",
    "outbox",
];

/// Where the data is.
pub enum Base {
    /// In a file beside the server.
    Sqlite,
    /// In a database of its own.
    Postgres(Database),
}

/// An installation with three jobs: one that people set off, one that the clock does, one that is stopped.
pub struct Stage {
    base: Base,
    pub installation: Installation,
    quick: i64,
    scheduled: i64,
    slow: i64,
    /// Runs whose queueing was acknowledged.
    promised: BTreeSet<i64>,
    /// Requests that were made by keys.
    asked: u32,
    /// Told of every run's end, by a webhook.
    endpoint: Endpoint,
    _key: tempfile::TempDir,
}

fn now_micros() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_micros()
}

impl Stage {
    /// Everything that a workload needs, and no server.
    pub async fn new(base: Base) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut installation = match &base {
            Base::Sqlite => Installation::with(&OTHERS),
            Base::Postgres(database) => {
                let (url, key) = (database.url(), server::key(folder.path()));
                let database = ["--database-url", &url, "--key-file", &key, "--migrate"];
                let others = [&OTHERS[..], &["--drain-seconds", "0"]].concat();
                Installation::with(&[&database[..], &others].concat())
            }
        };
        installation.expected = EXPECTED.to_vec();
        fake::install(installation.path());
        installation.start().await;
        let repository = fake::repository(&installation.path().join("origin"));
        let quick = installation.job(&repository, &["dbt build"]).await;
        let slow = installation.job(&repository, &["dbt run-operation sleep"]).await;
        let scheduled = installation.job(&repository, &["dbt build"]).await;
        let mut stage = Self {
            base,
            installation,
            quick,
            scheduled,
            slow,
            promised: BTreeSet::new(),
            asked: 0,
            endpoint: Endpoint::listen().await,
            _key: folder,
        };
        let path = format!("v2/accounts/{{a}}/jobs/{scheduled}/");
        let mut job = stage.installation.api().get(&path).await;
        // Never by itself: a test moves the hand.
        job["triggers"]["schedule"] = json!(true);
        job["schedule"] = json!({"cron": "0 0 29 2 *", "date": {"type": "custom_cron", "cron": "0 0 29 2 *"}});
        stage.installation.api().post(&path, &job).await;
        let webhook = json!({
            "name": "Ends", "client_url": stage.endpoint.url(), "event_types": ["job.run.completed"], "active": true,
        });
        let path = "v3/accounts/{a}/webhooks/subscriptions";
        stage.installation.api().post(path, &webhook).await;
        stage.installation.stop().await;
        stage
    }

    /// The first column of what a statement answers, as text.
    pub async fn ask(&self, statement: &str) -> Vec<String> {
        match &self.base {
            Base::Postgres(database) => {
                let answer = database.ask(statement);
                answer.lines().map(str::to_owned).collect()
            }
            Base::Sqlite => {
                let path = self.installation.path().join("dbtcloud.db");
                let options = sqlx::sqlite::SqliteConnectOptions::new();
                let options = options.filename(path).foreign_keys(false);
                let mut connection = options.connect().await.unwrap();
                let statement = sqlx::AssertSqlSafe(statement.to_owned());
                let rows = sqlx::query(statement).fetch_all(&mut connection).await.unwrap();
                rows.iter().map(|row| row.get::<String, _>(0)).collect()
            }
        }
    }

    async fn numbers(&self, statement: &str) -> BTreeSet<i64> {
        let rows = self.ask(statement).await;
        rows.iter().map(|row| row.parse().unwrap()).collect()
    }

    /// What time alone would do: leases of the dead run out, and so do deliveries that they had taken.
    pub async fn let_time_pass(&self) {
        for statement in [
            "UPDATE run_queue SET lease_until = 1 WHERE lease_until IS NOT NULL",
            "UPDATE leases SET held_until = 1 WHERE held_until IS NOT NULL",
            "UPDATE outbox SET due_at = 1",
            "UPDATE dispatches SET due_at = 1 WHERE state = 'waiting'",
        ] {
            self.ask(statement).await;
        }
    }

    /// What years would do to three of the oldest runs: one has to let its logs go, one itself, because the other one of
    /// its month ended late, and one its whole month.
    async fn grow_old(&mut self) {
        let lately = now_micros() - DAY_MICROS;
        let oldest = format!("SELECT CAST(id AS TEXT) FROM runs WHERE finished_at > {lately} ORDER BY id LIMIT 4");
        let oldest: Vec<i64> = self.numbers(&oldest).await.into_iter().collect();
        let [expires, goes, moves, _] = oldest[..] else { return };
        for (run, days, month) in [(expires, 40, 202_002), (goes, 400, 202_002), (moves, 400, 202_001)] {
            let ended = now_micros() - days * DAY_MICROS;
            let there = month * 100_000_000 + run % 1_000_000;
            self.ask(&format!(
                "UPDATE runs SET id = {there}, finished_at = {ended} WHERE id = {run}"
            ))
            .await;
            for table in HANGING {
                self.ask(&format!("UPDATE {table} SET run_id = {there} WHERE run_id = {run}"))
                    .await;
            }
            self.promised.remove(&run);
        }
    }

    async fn come_due(&self) {
        // An instant of its own each time.
        let at = now_micros() - 1_000_000;
        let job = self.scheduled;
        self.ask(&format!("UPDATE schedules SET next_at = {at} WHERE job_id = {job}"))
            .await;
    }

    fn is_up(&mut self) -> bool {
        self.installation.ended().is_none()
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> Option<Value> {
        let answer = self.installation.api().send(Method::POST, path, Some(body)).await;
        let (status, body) = answer.ok()?;
        status.is_success().then(|| body["data"].clone())
    }

    pub async fn trigger(&mut self, job: i64) -> Option<i64> {
        let path = format!("v2/accounts/{{a}}/jobs/{job}/run/");
        let run = self.post(&path, &json!({"cause": "test"})).await?["id"].as_i64()?;
        self.promised.insert(run);
        Some(run)
    }

    /// Sets a run off by a key, asking again by it while the server lives and does not answer.
    async fn trigger_once(&mut self, job: i64) -> Option<i64> {
        self.asked += 1;
        let key = format!("request {}", self.asked);
        let run = self.installation.api().trigger_once(job, &key, "test").await.ok()?;
        let (status, body) = run;
        let run = status.is_success().then(|| body["data"]["id"].as_i64()).flatten()?;
        self.promised.insert(run);
        Some(run)
    }

    /// Waits until a run works; `false` when the server died before.
    async fn works(&mut self, run: i64) -> bool {
        let began = Instant::now();
        while self.is_up() {
            if let Some(seen) = self.installation.api().run(run).await
                && (seen["run_steps"][3]["status"] == json!(3) || seen["is_complete"] == json!(true))
            {
                return true;
            }
            assert!(began.elapsed() < LIMIT, "run {run} does not work");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        false
    }

    /// Everything that a server has to do, as far as it lives: it starts, a schedule fires, runs are set off, one is
    /// stopped, the agent of one is killed, all end, a job is edited, and it is asked to stop.
    pub async fn work(&mut self) {
        self.grow_old().await;
        self.come_due().await;
        self.installation.spawn();
        let began = Instant::now();
        while self.is_up() && self.trigger(self.quick).await.is_none() {
            assert!(began.elapsed() < LIMIT, "the server does not answer");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let path = format!("v2/accounts/{{a}}/jobs/{}/", self.quick);
        if let Ok((_, mut job)) = self.installation.api().send(Method::GET, &path, None).await {
            job["data"]["name"] = json!("Edited");
            let job = job["data"].clone();
            self.post(&path, &job).await;
        }
        self.post("v3/accounts/{a}/projects/", &json!({"name": "Another"}))
            .await;
        if let Some(run) = self.trigger(self.slow).await
            && self.works(run).await
        {
            self.post(&format!("v2/accounts/{{a}}/runs/{run}/cancel/"), &json!({}))
                .await;
        }
        self.until_idle().await;
        if let Some(run) = self.trigger(self.slow).await
            && self.works(run).await
        {
            for process in self.installation.processes() {
                if process.is_agent() {
                    process.signal(Signal::SIGKILL);
                }
            }
        }
        self.until_idle().await;
        if self.trigger_once(self.slow).await.is_some() && self.is_up() {
            let pid = self.installation.pid();
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let began = Instant::now();
        while self.is_up() {
            assert!(began.elapsed() < LIMIT, "the server does not stop");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until no run is open, or the server is dead.
    pub async fn until_idle(&mut self) {
        let began = Instant::now();
        while self.is_up() {
            let open = self.ask("SELECT CAST(run_id AS TEXT) FROM run_queue").await;
            if open.is_empty() {
                return;
            }
            assert!(began.elapsed() < LIMIT, "still open: {open:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The whole workload without a kill; the places it reached. What a round left is found by the next one: logs to
    /// move, runs to take over, on a slow machine a month that was in use.
    pub async fn rehearse(&mut self, wanted: &[String]) -> BTreeSet<String> {
        let file = self.installation.path().join("seen");
        self.installation.environment = vec![("DBTCLOUD_FAILPOINTS_SEEN", file.display().to_string())];
        let mut seen = BTreeSet::new();
        for _ in 0..ROUNDS {
            self.work().await;
            self.let_time_pass().await;
            let told = std::fs::read_to_string(&file).unwrap();
            seen = told.lines().map(str::to_owned).collect();
            if wanted.iter().all(|point| seen.contains(point)) {
                break;
            }
        }
        self.installation.environment.clear();
        self.settle("rehearsal").await;
        let ends = self
            .ask("SELECT status || ': ' || coalesce(message, '') FROM runs ORDER BY id")
            .await;
        for status in ["success", "error", "cancelled"] {
            assert!(
                ends.iter().any(|end| end.starts_with(status)),
                "none is {status}: {ends:#?}"
            );
        }
        seen
    }

    /// The workload, until the server is killed at this place.
    pub async fn die_at(&mut self, point: &str) {
        self.installation.environment = vec![("DBTCLOUD_FAILPOINT", point.to_owned())];
        for round in 1..=ROUNDS {
            self.work().await;
            let ended = self.installation.ended().unwrap();
            if ended.signal() == Some(9) {
                break;
            }
            assert!(round < ROUNDS, "{point} was not reached: {ended}");
            self.let_time_pass().await;
        }
        self.installation.environment.clear();
    }

    /// Starts the server as it is, waits until everything has ended, and asks the database.
    pub async fn settle(&mut self, point: &str) {
        self.let_time_pass().await;
        self.installation.start().await;
        let began = Instant::now();
        loop {
            // What is still to be told of a run can begin another one, and so can a hand that is due.
            let open = self
                .ask(&format!(
                    "SELECT 'run ' || run_id FROM run_queue UNION ALL SELECT consumer || ' to be told of ' || run_id || \
                       ', ' || tries || ' tries, ' || due_at FROM outbox \
                     UNION ALL SELECT 'to be sent of ' || run_id || ', ' || tries || ' tries: ' || coalesce(error, '') \
                       FROM dispatches WHERE state = 'waiting' \
                     UNION ALL SELECT 'hand of ' || job_id FROM schedules WHERE next_at <= {}",
                    now_micros()
                ))
                .await;
            if open.is_empty() {
                break;
            }
            assert!(began.elapsed() < LIMIT, "{point}: still open: {open:?}");
            self.stop_sleepers().await;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.check(point).await;
        self.installation.stop().await;
    }

    /// Nobody waits for a run that only sleeps.
    pub async fn stop_sleepers(&mut self) {
        let slow = self.slow;
        let asleep =
            format!("SELECT CAST(run_id AS TEXT) FROM run_queue WHERE job_id = {slow} AND state <> 'cancelling'");
        for run in self.numbers(&asleep).await {
            self.post(&format!("v2/accounts/{{a}}/runs/{run}/cancel/"), &json!({}))
                .await;
        }
    }

    async fn check(&self, point: &str) {
        let runs = self
            .numbers(&format!("SELECT CAST(id AS TEXT) FROM runs WHERE id > {LONG_AGO}"))
            .await;
        let lost: Vec<_> = self.promised.difference(&runs).collect();
        assert!(lost.is_empty(), "{point}: acknowledged and lost: {lost:?}");
        for (what, statement) in [
            (
                "runs that are open for good",
                "SELECT CAST(id AS TEXT) FROM runs WHERE status NOT IN ('success', 'warned', 'error', 'cancelled')",
            ),
            (
                "two runs for one instant",
                "SELECT CAST(job_id AS TEXT) FROM runs WHERE scheduled_for IS NOT NULL \
                 GROUP BY job_id, scheduled_for HAVING count(*) > 1",
            ),
            (
                "runs that were tried twice although no execution was lost",
                "SELECT CAST(id AS TEXT) FROM runs WHERE attempt > 1",
            ),
            (
                "gaps in the journal",
                "SELECT CAST(run_id AS TEXT) FROM journal GROUP BY run_id HAVING max(sequence) <> count(*)",
            ),
            (
                "runs without their end in the journal",
                "SELECT CAST(id AS TEXT) FROM runs WHERE NOT EXISTS (SELECT 1 FROM journal WHERE run_id = id \
                 AND body LIKE '%\"run\"%' AND body LIKE '%\"' || status || '\"%')",
            ),
            (
                "runs that ended twice",
                "SELECT CAST(run_id AS TEXT) FROM journal WHERE body LIKE '%\"type\":\"run\"%' \
                 AND (body LIKE '%\"status\":\"success\"%' OR body LIKE '%\"status\":\"warned\"%' \
                   OR body LIKE '%\"status\":\"error\"%' OR body LIKE '%\"status\":\"cancelled\"%') \
                 GROUP BY run_id HAVING count(*) > 1",
            ),
            (
                "runs whose steps are not whole in the database",
                "SELECT CAST(run_id AS TEXT) FROM run_steps s WHERE log_bytes - log_first <> coalesce((SELECT sum(length) \
                 FROM log_chunks c WHERE c.run_id = s.run_id AND c.step_index = s.step_index), 0)",
            ),
        ] {
            let found = self.ask(statement).await;
            assert!(found.is_empty(), "{point}: {what}: {found:?}");
        }
        self.check_told(point, &runs);
        self.check_logs(point).await;
    }

    /// The webhook was told of every run's end, at least once.
    fn check_told(&self, point: &str, runs: &BTreeSet<i64>) {
        let told = self.endpoint.heard();
        let run = |body: &bytes::Bytes| -> i64 {
            let event: Value = serde_json::from_slice(body).unwrap();
            event["data"]["runId"].as_str().unwrap().parse().unwrap()
        };
        let told: BTreeSet<i64> = told.posts.iter().map(|(_, body)| run(body)).collect();
        let missing: Vec<_> = runs.difference(&told).collect();
        assert!(missing.is_empty(), "{point}: ended and not told: {missing:?}");
    }

    /// Every run that went well has its whole log, wherever it is by now.
    async fn check_logs(&self, point: &str) {
        let newest = self
            .ask(&format!(
                "SELECT CAST(id AS TEXT) FROM runs WHERE status = 'success' AND id > {LONG_AGO} \
                 AND job_id IN ({}, {}) ORDER BY id DESC LIMIT 3",
                self.quick, self.scheduled
            ))
            .await;
        for run in newest {
            let run: i64 = run.parse().unwrap();
            let seen = self.installation.api().run(run).await.unwrap();
            let log = seen["run_steps"][3]["logs"].as_str().unwrap_or_default();
            assert!(fake::is_whole(log), "{point}: log of run {run}: {log}");
        }
    }

    /// The logs of all that went well, after they were moved.
    pub async fn finish(&mut self) {
        self.let_time_pass().await;
        self.installation.start().await;
        until(LIMIT, || async {
            let left = self.ask("SELECT CAST(run_id AS TEXT) FROM log_chunks").await;
            left.is_empty().then_some(()).ok_or(left)
        })
        .await;
        let well = self
            .ask("SELECT CAST(id AS TEXT) FROM runs WHERE status = 'success' ORDER BY id")
            .await;
        assert!(well.len() > 3, "few runs went well: {well:?}");
        self.check_logs("after all logs were moved").await;
        self.installation.stop().await;
    }
}
