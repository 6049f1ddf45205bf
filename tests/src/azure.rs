//! A private Azure Blob server for tests: Azurite from `tests/setup`, on a free port of the loopback, in memory,
//! gone with the test process. [`container`] is an empty container in the one that all tests of a run share.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dbtcloud_core::secret::Secret;
use dbtcloud_opendal::Options;
use sha2::{Digest, Sha256};

use crate::shared::{free_port, shared};
use crate::{http, project};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The account that every Azurite has, and its key: both are in its documentation.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A container of one test's own.
pub struct Container {
    port: u16,
    name: String,
}

impl Container {
    /// The URL of its artifacts, below a prefix.
    pub fn url(&self) -> String {
        self.url_of(&self.name)
    }

    /// The URL of a container of that name in the same server.
    pub fn url_of(&self, name: &str) -> String {
        format!(
            "azblob://{name}/some/prefix?endpoint=http://127.0.0.1:{}/{ACCOUNT}&account={ACCOUNT}",
            self.port
        )
    }

    /// How to reach it.
    pub fn options(&self) -> Options {
        Options::new().with_key(ACCOUNT, Secret::new(KEY))
    }
}

/// An empty container in the server that all tests of this run share.
///
/// # Panics
/// When there is none to be had.
pub fn container() -> Container {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let note = shared("azurite", "KILL", |directory| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((server, port)) = start(&directory, deadline) {
                return (server, port.to_string());
            }
        }
    });
    let port = note.trim().parse().expect("a port");
    let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    create(port, &name);
    Container { port, name }
}

/// `None` when the port was taken meanwhile.
fn start(directory: &Path, deadline: Instant) -> Option<(Child, u16)> {
    let port = free_port();
    let log = File::create(directory.join("log")).expect("a log");
    let mut server = Command::new("node")
        .arg(project::workspace().join(".cache/node/node_modules/azurite/dist/src/blob/main.js"))
        .args(["--blobPort", &port.to_string()])
        .current_dir(directory)
        .args([
            "--inMemoryPersistence",
            "--silent",
            "--disableTelemetry",
            "--skipApiVersionCheck",
        ])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("tests/setup installs Azurite");
    loop {
        if http::ask("GET", port, "/", &[]).is_some() {
            return Some((server, port));
        }
        let said = || std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        if server.try_wait().expect("a child").is_some() {
            assert!(said().contains("EADDRINUSE"), "Azurite ended:\n{}", said());
            return None;
        }
        assert!(Instant::now() < deadline, "Azurite does not answer:\n{}", said());
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Makes a container, which wants a signed request.
fn create(port: u16, name: &str) {
    let output = Command::new("date")
        .env("LC_ALL", "C")
        .args(["-u", "+%a, %d %b %Y %H:%M:%S GMT"])
        .output()
        .expect("a date");
    let date = String::from_utf8(output.stdout).expect("text");
    let (date, version) = (date.trim(), "2021-12-02");
    let path = format!("/{ACCOUNT}/{name}");
    let signed = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}{path}\nrestype:container"
    );
    let signature = BASE64.encode(hmac(&BASE64.decode(KEY).expect("a key"), signed.as_bytes()));
    let answer = http::ask(
        "PUT",
        port,
        &format!("{path}?restype=container"),
        &[
            ("x-ms-date", date),
            ("x-ms-version", version),
            ("Authorization", &format!("SharedKey {ACCOUNT}:{signature}")),
        ],
    );
    assert!(matches!(answer, Some((201, _))), "{answer:?}");
}

/// HMAC-SHA-256 with a key of at most 64 bytes.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}
