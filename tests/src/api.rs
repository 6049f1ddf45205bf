//! A plain client of the public API: what a user's own script would be.

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

    /// Triggers a job; the run's id.
    pub async fn trigger(&self, job: i64) -> i64 {
        let run = self
            .post(&format!("v2/accounts/{{a}}/jobs/{job}/run/"), &json!({"cause": "test"}))
            .await;
        run["id"].as_i64().unwrap()
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
