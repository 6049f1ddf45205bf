//! Settings as they were given: one list of flags, variables and keys of the file.

use std::path::PathBuf;

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
    /// File with the password of the database's role, for a URL without one
    #[arg(long, env = "DBTCLOUD_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<String>,
    /// The same database past a pooler that lends connections by transaction, to hear wake-ups [default: the URL]
    #[arg(
        long,
        env = "DBTCLOUD_DATABASE_LISTEN_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database_listen_url: Option<String>,
    /// Connections of this process to the database, at most [default: 10]
    #[arg(long, env = "DBTCLOUD_DATABASE_POOL_SIZE", value_name = "N")]
    pub database_pool_size: Option<String>,
    /// Seconds that a statement may take, PostgreSQL [default: 30]
    #[arg(long, env = "DBTCLOUD_DATABASE_STATEMENT_TIMEOUT_SECONDS", value_name = "N")]
    pub database_statement_timeout_seconds: Option<String>,
    /// Seconds that a statement may wait for a lock, PostgreSQL [default: a third of the former]
    #[arg(long, env = "DBTCLOUD_DATABASE_LOCK_TIMEOUT_SECONDS", value_name = "N")]
    pub database_lock_timeout_seconds: Option<String>,
    /// Where artifacts and logs are kept [default: artifacts/ in the data directory]
    #[arg(long, env = "DBTCLOUD_ARTIFACTS_URL", value_name = "URL", hide_env_values = true)]
    pub artifacts_url: Option<String>,
    /// What this process does: all, gateway, app, scheduler, cleanup; repeatable [default: all]
    #[arg(long, env = "DBTCLOUD_ROLE", value_name = "ROLE", value_delimiter = ',')]
    pub role: Option<Vec<String>>,
    /// Scheme and host under which people reach this server, for links
    #[arg(long, env = "DBTCLOUD_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Networks of the proxies that may say where a request came from (X-Forwarded-*), 10.0.0.0/8,… [default: none]
    #[arg(long, env = "DBTCLOUD_TRUSTED_PROXIES", value_name = "NETWORKS")]
    pub trusted_proxies: Option<String>,
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
    /// An app that a gateway passes requests to, http://host:port; repeatable
    #[arg(long, env = "DBTCLOUD_APP_URL", value_name = "URL", value_delimiter = ',')]
    pub app_url: Option<Vec<String>>,
    /// Where agents reach an app, http(s)://host:port [default: a unix socket in the data directory]
    #[arg(long, env = "DBTCLOUD_AGENT_URL", value_name = "URL")]
    pub agent_url: Option<String>,
    /// PEM file of the authorities that vouch for agent_url [default: the machine's]
    #[arg(long, env = "DBTCLOUD_AGENT_CA", value_name = "FILE")]
    pub agent_ca: Option<String>,
    /// Seconds that a gateway or app goes on serving, not ready, when asked to stop [default: 0 embedded, 5 otherwise]
    #[arg(long, env = "DBTCLOUD_DRAIN_SECONDS", value_name = "N")]
    pub drain_seconds: Option<String>,
    /// Seconds between the interrupt and the kill of a run that is stopped [default: 10]
    #[arg(long, env = "DBTCLOUD_GRACE_SECONDS", value_name = "N")]
    pub grace_seconds: Option<String>,
    /// Sends traces to the OTLP collector at this URL, over HTTP [default: no traces]
    #[arg(long, env = "DBTCLOUD_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Sends OpenLineage events to the service at this URL [default: none]
    #[arg(long, env = "DBTCLOUD_OPENLINEAGE_URL", value_name = "URL")]
    pub openlineage_url: Option<String>,
    /// File with the API key of that service
    #[arg(long, env = "DBTCLOUD_OPENLINEAGE_API_KEY_FILE", value_name = "FILE")]
    pub openlineage_api_key_file: Option<String>,
    /// Namespace of jobs in OpenLineage events; installations that share a service need one each [default: dbtcloud]
    #[arg(long, env = "DBTCLOUD_OPENLINEAGE_NAMESPACE", value_name = "NAME")]
    pub openlineage_namespace: Option<String>,
    /// Which addresses webhooks may lead to: public, private (public ones and private networks), any [default: private]
    #[arg(long, env = "DBTCLOUD_WEBHOOK_TARGETS", value_name = "WHICH")]
    pub webhook_targets: Option<String>,
    /// Mail server for notifications: smtps://user@host:465 or smtp://user@host:587?tls=required|none [default: no mail]
    #[arg(long, env = "DBTCLOUD_SMTP_URL", value_name = "URL", hide_env_values = true)]
    pub smtp_url: Option<String>,
    /// File with the password of that server's user
    #[arg(long, env = "DBTCLOUD_SMTP_PASSWORD_FILE", value_name = "FILE")]
    pub smtp_password_file: Option<String>,
    /// Address that mail comes from, dbtcloud <dbtcloud@example.com>
    #[arg(long, env = "DBTCLOUD_SMTP_FROM", value_name = "ADDRESS")]
    pub smtp_from: Option<String>,
    /// Days that runs that have ended are kept, 0 for ever; accounts may say otherwise [default: 365]
    #[arg(long, env = "DBTCLOUD_RETAIN_RUNS_DAYS", value_name = "DAYS")]
    pub retain_runs_days: Option<String>,
    /// Days that logs of runs are kept, 0 for ever; accounts may say otherwise [default: 365]
    #[arg(long, env = "DBTCLOUD_RETAIN_LOGS_DAYS", value_name = "DAYS")]
    pub retain_logs_days: Option<String>,
    /// Days that artifacts of runs are kept, 0 for ever; accounts may say otherwise [default: 365]
    #[arg(long, env = "DBTCLOUD_RETAIN_ARTIFACTS_DAYS", value_name = "DAYS")]
    pub retain_artifacts_days: Option<String>,
    /// Days that develop sessions that have ended are kept, 0 for ever; accounts may say otherwise [default: 30]
    #[arg(long, env = "DBTCLOUD_RETAIN_SESSIONS_DAYS", value_name = "DAYS")]
    pub retain_sessions_days: Option<String>,
    /// Days that entries of the audit log are kept, 0 for ever; accounts may say otherwise [default: 365]
    #[arg(long, env = "DBTCLOUD_RETAIN_AUDIT_DAYS", value_name = "DAYS")]
    pub retain_audit_days: Option<String>,
    /// What runs execute in: processes (of this machine), kubernetes [default: processes]
    #[arg(long, env = "DBTCLOUD_EXECUTOR", value_name = "WHICH")]
    pub executor: Option<String>,
    /// Namespace of runs [default: that of this pod or of the context]
    #[arg(long, env = "DBTCLOUD_KUBERNETES_NAMESPACE", value_name = "NAME")]
    pub kubernetes_namespace: Option<String>,
    /// Context of the kubeconfig, which KUBECONFIG names [default: this pod's cluster, or the current context]
    #[arg(long, env = "DBTCLOUD_KUBERNETES_CONTEXT", value_name = "NAME")]
    pub kubernetes_context: Option<String>,
    /// Image of runs whose environment names none: dbt and the agent
    #[arg(long, env = "DBTCLOUD_KUBERNETES_IMAGE", value_name = "IMAGE")]
    pub kubernetes_image: Option<String>,
    /// Name before those of Jobs and volumes, for installations that share a namespace [default: none]
    #[arg(long, env = "DBTCLOUD_KUBERNETES_INSTALLATION", value_name = "NAME")]
    pub kubernetes_installation: Option<String>,
    /// Service account of runs whose environment names none [default: the namespace's]
    #[arg(long, env = "DBTCLOUD_KUBERNETES_SERVICE_ACCOUNT", value_name = "NAME")]
    pub kubernetes_service_account: Option<String>,
    /// StorageClass of volumes, which must be read-write-many [default: the cluster's]
    #[arg(long, env = "DBTCLOUD_KUBERNETES_STORAGE_CLASS", value_name = "NAME")]
    pub kubernetes_storage_class: Option<String>,
    /// Size of a volume [default: 10Gi]
    #[arg(long, env = "DBTCLOUD_KUBERNETES_VOLUME_SIZE", value_name = "QUANTITY")]
    pub kubernetes_volume_size: Option<String>,
    /// YAML or JSON file with part of a pod template, merged over every run's pod
    #[arg(long, env = "DBTCLOUD_KUBERNETES_POD_OVERLAY_FILE", value_name = "FILE")]
    pub kubernetes_pod_overlay_file: Option<String>,
    /// Gives every account a namespace of its own, NAMESPACE-ACCOUNT
    #[arg(long, env = "DBTCLOUD_KUBERNETES_NAMESPACE_PER_ACCOUNT")]
    pub kubernetes_namespace_per_account: bool,
    /// Brings the database's schema up to date at the start; embedded databases always are
    #[arg(long, env = "DBTCLOUD_MIGRATE")]
    pub migrate: bool,
}

