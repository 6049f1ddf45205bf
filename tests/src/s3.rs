//! A private S3 server for tests: SeaweedFS from `tests/setup`, on free ports of the loopback, in a directory of
//! its own, gone with the test process.
//!
//! [`bucket`] is what most tests want: an empty bucket in a server that all tests of a run share.
//! [`SeaweedFs::start`] is for those that stop the server.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dbtcloud_core::secret::Secret;
use dbtcloud_opendal::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shared::{free_port, shared};
use crate::{http, project};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// An access key that may do everything.
pub const ADMIN: &str = "admin";
/// An access key that may read and list only.
pub const READER: &str = "reader";
/// The secret of both.
pub const SECRET: &str = "correct-horse-battery";

/// A server of one test's own. Ended by its process id when dropped.
pub struct SeaweedFs {
    directory: PathBuf,
    ports: Ports,
    server: Option<Child>,
}

/// The ports that its parts listen at.
#[derive(Clone, Copy)]
struct Ports {
    s3: u16,
    filer: u16,
    others: [u16; 6],
}

impl SeaweedFs {
    /// Starts a server.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("dbtcloud-seaweedfs-")
            .tempdir()
            .expect("a directory");
        Self::start_in(directory.keep())
    }

    fn start_in(directory: PathBuf) -> Self {
        let identity = |name: &str, actions: &str| {
            format!(
                r#"{{"name":"{name}","credentials":[{{"accessKey":"{name}","secretKey":"{SECRET}"}}],"actions":[{actions}]}}"#
            )
        };
        let admin = identity(ADMIN, r#""Admin","Read","Write","List","Tagging""#);
        let reader = identity(READER, r#""Read","List""#);
        let identities = format!(r#"{{"identities":[{admin},{reader}]}}"#);
        fs::write(directory.join("identities.json"), identities).expect("identities");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ports = Ports {
                s3: free_port(),
                filer: free_port(),
                others: std::array::from_fn(|_| free_port()),
            };
            let mut seaweedfs = Self {
                directory: directory.clone(),
                ports,
                server: None,
            };
            if seaweedfs.try_resume(deadline) {
                return seaweedfs;
            }
            // A port was taken meanwhile.
            std::mem::forget(seaweedfs);
        }
    }

    /// Starts the server again after [`SeaweedFs::kill`], at the same ports with what it had stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn resume(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.try_resume(deadline) {}
    }

    fn try_resume(&mut self, deadline: Instant) -> bool {
        let Ports { s3, filer, others } = self.ports;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .expect("a log");
        let port = |name: &str, port: u16| format!("-{name}={port}");
        let mut command = Command::new(project::workspace().join(".cache/tools/bin/weed"));
        command
            .arg("server")
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .arg(format!("-dir={}", self.directory.display()))
            .arg(format!(
                "-s3.config={}",
                self.directory.join("identities.json").display()
            ))
            .arg(format!(
                "-filer.localSocket={}",
                self.directory.join("socket").display()
            ))
            .arg(port("s3.port", s3))
            .arg(port("filer.port", filer))
            .args(
                [
                    "s3.port.grpc",
                    "filer.port.grpc",
                    "master.port",
                    "master.port.grpc",
                    "volume.port",
                    "volume.port.grpc",
                ]
                .iter()
                .zip(others)
                .map(|(name, number)| port(name, number)),
            )
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"])
            .args(["-master.telemetry=false", "-master.electionTimeout=1s"])
            .args([
                "-master.volumeSizeLimitMB=64",
                // Every bucket takes seven of its own when it is first written to.
                "-volume.max=3000",
                "-volume.minFreeSpace=1",
            ])
            // In a group of its own: an interrupt of the tests is the guardian's business.
            .process_group(0)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut server = command.spawn().expect("tests/setup installs SeaweedFS");
        loop {
            // Any answer to a question without a signature, and a filer that lists.
            let answers = http::ask("GET", s3, "/", &[]).is_some()
                && http::ask("GET", filer, "/", &[]).is_some_and(|(status, _)| status == 200);
            if answers {
                self.server = Some(server);
                return true;
            }
            assert!(Instant::now() < deadline, "SeaweedFS does not answer:\n{}", self.log());
            if server.try_wait().expect("a child").is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// An empty bucket.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn bucket(&self) -> Bucket {
        Bucket::create(self.ports.s3, self.ports.filer)
    }

    fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("it is up");
        kill(Pid::from_raw(i32::try_from(server.id()).expect("a pid")), signal).expect("it is there");
    }

    /// Makes the server hang: connections come about, and nobody answers.
    ///
    /// # Panics
    /// When it is not up.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Ends a pause.
    ///
    /// # Panics
    /// When it is not up.
    pub fn unpause(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Ends the server as a power cut would.
    ///
    /// # Panics
    /// When it does not end.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("it is there");
            server.wait().expect("it ends");
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A bucket of one test's own. It lives as long as its server.
pub struct Bucket {
    s3: u16,
    filer: u16,
    name: String,
}

impl Bucket {
    fn create(s3: u16, filer: u16) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = http::ask("POST", filer, &format!("/buckets/{name}/"), &[]);
        assert!(matches!(made, Some((200..=299, _))), "{made:?}");
        Self { s3, filer, name }
    }

    /// The URL of its artifacts, below a prefix.
    pub fn url(&self) -> String {
        self.url_of(&self.name)
    }

    /// The URL of a bucket of that name in the same server.
    pub fn url_of(&self, name: &str) -> String {
        format!("s3://{name}/some/prefix?endpoint=http://127.0.0.1:{}", self.s3)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How [`ADMIN`] reaches it.
    pub fn options(&self) -> Options {
        Options::new().with_key(ADMIN, Secret::new(SECRET))
    }

    /// How a server process reaches it, as variables.
    pub fn environment(&self, key: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", key.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
    }

    /// Loses everything that is in it.
    ///
    /// # Panics
    /// When the server does not do it.
    pub fn lose(&self) {
        let folder = format!("/buckets/{}/some?recursive=true", self.name);
        let lost = http::ask("DELETE", self.filer, &folder, &[]);
        assert!(matches!(lost, Some((200..=299, _))), "{lost:?}");
    }

    /// Whether the store holds parts of files that were never completed.
    ///
    /// # Panics
    /// When it does not say.
    pub fn has_incomplete_uploads(&self) -> bool {
        let folder = format!("/buckets/{}/.uploads/?limit=10", self.name);
        match http::ask("GET", self.filer, &folder, &[]) {
            Some((404, _)) => false,
            Some((200, body)) => body.contains("FullPath"),
            other => panic!("{other:?}"),
        }
    }
}

/// An empty bucket in the server that all tests of this run share.
///
/// # Panics
/// When there is none to be had.
pub fn bucket() -> Bucket {
    let note = shared("seaweedfs", "KILL", |directory| {
        let mut seaweedfs = SeaweedFs::start_in(directory);
        let server = seaweedfs.server.take().expect("a server");
        let note = format!("{} {}", seaweedfs.ports.s3, seaweedfs.ports.filer);
        // From here on the guardian's.
        std::mem::forget(seaweedfs);
        (server, note)
    });
    let ports: Vec<u16> = note
        .split_whitespace()
        .map(|port| port.parse().expect("a port"))
        .collect();
    Bucket::create(ports[0], ports[1])
}
