//! TLS to the database: whom it believes, what it shows, and what it says of each thing that is wrong.

use dbtcloud_contract::wait::until;
use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::postgres::{self, Cluster, Custom, Database};
use dbtcloud_tests::tls::{Authority, file};
use tempfile::TempDir;

use crate::migrate;

/// A role that logs in with a certificate of its name.
const BEARER: &str = "bearer";

struct World {
    folder: TempDir,
    database: Database,
    authority: Authority,
    _cluster: Cluster,
}

impl World {
    /// A server whose certificate is for `localhost`.
    fn new() -> Self {
        let authority = Authority::new("An authority of the tests");
        let server = authority.issue("localhost");
        let cluster = Cluster::start_as(&Custom {
            settings: "ssl = on\nssl_ca_file = 'ca.pem'\nssl_cert_file = 'cert.pem'\nssl_key_file = 'key.pem'\n"
                .to_owned(),
            access: format!("hostssl all {BEARER} 127.0.0.1/32 cert\nhost all {BEARER} 127.0.0.1/32 reject\n"),
            files: vec![
                ("ca.pem", authority.certificate().to_owned()),
                ("cert.pem", server.certificate),
                ("key.pem", server.key),
            ],
            ..Custom::default()
        });
        let database = cluster.database();
        database.ask(&format!("CREATE ROLE {BEARER} LOGIN SUPERUSER"));
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), "ca.pem", authority.certificate());
        Self {
            folder,
            database,
            authority,
            _cluster: cluster,
        }
    }

    /// A URL of the server, `FOLDER` in it being that of the certificates.
    fn url(&self, role: &str, host: &str, parameters: &str) -> String {
        let (port, name) = (self.database.port(), self.database.name());
        let parameters = parameters.replace("FOLDER", &self.folder.path().display().to_string());
        format!("postgres://{role}@{host}:{port}/{name}?{parameters}")
    }

    fn migrate(&self, url: &str) -> (bool, String) {
        migrate(self.folder.path(), &["--database-url", url])
    }
}

#[test]
fn what_is_wrong_with_a_connection_is_said_with_what_to_do() {
    let world = World::new();
    let other = Authority::new("Another authority");
    let mine = world.authority.issue(BEARER);
    for (name, text) in [
        ("other.pem", other.certificate()),
        ("mine.pem", &mine.certificate),
        ("mine.key", &mine.key),
        ("none.pem", "no certificate"),
    ] {
        file(world.folder.path(), name, text);
    }
    let ours = "sslrootcert=FOLDER/ca.pem";
    let full = format!("sslmode=verify-full&{ours}");
    let with_mine = format!("{full}&sslcert=FOLDER/mine.pem&sslkey=FOLDER/mine.key");
    for (role, host, parameters) in [
        ("postgres", "localhost", full.as_str()),
        ("postgres", "127.0.0.1", &format!("sslmode=verify-ca&{ours}")),
        ("postgres", "127.0.0.1", "sslmode=require"),
        (BEARER, "localhost", &with_mine),
    ] {
        let (fine, said) = world.migrate(&world.url(role, host, parameters));
        assert!(fine && said.contains("the schema is version"), "{parameters}: {said}");
    }
    let refused = |url: &str, what: &str| {
        let (fine, said) = world.migrate(url);
        assert!(!fine && said.contains(what), "{url}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "one message: {said}");
    };
    for (role, host, parameters, what) in [
        (
            "postgres",
            "localhost",
            "sslmode=verify-full",
            "name its authority with sslrootcert",
        ),
        (
            "postgres",
            "localhost",
            "sslmode=verify-full&sslrootcert=FOLDER/other.pem",
            "name its authority with sslrootcert",
        ),
        ("postgres", "127.0.0.1", &full, "name a host that it is for"),
        (
            "postgres",
            "localhost",
            "sslmode=verify-full&sslrootcert=FOLDER/absent.pem",
            "a file that sslrootcert, sslcert or sslkey names is not there",
        ),
        (
            "postgres",
            "localhost",
            &format!("{full}&sslcert=FOLDER/mine.pem"),
            "check sslmode, sslrootcert, sslcert and sslkey",
        ),
        (
            "postgres",
            "localhost",
            &format!("{full}&sslcert=FOLDER/mine.pem&sslkey=FOLDER/none.pem"),
            "check sslmode, sslrootcert, sslcert and sslkey",
        ),
        (BEARER, "localhost", &full, "check user, password and pg_hba.conf"),
        (
            BEARER,
            "localhost",
            "sslmode=disable",
            "check user, password and pg_hba.conf",
        ),
        ("postgres", "localhost", "sslmode=verify-all", "expected postgres://"),
    ] {
        refused(&world.url(role, host, parameters), what);
    }
    let plain = postgres::database();
    for mode in ["require", "verify-full"] {
        let url = plain.url().replace("sslmode=disable", &format!("sslmode={mode}"));
        refused(&url, "speaks no TLS: switch it on there");
    }
    let (fine, said) = world.migrate(&plain.url().replace("sslmode=disable", "sslmode=prefer"));
    assert!(fine, "{said}");
}

#[tokio::test]
async fn a_server_has_no_connection_without_tls_and_says_who_it_is() {
    let world = tokio::task::spawn_blocking(World::new).await.unwrap();
    let url = world.url("postgres", "localhost", "sslmode=verify-full&sslrootcert=FOLDER/ca.pem");
    let more = ["--role", "scheduler,gateway", "--database-pool-size", "3"];
    let mut installation = Installation::on(&url, &more);
    installation.start().await;
    let ask = |what: &str| {
        let ours = "application_name ~ '^dbtcloud/gateway\\+scheduler/.+-[0-9]+-[0-9a-f]{8}$'";
        world.database.ask(&format!(
            "SELECT {what} FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
             WHERE datname = current_database() AND {ours}"
        ))
    };
    // The one that listens is beside the pool.
    until(std::time::Duration::from_secs(20), || async {
        let seen = ask("count(*) FILTER (WHERE query ~ '^LISTEN|^SELECT 1$')");
        (seen == "1").then_some(()).ok_or(seen)
    })
    .await;
    assert_eq!(ask("bool_and(ssl), count(*) BETWEEN 2 AND 4"), "t|t");
    installation.stop().await;
}
