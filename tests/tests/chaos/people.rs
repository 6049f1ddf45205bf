//! What is to be done meanwhile: people set runs off and stop some, and many schedules come due at one instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dbtcloud_tests::api::Api;
use dbtcloud_tests::postgres::Database;
use reqwest::Method;
use serde_json::{Value, json};

use crate::plan::Dice;

/// How long somebody waits for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A run that somebody wanted.
#[derive(Clone, Debug)]
pub struct Asked {
    /// By which the run is known again.
    pub cause: String,
    /// The run, if that was the answer.
    pub run: Option<i64>,
    /// Whether it was asked to stop: `true` when that was answered.
    pub stopped: Option<bool>,
}

/// What a POST was answered; `None` when it was not, or when the answer says that nobody knows.
async fn post(api: &Api, path: &str, body: &Value) -> Option<Value> {
    let answer = api.send(Method::POST, path, Some(body));
    let (status, body) = tokio::time::timeout(ANSWER, answer).await.ok()?.ok()?;
    assert!(
        status.is_success() || status.is_server_error(),
        "POST {path}: {status} {body}"
    );
    status.is_success().then(|| body["data"].clone())
}

/// Sets runs off until it is enough.
pub async fn trigger(api: Api, jobs: Vec<i64>, mut dice: Dice, gap: (u64, u64), enough: Arc<AtomicBool>) -> Vec<Asked> {
    let mut asked = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        tokio::time::sleep(dice.span(gap.0, gap.1)).await;
        let job = jobs[usize::try_from(dice.draw(jobs.len() as u64)).unwrap_or(0)];
        let cause = format!("account {} asks for {}", api.account, asked.len());
        let answer = post(
            &api,
            &format!("v2/accounts/{{a}}/jobs/{job}/run/"),
            &json!({"cause": cause}),
        )
        .await;
        let run = answer.and_then(|run| run["id"].as_i64());
        let mut stopped = None;
        if let Some(run) = run.filter(|_| dice.draw(8) == 0) {
            tokio::time::sleep(dice.span(0, 3_000)).await;
            let path = format!("v2/accounts/{{a}}/runs/{run}/cancel/");
            stopped = Some(post(&api, &path, &json!({})).await.is_some());
        }
        asked.push(Asked { cause, run, stopped });
    }
    asked
}

/// An instant to which hands were moved, and whose; `None` when the database did not say.
#[derive(Clone, Debug)]
pub struct Due {
    /// Microseconds.
    pub at: i64,
    /// The jobs.
    pub jobs: Option<Vec<i64>>,
}

fn now_micros() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_micros()).unwrap()
}

/// Moves every hand that has moved on to one instant, again and again until it is enough.
pub async fn herd(database: Arc<Database>, jobs: Vec<i64>, every: Duration, enough: Arc<AtomicBool>) -> Vec<Due> {
    let list: Vec<String> = jobs.iter().map(i64::to_string).collect();
    let mut due = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        let at = now_micros();
        let statement = format!(
            "UPDATE schedules SET next_at = {at} WHERE job_id IN ({}) AND next_at > {at} RETURNING job_id",
            list.join(", ")
        );
        let database = database.clone();
        let asked = tokio::task::spawn_blocking(move || database.try_ask(&statement));
        let moved = asked.await.unwrap();
        let jobs = moved.map(|moved| moved.lines().map(|job| job.parse().unwrap()).collect());
        due.push(Due { at, jobs });
        tokio::time::sleep(every).await;
    }
    due
}

/// Looks at the slots that are taken, until it is enough; how often there was an answer. `slots` has every account's.
pub async fn watch(database: Arc<Database>, slots: Vec<(i64, u32)>, enough: Arc<AtomicBool>) -> usize {
    let mut looks = 0;
    while !enough.load(Ordering::Relaxed) {
        let database = database.clone();
        let statement = "SELECT account_id, count(*), max(slot) FROM run_queue WHERE slot IS NOT NULL GROUP BY 1";
        let asked = tokio::task::spawn_blocking(move || database.try_ask(statement));
        if let Some(answer) = asked.await.unwrap() {
            looks += 1;
            for row in answer.lines() {
                let row: Vec<i64> = row.split('|').map(|field| field.parse().unwrap()).collect();
                let allowed = slots.iter().find(|(account, _)| *account == row[0]);
                let allowed = i64::from(allowed.map_or(0, |(_, slots)| *slots));
                assert!(row[1] <= allowed && row[2] < allowed, "{allowed} slots: {row:?}");
            }
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    looks
}
