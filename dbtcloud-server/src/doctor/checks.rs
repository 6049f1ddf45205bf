//! The checks, in the order in which one depends on another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use dbtcloud_core::ErrorKind;
use dbtcloud_core::catalog::Kind;
use dbtcloud_core::ports::{Bell, Catalog, Clock, Wakeups};
use dbtcloud_opendal::{OpendalArtifacts, Options};
use dbtcloud_runtime::clock::SystemClock;
use dbtcloud_runtime::vault::{self, KeyringVault};
use dbtcloud_sql::{Engine, SqlStorage};
use futures::StreamExt;
use tokio::net::TcpStream;

use super::{Report, Verdict};
use crate::compose;
use crate::config::{Kubernetes, Role, Settings};

/// How far this machine's clock may be from the database's. Leases are given for longer than that.
const CLOCK_LIMIT: Duration = Duration::from_secs(5);
/// How long a bell may take.
const BELL_LIMIT: Duration = Duration::from_secs(3);
/// How long a program may take to say its version, and an address to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Records of each kind whose secrets' keys are looked for.
const RECORDS: u32 = 200;
/// Less room than this is worth a warning.
const ROOM_BYTES: u64 = 1 << 30;

/// All that fit the settings.
pub(super) async fn all(report: &mut Report, settings: &Settings, environment: &BTreeMap<String, String>) {
    if let Some(tls) = &settings.tls {
        report.add(
            "tls",
            Verdict::of(crate::tls::check(tls).map(|()| "certificate and key fit".to_owned())),
        );
    }
    if settings.is_gateway_alone() {
        return gateway(report, settings).await;
    }
    report.add("data_dir", data_dir(&settings.data_dir));
    let keys = compose::key_ring(settings);
    report.add("key_file", key_file(settings, &keys));
    let storage = database(report, settings).await;
    if let (Some(storage), Ok(Some(ring))) = (&storage, &keys) {
        report.look("secrets", secrets(storage, ring)).await;
    }
    report.look("artifacts", artifacts(settings)).await;
    if settings.has(Role::Scheduler) {
        executor(report, settings, environment).await;
    }
    if let Some(smtp) = &settings.smtp {
        report
            .look("mail", async {
                let answer = async { compose::mail(smtp, None)?.check().await.map_err(compose::told) };
                Verdict::of(
                    answer
                        .await
                        .map(|()| "the server answers and takes the login".to_owned()),
                )
            })
            .await;
    }
    if let Some(url) = &settings.otlp_endpoint {
        report.look("otlp", answers(url)).await;
    }
    if let Some(lineage) = &settings.lineage {
        report.look("openlineage", answers(&lineage.url)).await;
    }
    if let Some(storage) = storage {
        storage.close().await;
    }
}

async fn gateway(report: &mut Report, settings: &Settings) {
    for url in &settings.app_urls {
        report.look("app", ready(url)).await;
    }
}

fn data_dir(path: &Path) -> Verdict {
    let shown = path.display();
    if !path.exists() {
        return Verdict::Doubt(format!("{shown} is not there; `dbtcloud serve` makes it"));
    }
    if let Err(error) = tempfile::Builder::new().prefix(".doctor-").tempfile_in(path) {
        return Verdict::Wrong(format!("cannot write in {shown}: {error}; check its owner and mount"));
    }
    match nix::sys::statvfs::statvfs(path) {
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            let text = format!("{shown}, {:.1} GiB free", free as f64 / f64::from(1 << 30));
            match free < ROOM_BYTES {
                true => Verdict::Doubt(format!("{text}; make room: logs and working copies pass through it")),
                false => Verdict::Fine(text),
            }
        }
        Err(error) => Verdict::Doubt(format!("cannot tell how much room {shown} has: {error}")),
    }
}

fn key_file(settings: &Settings, ring: &anyhow::Result<Option<KeyringVault>>) -> Verdict {
    match ring {
        Ok(Some(ring)) => Verdict::Fine(format!(
            "{} has {} (keep a copy elsewhere)",
            settings.key_file.display(),
            match ring.key_ids().count() {
                1 => "1 key".to_owned(),
                many => format!("{many} keys"),
            }
        )),
        Ok(None) => Verdict::Doubt(format!(
            "{} is not there; `dbtcloud serve` makes it for an embedded database",
            settings.key_file.display()
        )),
        Err(error) => Verdict::Wrong(format!("{error:#}")),
    }
}

