//! Runs through the API: set off, looked at, stopped, retried; their files.

use std::time::Duration;

use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Artifacts, Clock, History, RunPart};
use dbtcloud_core::run::StepStatus;
use dbtcloud_runtime::scheduler::Scheduler;
use serde_json::{Value, json};

use super::world::World;

async fn trigger(world: &World, job: i64, body: Value) -> Value {
    world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{job}/run/"), body)
        .await
}

fn id(value: &Value) -> i64 {
    value["id"].as_i64().unwrap()
}

/// 7 and 8: the whole run at once, with a link that answers.
#[tokio::test]
async fn a_trigger_answers_the_run_and_a_link_that_works() {
    let world = World::new().await;
    let made = world.made().await;
    for body in [
        json!({}),
        json!({"cause": null, "git_sha": null, "steps_override": null, "odd": {"x": 1}}),
    ] {
        let run = trigger(&world, made.job, body).await;
        assert_eq!(run["status"], 1);
        assert_eq!(run["status_humanized"], "Queued");
        assert_eq!(run["trigger"]["cause"], "Triggered via API");
        let href = run["href"].as_str().unwrap();
        let path = href.strip_prefix("https://dbt.example").unwrap();
        let page = world.ask_as("", "GET", path, None).await;
        assert_eq!(page.status, 200);
        assert!(
            page.headers["content-security-policy"]
                .to_str()
                .unwrap()
                .contains("default-src 'none'")
        );
        let read = world.get(&format!("/api/v2/accounts/{{a}}/runs/{}/", run["id"])).await;
        assert_eq!(read["href"], run["href"]);
    }
    let long = trigger(&world, made.job, json!({"cause": "é".repeat(300)})).await;
    assert_eq!(long["trigger"]["cause"].as_str().unwrap().chars().count(), 255);
}

/// Ours: a request that is made again by its key is answered with the run of the first.
#[tokio::test]
async fn a_trigger_that_is_made_again_by_its_key_is_one_run() {
    let world = World::new().await;
    let made = world.made().await;
    let ask = async |key: &str, body: Value| {
        let path = format!("/api/v2/accounts/{}/jobs/{}/run/", world.account, made.job);
        let request = axum::http::Request::post(path)
            .header("authorization", format!("Token {}", world.token))
            .header("idempotency-key", key);
        world.send(request.body(body.to_string().into()).unwrap()).await
    };
    let body = json!({"cause": "nightly", "git_sha": null});
    let run = id(&ask("a", body.clone()).await.data());
    // The same in other words.
    assert_eq!(id(&ask("a", json!({"cause": "nightly"})).await.data()), run);
    assert_ne!(id(&ask("b", body.clone()).await.data()), run);
    let said = ask("a", json!({"cause": "nightly", "threads_override": 8}))
        .await
        .refused(422);
    assert!(
        said.contains("Idempotency-Key") && said.contains(&run.to_string()),
        "{said}"
    );
    for key in ["", &"k".repeat(256), "é"] {
        assert_eq!(ask(key, body.clone()).await.fields(), ["Idempotency-Key"], "{key}");
    }
    // Whatever became of it, for a day.
    let path = format!("/api/v2/accounts/{{a}}/runs/{run}/cancel/");
    world.post(&path, json!({})).await;
    world.clock.advance(Duration::from_secs(24 * 3600 - 1));
    let again = ask("a", body.clone()).await.data();
    assert_eq!((id(&again), &again["status_humanized"]), (run, &json!("Cancelled")));
    world.clock.advance(Duration::from_secs(1));
    assert_ne!(id(&ask("a", body).await.data()), run);
}

