//! What the `dbtcloud` binary can be told: flags, `DBTCLOUD_*` variables and one TOML file, in that order of
//! precedence, over defaults. Every problem is found before anything is done, and all are told at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

/// Settings as they were given, not yet understood. Every one is a flag, a variable and a key of the file.
#[derive(Args, Clone, Debug, Default)]
pub struct Given {
    /// Reads settings from this TOML file; keys are the names of the flags with underscores
    #[arg(long, env = "DBTCLOUD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:8080]
    #[arg(long, env = "DBTCLOUD_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address to listen on with TLS, beside the other
    #[arg(long, env = "DBTCLOUD_TLS_LISTEN", value_name = "HOST:PORT")]
    pub tls_listen: Option<String>,
    /// Certificate chain of the TLS address, PEM
    #[arg(long, env = "DBTCLOUD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Private key of the certificate, PEM
    #[arg(long, env = "DBTCLOUD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Directory for everything this server keeps [default: dbtcloud-data]
    #[arg(long, env = "DBTCLOUD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<String>,
    /// postgres://… or sqlite:///… [default: dbtcloud.db in the data directory]
    #[arg(long, env = "DBTCLOUD_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Where artifacts and logs are kept [default: artifacts/ in the data directory]
    #[arg(long, env = "DBTCLOUD_ARTIFACTS_URL", value_name = "URL", hide_env_values = true)]
    pub artifacts_url: Option<String>,
    /// What this process does: all, gateway, app, scheduler, cleanup; repeatable [default: all]
    #[arg(long, env = "DBTCLOUD_ROLE", value_name = "ROLE", value_delimiter = ',')]
    pub role: Option<Vec<String>>,
    /// Scheme and host under which people reach this server, for links
    #[arg(long, env = "DBTCLOUD_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// text or json [default: text]
    #[arg(long, env = "DBTCLOUD_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What is logged, as tracing's filter has it [default: info]
    #[arg(long, env = "DBTCLOUD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// File with the keys that seal secrets [default: key in the data directory, made when missing]
    #[arg(long, env = "DBTCLOUD_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<String>,
    /// Runs that this process drives at one time [default: 64]
    #[arg(long, env = "DBTCLOUD_RUN_CAPACITY", value_name = "N")]
    pub run_capacity: Option<String>,
    /// Seconds between the interrupt and the kill of a run that is stopped [default: 10]
    #[arg(long, env = "DBTCLOUD_GRACE_SECONDS", value_name = "N")]
    pub grace_seconds: Option<String>,
    /// Brings the database's schema up to date at the start; embedded databases always are
    #[arg(long, env = "DBTCLOUD_MIGRATE")]
    pub migrate: bool,
}

/// Names of all keys, as the file has them.
pub const KEYS: [&str; 15] = [
    "artifacts_url",
    "data_dir",
    "database_url",
    "grace_seconds",
    "key_file",
    "listen",
    "log",
    "log_format",
    "migrate",
    "public_url",
    "role",
    "run_capacity",
    "tls_cert",
    "tls_key",
    "tls_listen",
];

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Terminates connections of people and programs.
    Gateway,
    /// Answers the API.
    App,
    /// Fires schedules and drives runs.
    Scheduler,
    /// Runs the background chores.
    Cleanup,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::App, Self::Scheduler, Self::Cleanup];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::App => "app",
            Self::Scheduler => "scheduler",
            Self::Cleanup => "cleanup",
        }
    }
}

/// Where TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Settings that were understood.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// A second address, with TLS.
    pub tls: Option<Tls>,
    /// Directory for everything this server keeps.
    pub data_dir: PathBuf,
    /// The database. It may hold a password.
    pub database_url: String,
    /// Artifacts and logs. It may hold a secret.
    pub artifacts_url: String,
    /// What this process does; never empty.
    pub roles: Vec<Role>,
    /// For links.
    pub public_url: Option<String>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
    /// Keys that seal secrets.
    pub key_file: PathBuf,
    /// Runs that this process drives at one time.
    pub run_capacity: usize,
    /// Seconds between interrupt and kill.
    pub grace_seconds: u64,
    /// Whether the schema is brought up to date at the start.
    pub migrate: bool,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.show())
    }
}