/// The database, if it can be used as it is.
async fn database(report: &mut Report, settings: &Settings) -> Option<SqlStorage> {
    let blind = |report: &mut Report, why: &str| {
        for name in ["schema", "clock", "wakeups"] {
            report.add(name, Verdict::Unseen(why.to_owned()));
        }
        None
    };
    // To connect would make it.
    if let Some(path) = embedded_file(settings).filter(|path| !path.exists()) {
        let text = format!("{} is not there; `dbtcloud bootstrap` makes it", path.display());
        report.add("database", Verdict::Doubt(text));
        return blind(report, "there is no database yet");
    }
    // It has a limit of its own.
    let storage = match compose::connect_as(settings, "doctor", &compose::instance()).await {
        Ok(storage) => storage,
        Err(error) => {
            report.add("database", Verdict::Wrong(format!("{error:#}")));
            return blind(report, "the database cannot be opened");
        }
    };
    let name = match storage.engine() {
        Engine::Postgres => "PostgreSQL",
        Engine::Sqlite => "SQLite",
    };
    report.add("database", Verdict::Fine(format!("{name} answers")));
    report.look("schema", schema(&storage, settings)).await;
    report.look("clock", clock(&storage)).await;
    report.look("wakeups", wakeups(&storage)).await;
    Some(storage)
}

fn embedded_file(settings: &Settings) -> Option<PathBuf> {
    let path = settings.database_url.strip_prefix("sqlite://")?;
    Some(PathBuf::from(path.split('?').next().unwrap_or(path)))
}

async fn schema(storage: &SqlStorage, settings: &Settings) -> Verdict {
    let answer = async {
        let told = compose::told;
        let version = storage.schema_version().await.map_err(told)?;
        let wanted = SqlStorage::SCHEMA_VERSION;
        let migrates = settings.is_embedded() || settings.migrate;
        if version < wanted && migrates {
            return Ok(format!("version {version}; `dbtcloud serve` brings it to {wanted}"));
        }
        storage.check().await.map_err(told)?;
        storage.check_writable().await.map_err(told)?;
        if storage.scan(Kind::Account, 0, 1).await.map_err(told)?.is_empty() {
            bail!("there is no account; run `dbtcloud bootstrap`");
        }
        Ok(format!("version {version}, can be written"))
    };
    Verdict::of(answer.await)
}

async fn clock(storage: &SqlStorage) -> Verdict {
    let before = SystemClock.now();
    let theirs = match storage.server_time().await {
        Ok(theirs) => theirs,
        Err(error) => return Verdict::Wrong(error.chain()),
    };
    // Half way between question and answer is the best guess at when it looked.
    let ours = before.plus(SystemClock.now().since(before) / 2);
    let (apart, where_to) = match theirs.since(ours) {
        Duration::ZERO => (ours.since(theirs), "ahead of"),
        behind => (behind, "behind"),
    };
    match apart > CLOCK_LIMIT {
        true => Verdict::Wrong(format!(
            "this machine is {:.0} s {where_to} the database server; set both by NTP: runs would begin early or late",
            apart.as_secs_f64()
        )),
        false => Verdict::Fine(format!("{:.1} s {where_to} the database's", apart.as_secs_f64())),
    }
}

async fn wakeups(storage: &SqlStorage) -> Verdict {
    let heard = async {
        let mut bells = storage.listen().await?;
        storage.ring(Bell::Queue).await?;
        tokio::time::timeout(BELL_LIMIT, bells.next())
            .await
            .ok()
            .flatten()
            .transpose()
    };
    let deaf = "others are heard by polling only, every second; behind a pooler set database_listen_url to the \
                database itself";
    match heard.await {
        Ok(Some(_)) => Verdict::Fine("heard".to_owned()),
        Ok(None) => Verdict::Doubt(format!("not heard within {BELL_LIMIT:?}: {deaf}")),
        Err(error) => Verdict::Doubt(format!("{}: {deaf}", error.chain())),
    }
}

