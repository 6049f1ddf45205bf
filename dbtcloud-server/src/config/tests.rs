//! What settings mean.

use std::path::Path;

use dbtcloud_core::retention::Kept;

use super::*;

fn resolve(given: &Given, file: Option<&str>) -> Result<Settings, Vec<String>> {
    let file = file.map(|text| (Path::new("dbtcloud.toml"), text));
    Settings::resolve(given, file, Path::new("/srv"))
        .map_err(|problems| problems.0.into_iter().map(|problem| problem.key).collect())
}

#[test]
fn defaults_are_a_whole_installation() {
    let settings = resolve(&Given::default(), None).unwrap();
    assert!(settings.is_embedded());
    assert_eq!(settings.database_url, "sqlite:///srv/dbtcloud-data/dbtcloud.db");
    assert_eq!(settings.artifacts_url, "file:///srv/dbtcloud-data/artifacts");
    assert_eq!(settings.key_file, Path::new("/srv/dbtcloud-data/key"));
    assert_eq!(settings.roles, Role::ALL);
}

#[test]
fn what_was_given_comes_before_the_file() {
    let given = Given {
        listen: Some("0.0.0.0:1".to_owned()),
        ..Given::default()
    };
    let file = "listen = \"0.0.0.0:2\"\nrun_capacity = 3\nrole = [\"app\", \"cleanup\"]\nmigrate = true";
    let settings = resolve(&given, Some(file)).unwrap();
    assert_eq!(settings.listen.port(), 1);
    assert_eq!(settings.run_capacity, 3);
    assert_eq!(settings.roles, [Role::App, Role::Cleanup]);
    assert!(settings.migrate);
}

#[test]
fn every_problem_is_told_and_names_its_key() {
    let file = "lisen = \"x\"\nlisten = \"nowhere\"\nrun_capacity = 0\nlog_format = \"xml\"\nrole = [\"boss\"]\n\
                database_url = \"mysql://x\"\npublic_url = \"ftp://x\"\ngrace_seconds = 1.5";
    let mut keys = resolve(&Given::default(), Some(file)).unwrap_err();
    keys.sort();
    keys.dedup();
    assert_eq!(
        keys,
        [
            "database_url",
            "grace_seconds",
            "key_file",
            "lisen",
            "listen",
            "log_format",
            "public_url",
            "role",
            "run_capacity"
        ]
    );
    assert_eq!(resolve(&Given::default(), Some("listen = ")).unwrap_err(), ["config"]);
}

