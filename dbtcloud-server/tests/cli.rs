//! The program itself: what it says, and with which exit code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails loudly at the first surprise"
)]

use std::process::{Command, Output};

fn dbtcloud(arguments: &[&str]) -> Output {
    // One that serves although it should not must not hold up the tests: `timeout` ends it, with 124.
    Command::new("timeout")
        .args(["30", env!("CARGO_BIN_EXE_dbtcloud")])
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn config_check_tells_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dbtcloud.toml");
    std::fs::write(&file, "lisen = \"x\"\nrole = [\"boss\"]\n").unwrap();
    let output = dbtcloud(&[
        "config",
        "check",
        "--config",
        file.to_str().unwrap(),
        "--run-capacity",
        "many",
    ]);
    assert!(!output.status.success());
    let said = text(&output.stderr);
    for key in ["lisen: unknown key", "role: ", "run_capacity: "] {
        assert!(said.contains(key), "{said}");
    }
    let absent = dbtcloud(&["config", "check", "--config", "/nowhere.toml"]);
    assert!(text(&absent.stderr).contains("config: cannot read /nowhere.toml"));
    assert!(dbtcloud(&["config", "check"]).status.success());
}

#[test]
fn config_show_hides_secrets_and_takes_the_environment() {
    let output = Command::new(env!("CARGO_BIN_EXE_dbtcloud"))
        .args(["config", "show", "--listen", "127.0.0.1:9"])
        .env_clear()
        .env("DBTCLOUD_DATABASE_URL", "postgres://u:hunter2@h/d")
        .env("DBTCLOUD_KEY_FILE", "/etc/key")
        .env("DBTCLOUD_LISTEN", "127.0.0.1:8")
        .env("DBTCLOUD_ROLE", "scheduler,cleanup")
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(
        said.contains("listen = \"127.0.0.1:9\"") && said.contains("postgres://u:***@h/d"),
        "{said}"
    );
    assert!(said.contains("role = [\"scheduler\", \"cleanup\"]"), "{said}");
    assert!(!said.contains("hunter2"));
}

#[test]
fn bootstrap_prints_a_token_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let check = dbtcloud(&["migrate", "--check", "--data-dir", data]);
    assert!(!check.status.success(), "an empty database has no schema");
    assert!(text(&dbtcloud(&["migrate", "--data-dir", data]).stdout).contains("version"));
    assert!(dbtcloud(&["migrate", "--check", "--data-dir", data]).status.success());
    let first = dbtcloud(&["bootstrap", "--json", "--data-dir", data]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let made: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert!(made["token"].as_str().unwrap().starts_with("dbtu_"));
    assert!(!dbtcloud(&["bootstrap", "--data-dir", data]).status.success());
    let again = dbtcloud(&["bootstrap", "--if-missing", "--data-dir", data]);
    assert!(again.status.success());
    assert_eq!(text(&again.stdout), "");
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "no database ".repeat(1_000)).unwrap();
    let data = dir.path().join("data");
    let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
    let url = format!("sqlite://{file}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, said) in [
        (vec!["serve", "--data-dir", file], "cannot make the directory"),
        (
            vec!["serve", "--data-dir", data, "--database-url", "nonsense"],
            "database_url: expected a URL",
        ),
        (
            vec!["serve", "--data-dir", data, "--database-url", &url],
            "cannot open the database",
        ),
        (
            vec!["serve", "--data-dir", data, "--listen", &address],
            "is another program using the port",
        ),
    ] {
        let output = dbtcloud(&arguments);
        assert!(!output.status.success());
        assert!(
            text(&output.stderr).contains(said),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
    assert!(!text(&dbtcloud(&["agent"]).stderr).is_empty());
}

/// A server that ends with its test, also when the test fails.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Asks it to end, and waits until it has.
    fn stop(&mut self) -> std::process::ExitStatus {
        assert!(
            Command::new("kill")
                .args(["-TERM", &self.0.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        self.0.wait().unwrap()
    }
}

/// A server on a free port, and the address that it says under `name`.
fn serve(data: &str, name: &str, more: &[&str]) -> (Server, String) {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(env!("CARGO_BIN_EXE_dbtcloud"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log-format",
            "json",
            "--data-dir",
            data,
        ])
        .args(more)
        .env_clear()
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.map_while(Result::ok).find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        line[name].as_str().map(ToOwned::to_owned)
    });
    (Server(child), address.expect("the server says where it serves"))
}

#[test]
fn a_server_is_alone_in_its_directory_and_ends_when_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    for _ in 0..2 {
        let (mut first, address) = serve(data, "address", &[]);
        assert!(std::net::TcpStream::connect(&address).is_ok());
        let second = dbtcloud(&["serve", "--listen", "127.0.0.1:0", "--data-dir", data]);
        assert!(!second.status.success());
        let said = text(&second.stderr);
        assert!(said.contains(&format!("process {}", first.0.id())), "{said}");
        let mode = |path: &str| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::metadata(format!("{data}/{path}"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode(""), mode("key"), mode("agent.sock")), (0o700, 0o600, 0o600));
        assert!(first.stop().success(), "asked to end, it ends well");
        assert!(std::net::TcpStream::connect(&address).is_err());
    }
}

