//! A git server that pods reach.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dbtcloud_contract::wait::until;
use dbtcloud_tests::cluster::{self, LIMIT};
use dbtcloud_tests::project::git;

/// Serves the repositories of a folder of its own until it is dropped.
pub(crate) struct Origin {
    folder: tempfile::TempDir,
    server: Child,
    port: u16,
}

impl Origin {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (host, port) = (cluster::host(), free_port());
        let daemon = Path::new(&git(folder.path(), &["--exec-path"])).join("git-daemon");
        let mut command = Command::new(daemon);
        command
            .args(["--export-all", "--reuseaddr"])
            .arg(format!("--base-path={}", folder.path().display()))
            .args([format!("--listen={host}"), format!("--port={port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = command.spawn().unwrap();
        until(LIMIT, || async { TcpStream::connect((host.as_str(), port)) }).await;
        Self { folder, server, port }
    }

    /// Where a project goes that pods clone, and its address.
    pub(crate) fn of(&self, name: &str) -> (PathBuf, String) {
        let url = format!("git://{}:{}/{name}", cluster::host(), self.port);
        (self.folder.path().join(name), url)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((cluster::host(), 0)).unwrap();
    listener.local_addr().unwrap().port()
}
