//! The whole platform in processes of its own, for somebody to break: gateway, apps, schedulers, cleanup, a
//! PostgreSQL, an S3 server, and tenants with jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dbtcloud_core::Timestamp;
use dbtcloud_core::account::{Account, Token, TokenOwner, User};
use dbtcloud_core::catalog::CatalogExt as _;
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::Catalog;
use dbtcloud_server::{auth, bootstrap};
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::api::Api;
use dbtcloud_tests::fake;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres::{Cluster, Database};
use dbtcloud_tests::processes::{self, Process};
use dbtcloud_tests::s3::{ADMIN, SeaweedFs};
use dbtcloud_tests::server::{self, Server};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::plan::{Dice, Event, Fault, Target};

/// The servers.
pub const ROLES: [&str; 7] = [
    "app",
    "app",
    "gateway",
    "scheduler",
    "scheduler",
    "scheduler",
    "cleanup",
];
/// Slots of the accounts.
const SLOTS: [u32; 3] = [4, 2, 1];
/// Jobs of an account that come due all at once.
const HERD: usize = 4;
/// Jobs of an account that people set off.
const TRIGGERED: usize = 3;
/// Never by itself: a test moves the hand.
const NEVER: &str = "0 0 29 2 *";
const MINUTELY: &str = "* * * * *";
/// How long it may take afterwards until nothing is left to do: the longest hold of what a dead process had taken is two
/// minutes.
const SETTLE: Duration = Duration::from_secs(240);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What a server says once it serves.
const SERVING: &str = "serving";
/// What a log may say of each of these, when it fails; anything else is a fault of the platform.
const DATABASE_AWAY: [&str; 5] = [
    "database: the server is not available",
    "database: the connection was lost",
    "database: the connection that hears wake-ups was lost",
    // The driver passes on what it is told, and finds out which of its connections are dead.
    "sqlx::postgres::notice: terminating connection",
    "sqlx_core::pool",
];
const OBJECTS_AWAY: [&str; 3] = [
    "cannot be reached; check the endpoint",
    "does not answer",
    // An upload that could not even be given up.
    "opendal_core::layers::complete: writer has not been closed or aborted",
];
const SERVER_AWAY: [&str; 2] = ["no app answered", "the agent's upload broke off"];

/// An account and what it has.
pub struct Tenant {
    /// Its client, by way of the gateway.
    pub api: Api,
    /// Its run slots.
    pub slots: u32,
    /// Jobs that people set off.
    pub triggered: Vec<i64>,
    /// Jobs whose hands the test moves, all to one instant.
    pub herd: Vec<i64>,
    /// A job that comes due every minute by itself.
    pub minutely: i64,
}

/// Everything there is.
pub struct Stage {
    /// Accounts.
    pub tenants: Vec<Tenant>,
    /// What really is stored.
    pub database: Arc<Database>,
    /// Where commands leave their marks.
    pub marks: PathBuf,
    /// Executions whose agent was killed.
    pub killed: BTreeSet<String>,
    /// Servers that could not start since what they need was away, and were started again.
    pub started_again: usize,
    installation: Installation,
    cluster: Cluster,
    objects: SeaweedFs,
    servers: Vec<Server>,
    /// How long each server's log was when it was started last; `None` while it is down on purpose.
    begun: Vec<Option<usize>>,
    paused: Option<Process>,
    out: BTreeMap<Target, Fault>,
    dice: Dice,
    _key: tempfile::TempDir,
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::EPOCH.plus(now.unwrap())
}

/// An account of its own with a token, written where the API has no door for it.
async fn account(storage: &SqlStorage, url: &str, name: &str, slots: u32) -> Api {
    let storage: &dyn Catalog = storage;
    let mut account = Account::new(name);
    account.run_slots = slots;
    let account = storage.create(AccountId::new(0), &account, now()).await.unwrap().id;
    let user = User {
        email: format!("{name}@localhost"),
        first_name: String::new(),
        last_name: String::new(),
        is_admin: true,
    };
    let user = storage.create(account, &user, now()).await.unwrap().id;
    let token = bootstrap::new_token().unwrap();
    let record = Token {
        name: "chaos".to_owned(),
        owner: TokenOwner::User { user },
        digest: auth::digest(token.expose()),
        expires_at: None,
    };
    storage.create(account, &record, now()).await.unwrap();
    Api::new(url, token.expose(), account.get())
}