#[tokio::test]
async fn tls_beside_plain_http() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = (
        file("cert.pem", made.cert.pem()),
        file("key.pem", made.signing_key.serialize_pem()),
    );
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let more = [
        "--tls-listen",
        "127.0.0.1:0",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ];
    let (mut child, address) = serve(data, "tls_address", &more);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    stream
        .write_all(b"GET /healthz/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(text(&answer).starts_with("HTTP/1.1 200 OK"), "{}", text(&answer));
    assert!(child.stop().success());
    let wrong = dbtcloud(&[
        "serve",
        "--data-dir",
        data,
        "--tls-listen",
        "127.0.0.1:0",
        "--tls-cert",
        &key,
        "--tls-key",
        &key,
    ]);
    assert!(text(&wrong.stderr).contains("tls_cert"), "{}", text(&wrong.stderr));
}

#[test]
fn cleanup_sweeps_once_and_says_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let absent = dbtcloud(&["cleanup", "--once", "--data-dir", data]);
    assert!(!absent.status.success());
    let said = text(&absent.stderr);
    assert!(said.contains("there is no installation in"), "{said}");
    assert!(!dir.path().join("data").exists());
    assert!(dbtcloud(&["bootstrap", "--data-dir", data]).status.success());
    let swept = dbtcloud(&["cleanup", "--once", "--dry-run", "--json", "--data-dir", data]);
    assert!(swept.status.success(), "{}", text(&swept.stderr));
    let told: serde_json::Value = serde_json::from_slice(&swept.stdout).unwrap();
    assert_eq!(told["dry_run"], serde_json::json!(true));
    let chores = told["chores"].as_array().unwrap();
    assert!(chores.iter().any(|chore| chore["chore"] == "flush_logs"), "{told}");
    assert!(chores.iter().all(|chore| chore["error"].is_null()), "{told}");
    let one = dbtcloud(&["cleanup", "--once", "--chore", "heal_hands", "--data-dir", data]);
    assert_eq!(text(&one.stdout).lines().count(), 2, "{}", text(&one.stdout));
    for (arguments, said) in [
        (
            vec!["cleanup", "--once", "--chore", "flush", "--data-dir", data],
            "heal_hands",
        ),
        (vec!["cleanup", "--data-dir", data], "--once"),
    ] {
        let output = dbtcloud(&arguments);
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn an_account_says_how_long_it_keeps_things() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    assert!(dbtcloud(&["bootstrap", "--data-dir", data]).status.success());
    let retention = |arguments: &[&str]| dbtcloud(&[&["retention", "--data-dir", data], arguments].concat());
    let everybody = retention(&["--retain-logs-days", "90"]);
    assert_eq!(
        text(&everybody.stdout),
        "runs: 365 days (the installation)\nlogs: 90 days (the installation)\n\
         artifacts: 365 days (the installation)\nsessions: 30 days (the installation)\naudit: 365 days (the installation)\n"
    );
    let said = retention(&["--account", "1", "--set", "runs=0", "--set", "sessions=1"]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let again = retention(&["--account", "1", "--set", "sessions=default"]);
    assert_eq!(
        text(&again.stdout),
        "runs: for ever (the account)\nlogs: 365 days (the installation)\n\
         artifacts: 365 days (the installation)\nsessions: 30 days (the installation)\naudit: 365 days (the installation)\n"
    );
    assert_eq!(text(&retention(&["--account", "1"]).stdout), text(&again.stdout));
    for (arguments, said) in [
        (vec!["--account", "1", "--set", "files=3"], "expected one of runs, logs"),
        (
            vec!["--account", "1", "--set", "runs=long"],
            "expected a number of days",
        ),
        (vec!["--account", "1", "--set", "runs"], "expected KIND=DAYS"),
        (vec!["--account", "9"], "account 9 not found"),
        (vec!["--set", "runs=3"], "--account"),
    ] {
        let output = retention(&arguments);
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}