/// 6, 9 and 10: numbers, words, flags; steps from 1 with dbt Cloud's names and their logs.
#[tokio::test]
async fn a_run_from_the_queue_to_the_end() {
    let world = World::new().await;
    let made = world.made().await;
    let run = id(&trigger(&world, made.job, json!({"steps_override": ["dbt build"]})).await);
    let path = format!("/api/v2/accounts/{{a}}/runs/{run}/?include_related=run_steps");
    let flags = |view: &Value| {
        [
            "in_progress",
            "is_complete",
            "is_success",
            "is_error",
            "is_cancelled",
            "is_running",
        ]
        .map(|name| view[name] == true)
    };
    assert_eq!(
        flags(&world.get(&path).await),
        [true, false, false, false, false, false]
    );
    world.clock.advance(Duration::from_secs(110));
    world.whole_run(run, StepStatus::Success).await;
    let view = world.get(&path).await;
    assert_eq!(
        (view["status"].as_i64(), view["status_humanized"].as_str()),
        (Some(10), Some("Success"))
    );
    assert_eq!(flags(&view), [false, true, true, false, false, false]);
    assert_eq!(view["queued_duration"], "00:01:50");
    assert_eq!(view["queued_duration_humanized"], "1 minute, 50 seconds");
    assert_eq!(view["run_duration"], "00:00:40");
    let steps = view["run_steps"].as_array().unwrap();
    let names: Vec<_> = steps
        .iter()
        .map(|step| (step["index"].as_i64().unwrap(), step["name"].as_str().unwrap()))
        .collect();
    assert_eq!(
        names,
        [
            (1, "Clone git repository"),
            (2, "Create profile from connection Warehouse"),
            (3, "Invoke dbt with `dbt deps`"),
            (4, "Invoke dbt with `dbt build`")
        ]
    );
    assert!(
        steps
            .iter()
            .all(|step| step["logs"].as_str().unwrap().starts_with("log of step"))
    );
    assert_eq!(steps[3]["run_step_command"]["dbt_command"], "dbt build");
    let plain = world.get(&format!("/api/v2/accounts/{{a}}/runs/{run}/")).await;
    assert_eq!(plain["run_steps"], json!([]));
}

