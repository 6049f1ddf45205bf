//! The few calls that the demo makes, as any client would make them.

use anyhow::{Context, bail};
use futures::StreamExt;
use serde_json::Value;

/// A line of the event stream may not be longer than this.
const LINE_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// How often a stream that broke off is taken up again.
const RESUME_LIMIT: u32 = 100;

pub(super) struct Api {
    client: reqwest::Client,
    base: String,
    token: String,
    account: i64,
}

impl Api {
    pub(super) fn new(base: &str, token: &str, account: i64) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().build()?;
        Ok(Self {
            client,
            base: base.to_owned(),
            token: token.to_owned(),
            account,
        })
    }

    pub(super) fn account_url(&self) -> String {
        format!("{}/api/v2/accounts/{}", self.base, self.account)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/{}", self.base, path.replace("{a}", &self.account.to_string()))
    }

    fn ask(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        request.header("Authorization", format!("Token {}", self.token))
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        data(path, self.ask(self.client.get(self.url(path))).send().await?).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        data(
            path,
            self.ask(self.client.post(self.url(path))).json(body).send().await?,
        )
        .await
    }

    /// Follows a run's events to their end, taking a broken stream up again where it broke off.
    pub(super) async fn follow(&self, run: i64, mut take: impl FnMut(&str, &Value)) -> anyhow::Result<()> {
        let mut last = String::new();
        for _ in 0..RESUME_LIMIT {
            let url = self.url(&format!("v2/accounts/{{a}}/runs/{run}/events/"));
            let mut request = self.ask(self.client.get(url)).header("Accept", "text/event-stream");
            if !last.is_empty() {
                request = request.header("Last-Event-ID", last.as_str());
            }
            let answer = request.send().await?;
            if !answer.status().is_success() {
                bail!("the event stream of run {run} answered {}", answer.status());
            }
            if read(answer, &mut last, &mut take).await? {
                return Ok(());
            }
        }
        bail!("the event stream of run {run} broke off {RESUME_LIMIT} times")
    }
}

/// Reads one stream. Whether its end was told.
async fn read(
    answer: reqwest::Response,
    last: &mut String,
    take: &mut impl FnMut(&str, &Value),
) -> anyhow::Result<bool> {
    let (mut buffer, mut event, mut data) = (Vec::new(), String::new(), String::new());
    let mut bytes = answer.bytes_stream();
    while let Some(Ok(chunk)) = bytes.next().await {
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(text) = line.strip_prefix("event:") {
                event = text.trim().to_owned();
            } else if let Some(text) = line.strip_prefix("data:") {
                data.push_str(text.trim_start());
            } else if let Some(text) = line.strip_prefix("id:") {
                *last = text.trim().to_owned();
            } else if line.is_empty() && !event.is_empty() {
                if event == "end" {
                    return Ok(true);
                }
                take(&event, &serde_json::from_str(&data).unwrap_or(Value::Null));
                event.clear();
                data.clear();
            }
        }
        if buffer.len() > LINE_LIMIT_BYTES {
            bail!("a line of the event stream is longer than {LINE_LIMIT_BYTES} bytes");
        }
    }
    Ok(false)
}

async fn data(path: &str, answer: reqwest::Response) -> anyhow::Result<Value> {
    let status = answer.status();
    let body: Value = answer
        .json()
        .await
        .with_context(|| format!("{path}: the answer is not JSON"))?;
    if !status.is_success() {
        bail!(
            "{path}: {status}: {}",
            body["status"]["user_message"].as_str().unwrap_or_default()
        );
    }
    Ok(body["data"].clone())
}
