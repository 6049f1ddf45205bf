//! Puts a control plane together from settings: the one place, beside the demonstration, that names
//! adapters. SQLite, directories and processes by default; PostgreSQL when the database URL says so.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dbtcloud_core::ErrorKind;
use dbtcloud_core::ports::{Clock, Consumer, History};
use dbtcloud_core::secret::Secret;
use dbtcloud_kubernetes::KubernetesExecutor;
use dbtcloud_local::{DirectoryVolume, LocalExecutor};
use dbtcloud_opendal::{OpendalArtifacts, Options as ArtifactOptions};
use dbtcloud_runtime::clock::SystemClock;
use dbtcloud_runtime::dial::Dialer;
use dbtcloud_runtime::dispatch::{Mail, MailServer, Webhooks};
use dbtcloud_runtime::lineage::Lineage;
use dbtcloud_runtime::vault::KeyringVault;
use dbtcloud_runtime::{AgentLaunch, Builder, Config, ControlPlane, Roles};
use dbtcloud_sql::{Options as SqlOptions, SqlStorage};

use crate::config::{LogFormat, Role, Settings, Smtp};
use crate::telemetry::Otlp;

/// The longest path that a unix socket may have.
const SOCKET_PATH_LIMIT_BYTES: usize = 100;

/// What agents may inherit of this process's environment: where programs and certificates are, and how to
/// reach the network. Nothing that holds a secret of the server.
const INHERITED: [&str; 18] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "DBTCLOUD_DBT_ENVS",
    "DBTCLOUD_UV",
    "DBTCLOUD_PYTHON",
    "DBTCLOUD_GIT",
];
/// Prefixes of more of them: how packages are fetched.
const INHERITED_PREFIXES: [&str; 2] = ["UV_", "PIP_"];

/// What an agent is told of its log: the filter, and whether its lines are `text` or `json`.
pub const AGENT_LOG: &str = "DBTCLOUD_LOG";
/// See [`AGENT_LOG`].
pub const AGENT_LOG_FORMAT: &str = "DBTCLOUD_LOG_FORMAT";

/// A control plane and what must live as long as it does.
#[derive(Debug)]
pub struct Composed {
    /// The control plane.
    pub plane: ControlPlane,
    /// Its database, for what is not a port: the schema.
    pub storage: SqlStorage,
    /// The cluster that runs execute in, where they do.
    pub cluster: Option<KubernetesExecutor>,
    /// Where its traces go.
    pub otlp: Option<Arc<Otlp>>,
    /// Keeps a second server off an embedded data directory.
    _alone: Option<File>,
}

/// Connects to the database of the settings, for a command. The schema is not touched.
///
/// # Errors
/// What cannot be reached, without the URL.
pub async fn connect(settings: &Settings) -> anyhow::Result<SqlStorage> {
    if settings.is_embedded() {
        private_directory(&settings.data_dir)?;
    }
    connect_as(settings, "command", &instance()).await
}

/// The same as a process that the server shows by what it does and by its name.
pub(crate) async fn connect_as(settings: &Settings, role: &str, instance: &str) -> anyhow::Result<SqlStorage> {
    let database = &settings.database;
    let mut options = SqlOptions::new()
        .with_application_name(format!("dbtcloud/{role}/{instance}"))
        .with_pool_size(database.pool_size)
        .with_statement_timeout(Duration::from_secs(database.statement_timeout_seconds))
        .with_lock_timeout(Duration::from_secs(database.lock_timeout_seconds));
    if let Some(file) = &database.password_file {
        options = options.with_password(secret_in(file).context("database_password_file")?);
    }
    if let Some(url) = &database.listen_url {
        options = options.with_listen_url(Secret::new(url));
    }
    SqlStorage::connect(&settings.database_url, options)
        .await
        .map_err(told)
        .context("cannot open the database that database_url names")
}

/// Brings the schema up to date, with the months that runs are filed by: made before there are runs, they hold up none.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn migrate(storage: &SqlStorage) -> anyhow::Result<()> {
    storage.migrate().await.map_err(told)?;
    storage.prepare(SystemClock.now()).await.map_err(told)
}

/// Opens the artifact store of the settings and looks at it. One that does not answer is no hindrance: the
/// server is not ready until it does, and runs wait. One that can never work is.
///
/// # Errors
/// A wrong URL or bucket, a missing permission; what to do about it.
pub async fn artifacts(settings: &Settings) -> anyhow::Result<OpendalArtifacts> {
    let options = ArtifactOptions::new().with_standard_credentials();
    let artifacts = OpendalArtifacts::from_url(&settings.artifacts_url, &options).map_err(told)?;
    match artifacts.check().await {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            tracing::warn!(error = %error.chain(), "the artifact store does not answer; runs wait for it");
            Ok(artifacts)
        }
        answer => answer.map(|()| artifacts).map_err(told),
    }
}

