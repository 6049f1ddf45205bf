//! The server and its three runs.

use std::time::Duration;

use dbtcloud_tests::installation::Installation;
use dbtcloud_tests::project;
use serde_json::{Value, json};

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

pub struct Stage {
    pub installation: Installation,
}

impl Stage {
    pub async fn new() -> Self {
        let mut installation = Installation::new();
        installation.start().await;
        Self { installation }
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

    pub async fn play(&self) -> Played {
        let api = self.installation.api().clone();
        let fine = [("one", "select 1 as id"), ("two", "select * from {{ ref('one') }}")];
        let well = self.job("well", &fine, &["dbt run", "dbt build"]).await;
        let succeeded = api.ended(api.trigger(well).await, FIRST).await;
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