/// One thing that is wrong with what was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// What is wrong, and what was expected. No secret stands here.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// Every problem that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

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
        let texts = [
            ("listen", &given.listen),
            ("tls_listen", &given.tls_listen),
            ("tls_cert", &given.tls_cert),
            ("tls_key", &given.tls_key),
            ("data_dir", &given.data_dir),
            ("database_url", &given.database_url),
            ("artifacts_url", &given.artifacts_url),
            ("public_url", &given.public_url),
            ("log_format", &given.log_format),
            ("log", &given.log),
            ("key_file", &given.key_file),
            ("run_capacity", &given.run_capacity),
            ("grace_seconds", &given.grace_seconds),
        ];
        for (key, value) in texts {
            if let Some(value) = value {
                self.values.insert(key, value.clone());
            }
        }
        if let Some(roles) = &given.role {
            self.values.insert("role", roles.join(","));
        }
        if given.migrate {
            self.values.insert("migrate", "true".to_owned());
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
        let artifacts = format!("file://{}", data_dir.join("artifacts").display());
        let artifacts_url = self
            .url("artifacts_url", &["file", "memory", "s3", "azblob", "gcs"])
            .unwrap_or(artifacts);
        let public_url = self.url("public_url", &["http", "https"]);
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
        let run_capacity = self.read("run_capacity", 64, "a number from 1 to 10000");
        if !(1..=10_000).contains(&run_capacity) {
            self.problem("run_capacity", "expected a number from 1 to 10000");
        }
        let grace_seconds = self.read("grace_seconds", 10, "a number of seconds from 0 to 3600");
        if grace_seconds > 3_600 {
            self.problem("grace_seconds", "expected a number of seconds from 0 to 3600");
        }
        let migrate = self.read("migrate", false, "true or false");
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
            artifacts_url,
            roles,
            public_url,
            log_format,
            log,
            key_file,
            run_capacity,
            grace_seconds,
            migrate,
        };
        if !settings.is_embedded() && self.text("key_file").is_none() {
            self.problem("key_file", "expected a file that all servers of this database share");
        }
        if self.problems.is_empty() {
            Ok(settings)
        } else {
            Err(Problems(self.problems))
        }
    }
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

    /// Whether the database is a file of this server alone.
    pub fn is_embedded(&self) -> bool {
        self.database_url.starts_with("sqlite:")
    }

    /// Whether this process has a role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// The settings as the file would have them, without secrets.
    pub fn show(&self) -> String {
        let mut table = toml::Table::new();
        let mut text = |key: &str, value: String| table.insert(key.to_owned(), toml::Value::String(value));
        text("listen", self.listen.to_string());
        text("data_dir", self.data_dir.display().to_string());
        text("database_url", redact(&self.database_url));
        text("artifacts_url", redact(&self.artifacts_url));
        text("key_file", self.key_file.display().to_string());
        text("log", self.log.clone());
        text(
            "log_format",
            if self.log_format == LogFormat::Json {
                "json"
            } else {
                "text"
            }
            .to_owned(),
        );
        if let Some(url) = &self.public_url {
            text("public_url", url.clone());
        }
        if let Some(tls) = &self.tls {
            text("tls_listen", tls.listen.to_string());
            text("tls_cert", tls.certificate.display().to_string());
            text("tls_key", tls.key.display().to_string());
        }
        let roles = self.roles.iter().map(|role| toml::Value::from(role.name())).collect();
        table.insert("role".to_owned(), toml::Value::Array(roles));
        let number = |value: u64| toml::Value::Integer(i64::try_from(value).unwrap_or(i64::MAX));
        table.insert("run_capacity".to_owned(), number(self.run_capacity as u64));
        table.insert("grace_seconds".to_owned(), number(self.grace_seconds));
        table.insert("migrate".to_owned(), toml::Value::Boolean(self.migrate));
        table.to_string()
    }
}

/// A URL without its password and without its query, both of which may be secret.
fn redact(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return "***".to_owned();
    };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    if url.query().is_some() {
        url.set_query(Some("***"));
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
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
}