/// Whether the key file has the keys that the secrets of the database were sealed with.
async fn secrets(storage: &SqlStorage, ring: &KeyringVault) -> Verdict {
    let mut needed = BTreeSet::new();
    for kind in Kind::ALL {
        match storage.scan(kind, 0, RECORDS).await {
            Ok(rows) => {
                for row in rows {
                    needed.extend(vault::key_ids(&row.body.to_string()).map(str::to_owned));
                }
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => return Verdict::Unseen(error.chain()),
            Err(error) => return Verdict::Wrong(error.chain()),
        }
    }
    let count = needed.len();
    for id in ring.key_ids() {
        needed.remove(id);
    }
    match needed.is_empty() {
        true if count == 0 => Verdict::Fine("none is stored yet".to_owned()),
        true => Verdict::Fine("the key file has the keys of what is stored".to_owned()),
        false => Verdict::Wrong(format!(
            "the key file lacks keys {}, which secrets of the database need; add the lines of the old key file",
            needed.into_iter().collect::<Vec<_>>().join(", ")
        )),
    }
}

async fn artifacts(settings: &Settings) -> Verdict {
    // A directory that is not there yet is made by the server.
    if let Some(path) = settings.artifacts_url.strip_prefix("file://").map(Path::new)
        && !path.exists()
    {
        return Verdict::Doubt(format!("{} is not there; `dbtcloud serve` makes it", path.display()));
    }
    let answer = async {
        let options = Options::new().with_standard_credentials();
        let store = OpendalArtifacts::from_url(&settings.artifacts_url, &options).map_err(compose::told)?;
        store.check().await.map_err(compose::told)
    };
    Verdict::of(answer.await.map(|()| "written, read, listed and deleted".to_owned()))
}

async fn executor(report: &mut Report, settings: &Settings, environment: &BTreeMap<String, String>) {
    if let Some(kubernetes) = &settings.kubernetes {
        return cluster(report, kubernetes, environment).await;
    }
    let uv = environment.get("DBTCLOUD_UV").map_or("uv", String::as_str);
    let mend = "runs install dbt with it; `pip install uv`, or name it in DBTCLOUD_UV";
    report.look("uv", program(uv, mend)).await;
    report
        .look("git", program("git", "runs check out projects with it; install git"))
        .await;
    if let Some(url) = &settings.agent_url {
        report.look("agent_url", answers(url)).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only to ask for their version programs that agents will run"
)]
async fn program(name: &str, mend: &str) -> Verdict {
    let mut command = tokio::process::Command::new(name);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ANSWER_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            Verdict::Fine(said.lines().next().unwrap_or_default().to_owned())
        }
        Ok(Ok(output)) => Verdict::Wrong(format!("`{name} --version` ended with {}; {mend}", output.status)),
        Ok(Err(error)) => Verdict::Wrong(format!("cannot run {name}: {error}; {mend}")),
        Err(_) => Verdict::Wrong(format!("`{name} --version` took longer than {ANSWER_LIMIT:?}; {mend}")),
    }
}

/// Asks the cluster about rights, StorageClass and image.
async fn cluster(report: &mut Report, kubernetes: &Kubernetes, environment: &BTreeMap<String, String>) {
    let asked = async {
        let (executor, _) = crate::kubernetes::open(kubernetes, environment).await?;
        // Credentials that have just been made are not known everywhere at once.
        executor.check().await.map_err(compose::told)
    };
    let check = match asked.await {
        Ok(check) => check,
        Err(error) => return report.add("kubernetes", Verdict::Wrong(format!("{error:#}"))),
    };
    let told = format!("{} answers; runs are in namespace {}", check.version, check.namespace);
    report.add("kubernetes", Verdict::Fine(told));
    let (rights, others) = check.answers.split_at(dbtcloud_kubernetes::RIGHTS.len());
    let missing: Vec<_> = rights.iter().filter_map(|right| right.fault.as_deref()).collect();
    let verdict = match missing.is_empty() {
        true => Verdict::Fine(format!("all {} that are used", rights.len())),
        false => Verdict::Wrong(missing.join("; ")),
    };
    report.add("kubernetes_rights", verdict);
    for answer in others {
        let name = match answer.about.split(' ').next() {
            Some("pod") => "kubernetes_pod",
            Some("image") => "kubernetes_image",
            _ => "kubernetes_storage_class",
        };
        let about = &answer.about;
        let verdict = match &answer.fault {
            None if name == "kubernetes_pod" => Verdict::Fine("one of ours is let in".to_owned()),
            None => Verdict::Fine(about.clone()),
            Some(fault) if answer.vital => Verdict::Wrong(fault.clone()),
            Some(fault) => Verdict::Doubt(format!("{about}: {fault}")),
        };
        report.add(name, verdict);
    }
}

/// Whether somebody listens at a URL.
async fn answers(url: &str) -> Verdict {
    let tried = async {
        let url = reqwest::Url::parse(url)?;
        let host = url.host_str().context("it names no host")?.trim_matches(['[', ']']);
        let port = url.port_or_known_default().context("it names no port")?;
        let connected = tokio::time::timeout(ANSWER_LIMIT, TcpStream::connect((host, port))).await;
        match connected {
            Ok(Ok(_)) => Ok(format!("{host}:{port} takes connections")),
            Ok(Err(error)) => bail!("{host}:{port}: {error}"),
            Err(_) => bail!("{host}:{port}: no answer within {ANSWER_LIMIT:?}"),
        }
    };
    match tried.await {
        Ok(seen) => Verdict::Fine(seen),
        Err(error) => Verdict::Doubt(format!("{error:#}; from elsewhere it may be reached all the same")),
    }
}

/// Whether an app says that it is ready.
async fn ready(app: &str) -> Verdict {
    let url = format!("{}/readyz", app.trim_end_matches('/'));
    if !url.starts_with("http:") {
        return answers(app).await;
    }
    let asked = async {
        let client = reqwest::Client::builder().timeout(ANSWER_LIMIT).build()?;
        client.get(&url).send().await
    };
    match asked.await.map(|answer| answer.status().as_u16()) {
        Ok(200) => Verdict::Fine(format!("{url} says that it is ready")),
        Ok(code) => Verdict::Wrong(format!("{url} answers {code}; its body says what is lacking")),
        Err(error) => Verdict::Wrong(format!("{url}: no answer; is the app up? ({})", error.without_url())),
    }
}