/// The control plane of the settings. `environment` is this process's, `program` the binary that agents run.
///
/// # Errors
/// The first thing that is in the way, and what to do about it.
pub async fn compose(
    settings: &Settings,
    program: PathBuf,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Composed> {
    private_directory(&settings.data_dir)?;
    let alone = if settings.is_embedded() {
        Some(alone(&settings.data_dir)?)
    } else {
        None
    };
    let instance = instance();
    let storage = connect_as(settings, &role_names(settings), &instance).await?;
    if settings.is_embedded() || settings.migrate {
        migrate(&storage)
            .await
            .context("cannot bring the database's schema up to date")?;
        // Before anybody queues a run: a month that is made while runs come in makes them wait or try again.
        if let Err(error) = storage.prepare(SystemClock.now()).await {
            tracing::warn!(error = %error.chain(), "no room was made for the months to come; cleanup tries again");
        }
    }
    storage
        .check()
        .await
        .map_err(told)
        .context("the database cannot be used by this version")?;
    storage.check_writable().await.map_err(told)?;
    let vault = match key_ring(settings)? {
        Some(ring) => ring,
        None => made_key_ring(settings)?,
    };
    let at = |name: &str| settings.data_dir.join(name);
    let artifacts = artifacts(settings).await?;
    let environment: BTreeMap<_, _> = environment.collect();
    let (places, cluster) = places(settings, &environment).await?;
    if cluster.is_none() {
        private_directory(&at("work"))?;
        private_directory(&at("cache"))?;
    }
    let config = config(settings, instance, program, environment)?;
    let otlp = match &settings.otlp_endpoint {
        Some(endpoint) => Some(Arc::new(Otlp::new(endpoint, &config.instance)?)),
        None => None,
    };
    let mut builder = places(storage.clone(), config)
        .artifacts(artifacts)
        .vault(vault)
        .webhooks(Webhooks::new(web_dialer().within(settings.webhook_targets)));
    if let Some(otlp) = &otlp {
        builder = builder.tracer(otlp.clone());
    }
    if let Some(smtp) = &settings.smtp {
        builder = builder.mail(mail(smtp, settings.public_url.clone())?);
    }
    if let Some(lineage) = &settings.lineage {
        let key = match &lineage.api_key_file {
            Some(path) => Some(secret_in(path).context("openlineage_api_key_file")?),
            None => None,
        };
        let lineage = Lineage::new(&lineage.url, key, lineage.namespace.clone()).map_err(told)?;
        builder = builder.consumer(Consumer::Lineage, lineage);
    }
    let plane = builder.build();
    Ok(Composed {
        plane,
        storage,
        cluster,
        otlp,
        _alone: alone,
    })
}

/// The database of an installation, for a command that works beside its servers.
///
/// # Errors
/// That there is none, or that it cannot be used by this version.
pub async fn beside_storage(settings: &Settings, instance: &str) -> anyhow::Result<SqlStorage> {
    if settings.is_embedded() && !settings.data_dir.is_dir() {
        bail!(
            "there is no installation in {}; --data-dir says where it is",
            settings.data_dir.display()
        );
    }
    let storage = connect_as(settings, "command", instance).await?;
    storage
        .check()
        .await
        .map_err(told)
        .context("the database cannot be used by this version")?;
    storage.check_writable().await.map_err(told)?;
    Ok(storage)
}

/// A control plane for a command that works beside the servers of an installation: nothing is made, and nobody is
/// kept out.
///
/// # Errors
/// The first thing that is in the way, and what to do about it.
pub async fn beside(
    settings: &Settings,
    program: PathBuf,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<ControlPlane> {
    let instance = instance();
    let storage = beside_storage(settings, &instance).await?;
    let options = ArtifactOptions::new().with_standard_credentials();
    let artifacts = OpendalArtifacts::from_url(&settings.artifacts_url, &options).map_err(told)?;
    let environment: BTreeMap<_, _> = environment.collect();
    let (places, _) = places(settings, &environment).await?;
    let config = config(settings, instance, program, environment)?;
    Ok(places(storage, config).artifacts(artifacts).build())
}

/// A control plane's beginning, with where executions and volumes are.
type Places = Box<dyn FnOnce(SqlStorage, Config) -> Builder + Send>;

/// Opens where executions and volumes are: the machine, or a cluster.
async fn places(
    settings: &Settings,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<(Places, Option<KubernetesExecutor>)> {
    if let Some(kubernetes) = &settings.kubernetes {
        let (executor, volume) = crate::kubernetes::open(kubernetes, environment).await?;
        let cluster = executor.clone();
        #[cfg(feature = "failpoints")]
        let executor = crate::twice::Twice(executor);
        let begin: Places = Box::new(|storage, config| ControlPlane::builder(storage, executor, config).volume(volume));
        return Ok((begin, Some(cluster)));
    }
    let executor = LocalExecutor::new(settings.data_dir.join("executions")).map_err(told)?;
    #[cfg(feature = "failpoints")]
    let executor = crate::twice::Twice(executor);
    let volume = DirectoryVolume::new(settings.data_dir.join("volumes")).map_err(told)?;
    Ok((
        Box::new(|storage, config| ControlPlane::builder(storage, executor, config).volume(volume)),
        None,
    ))
}

/// What the control plane is told of the settings.
fn config(
    settings: &Settings,
    instance: String,
    program: PathBuf,
    environment: impl IntoIterator<Item = (String, String)>,
) -> anyhow::Result<Config> {
    let at = |name: &str| settings.data_dir.join(name);
    let socket = at("agent.sock");
    if socket.as_os_str().len() > SOCKET_PATH_LIMIT_BYTES {
        bail!(
            "data_dir {} is too long for a socket: expected at most {SOCKET_PATH_LIMIT_BYTES} bytes with /agent.sock",
            settings.data_dir.display()
        );
    }
    let environment = environment.into_iter();
    let agent = if settings.kubernetes.is_some() {
        crate::kubernetes::launch(settings, agent_environment(settings, std::iter::empty()))
    } else {
        AgentLaunch {
            command: vec![program.display().to_string(), "agent".to_owned()],
            server: match &settings.agent_url {
                Some(url) => url.clone(),
                None => format!("unix:{}", socket.display()),
            },
            work_dir: at("work"),
            cache_dir: at("cache"),
            environment: agent_environment(settings, environment),
        }
    };
    let mut config = Config::new(instance, agent);
    config.run_capacity = settings.run_capacity;
    config.retention = settings.retention;
    config.grace = Duration::from_secs(settings.grace_seconds);
    Ok(config)
}

/// What sends mail. The server is not asked: mail waits for one that is down.
pub(crate) fn mail(smtp: &Smtp, base: Option<String>) -> anyhow::Result<Mail> {
    let server = MailServer::parse(&smtp.url).map_err(|expected| anyhow::anyhow!("smtp_url: {expected}"))?;
    let password = match &smtp.password_file {
        Some(path) => Some(secret_in(path).context("smtp_password_file")?),
        None => None,
    };
    Mail::new(&server, &smtp.from, password.as_ref(), base).map_err(told)
}

/// Opens connections to webhooks. A machine without authorities reaches those that speak no TLS.
fn web_dialer() -> Dialer {
    Dialer::secure(None).unwrap_or_else(|error| {
        tracing::warn!(error = %error.chain(), "no authorities on this machine: webhooks cannot be sent by https");
        Dialer::plain()
    })
}

/// A name that no other process has, also not one of an earlier life of this machine: containers begin to count
/// their processes anew.
pub fn instance() -> String {
    format!("{}-{}-{:08x}", host_name(), std::process::id(), rand::random::<u32>())
}

/// What a process does, in a word or several.
fn role_names(settings: &Settings) -> String {
    let names: Vec<_> = settings.roles.iter().map(|role| role.name()).collect();
    match names.len() {
        all if all == Role::ALL.len() => "all".to_owned(),
        _ => names.join("+"),
    }
}

/// The loops that the roles of the settings ask for.
pub fn roles(settings: &Settings) -> Roles {
    Roles {
        scheduler: settings.has(Role::Scheduler),
        cleanup: settings.has(Role::Cleanup),
    }
}

/// An error of ours with its causes, for a person.
pub(crate) fn told(error: dbtcloud_core::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", error.chain())
}

/// The secret that a file has, without the end of its line.
fn secret_in(path: &Path) -> anyhow::Result<Secret> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    match text.trim() {
        "" => bail!("{} is empty", path.display()),
        text => Ok(Secret::new(text)),
    }
}

/// What agents find in their environment beside what their driver tells them.
fn agent_environment(
    settings: &Settings,
    environment: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let mut all = inherited(environment);
    let mut set = |name: &str, value: &str| all.insert(name.to_owned(), value.to_owned());
    set(AGENT_LOG, &settings.log);
    let json = settings.log_format == LogFormat::Json;
    set(AGENT_LOG_FORMAT, if json { "json" } else { "text" });
    if let Some(file) = &settings.agent_ca {
        set("DBTCLOUD_SERVER_CA", &file.display().to_string());
    }
    if let Some(endpoint) = &settings.otlp_endpoint {
        // A dbt that traces itself sends to the same place, below the step it works for.
        set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        set("OTEL_SERVICE_NAME", "dbt");
    }
    all
}

fn inherited(environment: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let wanted = |name: &str| {
        #[cfg(feature = "failpoints")]
        if [crate::twice::CALLS, crate::twice::SEEN].contains(&name) {
            return true;
        }
        INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    environment.filter(|(name, _)| wanted(name)).collect()
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "host".to_owned(), |name| name.trim().to_owned())
}

/// A directory that only this user can enter and that can be written.
fn private_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))?;
    let probe = path.join(".probe");
    let written = match File::create(&probe).and_then(|_| std::fs::remove_file(&probe)) {
        // Another server of the directory that starts just now has removed it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_dir() => Ok(()),
        written => written,
    };
    written.with_context(|| format!("cannot write in the directory {}", path.display()))
}