impl Tenant {
    async fn new(api: Api, slots: u32, installation: &Installation, repository: &str) -> Self {
        let first = api
            .job(installation.path(), repository, &["dbt seed", "dbt build"])
            .await;
        let scheduled = |cron: &str| {
            json!({
                "triggers": {"schedule": true, "github_webhook": false, "git_provider_webhook": false},
                "schedule": {"cron": cron, "date": {"type": "custom_cron", "cron": cron}},
            })
        };
        let (mut triggered, mut herd) = (vec![first], Vec::new());
        for _ in 1..TRIGGERED {
            triggered.push(api.job_like(first, &json!({})).await);
        }
        for _ in 0..HERD {
            herd.push(api.job_like(first, &scheduled(NEVER)).await);
        }
        let minutely = api.job_like(first, &scheduled(MINUTELY)).await;
        Self {
            api,
            slots,
            triggered,
            herd,
            minutely,
        }
    }
}

impl Stage {
    /// Everything is up, and every job is there.
    pub async fn new(seed: u64, plan: &[Event]) -> Self {
        let (cluster, objects) = tokio::task::block_in_place(|| (Cluster::start(), SeaweedFs::start()));
        let (database, bucket) = tokio::task::block_in_place(|| (cluster.database(), objects.bucket()));
        let folder = tempfile::tempdir().unwrap();
        let (url, key, kept) = (database.url(), server::key(folder.path()), bucket.url());
        let options = [
            "--database-url",
            &url,
            "--key-file",
            &key,
            "--artifacts-url",
            &kept,
            "--migrate",
        ];
        let mut installation = Installation::with(&options);
        installation.environment = bucket.environment(ADMIN);
        for event in plan {
            installation.expected.extend(match event.target {
                Target::Database => DATABASE_AWAY.as_slice(),
                Target::Objects => OBJECTS_AWAY.as_slice(),
                Target::Server(_) | Target::Agent => SERVER_AWAY.as_slice(),
            });
        }
        fake::install(installation.path());
        let marks = installation.path().join("marks");
        let repository = fake::marking(&installation.path().join("origin"), &marks);
        let mut servers: Vec<Server> = Vec::new();
        for (number, role) in ROLES.into_iter().enumerate() {
            let server = match role {
                "gateway" => Server::gateway(&installation, &[&servers[0].url, &servers[1].url]),
                role => Server::new(&installation, role, number),
            };
            servers.push(server);
        }
        let mut stage = Self {
            tenants: Vec::new(),
            database: Arc::new(database),
            marks,
            killed: BTreeSet::new(),
            started_again: 0,
            installation,
            cluster,
            objects,
            begun: vec![None; servers.len()],
            servers,
            paused: None,
            out: BTreeMap::new(),
            dice: Dice::new(seed, 1_000),
            _key: folder,
        };
        for place in 0..ROLES.len() {
            stage.spawn(place);
        }
        for server in &stage.servers {
            server.ready().await;
        }
        let storage = SqlStorage::connect(&url, Default::default()).await.unwrap();
        for (number, slots) in SLOTS.into_iter().enumerate() {
            let api = account(&storage, &stage.installation.url(), &format!("tenant-{number}"), slots).await;
            let tenant = Tenant::new(api, slots, &stage.installation, &repository).await;
            stage.tenants.push(tenant);
        }
        stage
    }

    fn said(&self, place: usize) -> String {
        std::fs::read_to_string(&self.servers[place].log).unwrap_or_default()
    }

    fn spawn(&mut self, place: usize) {
        self.begun[place] = Some(self.said(place).len());
        self.servers[place].spawn(&self.installation);
    }

    /// Starts servers again that ended since what they need at the start was away, as whoever runs them would.
    fn keep_up(&mut self) {
        for (place, role) in ROLES.into_iter().enumerate() {
            let Some(begun) = self.begun[place] else { continue };
            let Some(status) = self.servers[place].ended() else {
                continue;
            };
            let said = self.said(place);
            let said = said.get(begun..).unwrap_or_default();
            assert!(!said.contains(SERVING), "{role} ended by itself with {status}: {said}");
            self.started_again += 1;
            self.spawn(place);
        }
    }