/// 11: raw files, by step, with slashes; an envelope when there is none.
#[tokio::test]
async fn artifacts_are_raw_and_by_step() {
    let world = World::new().await;
    let made = world.made().await;
    let run = id(&trigger(&world, made.job, json!({})).await);
    let path = format!("/api/v2/accounts/{{a}}/runs/{run}/artifacts");
    assert_eq!(world.get(&path).await, json!([]));
    world.whole_run(run, StepStatus::Success).await;
    world.keep(run, 3, "manifest.json", r#"{"step": 3}"#).await;
    world.keep(run, 4, "manifest.json", r#"{"step": 4}"#).await;
    world.keep(run, 4, "compiled/shop/models/orders.sql", "select 1").await;
    let listed = world.get(&format!("{path}/")).await;
    assert_eq!(
        listed,
        json!(["compiled/shop/models/orders.sql", "manifest.json", "run_results.json"])
    );
    let raw = async |path: String| {
        let reply = world.ask("GET", &path, None).await;
        assert_eq!(reply.status, 200);
        assert_eq!(
            reply.headers["content-length"].to_str().unwrap(),
            reply.bytes.len().to_string()
        );
        (
            reply.headers["content-type"].to_str().unwrap().to_owned(),
            String::from_utf8(reply.bytes.to_vec()).unwrap(),
        )
    };
    assert_eq!(
        raw(format!("{path}/manifest.json")).await,
        ("application/json".to_owned(), r#"{"step": 4}"#.to_owned())
    );
    assert_eq!(raw(format!("{path}/manifest.json?step=3")).await.1, r#"{"step": 3}"#);
    assert_eq!(
        raw(format!("{path}/compiled/shop/models/orders.sql")).await.1,
        "select 1"
    );
    let of_job = format!("/api/v2/accounts/{{a}}/jobs/{}/artifacts/manifest.json", made.job);
    assert_eq!(raw(of_job.clone()).await.1, r#"{"step": 4}"#);
    let newer = id(&trigger(&world, made.job, json!({})).await);
    assert_eq!(raw(of_job).await.1, r#"{"step": 4}"#, "run {newer} has none yet");
    for missing in ["catalog.json", "manifest.json?step=1", "%2e%2e%2fsecret", "a%5Cb"] {
        assert!(
            world
                .ask("GET", &format!("{path}/{missing}"), None)
                .await
                .refused(404)
                .contains("permissions"),
            "{missing}"
        );
    }
    assert_eq!(
        world
            .ask("GET", &format!("{path}/manifest.json?step=x"), None)
            .await
            .fields(),
        ["step"]
    );
}

/// 21: a run that is stopped ends as 30 with dbt Cloud's message; a run that has ended stays what it is.
#[tokio::test]
async fn cancelling() {
    let world = World::new().await;
    let made = world.made().await;
    let queued = id(&trigger(&world, made.job, json!({})).await);
    let cancel = |run: i64| format!("/api/v2/accounts/{{a}}/runs/{run}/cancel");
    for _ in 0..2 {
        let view = world.ask("POST", &cancel(queued), None).await.data();
        assert_eq!(
            (view["status"].as_i64(), view["status_message"].as_str()),
            (Some(30), Some("Cancelled by user."))
        );
        assert_eq!(view["is_cancelled"], true);
    }
    let done = id(&trigger(&world, made.job, json!({})).await);
    world.whole_run(done, StepStatus::Success).await;
    assert_eq!(world.ask("POST", &cancel(done), None).await.data()["status"], 10);
    world.ask("GET", &cancel(done), None).await.refused(405);
}

#[tokio::test]
async fn retrying() {
    let world = World::new().await;
    let made = world.made().await;
    let run = id(&trigger(&world, made.job, json!({})).await);
    let path = format!("/api/v2/accounts/{{a}}/runs/{run}/retry/");
    assert_eq!(
        world.ask("POST", &path, None).await.fields(),
        ["retry_not_supported_reason"]
    );
    world.whole_run(run, StepStatus::Error).await;
    assert_eq!(world.get(&path).await["failed_step"], "Invoke dbt with `dbt build`");
    let again = world.post(&path, json!({})).await;
    assert_eq!(again["retrying_run_id"], run);
    assert_eq!(again["trigger"], Value::Null);
    let rerun = world
        .post(&format!("/api/v2/accounts/{{a}}/jobs/{}/rerun/", made.job), json!({}))
        .await;
    assert_eq!(
        rerun["retrying_run_id"],
        Value::Null,
        "the newest run has not failed: an ordinary one"
    );
    assert_eq!(rerun["trigger"]["cause_category"], "rerun");
}

#[tokio::test]
async fn a_queued_run_says_what_it_waits_for() {
    let world = World::new().await;
    let made = world.made().await;
    let first = id(&trigger(&world, made.job, json!({})).await);
    let path = |run: i64| format!("/api/v2/accounts/{{a}}/runs/{run}/");
    let alone = world.get(&path(first)).await;
    assert_eq!(alone["blocked_by"], json!([]));
    assert_eq!(alone["wait_reason"]["code"], "no_scheduler", "none runs in this world");
    let mut scheduler = Scheduler::new(world.plane.clone());
    scheduler.tick().await.unwrap();
    assert_eq!(
        world.get(&path(first)).await["wait_reason"],
        Value::Null,
        "it left the queue"
    );
    let second = id(&trigger(&world, made.job, json!({})).await);
    let view = world.get(&path(second)).await;
    assert_eq!(view["blocked_by"], json!([first]));
    let text = format!("Run {first} of the same job is executing.");
    assert_eq!(
        view["wait_reason"],
        json!({"code": "job_busy", "text": text, "position": 1})
    );
    assert_eq!(view["status_message"], text);
    let listed = world.get("/api/v2/accounts/{a}/runs/?order_by=-id&limit=1").await;
    assert_eq!(listed[0]["wait_reason"], view["wait_reason"]);
    let newest = world
        .get("/api/v2/accounts/{a}/jobs/?include_related=most_recent_run")
        .await;
    assert_eq!(newest[0]["most_recent_run"]["id"], second);
}

/// A new commit of a pull request stops the older run of the same job; the wire says why.
#[tokio::test]
async fn a_newer_run_of_a_pull_request_takes_the_olders_place() {
    let world = World::new().await;
    let made = world.made().await;
    let commit = json!({"github_pull_request_id": 12, "git_sha": "a".repeat(40)});
    let first = id(&trigger(&world, made.job, commit.clone()).await);
    let other = id(&trigger(&world, made.job, json!({"github_pull_request_id": 13})).await);
    let second = id(&trigger(&world, made.job, commit).await);
    let path = |run: i64| format!("/api/v2/accounts/{{a}}/runs/{run}/");
    let view = world.get(&path(first)).await;
    assert_eq!(view["status"], 30);
    let message = format!("Superseded by run {second}: a newer run of the job was queued for pull request 12.");
    assert_eq!(view["status_message"], message);
    for run in [other, second] {
        assert_eq!(world.get(&path(run)).await["status"], 1);
    }
}

#[tokio::test]
async fn lists_of_runs_are_filtered_and_ordered() {
    let world = World::new().await;
    let made = world.made().await;
    let mut runs = Vec::new();
    for end in [StepStatus::Success, StepStatus::Error, StepStatus::Success] {
        let run = id(&trigger(&world, made.job, json!({})).await);
        world.whole_run(run, end).await;
        runs.push(run);
    }
    let ids = async |query: &str| -> Vec<i64> {
        let view = world.get(&format!("/api/v2/accounts/{{a}}/runs/?{query}")).await;
        view.as_array().unwrap().iter().map(id).collect()
    };
    assert_eq!(ids("").await, runs);
    assert_eq!(ids("order_by=-id").await, [runs[2], runs[1], runs[0]]);
    assert_eq!(ids("order_by=-finished_at&limit=1").await, [runs[2]]);
    assert_eq!(ids("status=20").await, [runs[1]]);
    assert_eq!(ids(&format!("id__gt={}", runs[0])).await, [runs[1], runs[2]]);
    assert_eq!(
        ids(&format!("pk__in=[{},{}]", runs[0], runs[2])).await,
        [runs[0], runs[2]]
    );
    assert_eq!(
        ids(&format!(
            "job_definition_id={}&environment_id={}",
            made.job, made.environment
        ))
        .await,
        runs
    );
    assert_eq!(ids("job_definition_id=999").await, [] as [i64; 0]);
}

/// What retention let go says so, and is no fault of the server's.
#[tokio::test]
async fn what_has_expired_says_so() {
    let world = World::new().await;
    let made = world.made().await;
    let run = id(&trigger(&world, made.job, json!({"steps_override": ["dbt build"]})).await);
    world.whole_run(run, StepStatus::Success).await;
    let account = AccountId::new(world.account);
    let path = format!("/api/v2/accounts/{{a}}/runs/{run}/");
    let whole = world.get(&format!("{path}?include_related=run_steps")).await;
    assert_eq!(whole["run_steps"][3]["logs"], "log of step 4\n");
    for part in [RunPart::Logs, RunPart::Artifacts] {
        world.artifacts.remove(account, RunId::new(run), None).await.unwrap();
        let now = world.clock.now();
        world.storage.expire(account, RunId::new(run), part, now).await.unwrap();
    }
    let seen = world.get(&format!("{path}?include_related=run_steps")).await;
    for step in seen["run_steps"].as_array().unwrap() {
        let log = step["logs"].as_str().unwrap();
        assert!(log.starts_with("[This log has expired: it was removed on 20"), "{log}");
        let alone = world
            .get(&format!("/api/v2/accounts/{{a}}/steps/{}/", step["id"]))
            .await;
        assert_eq!(alone["logs"], step["logs"]);
    }
    assert_eq!(seen["artifacts_saved"], json!(false));
    let file = world
        .ask("GET", &format!("{path}artifacts/run_results.json"), None)
        .await;
    let said = file.refused(404);
    assert!(said.contains("have expired: they were removed on 20"), "{said}");
    assert_eq!(world.get(&format!("{path}artifacts/")).await, json!([]));
}
