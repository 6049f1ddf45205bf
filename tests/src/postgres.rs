//! A private PostgreSQL for tests: on a free port of the loopback, in a directory of its own, gone with the
//! test process. The server's programs are those of `/usr/lib/postgresql/*/bin` or of the `PATH`.
//!
//! [`schema`] is what most tests want: an empty schema in a cluster that all tests of a run share.
//! [`database`] is for those that look at the database as a whole (making one takes ten times as long),
//! [`Cluster::start`] for those that stop the server or want it durable.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::shared::{free_port, shared};

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A role that logs in with [`PASSWORD`] only; the role `postgres` needs none.
pub const GUARDED_ROLE: &str = "guarded";
/// Its password.
pub const PASSWORD: &str = "correct-horse-battery";

/// What is special about a server.
#[derive(Default)]
pub struct Custom {
    /// Whether it flushes to disk.
    pub durable: bool,
    /// Lines for `postgresql.conf`.
    pub settings: String,
    /// Lines for `pg_hba.conf`, before the others.
    pub access: String,
    /// Files beside its data, name and text, that nobody else may read.
    pub files: Vec<(&'static str, String)>,
}

/// A server of one test's own. Ended by its process id when dropped.
pub struct Cluster {
    directory: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    /// Starts a server that does not flush to disk: quick, and lost with the machine.
    pub fn start() -> Self {
        Self::start_as(&Custom::default())
    }

    /// The same with PostgreSQL's own durability, for measurements.
    pub fn start_durable() -> Self {
        Self::start_as(&Custom {
            durable: true,
            ..Custom::default()
        })
    }

    /// The same with more settings.
    pub fn start_as(custom: &Custom) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("dbtcloud-postgres-")
            .tempdir()
            .expect("a directory");
        Self::start_in(directory.keep(), custom)
    }

    fn start_in(directory: PathBuf, custom: &Custom) -> Self {
        initialize(&directory, custom);
        let mut cluster = Self {
            directory,
            port: 0,
            server: None,
        };
        cluster.resume();
        run(psql(cluster.port, "postgres").args([
            "-c",
            &format!("CREATE ROLE {GUARDED_ROLE} LOGIN SUPERUSER PASSWORD '{PASSWORD}'"),
        ]));
        cluster
    }

    /// Starts the server again after [`Cluster::kill`], at the same port.
    pub fn resume(&mut self) {
        let again = self.port != 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !again {
                self.port = free_port();
            }
            let mut command = as_server_user(&program("postgres"));
            command
                .arg("-D")
                .arg(self.directory.join("data"))
                .args(["-p", &self.port.to_string()]);
            let log = File::options()
                .create(true)
                .append(true)
                .open(self.directory.join("log"))
                .expect("a log");
            // In a group of its own: an interrupt of the tests is the guardian's business.
            command
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
            let mut server = command.spawn().expect("postgres starts");
            loop {
                if psql(self.port, "postgres")
                    .args(["-c", "SELECT 1"])
                    .output()
                    .is_ok_and(|o| o.status.success())
                {
                    self.server = Some(server);
                    return;
                }
                if let Some(status) = server.try_wait().expect("a child") {
                    // The port may have been taken meanwhile, or the old server be just on its way out.
                    assert!(
                        Instant::now() < deadline,
                        "postgres ended with {status}:\n{}",
                        self.log()
                    );
                    std::thread::sleep(Duration::from_millis(100));
                    break;
                }
                assert!(Instant::now() < deadline, "postgres does not answer:\n{}", self.log());
                std::thread::sleep(Duration::from_millis(30));
            }
        }
    }

    /// Ends the server as a power cut would, all its connections with it.
    pub fn kill(&mut self) {
        // SIGQUIT: the server takes its children along and does not tidy up.
        self.end("-QUIT");
    }

    /// Ends the server as an operator does: it ends its connections and tidies up.
    pub fn stop(&mut self) {
        self.end("-INT");
    }

    fn end(&mut self, signal: &str) {
        let Some(mut server) = self.server.take() else { return };
        run(Command::new("kill").args([signal, &server.id().to_string()]));
        let deadline = Instant::now() + PATIENCE;
        while server.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "postgres does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A fresh database. It lives as long as its cluster.
    pub fn database(&self) -> Database {
        Database::create(self.port)
    }

    /// The server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A session that keeps a snapshot of this database until it is killed, so that no row that dies meanwhile can
    /// be removed.
    pub fn hold_snapshot(&self, database: &Database) -> Child {
        let script = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM run_queue; SELECT pg_sleep(3600)";
        let mut command = psql(self.port, database.name());
        let session = command
            .args(["-c", script])
            .stdout(Stdio::null())
            .spawn()
            .expect("psql starts");
        let held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND backend_xmin IS NOT NULL \
            AND pid <> pg_backend_pid()";
        let deadline = Instant::now() + PATIENCE;
        while database.ask(held) == "0" {
            assert!(Instant::now() < deadline, "no snapshot is held");
            std::thread::sleep(Duration::from_millis(20));
        }
        session
    }

    /// What it has written down so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A database of one test's own; dropped with the value.
pub struct Database {
    port: u16,
    name: String,
}

impl Database {
    fn create(port: u16) -> Self {
        let name = unique_name();
        run(psql(port, "postgres").args(["-c", &format!("CREATE DATABASE {name}")]));
        Self { port, name }
    }

    /// How to reach it, as the role `postgres`.
    pub fn url(&self) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{}?sslmode=disable",
            self.port, self.name
        )
    }

    /// How to reach it as [`GUARDED_ROLE`] with this password.
    pub fn url_with(&self, password: &str) -> String {
        format!(
            "postgres://{GUARDED_ROLE}:{password}@127.0.0.1:{}/{}?sslmode=disable",
            self.port, self.name
        )
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a statement answers, unaligned and without headings.
    pub fn ask(&self, statement: &str) -> String {
        let output = run(psql(self.port, &self.name).args(["-A", "-t", "-c", statement]));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    /// The same of a server that may be away: `None` when there is no answer.
    pub fn try_ask(&self, statement: &str) -> Option<String> {
        let mut asked = psql(self.port, &self.name);
        let output = asked.args(["-A", "-t", "-c", statement]).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim_end().to_owned())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // A server that was stopped on purpose has nothing to drop.
        let _ = psql(self.port, "postgres").args(["-c", &statement]).output();
    }
}