    /// Lets everything go wrong as planned, until it is over; what is still wrong then is made good.
    pub async fn storm(&mut self, plan: &[Event], span: Duration) {
        let began = Instant::now();
        let mut plan = plan.iter().peekable();
        while began.elapsed() < span {
            self.keep_up();
            while let Some(event) = plan.next_if(|event| event.at <= began.elapsed()) {
                println!("{:>8.1?} {:?} {:?}", began.elapsed(), event.target, event.fault);
                tokio::task::block_in_place(|| self.apply(event));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        for (target, fault) in std::mem::take(&mut self.out) {
            tokio::task::block_in_place(|| self.mend(target, fault));
        }
        for place in 0..self.servers.len() {
            self.keep_up();
            self.servers[place].ready().await;
        }
    }

    fn apply(&mut self, event: &Event) {
        let Some(fault) = event.fault else {
            if let Some(fault) = self.out.remove(&event.target) {
                self.mend(event.target, fault);
            }
            return;
        };
        self.out.insert(event.target, fault);
        match (event.target, fault) {
            (Target::Server(place), Fault::Killed) => {
                self.begun[place] = None;
                self.servers[place].kill();
            }
            (Target::Server(place), _) => self.servers[place].signal(Signal::SIGSTOP),
            (Target::Database, Fault::Restarted) => self.cluster.stop(),
            (Target::Database, _) => self.cluster.kill(),
            (Target::Objects, Fault::Paused) => self.objects.pause(),
            (Target::Objects, _) => self.objects.kill(),
            (Target::Agent, fault) => self.hit(fault),
        }
    }

    fn mend(&mut self, target: Target, fault: Fault) {
        match (target, fault) {
            (Target::Server(place), Fault::Killed) => self.spawn(place),
            (Target::Server(place), _) => self.servers[place].signal(Signal::SIGCONT),
            (Target::Database, _) => self.cluster.resume(),
            (Target::Objects, Fault::Paused) => self.objects.unpause(),
            (Target::Objects, _) => self.objects.resume(),
            (Target::Agent, _) => {
                if let Some(agent) = self.paused.take() {
                    agent.signal(Signal::SIGCONT);
                }
            }
        }
    }

    /// An agent that is alive, and the name of its execution.
    fn hit(&mut self, fault: Fault) {
        let agents: Vec<_> = self.agents().collect();
        if agents.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.draw(agents.len() as u64)).unwrap_or(0);
        let agent = agents[at].clone();
        let Some(folder) = agent.variable("DBTCLOUD_WORK_DIR").map(PathBuf::from) else {
            return;
        };
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if fault == Fault::Killed {
            self.killed.insert(name);
            agent.signal(Signal::SIGKILL);
        } else {
            agent.signal(Signal::SIGSTOP);
            self.paused = Some(agent);
        }
    }

    fn agents(&self) -> impl Iterator<Item = Process> {
        processes::of(self.installation.path())
            .into_iter()
            .filter(Process::is_agent)
    }

    /// Lets schedules rest, and waits until nothing is left to do.
    pub async fn calm(&self) {
        for tenant in &self.tenants {
            let path = format!("v2/accounts/{{a}}/jobs/{}/", tenant.minutely);
            let mut job = tenant.api.get(&path).await;
            job["triggers"]["schedule"] = json!(false);
            tenant.api.post(&path, &job).await;
        }
        let began = Instant::now();
        let mut told = 0;
        loop {
            let open = self.open();
            if open.is_empty() {
                return;
            }
            assert!(began.elapsed() < SETTLE, "not settled: {open:#?}");
            if began.elapsed().as_secs() / 10 > told {
                told = began.elapsed().as_secs() / 10;
                println!("{} things to do, as {:?}", open.len(), open.first());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What is still to be done.
    fn open(&self) -> Vec<String> {
        let open = self.database.ask(
            "SELECT 'queued ' || run_id FROM run_queue UNION ALL SELECT 'outbox ' || run_id FROM outbox \
             UNION ALL SELECT 'due ' || job_id FROM schedules WHERE next_at < extract(epoch FROM now()) * 1000000",
        );
        let agents = self.agents().map(|agent| format!("{agent:?}"));
        open.lines().map(str::to_owned).chain(agents).collect()
    }

    /// Executions that the executor still knows of: a scheduler that was killed left them to cleanup, which removes
    /// them when they are old enough.
    pub fn left(&self) -> Vec<String> {
        let folder = std::fs::read_dir(self.installation.path().join("executions"));
        let known = folder.into_iter().flatten().flatten();
        let known = known.map(|entry| entry.file_name().to_string_lossy().into_owned());
        known.filter(|name| name.starts_with("run-")).collect()
    }

    /// Stops everything in good order and holds the logs to the rule.
    pub async fn finish(&mut self) {
        for server in &mut self.servers {
            server.stop().await;
        }
        let said = self
            .servers
            .iter()
            .flat_map(|server| self.installation.unexpected(&server.log));
        let said: Vec<String> = said.collect();
        if !said.is_empty() {
            println!("the database says: {}", self.cluster.log());
        }
        assert!(said.is_empty(), "{} unexpected lines: {said:#?}", said.len());
    }
}