/// Names of all keys, as the file has them.
pub const KEYS: [&str; 48] = [
    "agent_ca",
    "agent_url",
    "app_url",
    "artifacts_url",
    "data_dir",
    "database_listen_url",
    "database_lock_timeout_seconds",
    "database_password_file",
    "database_pool_size",
    "database_statement_timeout_seconds",
    "database_url",
    "drain_seconds",
    "executor",
    "grace_seconds",
    "key_file",
    "kubernetes_context",
    "kubernetes_image",
    "kubernetes_installation",
    "kubernetes_namespace",
    "kubernetes_namespace_per_account",
    "kubernetes_pod_overlay_file",
    "kubernetes_service_account",
    "kubernetes_storage_class",
    "kubernetes_volume_size",
    "listen",
    "log",
    "log_format",
    "migrate",
    "openlineage_api_key_file",
    "openlineage_namespace",
    "openlineage_url",
    "otlp_endpoint",
    "public_url",
    "retain_artifacts_days",
    "retain_audit_days",
    "retain_logs_days",
    "retain_runs_days",
    "retain_sessions_days",
    "role",
    "run_capacity",
    "smtp_from",
    "smtp_password_file",
    "smtp_url",
    "tls_cert",
    "tls_key",
    "tls_listen",
    "trusted_proxies",
    "webhook_targets",
];

