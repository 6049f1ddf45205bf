//! A gateway, apps and schedulers in processes of their own: the apps and schedulers are restarted one after the other
//! while people ask, runs go on and somebody follows one of them. Nobody notices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dbtcloud_contract::wait::until;
use dbtcloud_tests::api::{Api, steps};
use dbtcloud_tests::fake;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres;
use dbtcloud_tests::server::{self, Server};
use serde_json::{Value, json};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How many requests are answered between two restarts, at least.
const BETWEEN: usize = 8;
const STEPS: [&str; 4] = [
    "Clone git repository",
    "Create profile from connection DuckDB",
    "Invoke dbt with `dbt deps`",
    "Invoke dbt with `dbt ",
];

/// What people do until it is enough. Any answer but a success, or none, is a panic.
#[derive(Clone)]
struct People {
    api: Api,
    enough: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
}

impl People {
    fn go_on(&self) -> bool {
        !self.enough.load(Ordering::Relaxed)
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.api.post(path, body).await;
        self.answers.fetch_add(1, Ordering::Relaxed);
        answer
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.api.get(path).await;
        self.answers.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// Creates projects and lists them. How many.
    async fn create(self, who: usize) -> usize {
        let mut created = 0;
        while self.go_on() {
            let body = json!({"name": format!("project {created} of {who}")});
            self.post("v3/accounts/{a}/projects/", &body).await;
            self.get("v3/accounts/{a}/projects/").await;
            created += 1;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        created
    }

    /// Triggers a job again and again, and watches each run until it has gone well. How many.
    async fn run(self, job: i64) -> usize {
        let mut ended = 0;
        while self.go_on() {
            let body = json!({"cause": "test"});
            let run = self.post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &body).await;
            self.succeeds(run["id"].as_i64().unwrap()).await;
            ended += 1;
        }
        ended
    }

    async fn succeeds(&self, run: i64) -> Value {
        let path = format!("v2/accounts/{{a}}/runs/{run}/?include_related=[\"run_steps\"]");
        let began = Instant::now();
        let ended = loop {
            let seen = self.get(&path).await;
            if seen["is_complete"] == json!(true) {
                break seen;
            }
            assert!(began.elapsed() < LIMIT, "run {run} does not end: {seen:#}");
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        assert_eq!(ended["status"], json!(10), "{ended:#}");
        let steps = steps(&ended);
        assert_eq!(steps.len(), STEPS.len(), "{steps:?}");
        for ((name, status), expected) in steps.iter().zip(STEPS) {
            assert!(name.starts_with(expected) && status == "Success", "{steps:?}");
        }
        let log = ended["run_steps"][3]["logs"].as_str().unwrap_or_default();
        assert!(fake::is_whole(log), "log of run {run}: {log}");
        ended
    }
}

/// What a follower has seen of a run.
#[derive(Default)]
struct Tail {
    /// Names and data of everything but logs, in order.
    events: Vec<(String, Value)>,
    /// The text of each step's log.
    logs: BTreeMap<i64, String>,
    last: Option<String>,
    connections: usize,
}

impl Tail {
    /// Follows a run to its end; whenever the tail is cut, it goes on after the last event.
    async fn follow(api: Api, run: i64) -> Self {
        let client = reqwest::Client::new();
        let url = api.url(&format!("v2/accounts/{{a}}/runs/{run}/events/"));
        let mut tail = Self::default();
        while tail.events.last().is_none_or(|(name, _)| name != "end") {
            tail.connections += 1;
            let mut request = client
                .get(&url)
                .header("Authorization", format!("Token {}", api.token()));
            if let Some(last) = &tail.last {
                request = request.header("Last-Event-ID", last);
            }
            let mut answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.status());
            let mut heard = Vec::new();
            while let Some(bytes) = answer.chunk().await.unwrap() {
                heard.extend_from_slice(&bytes);
                while let Some(end) = heard.windows(2).position(|pair| pair == b"\n\n") {
                    let message: Vec<u8> = heard.drain(..end + 2).collect();
                    tail.take(std::str::from_utf8(&message).unwrap());
                }
            }
        }
        tail
    }

    fn take(&mut self, message: &str) {
        let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
        // Comments keep a silent connection alive.
        let Some(name) = field("event: ") else { return };
        let data: Value = serde_json::from_str(field("data: ").unwrap()).unwrap();
        self.last = Some(field("id: ").unwrap_or_else(|| panic!("{message}")).to_owned());
        if name != "log" {
            self.events.push((name.to_owned(), data));
            return;
        }
        let log = self.logs.entry(data["step"].as_i64().unwrap()).or_default();
        assert_eq!(
            data["offset"],
            json!(log.len()),
            "a gap or a repeat after {} connections: {message}",
            self.connections
        );
        log.push_str(data["text"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_apps_and_schedulers_are_restarted() {
    let database = tokio::task::spawn_blocking(postgres::database).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (url, key) = (database.url(), server::key(folder.path()));
    let installation = Installation::with(&["--database-url", &url, "--key-file", &key, "--migrate"]);
    fake::install(installation.path());
    let roles = ["app", "app", "scheduler", "scheduler"];
    let mut servers: Vec<Server> = (0..)
        .zip(roles)
        .map(|(number, role)| Server::new(&installation, role, number))
        .collect();
    for server in &mut servers {
        server.spawn(&installation);
    }
    for server in &servers {
        server.ready().await;
    }
    // Everybody asks the gateway, agents too.
    let mut gateway = Server::gateway(&installation, &[&servers[0].url, &servers[1].url]);
    gateway.spawn(&installation);
    gateway.ready().await;

    let repository = fake::repository(&installation.path().join("origin"));
    let enough = folder.path().join("enough");
    let slow = format!("dbt run --select {}", enough.display());
    let followed = installation.job(&repository, &[&slow]).await;
    let mut jobs = Vec::new();
    for _ in 0..2 {
        jobs.push(installation.job(&repository, &["dbt build"]).await);
    }
    asked_twice(&installation, &servers[..2], jobs[0]).await;
    let before: usize = database.ask("SELECT count(*) FROM projects").parse().unwrap();
    let people = People {
        api: installation.api().clone(),
        enough: Arc::default(),
        answers: Arc::default(),
    };
    let followed = people.api.trigger(followed).await;
    let tail = tokio::spawn(Tail::follow(people.api.clone(), followed));
    let creating: Vec<_> = (0..2).map(|who| tokio::spawn(people.clone().create(who))).collect();
    let running: Vec<_> = jobs.iter().map(|job| tokio::spawn(people.clone().run(*job))).collect();
    let at_work = |run: &Value| run["run_steps"][3]["status"] == json!(3);
    people.api.until(followed, LIMIT, at_work).await;

    for server in &mut servers {
        let answered = people.answers.load(Ordering::Relaxed);
        server.stop().await;
        server.spawn(&installation);
        server.ready().await;
        until(LIMIT, || async {
            let now = people.answers.load(Ordering::Relaxed);
            (now >= answered + BETWEEN).then_some(()).ok_or(now)
        })
        .await;
    }
    let run = people.api.run(followed).await.unwrap();
    assert!(at_work(&run), "the followed run ended before the last restart: {run:#}");
    people.enough.store(true, Ordering::Relaxed);
    std::fs::write(&enough, "").unwrap();

    let (mut created, mut ended) = (before, 0);
    for worker in creating {
        created += worker.await.unwrap();
    }
    for worker in running {
        ended += worker.await.unwrap();
    }
    assert!(ended > 4, "few runs: {ended}");
    // Each POST that was answered made one project, and none made two.
    assert_eq!(database.ask("SELECT count(*) FROM projects"), created.to_string());

    let run = people.succeeds(followed).await;
    let tail = tokio::time::timeout(LIMIT, tail).await.unwrap().unwrap();
    assert!(tail.connections > 1, "the tail was never cut");
    let again = Tail::follow(people.api.clone(), followed).await;
    assert_eq!(tail.events, again.events);
    assert_eq!(tail.logs, again.logs);
    assert_eq!(
        run["run_steps"][3]["logs"].as_str(),
        tail.logs.get(&4).map(String::as_str)
    );
    // Nothing was lost and begun anew, and nothing ran twice.
    let runs = database.ask("SELECT count(*), max(attempt), min(status), max(status) FROM runs");
    assert_eq!(runs, format!("{}|1|success|success", ended + 2));

    for server in servers.iter_mut().chain([&mut gateway]) {
        server.stop().await;
        installation.check_log(&server.log);
    }
}

/// Apps that are asked by one key at the same time queue one run, and all answer with it; also when it is over.
async fn asked_twice(installation: &Installation, apps: &[Server], job: i64) {
    let api = installation.api();
    let ask = |app: &Server| {
        let api = Api::new(&app.url, api.token(), api.account);
        tokio::spawn(async move { api.trigger_once(job, "nightly-1", "asked twice").await.unwrap() })
    };
    let asked: Vec<_> = apps.iter().cycle().take(8).map(ask).collect();
    let mut runs = BTreeSet::new();
    for answer in asked {
        let (status, body) = answer.await.unwrap();
        assert!(status.is_success(), "{status} {body:#}");
        runs.insert(body["data"]["id"].as_i64().unwrap());
    }
    assert_eq!(runs.len(), 1, "{runs:?}");
    let run = runs.pop_first().unwrap();
    api.ended(run, LIMIT).await;
    let (_, body) = ask(&apps[1]).await.unwrap();
    assert_eq!(
        (&body["data"]["id"], &body["data"]["is_complete"]),
        (&json!(run), &json!(true))
    );
}

/// Asks for a run as the client of a proxy would. The start of the links in the answer.
async fn link(server: &str, installation: &Installation, run: i64, name: &str) -> String {
    let api = installation.api();
    let url = api.url(&format!("v2/accounts/{{a}}/runs/{run}/"));
    let url = url.replacen(&installation.url(), server, 1);
    let answer = reqwest::Client::new()
        .get(url)
        .header("authorization", format!("Token {}", api.token()))
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-host", "dbt.example")
        .header("x-forwarded-proto", "https")
        .header("x-request-id", name);
    let answer: Value = answer.send().await.unwrap().json().await.unwrap();
    let href = answer["data"]["href"].as_str().unwrap_or_else(|| panic!("{answer:#}"));
    href.split("/deploy/").next().unwrap().to_owned()
}

/// Who asked this, as the log has it.
async fn client(log: &Path, name: &str) -> String {
    until(LIMIT, || async {
        let said = std::fs::read_to_string(log).unwrap();
        let line = said
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["request_id"] == name && line["target"] == "dbtcloud::access");
        line.map(|line| line["client"].as_str().unwrap().to_owned()).ok_or(said)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_says_who_asks_and_believes_only_its_proxies() {
    let mut installation = Installation::with(&["--log-format", "json"]);
    fake::install(installation.path());
    // The app believes its gateways, and one of these believes the proxy before it.
    installation
        .environment
        .push(("DBTCLOUD_TRUSTED_PROXIES", "127.0.0.0/8".to_owned()));
    installation.start().await;
    installation.environment.clear();
    let app = installation.url();
    let gateway = |number| Server::new(&installation, "gateway", number).with(&["--app-url", &app]);
    let mut gateways = [gateway(0), gateway(1).with(&["--trusted-proxies", "127.0.0.1, ::1"])];
    for gateway in &mut gateways {
        gateway.spawn(&installation);
        gateway.ready().await;
    }
    let repository = fake::repository(&installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    let api = installation.api();
    let run = api.trigger(job).await;
    api.ended(run, LIMIT).await;

    let [deaf, hearing] = &gateways;
    for (gateway, name, said, asked) in [
        (deaf, "deaf", deaf.url.as_str(), "127.0.0.1"),
        (hearing, "hearing", "https://dbt.example", "203.0.113.9"),
    ] {
        assert_eq!(link(&gateway.url, &installation, run, name).await, said);
        assert_eq!(client(&installation.log(), name).await, asked, "{name}");
        assert_eq!(client(&gateway.log, name).await, asked, "{name}");
    }
    for gateway in &mut gateways {
        gateway.stop().await;
        installation.check_log(&gateway.log);
    }
    installation.stop().await;
    installation.check_log(&installation.log());
}
