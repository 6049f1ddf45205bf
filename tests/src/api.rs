//! A plain client of the public API: what a user's own script would be.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

/// How often a run is asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Talks to one account of one installation.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    base: String,
    token: String,
    /// The account.
    pub account: i64,
}

impl Api {
    /// A client.
    pub fn new(base: &str, token: &str, account: i64) -> Self {
        Self {
            client: Client::new(),
            base: base.to_owned(),
            token: token.to_owned(),
            account,
        }
    }

    /// Its token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The whole URL of a path; `{a}` stands for the account.
    pub fn url(&self, path: &str) -> String {
        format!("{}/api/{}", self.base, path.replace("{a}", &self.account.to_string()))
    }

    /// Any request; status and body. A refused connection is an error.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Result<(StatusCode, Value)> {
        let mut request = self
            .client
            .request(method, self.url(path))
            .header("Authorization", format!("Token {}", self.token));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// The `data` of a successful GET.
    ///
    /// # Panics
    /// When it is not successful.
    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(Method::GET, path, None).await.unwrap();
        assert!(status.is_success(), "GET {path}: {status} {body}");
        body["data"].clone()
    }

    /// The `data` of a successful POST.
    ///
    /// # Panics
    /// When it is not successful.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.send(Method::POST, path, Some(body)).await.unwrap();
        assert!(status.is_success(), "POST {path}: {status} {answer}");
        answer["data"].clone()
    }

    /// The bytes of a file.
    ///
    /// # Panics
    /// When there is none.
    pub async fn bytes(&self, path: &str) -> Vec<u8> {
        let request = self
            .client
            .get(self.url(path))
            .header("Authorization", format!("Token {}", self.token));
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "GET {path}: {}", answer.status());
        answer.bytes().await.unwrap().to_vec()
    }

    /// Creates everything that a job on DuckDB needs; the warehouse is in `folder`. The job's id.
    pub async fn job(&self, folder: &Path, repository: &str, commands: &[&str]) -> i64 {
        let warehouse = folder.join("warehouse.duckdb").display().to_string();
        let connection = json!({"name": "DuckDB", "adapter_version": "duckdb_v0", "config": {"path": warehouse}});
        let credentials = json!({"adapter_version": "duckdb_v0", "schema": "main", "threads": 2});
        self.job_on(repository, commands, &connection, &credentials, &json!({}))
            .await
    }

    /// The same on any connection; `more` is merged into the job.
    ///
    /// # Panics
    /// When something is refused.
    pub async fn job_on(
        &self,
        repository: &str,
        commands: &[&str],
        connection: &Value,
        credentials: &Value,
        more: &Value,
    ) -> i64 {
        let id = |value: Value| value["id"].as_i64().unwrap();
        let project = id(self.post("v3/accounts/{a}/projects/", &json!({"name": "Test"})).await);
        let of_project = format!("v3/accounts/{{a}}/projects/{project}");
        let repository = json!({"project_id": project, "remote_url": repository, "git_clone_strategy": "deploy_key"});
        let repository = id(self.post(&format!("{of_project}/repositories/"), &repository).await);
        let mut whole = self.get(&format!("{of_project}/")).await;
        whole["repository_id"] = json!(repository);
        self.post(&format!("{of_project}/"), &whole).await;
        let connection = id(self.post("v3/accounts/{a}/connections/", connection).await);
        let mut credentials = credentials.clone();
        credentials["project_id"] = json!(project);
        let credentials = id(self.post(&format!("{of_project}/credentials/"), &credentials).await);
        let environment = json!({
            "name": "Production", "type": "deployment", "deployment_type": "production", "dbt_version": "latest",
            "connection_id": connection, "credentials_id": credentials, "project_id": project,
        });
        let environment = id(self.post(&format!("{of_project}/environments/"), &environment).await);
        let mut job = json!({
            "project_id": project, "environment_id": environment, "name": "Test job", "execute_steps": commands,
        });
        for (name, value) in more.as_object().unwrap() {
            job[name] = value.clone();
        }
        id(self.post("v2/accounts/{a}/jobs/", &job).await)
    }

    /// Another job that is like one but for what `more` says. Its id.
    ///
    /// # Panics
    /// When something is refused.
    pub async fn job_like(&self, job: i64, more: &Value) -> i64 {
        let like = self.get(&format!("v2/accounts/{{a}}/jobs/{job}/")).await;
        let mut fresh = json!({});
        for name in ["project_id", "environment_id", "name", "execute_steps"] {
            fresh[name] = like[name].clone();
        }
        for (name, value) in more.as_object().unwrap() {
            fresh[name] = value.clone();
        }
        self.post("v2/accounts/{a}/jobs/", &fresh).await["id"].as_i64().unwrap()
    }

    /// Triggers a job; the run's id.
    pub async fn trigger(&self, job: i64) -> i64 {
        let run = self
            .post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &json!({"cause": "test"}))
            .await;
        run["id"].as_i64().unwrap()
    }

    /// Asks for a run of a job by a key; status and body.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn trigger_once(&self, job: i64, key: &str, cause: &str) -> reqwest::Result<(StatusCode, Value)> {
        let request = self
            .client
            .post(self.url(&format!("v2/accounts/{{a}}/jobs/{job}/run/")))
            .header("Authorization", format!("Token {}", self.token))
            .header("Idempotency-Key", key)
            .json(&json!({"cause": cause}));
        let answer = request.send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// A run with its steps; `None` while the server does not answer.
    pub async fn run(&self, run: i64) -> Option<Value> {
        let path = format!("v2/accounts/{{a}}/runs/{run}/?include_related=[\"run_steps\",\"debug_logs\"]");
        let (status, body) = self.send(Method::GET, &path, None).await.ok()?;
        status.is_success().then(|| body["data"].clone())
    }

    /// Waits until a run satisfies a condition; the server may be away meanwhile.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub async fn until(&self, run: i64, limit: Duration, condition: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        let mut last = Value::Null;
        while began.elapsed() < limit {
            if let Some(seen) = self.run(run).await {
                if condition(&seen) {
                    return seen;
                }
                last = seen;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        panic!("run {run} did not get there within {limit:?}: {last:#}");
    }

    /// Waits until a run has ended.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub async fn ended(&self, run: i64, limit: Duration) -> Value {
        self.until(run, limit, |run| run["is_complete"] == json!(true)).await
    }
}

/// The name and humanized status of every step.
pub fn steps(run: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = run["run_steps"].as_array().cloned().unwrap_or_default();
    steps
        .iter()
        .map(|step| (text(&step["name"]), text(&step["status_humanized"])))
        .collect()
}