/// The lock of a data directory that may not be there yet.
pub(crate) fn alone_in(data_dir: &Path) -> anyhow::Result<File> {
    private_directory(data_dir)?;
    alone(data_dir)
}

/// The lock of an embedded data directory; it lives as long as its file is open, also when we are killed.
pub(crate) fn alone(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| write!(file, "{}", std::process::id()))?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!(
                "another dbtcloud (process {}) serves the data directory {}; stop it, or choose another data_dir",
                pid.trim(),
                data_dir.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Whether a key file can be read by more than it should. What root mounts for a process that is not root's, as a
/// kubelet does, is read by way of its group.
fn is_open(mode: u32, owner: u32, user: u32) -> bool {
    let mounted = owner == 0 && user != 0;
    mode & if mounted { 0o037 } else { 0o077 } != 0
}

/// The keys of the key file. `None` when there is no file and an embedded server may make one; others must be given
/// theirs, for a key that only one of them has would lose the secrets of the rest.
///
/// # Errors
/// A file that others can read, that cannot be read, or that has no keys.
pub(crate) fn key_ring(settings: &Settings) -> anyhow::Result<Option<KeyringVault>> {
    let path = &settings.key_file;
    let text = match std::fs::metadata(path) {
        Ok(meta) if is_open(meta.permissions().mode(), meta.uid(), nix::unistd::geteuid().as_raw()) => bail!(
            "key file {} can be read by others: expected mode 0600, got {:04o}; run chmod 600",
            path.display(),
            meta.permissions().mode() & 0o7777
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && settings.is_embedded() => return Ok(None),
        Ok(_) => std::fs::read_to_string(path),
        Err(error) => Err(error),
    };
    let text = text.with_context(|| format!("cannot read key file {}", path.display()))?;
    let ring = KeyringVault::from_text(&text).map_err(told);
    ring.map(Some)
        .with_context(|| format!("key file {} cannot be used", path.display()))
}

/// The same of a file that is made.
fn made_key_ring(settings: &Settings) -> anyhow::Result<KeyringVault> {
    let path = &settings.key_file;
    let key = KeyringVault::generate().map_err(told)?;
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make key file {}", path.display()))?;
    file.write_all(key.expose().as_bytes()).and_then(|()| file.sync_all())?;
    tracing::info!(path = %path.display(), "made a key file; keep a copy: without it no secret can be read");
    KeyringVault::from_text(key.expose()).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = alone(dir.path()).unwrap();
        let error = alone(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        assert!(alone(dir.path()).is_ok());
    }

    #[test]
    fn servers_of_one_directory_may_start_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| private_directory(dir.path()).unwrap()));
            }
        });
    }

    #[test]
    fn a_mounted_key_may_be_read_by_the_group_it_was_mounted_for() {
        let (root, user) = (0, 65532);
        assert!(!is_open(0o100_600, user, user));
        assert!(is_open(0o100_640, user, user) && is_open(0o100_640, root, root));
        assert!(!is_open(0o100_440, root, user));
        assert!(is_open(0o100_460, root, user) && is_open(0o100_444, root, user));
    }

    #[test]
    fn agents_inherit_no_secret() {
        let given = [
            ("PATH", "/bin"),
            ("DBTCLOUD_DATABASE_URL", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("UV_INDEX_URL", "y"),
        ];
        let kept = inherited(
            given
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["PATH", "UV_INDEX_URL"]);
    }
}
