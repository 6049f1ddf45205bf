//! What was given, understood: every problem is found, each names its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dbtcloud_core::retention::{DAYS_LIMIT, Days, Retention};
use dbtcloud_runtime::dial::Reach;
use dbtcloud_runtime::dispatch::{Mail, MailServer};

use crate::forwarded::{NoNetwork, Proxies};

use super::{Database, Given, KEYS, Kubernetes, Lineage, LogFormat, Problem, Problems, Role, Settings, Smtp, Tls};

#[derive(Default)]
struct Reader {
    values: BTreeMap<&'static str, String>,
    problems: Vec<Problem>,
}

impl Reader {
    fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem {
            key: key.to_owned(),
            what: what.into(),
        });
    }

    fn read<T: std::str::FromStr>(&mut self, key: &'static str, default: T, expected: &str) -> T {
        match self.values.get(key).map(|text| text.trim().parse()) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(_)) => {
                self.problem(key, format!("expected {expected}"));
                default
            }
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.values
            .get(key)
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    }

    fn take_file(&mut self, path: &Path, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                self.problem("config", format!("{} is not TOML: {}", path.display(), error.message()));
                return;
            }
        };
        for (key, value) in table {
            let Some(known) = KEYS.into_iter().find(|known| *known == key) else {
                self.problem(
                    &key,
                    format!("unknown key in {}; known are {}", path.display(), KEYS.join(", ")),
                );
                continue;
            };
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(value) => value.to_string(),
                toml::Value::Array(items) if items.iter().all(toml::Value::is_str) => items
                    .iter()
                    .filter_map(toml::Value::as_str)
                    .collect::<Vec<_>>()
                    .join(","),
                _ => {
                    self.problem(known, "expected a text, a number, true or false, or a list of texts");
                    continue;
                }
            };
            self.values.insert(known, text);
        }
    }

    fn take_given(&mut self, given: &Given) {
        for (key, value) in given.texts() {
            if let Some(value) = value {
                self.values.insert(key, value.clone());
            }
        }
        if let Some(roles) = &given.role {
            self.values.insert("role", roles.join(","));
        }
        if let Some(urls) = &given.app_url {
            self.values.insert("app_url", urls.join(","));
        }
        for (key, set) in given.switches() {
            if set {
                self.values.insert(key, "true".to_owned());
            }
        }
    }

    fn roles(&mut self) -> Vec<Role> {
        let Some(text) = self.text("role") else {
            return Role::ALL.to_vec();
        };
        let mut roles = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match Role::ALL.into_iter().find(|role| role.name() == name) {
                Some(role) => roles.push(role),
                None if name == "all" => roles.extend(Role::ALL),
                None => {
                    self.problem(
                        "role",
                        format!("expected all, gateway, app, scheduler or cleanup, got '{name}'"),
                    );
                }
            }
        }
        roles.sort_unstable();
        roles.dedup();
        if roles.is_empty() { Role::ALL.to_vec() } else { roles }
    }

    fn url(&mut self, key: &'static str, schemes: &[&str]) -> Option<String> {
        let text = self.text(key)?;
        let scheme = text.split_once(':').map(|(scheme, _)| scheme);
        if !scheme.is_some_and(|scheme| schemes.contains(&scheme)) {
            self.problem(
                key,
                format!("expected a URL that begins with {}:", schemes.join(": or ")),
            );
        }
        Some(text)
    }

    fn app_urls(&mut self) -> Vec<String> {
        let text = self.text("app_url").unwrap_or_default();
        let urls: Vec<String> = text
            .split(',')
            .map(|url| url.trim().trim_end_matches('/').to_owned())
            .filter(|url| !url.is_empty())
            .collect();
        let fine = |url: &String| {
            url::Url::parse(url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
        };
        if !urls.iter().all(fine) {
            self.problem("app_url", "expected URLs such as http://app-1:8080");
        }
        urls
    }

    fn trusted_proxies(&mut self) -> Proxies {
        let parsed = self.text("trusted_proxies").unwrap_or_default().parse();
        parsed.unwrap_or_else(|error: NoNetwork| {
            self.problem("trusted_proxies", error.to_string());
            Proxies::default()
        })
    }

    fn tls(&mut self, base: &Path) -> Option<Tls> {
        const ALL: [&str; 3] = ["tls_listen", "tls_cert", "tls_key"];
        let missing: Vec<_> = ALL.into_iter().filter(|key| self.text(key).is_none()).collect();
        if missing.len() == ALL.len() {
            return None;
        }
        for key in &missing {
            self.problem(
                key,
                format!("expected a value because others of {} are given", ALL.join(", ")),
            );
        }
        let listen = self.read(
            "tls_listen",
            SocketAddr::from(([127, 0, 0, 1], 8443)),
            "an address such as 127.0.0.1:8443",
        );
        let (certificate, key) = (base.join(self.text("tls_cert")?), base.join(self.text("tls_key")?));
        Some(Tls {
            listen,
            certificate,
            key,
        })
    }

    fn webhook_targets(&mut self) -> Reach {
        let Some(text) = self.text("webhook_targets") else {
            return Reach::Private;
        };
        let found = Reach::ALL.into_iter().find(|reach| reach.name() == text);
        found.unwrap_or_else(|| {
            self.problem(
                "webhook_targets",
                format!("expected public, private or any, got '{text}'"),
            );
            Reach::Private
        })
    }

    fn smtp(&mut self, base: &Path) -> Option<Smtp> {
        let (url, from) = (self.text("smtp_url"), self.text("smtp_from"));
        let password_file = self.text("smtp_password_file").map(|path| base.join(path));
        let Some(url) = url else {
            if from.is_some() || password_file.is_some() {
                self.problem("smtp_url", "expected a value because others of smtp are given");
            }
            return None;
        };
        match MailServer::parse(&url) {
            Err(expected) => self.problem("smtp_url", expected),
            Ok(server) if server.has_user() != password_file.is_some() => self.problem(
                "smtp_password_file",
                "expected a file when smtp_url has a user, and none otherwise",
            ),
            Ok(_) => {}
        }
        let from = from.unwrap_or_default();
        if let Err(expected) = Mail::check_from(&from) {
            self.problem("smtp_from", expected);
        }
        Some(Smtp {
            url,
            from,
            password_file,
        })
    }

    fn lineage(&mut self, base: &Path) -> Option<Lineage> {
        let api_key_file = self.text("openlineage_api_key_file").map(|path| base.join(path));
        let namespace = self.text("openlineage_namespace");
        let Some(url) = self.url("openlineage_url", &["http", "https"]) else {
            if api_key_file.is_some() || namespace.is_some() {
                self.problem(
                    "openlineage_url",
                    "expected a value because others of openlineage are given",
                );
            }
            return None;
        };
        Some(Lineage {
            url,
            api_key_file,
            namespace: namespace.unwrap_or_else(|| "dbtcloud".to_owned()),
        })
    }

    fn number(&mut self, key: &'static str, default: u64, least: u64, most: u64) -> u64 {
        let expected = format!("a number from {least} to {most}");
        let number = self.read(key, default, &expected);
        if !(least..=most).contains(&number) {
            self.problem(key, format!("expected {expected}"));
        }
        number
    }

    fn database(&mut self, url: &str, base: &Path) -> Database {
        let password_file = self.text("database_password_file").map(|path| base.join(path));
        let listen_url = self.url("database_listen_url", &["postgres", "postgresql"]);
        if password_file.is_some() && listen_url.iter().map(String::as_str).chain([url]).any(has_password) {
            self.problem("database_password_file", "expected URLs without a password beside it");
        }
        let statement = self.number("database_statement_timeout_seconds", 30, 1, 3_600);
        let lock = self.number("database_lock_timeout_seconds", (statement / 3).max(1), 1, 3_600);
        if lock > statement {
            self.problem(
                "database_lock_timeout_seconds",
                "expected at most as much as database_statement_timeout_seconds",
            );
        }
        let pool = self.number("database_pool_size", 10, 1, 1_000);
        Database {
            password_file,
            listen_url,
            pool_size: u32::try_from(pool).unwrap_or(u32::MAX),
            statement_timeout_seconds: statement,
            lock_timeout_seconds: lock,
        }
    }

    fn kubernetes(&mut self, base: &Path) -> Option<Kubernetes> {
        let namespace_per_account = self.read("kubernetes_namespace_per_account", false, "true or false");
        match self.text("executor").as_deref() {
            Some("kubernetes") => {}
            other => {
                if let Some(other) = other.filter(|other| *other != "processes") {
                    self.problem("executor", format!("expected processes or kubernetes, got '{other}'"));
                }
                return None;
            }
        }
        if self.text("kubernetes_image").is_none() {
            self.problem("kubernetes_image", "expected an image with dbt and the agent");
        }
        if self.text("agent_url").is_none() {
            self.problem(
                "agent_url",
                "expected where pods reach an app, such as http://dbtcloud-app:8080",
            );
        }
        let kubernetes = Kubernetes {
            namespace: self.text("kubernetes_namespace"),
            context: self.text("kubernetes_context"),
            image: self.text("kubernetes_image").unwrap_or_default(),
            installation: self.text("kubernetes_installation"),
            service_account: self.text("kubernetes_service_account"),
            storage_class: self.text("kubernetes_storage_class"),
            volume_size: self.text("kubernetes_volume_size").unwrap_or_else(|| "10Gi".to_owned()),
            pod_overlay_file: self.text("kubernetes_pod_overlay_file").map(|path| base.join(path)),
            namespace_per_account,
        };
        // All that can be told without a cluster; where it is does not matter.
        if !kubernetes.image.is_empty()
            && let Err(error) = crate::kubernetes::options(&kubernetes, &BTreeMap::new())
        {
            let told = format!("{error:#}");
            match told.split_once(": ").filter(|(key, _)| key.starts_with("kubernetes_")) {
                Some((key, what)) => self.problem(key, what),
                None => self.problem("executor", told),
            }
        }
        Some(kubernetes)
    }

    fn days(&mut self, key: &'static str, default: Days) -> Days {
        let expected = format!("a number of days from 0 (for ever) to {DAYS_LIMIT}");
        self.read(key, default, &expected)
    }

    fn retention(&mut self) -> Retention {
        let default = Retention::default();
        Retention {
            runs: self.days("retain_runs_days", default.runs),
            logs: self.days("retain_logs_days", default.logs),
            artifacts: self.days("retain_artifacts_days", default.artifacts),
            sessions: self.days("retain_sessions_days", default.sessions),
            audit: self.days("retain_audit_days", default.audit),
        }
    }

    fn settings(mut self, base: &Path) -> Result<Settings, Problems> {
        let absolute = |path: &str| -> PathBuf { base.join(path) };
        let data_dir = absolute(&self.text("data_dir").unwrap_or_else(|| "dbtcloud-data".to_owned()));
        let listen = self.read(
            "listen",
            SocketAddr::from(([127, 0, 0, 1], 8080)),
            "an address such as 127.0.0.1:8080",
        );
        let embedded = format!("sqlite://{}", data_dir.join("dbtcloud.db").display());
        let database_url = self
            .url("database_url", &["postgres", "postgresql", "sqlite"])
            .unwrap_or_else(|| embedded.clone());
        let database = self.database(&database_url, base);
        let artifacts = format!("file://{}", data_dir.join("artifacts").display());
        let artifacts_url = self.text("artifacts_url").unwrap_or(artifacts);
        if let Err(error) = dbtcloud_opendal::OpendalArtifacts::check_url(&artifacts_url) {
            let told = error.to_string();
            let what = told.strip_prefix("artifacts_url: ").unwrap_or(&told).to_owned();
            self.problem("artifacts_url", what);
        }
        let public_url = self.url("public_url", &["http", "https"]);
        let trusted_proxies = self.trusted_proxies();
        let log_format = match self.text("log_format").as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                let what = format!("expected text or json, got '{other}'");
                self.problem("log_format", what);
                LogFormat::Text
            }
        };
        let log = self.text("log").unwrap_or_else(|| "info".to_owned());
        if let Err(error) = log.parse::<tracing_subscriber::EnvFilter>() {
            self.problem(
                "log",
                format!("expected a filter such as info or dbtcloud=debug: {error}"),
            );
        }
        let run_capacity = self.number("run_capacity", 64, 1, 10_000);
        let run_capacity = usize::try_from(run_capacity).unwrap_or(usize::MAX);
        let grace_seconds = self.number("grace_seconds", 10, 0, 3_600);
        let shared = !database_url.starts_with("sqlite:");
        let drain_seconds = self.number("drain_seconds", if shared { 5 } else { 0 }, 0, 3_600);
        let app_urls = self.app_urls();
        let agent_url = self.url("agent_url", &["http", "https"]);
        let agent_ca = self.text("agent_ca").map(|path| absolute(&path));
        let retention = self.retention();
        let kubernetes = self.kubernetes(base);
        let migrate = self.read("migrate", false, "true or false");
        let otlp_endpoint = self.url("otlp_endpoint", &["http"]);
        let lineage = self.lineage(base);
        let webhook_targets = self.webhook_targets();
        let smtp = self.smtp(base);
        let roles = self.roles();
        let tls = self.tls(base);
        let key_file = self
            .text("key_file")
            .map_or_else(|| data_dir.join("key"), |path| absolute(&path));
        let settings = Settings {
            listen,
            tls,
            data_dir,
            database_url,
            database,
            artifacts_url,
            roles,
            public_url,
            trusted_proxies,
            log_format,
            log,
            key_file,
            run_capacity,
            app_urls,
            agent_url,
            agent_ca,
            drain_seconds,
            grace_seconds,
            otlp_endpoint,
            lineage,
            webhook_targets,
            smtp,
            retention,
            kubernetes,
            migrate,
        };
        if settings.is_gateway_alone() {
            if settings.app_urls.is_empty() {
                self.problem("app_url", "expected the apps that this gateway passes requests to");
            }
        } else if !settings.is_embedded() && self.text("key_file").is_none() {
            self.problem("key_file", "expected a file that all servers of this database share");
        }
        if self.problems.is_empty() {
            Ok(settings)
        } else {
            Err(Problems(self.problems))
        }
    }
}

/// Whether a URL has one, before its host or among its parameters.
fn has_password(url: &str) -> bool {
    url::Url::parse(url)
        .is_ok_and(|url| url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password"))
}

impl Settings {
    /// Understands what was given: flags and variables over the file over defaults. `file` is the path and
    /// text of the configuration file, if there is one; relative paths are below `base`.
    ///
    /// # Errors
    /// Every problem, each naming its key.
    pub fn resolve(given: &Given, file: Option<(&Path, &str)>, base: &Path) -> Result<Self, Problems> {
        let mut reader = Reader::default();
        if let Some((path, text)) = file {
            reader.take_file(path, text);
        }
        reader.take_given(given);
        reader.settings(base)
    }
}
