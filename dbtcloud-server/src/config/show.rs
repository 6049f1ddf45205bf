//! Settings as the file would have them, without secrets.

use dbtcloud_core::retention::Kept;

use super::{LogFormat, Settings};

impl Settings {
    /// The settings as the file would have them, without secrets.
    pub fn show(&self) -> String {
        let mut table = toml::Table::new();
        let mut text = |key: &str, value: String| table.insert(key.to_owned(), toml::Value::String(value));
        text("listen", self.listen.to_string());
        text("data_dir", self.data_dir.display().to_string());
        text("database_url", redact(&self.database_url));
        if let Some(url) = &self.database.listen_url {
            text("database_listen_url", redact(url));
        }
        if let Some(file) = &self.database.password_file {
            text("database_password_file", file.display().to_string());
        }
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
        if let Some(url) = &self.otlp_endpoint {
            text("otlp_endpoint", redact(url));
        }
        if let Some(lineage) = &self.lineage {
            text("openlineage_url", redact(&lineage.url));
            text("openlineage_namespace", lineage.namespace.clone());
            if let Some(file) = &lineage.api_key_file {
                text("openlineage_api_key_file", file.display().to_string());
            }
        }
        text("webhook_targets", self.webhook_targets.name().to_owned());
        if let Some(smtp) = &self.smtp {
            text("smtp_url", smtp.url.clone());
            text("smtp_from", smtp.from.clone());
            if let Some(file) = &smtp.password_file {
                text("smtp_password_file", file.display().to_string());
            }
        }
        if let Some(url) = &self.agent_url {
            text("agent_url", redact(url));
        }
        if let Some(file) = &self.agent_ca {
            text("agent_ca", file.display().to_string());
        }
        if let Some(tls) = &self.tls {
            text("tls_listen", tls.listen.to_string());
            text("tls_cert", tls.certificate.display().to_string());
            text("tls_key", tls.key.display().to_string());
        }
        if let Some(kubernetes) = &self.kubernetes {
            text("executor", "kubernetes".to_owned());
            text("kubernetes_image", kubernetes.image.clone());
            text("kubernetes_volume_size", kubernetes.volume_size.clone());
            for (key, value) in [
                ("kubernetes_namespace", &kubernetes.namespace),
                ("kubernetes_context", &kubernetes.context),
                ("kubernetes_installation", &kubernetes.installation),
                ("kubernetes_service_account", &kubernetes.service_account),
                ("kubernetes_storage_class", &kubernetes.storage_class),
            ] {
                if let Some(value) = value {
                    text(key, value.clone());
                }
            }
            if let Some(file) = &kubernetes.pod_overlay_file {
                text("kubernetes_pod_overlay_file", file.display().to_string());
            }
            let each = toml::Value::Boolean(kubernetes.namespace_per_account);
            table.insert("kubernetes_namespace_per_account".to_owned(), each);
        }
        let roles = self.roles.iter().map(|role| toml::Value::from(role.name())).collect();
        table.insert("role".to_owned(), toml::Value::Array(roles));
        let number = |value: u64| toml::Value::Integer(i64::try_from(value).unwrap_or(i64::MAX));
        table.insert("run_capacity".to_owned(), number(self.run_capacity as u64));
        let database = &self.database;
        for (key, value) in [
            ("database_pool_size", u64::from(database.pool_size)),
            ("database_statement_timeout_seconds", database.statement_timeout_seconds),
            ("database_lock_timeout_seconds", database.lock_timeout_seconds),
        ] {
            table.insert(key.to_owned(), number(value));
        }
        let apps = self.app_urls.iter().map(|url| toml::Value::from(redact(url))).collect();
        table.insert("app_url".to_owned(), toml::Value::Array(apps));
        let proxies = self.trusted_proxies.networks().map(toml::Value::from).collect();
        table.insert("trusted_proxies".to_owned(), toml::Value::Array(proxies));
        table.insert("drain_seconds".to_owned(), number(self.drain_seconds));
        table.insert("grace_seconds".to_owned(), number(self.grace_seconds));
        for kept in Kept::ALL {
            let key = format!("retain_{}_days", kept.name());
            table.insert(key, number(u64::from(self.retention.days(kept).get())));
        }
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