#[test]
fn nobody_is_trusted_about_addresses_unless_it_is_said() {
    let settings = resolve(&Given::default(), None).unwrap();
    assert_eq!(settings.trusted_proxies.networks().count(), 0);
    let file = "trusted_proxies = [\"10.0.0.0/8\", \"fd00::/8\", \"192.0.2.1\"]";
    let settings = resolve(&Given::default(), Some(file)).unwrap();
    let networks: Vec<_> = settings.trusted_proxies.networks().collect();
    assert_eq!(networks, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
    assert_eq!(resolve(&Given::default(), Some(&settings.show())).unwrap(), settings);
    for wrong in ["10.0.0.0/33", "proxy.example", "10.0.0.0/8;fd00::/8"] {
        let file = format!("trusted_proxies = \"{wrong}\"");
        assert_eq!(
            resolve(&Given::default(), Some(&file)).unwrap_err(),
            ["trusted_proxies"]
        );
    }
}

#[test]
fn tls_is_whole_or_not_there() {
    let file = "tls_listen = \"127.0.0.1:8443\"\ntls_cert = \"cert.pem\"";
    assert_eq!(resolve(&Given::default(), Some(file)).unwrap_err(), ["tls_key"]);
    let whole = format!("{file}\ntls_key = \"/key.pem\"");
    let settings = resolve(&Given::default(), Some(&whole)).unwrap();
    assert_eq!(settings.tls.as_ref().unwrap().certificate, Path::new("/srv/cert.pem"));
    assert_eq!(resolve(&Given::default(), Some(&settings.show())).unwrap(), settings);
}

#[test]
fn a_shared_database_needs_a_shared_key() {
    let given = Given {
        database_url: Some("postgres://u:p@h/d".to_owned()),
        ..Given::default()
    };
    assert_eq!(resolve(&given, None).unwrap_err(), ["key_file"]);
}

#[test]
fn what_is_shown_has_no_secret_and_reads_back() {
    let given = Given {
        database_url: Some("postgres://u:hunter2@h/d?password=hunter3".to_owned()),
        key_file: Some("/etc/key".to_owned()),
        ..Given::default()
    };
    let settings = resolve(&given, None).unwrap();
    let shown = settings.show();
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(!format!("{settings:?}").contains("hunter"));
    assert!(resolve(&Given::default(), Some(&shown)).is_ok());
}

#[test]
fn the_database_is_used_within_bounds() {
    let database = resolve(&Given::default(), None).unwrap().database;
    let seconds = (database.statement_timeout_seconds, database.lock_timeout_seconds);
    assert_eq!((database.pool_size, seconds), (10, (30, 10)));
    let file = "database_statement_timeout_seconds = 2\ndatabase_pool_size = 1000";
    let database = resolve(&Given::default(), Some(file)).unwrap().database;
    let seconds = (database.statement_timeout_seconds, database.lock_timeout_seconds);
    assert_eq!((database.pool_size, seconds), (1_000, (2, 1)));
    for (file, key) in [
        ("database_pool_size = 0", "database_pool_size"),
        ("database_pool_size = 1001", "database_pool_size"),
        (
            "database_statement_timeout_seconds = 3601",
            "database_statement_timeout_seconds",
        ),
        ("database_lock_timeout_seconds = 31", "database_lock_timeout_seconds"),
        (
            "database_lock_timeout_seconds = \"soon\"",
            "database_lock_timeout_seconds",
        ),
        ("database_listen_url = \"sqlite:///x\"", "database_listen_url"),
        (
            "database_url = \"postgres://h/d?password=x\"\nkey_file = \"k\"\ndatabase_password_file = \"p\"",
            "database_password_file",
        ),
        (
            "database_listen_url = \"postgres://u:x@h/d\"\ndatabase_password_file = \"p\"",
            "database_password_file",
        ),
    ] {
        assert_eq!(resolve(&Given::default(), Some(file)).unwrap_err(), [key], "{file}");
    }
    let file = "database_listen_url = \"postgres://u:hunter2@h/d\"\ndatabase_lock_timeout_seconds = 7";
    let shown = resolve(&Given::default(), Some(file)).unwrap().show();
    assert!(
        shown.contains("postgres://u:***@h/d") && shown.contains("timeout_seconds = 7"),
        "{shown}"
    );
}

#[test]
fn retention_is_said_in_days() {
    let days = |settings: &Settings| Kept::ALL.map(|kept| settings.retention.days(kept).get());
    let settings = resolve(&Given::default(), None).unwrap();
    assert_eq!(days(&settings), [365, 365, 365, 30, 365]);
    let file = "retain_runs_days = 0\nretain_logs_days = 90";
    let settings = resolve(&Given::default(), Some(file)).unwrap();
    assert_eq!(days(&settings), [0, 90, 365, 30, 365]);
    assert_eq!(resolve(&Given::default(), Some(&settings.show())).unwrap(), settings);
    for wrong in ["-1", "36501", "\"a year\"", "1.5"] {
        let file = format!("retain_artifacts_days = {wrong}");
        assert_eq!(
            resolve(&Given::default(), Some(&file)).unwrap_err(),
            ["retain_artifacts_days"]
        );
    }
}

#[test]
fn mail_is_whole_or_not_there() {
    let whole = "smtp_url = \"smtps://ada@mail.example.com\"\nsmtp_from = \"dbt <dbt@example.com>\"\n\
                 smtp_password_file = \"mail\"";
    let settings = resolve(&Given::default(), Some(whole)).unwrap();
    let file = settings.smtp.as_ref().unwrap().password_file.as_deref();
    assert_eq!(file, Some(Path::new("/srv/mail")));
    assert_eq!(resolve(&Given::default(), Some(&settings.show())).unwrap(), settings);
    for (file, keys) in [
        ("smtp_from = \"dbt@example.com\"", &["smtp_url"][..]),
        ("smtp_password_file = \"p\"", &["smtp_url"]),
        ("smtp_url = \"smtp://h\"", &["smtp_from"]),
        ("smtp_url = \"smtp://h\"\nsmtp_from = \"nobody\"", &["smtp_from"]),
        ("smtp_url = \"http://h\"\nsmtp_from = \"a@b.example\"", &["smtp_url"]),
        (
            "smtp_url = \"smtp://u@h\"\nsmtp_from = \"a@b.example\"",
            &["smtp_password_file"],
        ),
        (
            "smtp_url = \"smtp://h\"\nsmtp_from = \"a@b.example\"\nsmtp_password_file = \"p\"",
            &["smtp_password_file"],
        ),
    ] {
        assert_eq!(resolve(&Given::default(), Some(file)).unwrap_err(), keys, "{file}");
    }
    let secret = "smtp_url = \"smtps://u:hunter2@h\"\nsmtp_from = \"a@b.example\"";
    let file = Some((Path::new("dbtcloud.toml"), secret));
    let told = Settings::resolve(&Given::default(), file, Path::new("/srv")).unwrap_err();
    assert!(told.to_string().contains("smtp_password_file"), "{told}");
    assert!(!format!("{told} {told:?}").contains("hunter2"), "{told:?}");
}

#[test]
fn a_cluster_needs_an_image_and_a_way_back() {
    let faults = |file: &str| resolve(&Given::default(), Some(file)).unwrap_err();
    assert_eq!(faults("executor = \"kubernetes\""), ["kubernetes_image", "agent_url"]);
    assert_eq!(faults("executor = \"docker\""), ["executor"]);
    let with = |line: &str| {
        format!("executor = \"kubernetes\"\nagent_url = \"http://app:8080\"\nkubernetes_image = \"r/dbt:1\"\n{line}")
    };
    for (line, key) in [
        ("kubernetes_namespace = \"A B\"", "kubernetes_namespace"),
        (
            "kubernetes_installation = \"much-too-long-for-a-name-of-a-job\"",
            "kubernetes_installation",
        ),
        (
            "kubernetes_pod_overlay_file = \"/no/such/file\"",
            "kubernetes_pod_overlay_file",
        ),
        (
            "kubernetes_namespace_per_account = \"perhaps\"",
            "kubernetes_namespace_per_account",
        ),
    ] {
        assert_eq!(faults(&with(line)), [key]);
    }
    let root = tempfile::tempdir().unwrap();
    let overlay = root.path().join("pod.yaml");
    let line = format!("kubernetes_pod_overlay_file = \"{}\"", overlay.display());
    std::fs::write(&overlay, "spec: {hostNetwork: true}").unwrap();
    assert_eq!(faults(&with(&line)), ["kubernetes_pod_overlay_file.spec.hostNetwork"]);
    std::fs::write(&overlay, "spec:\n  priorityClassName: low\n").unwrap();
    let settings = resolve(&Given::default(), Some(&with(&line))).unwrap();
    assert_eq!(settings.kubernetes.as_ref().unwrap().volume_size, "10Gi");
    assert!(settings.show().contains("executor = \"kubernetes\""));
}