impl Given {
    /// Every setting that is one text, by its key.
    pub(super) fn texts(&self) -> [(&'static str, &Option<String>); 44] {
        [
            ("listen", &self.listen),
            ("tls_listen", &self.tls_listen),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("data_dir", &self.data_dir),
            ("database_url", &self.database_url),
            ("database_password_file", &self.database_password_file),
            ("database_listen_url", &self.database_listen_url),
            ("database_pool_size", &self.database_pool_size),
            (
                "database_statement_timeout_seconds",
                &self.database_statement_timeout_seconds,
            ),
            ("database_lock_timeout_seconds", &self.database_lock_timeout_seconds),
            ("artifacts_url", &self.artifacts_url),
            ("public_url", &self.public_url),
            ("trusted_proxies", &self.trusted_proxies),
            ("log_format", &self.log_format),
            ("log", &self.log),
            ("key_file", &self.key_file),
            ("run_capacity", &self.run_capacity),
            ("grace_seconds", &self.grace_seconds),
            ("agent_url", &self.agent_url),
            ("agent_ca", &self.agent_ca),
            ("drain_seconds", &self.drain_seconds),
            ("otlp_endpoint", &self.otlp_endpoint),
            ("openlineage_url", &self.openlineage_url),
            ("openlineage_api_key_file", &self.openlineage_api_key_file),
            ("openlineage_namespace", &self.openlineage_namespace),
            ("webhook_targets", &self.webhook_targets),
            ("smtp_url", &self.smtp_url),
            ("smtp_password_file", &self.smtp_password_file),
            ("smtp_from", &self.smtp_from),
            ("executor", &self.executor),
            ("kubernetes_namespace", &self.kubernetes_namespace),
            ("kubernetes_context", &self.kubernetes_context),
            ("kubernetes_image", &self.kubernetes_image),
            ("kubernetes_installation", &self.kubernetes_installation),
            ("kubernetes_service_account", &self.kubernetes_service_account),
            ("kubernetes_storage_class", &self.kubernetes_storage_class),
            ("kubernetes_volume_size", &self.kubernetes_volume_size),
            ("kubernetes_pod_overlay_file", &self.kubernetes_pod_overlay_file),
            ("retain_runs_days", &self.retain_runs_days),
            ("retain_logs_days", &self.retain_logs_days),
            ("retain_artifacts_days", &self.retain_artifacts_days),
            ("retain_sessions_days", &self.retain_sessions_days),
            ("retain_audit_days", &self.retain_audit_days),
        ]
    }

    /// Every setting that is on or not said, by its key.
    pub(super) fn switches(&self) -> [(&'static str, bool); 2] {
        [
            (
                "kubernetes_namespace_per_account",
                self.kubernetes_namespace_per_account,
            ),
            ("migrate", self.migrate),
        ]
    }
}
