//! The server and its three runs.

use std::time::Duration;

use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::project;
use serde_json::{Value, json};

use crate::receiver::Receiver;

/// A first run may have to install dbt.
const FIRST: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(120);

/// The three runs as the API shows them in the end.
pub struct Played {
    /// Two commands, both well.
    pub succeeded: Value,
    /// One model of three failed, one was skipped for it.
    pub failed: Value,
    /// Interrupted while dbt worked.
    pub cancelled: Value,
}

/// Whoever triggers the first run traces.
pub const CALLER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub const CALLER_SPAN: &str = "00f067aa0ba902b7";

/// What the OpenLineage service is told by.
pub const LINEAGE_NAMESPACE: &str = "test-installation";
pub const LINEAGE_KEY: &str = "lineage-key-1";

pub struct Stage {
    pub installation: Installation,
    pub receiver: Receiver,
}

impl Stage {
    pub async fn new() -> Self {
        let receiver = Receiver::listen().await;
        let url = receiver.url.clone();
        let keys = tempfile::tempdir().unwrap();
        let key = keys.path().join("key");
        std::fs::write(&key, format!("{LINEAGE_KEY}\n")).unwrap();
        let arguments = [
            "--log-format",
            "json",
            "--otlp-endpoint",
            &url,
            "--openlineage-url",
            &url,
        ];
        let key = key.to_string_lossy();
        let lineage = [
            "--openlineage-namespace",
            LINEAGE_NAMESPACE,
            "--openlineage-api-key-file",
            &key,
        ];
        // The first events are refused: they come again.
        receiver.heard().refuse = 2;
        let mut stage = Self::with(&[arguments.as_slice(), &lineage].concat()).await;
        stage.installation.expected = vec!["delivery failed; it is tried again"];
        stage.receiver = receiver;
        stage
    }

    /// With these arguments, and a receiver that nobody knows.
    pub async fn with(arguments: &[&str]) -> Self {
        let mut installation = Installation::with(arguments);
        installation.start().await;
        Self {
            installation,
            receiver: Receiver::default(),
        }
    }

    /// One run of one model.
    pub async fn play_one(&self) -> Value {
        let api = self.installation.api();
        let job = self.job("single", &[("one", "select 1 as id")], &["dbt run"]).await;
        api.ended(api.trigger(job).await, FIRST).await
    }

    pub fn base(&self) -> String {
        self.installation.api().url("").trim_end_matches("/api/").to_owned()
    }

    async fn job(&self, name: &str, models: &[(&str, &str)], commands: &[&str]) -> i64 {
        let yaml = project::dbt_project(name);
        let mut files = vec![("dbt_project.yml".to_owned(), yaml)];
        files.extend(
            models
                .iter()
                .map(|(model, sql)| (format!("models/{model}.sql"), (*sql).to_owned())),
        );
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        let repository = project::repository(&self.installation.path().join(name), &files);
        self.installation.job(&repository, commands).await
    }

    /// Triggers a job as somebody who traces.
    async fn trigger_traced(&self, job: i64) -> i64 {
        let api = self.installation.api();
        let answer = reqwest::Client::new()
            .post(api.url(&format!("v2/accounts/{{a}}/jobs/{job}/run/")))
            .header("Authorization", format!("Token {}", api.token()))
            .header("traceparent", format!("00-{CALLER_TRACE}-{CALLER_SPAN}-01"))
            .json(&json!({"cause": "traced"}))
            .send()
            .await
            .unwrap();
        let body: Value = answer.json().await.unwrap();
        body["data"]["id"].as_i64().unwrap_or_else(|| panic!("{body:#}"))
    }

    pub async fn play(&self) -> Played {
        let api = self.installation.api().clone();
        let one = "{{ log('traceparent is ' ~ env_var('TRACEPARENT', 'none'), info=true) }} \
                   {{ log('collector is ' ~ env_var('OTEL_EXPORTER_OTLP_ENDPOINT', 'none'), info=true) }} \
                   select 1 as id";
        let fine = [("one", one), ("two", "select * from {{ ref('one') }}")];
        let well = self.job("well", &fine, &["dbt run", "dbt build"]).await;
        let run = self.trigger_traced(well).await;
        let succeeded = api.ended(run, FIRST).await;
        assert_eq!(succeeded["status"], json!(10), "{succeeded:#}");

        let broken = [
            ("one", "select 1 as id"),
            ("two", "select no_such_column from {{ ref('one') }}"),
            ("three", "select * from {{ ref('two') }}"),
        ];
        let broken = self.job("broken", &broken, &["dbt build"]).await;
        let failed = api.ended(api.trigger(broken).await, LIMIT).await;
        assert_eq!(failed["status"], json!(20), "{failed:#}");

        let slow = project::slow(&self.installation.path().join("slow"), 4, 40_000_000);
        let slow = self.installation.job(&slow, &["dbt run"]).await;
        let run = api.trigger(slow).await;
        api.until(run, LIMIT, |run| {
            let log = run["run_steps"][3]["logs"].as_str().unwrap_or_default();
            log.contains("START sql table model")
        })
        .await;
        api.post(&format!("v2/accounts/{{a}}/runs/{run}/cancel/"), &json!({}))
            .await;
        let cancelled = api.ended(run, LIMIT).await;
        assert_eq!(cancelled["status"], json!(30), "{cancelled:#}");
        Played {
            succeeded,
            failed,
            cancelled,
        }
    }
}