/// A schema of one test's own, in a database that others use too. It stays until the cluster goes: to drop
/// it would cost more than it gives back.
pub struct Schema {
    port: u16,
    name: String,
}

impl Schema {
    /// How to reach it, as the role `postgres`; no other schema is on the way.
    pub fn url(&self) -> String {
        let Self { port, name } = self;
        format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable&options=-csearch_path%3D{name}")
    }
}

/// An empty schema in the cluster that all tests of this run share.
pub fn schema() -> Schema {
    let schema = Schema {
        port: shared_port(),
        name: unique_name(),
    };
    run(psql(schema.port, "postgres").args(["-c", &format!("CREATE SCHEMA {}", schema.name)]));
    schema
}

/// A fresh database in the cluster that all tests of this run share.
pub fn database() -> Database {
    Database::create(shared_port())
}

/// The port of the cluster that all tests of this run share.
fn shared_port() -> u16 {
    let port = shared("postgres", "QUIT", |directory| {
        let mut cluster = Cluster::start_in(directory, &Custom::default());
        let server = cluster.server.take().expect("a server");
        let port = cluster.port;
        // From here on the guardian's.
        std::mem::forget(cluster);
        (server, port.to_string())
    });
    port.trim().parse().expect("a port")
}

/// A name that no other test of this run has.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn initialize(directory: &Path, custom: &Custom) {
    // The server runs as another user when this is root, and PostgreSQL refuses root.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("permissions");
    let data = directory.join("data");
    fs::create_dir(&data).expect("a data directory");
    if is_root() {
        run(Command::new("chown").arg("-R").arg(SERVER_USER).arg(directory));
    }
    run(as_server_user(&program("initdb"))
        .args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C.UTF-8",
            "-D",
        ])
        .arg(&data));
    let mut settings = format!(
        "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nmax_connections = 300\n\
         shared_buffers = 128MB\nlog_min_messages = warning\n",
        directory.display()
    );
    settings.push_str(&custom.settings);
    if !custom.durable {
        settings.push_str("fsync = off\nfull_page_writes = off\ntrack_commit_timestamp = on\n");
    }
    fs::write(data.join("postgresql.auto.conf"), settings).expect("settings");
    let access = format!(
        "local all all trust\n{}host all {GUARDED_ROLE} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n",
        custom.access
    );
    fs::write(data.join("pg_hba.conf"), access).expect("access rules");
    for (name, text) in &custom.files {
        let file = data.join(name);
        fs::write(&file, text).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("permissions");
        if is_root() {
            run(Command::new("chown").arg(SERVER_USER).arg(file));
        }
    }
}

const SERVER_USER: &str = "postgres";

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id");
    output.stdout.trim_ascii() == b"0"
}

/// A server program, as a user that may run it. `setpriv` becomes the program: the child's id is its own.
fn as_server_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", SERVER_USER, "--regid", SERVER_USER, "--clear-groups", "--"])
        .arg(program);
    // Not a directory that only root may enter.
    command.current_dir("/");
    command
}

/// The newest of what is installed.
fn program(name: &str) -> PathBuf {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = installed
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    found.sort();
    found.pop().map_or_else(|| PathBuf::from(name), |(_, path)| path)
}

fn psql(port: u16, database: &str) -> Command {
    let mut command = Command::new(program("psql"));
    command.args([
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-d",
        database,
        "-p",
    ]);
    command
        .arg(port.to_string())
        .env("PGCONNECT_TIMEOUT", "5")
        .env("PGSSLMODE", "disable");
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A port of the loopback that nobody listens at.
pub fn closed_port() -> u16 {
    let port = free_port();
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "port {port} was free just now"
    );
    port
}
