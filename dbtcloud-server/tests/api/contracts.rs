//! The load-bearing contracts: what published clients stumble over when it is otherwise. Numbers are those of
//! the list in the project's study of the API.

use serde_json::{Value, json};

use super::world::{Reply, World};

const JOBS: &str = "/api/v2/accounts/{a}/jobs/";

/// 2: clients index `extra.filters.limit` and `.offset` without a guard.
#[tokio::test]
async fn c02_every_list_has_filters_and_pagination() {
    let world = World::new().await;
    let p = world.made().await.project;
    for path in [
        "/api/v2/accounts/".to_owned(),
        "/api/v2/accounts/{a}/users/".to_owned(),
        "/api/v2/accounts/{a}/projects/".to_owned(),
        "/api/v2/accounts/{a}/environments/".to_owned(),
        "/api/v2/accounts/{a}/repositories/".to_owned(),
        JOBS.to_owned(),
        "/api/v2/accounts/{a}/runs/".to_owned(),
        "/api/v3/accounts/".to_owned(),
        "/api/v3/accounts/{a}/projects/".to_owned(),
        "/api/v3/accounts/{a}/environments/".to_owned(),
        "/api/v3/accounts/{a}/connections/".to_owned(),
        format!("/api/v3/accounts/{{a}}/projects/{p}/environments/"),
        format!("/api/v3/accounts/{{a}}/projects/{p}/connections/"),
        format!("/api/v3/accounts/{{a}}/projects/{p}/credentials/"),
        format!("/api/v3/accounts/{{a}}/projects/{p}/repositories/"),
        format!("/api/v3/accounts/{{a}}/projects/{p}/environment-variables/"),
    ] {
        let json = world.ask("GET", &path, None).await.json();
        assert_eq!(json["status"]["code"], 200, "{path} {json}");
        assert_eq!(json["extra"]["filters"]["limit"], 100, "{path}");
        assert_eq!(json["extra"]["filters"]["offset"], 0, "{path}");
        let count = json["data"].as_array().unwrap().len();
        assert_eq!(json["extra"]["pagination"]["count"], count, "{path}");
        assert!(
            json["extra"]["pagination"]["total_count"].as_u64().unwrap() >= count as u64,
            "{path}"
        );
    }
}

/// 3: both forms of every path, answered directly; a doubled slash is 404.
#[tokio::test]
async fn c03_trailing_slashes_are_optional() {
    let world = World::new().await;
    let made = world.made().await;
    for path in [
        "/api/v2/accounts/{a}/jobs",
        "/api/v2/whoami",
        "/healthz",
        "/api/v3/accounts/{a}/projects",
    ] {
        for slash in ["", "/"] {
            assert_eq!(
                world.ask("GET", &format!("{path}{slash}"), None).await.status,
                200,
                "{path}{slash}"
            );
        }
        world.ask("GET", &format!("{path}//"), None).await.refused(404);
    }
    for slash in ["", "/"] {
        let path = format!("/api/v2/accounts/{{a}}/jobs/{}/run{slash}", made.job);
        world.post(&path, json!({"cause": "x"})).await;
    }
    world.ask("GET", "/api/v2//accounts/{a}/jobs/", None).await.refused(404);
}

/// 4: one list, seven spellings; parameters that are not known are ignored.
#[tokio::test]
async fn c04_spellings_and_unknown_parameters() {
    let world = World::new().await;
    let made = world.made().await;
    let run = world.post(&format!("{JOBS}{}/run/", made.job), json!({})).await["id"]
        .as_i64()
        .unwrap();
    for query in [
        "include_related=trigger,job",
        "include_related=[%22trigger%22,%20%22job%22]",
        "include_related=['trigger','job']",
        "include_related=[trigger,job]",
        "include_related=trigger&include_related=job",
        "include_related=trigger,job&include_related=debug_logs",
        "include_related=job&include_related=trigger&account_id=7&made_up=1",
    ] {
        let view = world.get(&format!("/api/v2/accounts/{{a}}/runs/{run}/?{query}")).await;
        assert!(view["trigger"].is_object() && view["job"].is_object(), "{query}");
    }
    let view = world
        .get(&format!("/api/v2/accounts/{{a}}/runs/{run}/?include_related="))
        .await;
    assert!(view["trigger"].is_null() && view["job"].is_null() && view["environment"].is_null());
    for query in [
        "status__in=[1,2,3]",
        "status__in=[1, 2, 3]",
        "status__in=1,2,3",
        "status__in=1&status__in=3",
        "status=1",
    ] {
        let uri = format!("/api/v2/accounts/{{a}}/runs/?{}", query.replace(' ', "%20"));
        assert_eq!(world.get(&uri).await.as_array().unwrap().len(), 1, "{query}");
    }
    let range = "created_at__range=[%222026-01-05T00:00:00Z%22,%222026-01-06T00:00:00%2B00:00%22]";
    assert_eq!(
        world
            .get(&format!("/api/v2/accounts/{{a}}/runs/?{range}"))
            .await
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let range = "created_at__range=[%222026-01-06T00:00:00Z%22,%222026-01-07T00:00:00Z%22]";
    assert_eq!(
        world
            .get(&format!("/api/v2/accounts/{{a}}/runs/?{range}"))
            .await
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

/// 5: pages of 100 at most, by id, with an honest total: a client's loop visits everything once.
#[tokio::test]
async fn c05_paging_visits_everything_once() {
    let world = World::new().await;
    let made = world.made().await;
    for number in 0..120 {
        let job = json!({"project_id": made.project, "environment_id": made.environment, "name": format!("J{number}")});
        world.post(JOBS, job).await;
    }
    for (query, size) in [
        ("", 100),
        ("limit=7&", 7),
        ("limit=1000&", 100),
        ("triggers_schedule=false&limit=50&", 50),
    ] {
        let mut seen = Vec::new();
        loop {
            let json = world
                .ask("GET", &format!("{JOBS}?{query}offset={}", seen.len()), None)
                .await
                .json();
            let items = json["data"].as_array().unwrap();
            assert!(items.len() <= size);
            seen.extend(items.iter().map(|item| item["id"].as_i64().unwrap()));
            assert_eq!(json["extra"]["pagination"]["total_count"], 121);
            if items.is_empty() || seen.len() >= 121 {
                break;
            }
        }
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(seen, sorted, "{query}");
        assert_eq!(seen.len(), 121);
    }
}

/// 13: what was read can be posted back and changes nothing, for every kind.
#[tokio::test]
async fn c13_a_whole_object_posted_back_changes_nothing() {
    let world = World::new().await;
    let made = world.made().await;
    let p = format!("/api/v3/accounts/{{a}}/projects/{}", made.project);
    let attributes = world
        .post(
            &format!("{p}/extended-attributes/"),
            json!({"extended_attributes": {"a": 1}}),
        )
        .await;
    let variable = json!({"name": "DBT_ENV_SECRET_X", "type": "project", "raw_value": "s3cret"});
    let variable = world.post(&format!("{p}/environment-variables/"), variable).await;
    let scheduled = json!({
        "project_id": made.project, "environment_id": made.environment, "name": "S",
        "triggers": {"schedule": true}, "schedule": {"cron": "0 6 * * *", "time_zone": "Asia/Tokyo"},
        "job_completion_trigger_condition": {"condition": {"job_id": made.job, "project_id": made.project, "statuses": [30]}},
    });
    let scheduled = world.post(JOBS, scheduled).await["id"].clone();
    for path in [
        p.clone(),
        format!("{p}/environments/{}/", made.environment),
        format!("{p}/repositories/1/"),
        format!("{p}/credentials/1/"),
        format!("{p}/connections/1/"),
        "/api/v3/accounts/{a}/connections/1/".to_owned(),
        format!("{p}/extended-attributes/{}/", attributes["id"]),
        format!("{p}/environment-variables/{}/", variable["id"]),
        format!("{JOBS}{}/", made.job),
        format!("{JOBS}{scheduled}/"),
        format!("/api/v2/accounts/{{a}}/environments/{}/", made.environment),
    ] {
        let before = world.get(&path).await;
        let answered = world.post(&path, before.clone()).await;
        let after = world.get(&path).await;
        let same = |mut value: Value| {
            value.as_object_mut().unwrap().remove("updated_at");
            value
        };
        assert_eq!(same(answered), same(before.clone()), "{path}");
        assert_eq!(same(after), same(before), "{path}");
    }
}

/// 14: deleted by DELETE (200 and the object in state 2) and by POST of state 2; then 404.
#[tokio::test]
async fn c14_two_ways_to_delete() {
    let world = World::new().await;
    for way in ["DELETE", "POST"] {
        let made = world.made().await;
        let p = format!("/api/v3/accounts/{{a}}/projects/{}", made.project);
        for path in [
            format!("{JOBS}{}/", made.job),
            format!("{p}/environments/{}/", made.environment),
            format!(
                "{p}/credentials/{}/",
                world.get(&format!("{p}/credentials/")).await[0]["id"]
            ),
            p.clone(),
        ] {
            let mut body = world.get(&path).await;
            body["state"] = json!(2);
            let reply = match way {
                "DELETE" => world.ask("DELETE", &path, None).await,
                _ => world.ask("POST", &path, Some(body)).await,
            };
            assert_eq!(reply.status, 200);
            assert_eq!(reply.data()["state"], 2, "{path}");
            for method in ["GET", "DELETE", "POST"] {
                let message = world.ask(method, &path, None).await.refused(404);
                assert!(message.contains("permissions"));
            }
        }
    }
    assert_eq!(world.get(&format!("{JOBS}?state=2")).await.as_array().unwrap().len(), 2);
    assert_eq!(world.get(JOBS).await, json!([]));
    assert_eq!(
        world.get(&format!("{JOBS}?state=all")).await.as_array().unwrap().len(),
        2
    );
}

/// 15: a 400 names every field that is wrong.
#[tokio::test]
async fn c15_a_400_names_every_field() {
    let world = World::new().await;
    let made = world.made().await;
    let job = json!({
        "project_id": made.project, "environment_id": made.environment, "name": "x", "description": 7,
        "execution": {"timeout_seconds": "soon"}, "triggers": {"schedule": "often"}, "job_type": "odd",
        "schedule": {"cron": "0 6 * * *", "time_zone": "Mars/Olympus"},
    });
    assert_eq!(
        world.ask("POST", JOBS, Some(job)).await.fields(),
        [
            "description",
            "execution.timeout_seconds",
            "job_type",
            "schedule.time_zone",
            "triggers.schedule"
        ]
    );
}

/// 17: endpoints that no document lists and clients call.
#[tokio::test]
async fn c17_undocumented_endpoints() {
    let world = World::new().await;
    let made = world.made().await;
    let me = world.get("/api/v2/whoami/").await;
    let user = me["user"]["id"].as_i64().unwrap();
    for path in [
        format!("/api/v2/users/{user}/"),
        format!("/api/v2/accounts/{{a}}/users/{user}"),
    ] {
        assert_eq!(world.get(&path).await["email"], "ada@acme.example");
    }
    let found = world
        .get(&format!(
            "/api/v3/accounts/{{a}}/environments/?project_id={}",
            made.project
        ))
        .await;
    assert_eq!(found[0]["id"], made.environment);
    let path = format!("/api/v3/accounts/{{a}}/environments/{}/", made.environment);
    assert_eq!(world.ask("DELETE", &path, None).await.data()["state"], 2);
}

/// Ours: where an environment's runs execute is read back as it was sent, and is not there before.
#[tokio::test]
async fn an_environment_says_where_its_runs_execute() {
    let world = World::new().await;
    let made = world.made().await;
    let path = format!("/api/v3/accounts/{{a}}/environments/{}/", made.environment);
    assert!(world.get(&path).await.get("execution").is_none());
    let execution = json!({
        "image": "registry.example/dbt:1.11",
        "service_account": "analytics",
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}},
        "node_selector": {"pool": "spot"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "pod_overlay": {"spec": {"priorityClassName": "low"}},
    });
    let sent = world.post(&path, json!({"execution": execution})).await;
    assert_eq!(
        (&sent["execution"], &world.get(&path).await["execution"]),
        (&execution, &execution)
    );
    world.post(&path, json!({"name": "Renamed"})).await;
    assert_eq!(world.get(&path).await["execution"], execution);
    world.post(&path, json!({"execution": null})).await;
    assert!(world.get(&path).await.get("execution").is_none());
}

/// 18: the token's accounts, and subdomains that are null.
#[tokio::test]
async fn c18_the_account_list() {
    let world = World::new().await;
    let accounts = world.get("/api/v2/accounts/").await;
    let account = accounts[0].as_object().unwrap();
    assert_eq!(account["id"], world.account);
    assert!(account["static_subdomain"].is_null() && account["vanity_subdomain"].is_null());
    assert!(account["docs_job"].is_null() && account["freshness_job"].is_null());
}

/// 19: a connection test is a GET of `/` that must be 200.
#[tokio::test]
async fn c19_the_root_answers() {
    let world = World::new().await;
    let reply = world.ask_as("", "GET", "/", None).await;
    assert_eq!(reply.status, 200);
    assert!(String::from_utf8_lossy(&reply.bytes).contains("dbtcloud"));
}

/// 24: two formats of time, always UTC with microseconds; ids are JSON numbers.
#[tokio::test]
async fn c24_times_and_ids() {
    let world = World::new().await;
    let made = world.made().await;
    let job = world.get(&format!("{JOBS}{}/", made.job)).await;
    assert_eq!(job["created_at"], "2026-01-05T10:00:00.000000+00:00");
    let run = world.post(&format!("{JOBS}{}/run/", made.job), json!({})).await;
    assert_eq!(run["created_at"], "2026-01-05 10:00:00.000000+00:00");
    let project = world
        .get(&format!("/api/v3/accounts/{{a}}/projects/{}/", made.project))
        .await;
    assert_eq!(project["created_at"], "2026-01-05 10:00:00.000000+00:00");
    assert!(job["id"].is_i64() && run["id"].is_i64() && run["job_definition_id"] == run["job_id"]);
}

/// 25: no secret is ever read back, by any path.
#[tokio::test]
async fn c25_secrets_are_write_only() {
    let world = World::new().await;
    let made = world.made().await;
    let p = format!("/api/v3/accounts/{{a}}/projects/{}", made.project);
    let duckdb = json!({"name": "D", "adapter_version": "duckdb_v0", "config": {"motherduck_token": "hunter2"}});
    let answers: Vec<Reply> = vec![
        world
            .ask("POST", "/api/v3/accounts/{a}/connections/", Some(duckdb))
            .await,
        world.ask("GET", "/api/v3/accounts/{a}/connections/", None).await,
        world
            .ask("GET", &format!("{p}/credentials/?include_related=[adapter]"), None)
            .await,
        world
            .ask(
                "GET",
                &format!("{p}/?include_related=repository,connection,environments"),
                None,
            )
            .await,
        world
            .ask(
                "POST",
                &format!("{p}/repositories/1/"),
                Some(json!({"git_token": "hunter2"})),
            )
            .await,
        world.ask("GET", &format!("{p}/repositories/"), None).await,
        world
            .ask(
                "POST",
                &format!("{p}/environment-variables/"),
                Some(json!({"name": "DBT_ENV_SECRET_T", "type": "project", "raw_value": "hunter2"})),
            )
            .await,
        world
            .ask("GET", &format!("{p}/environment-variables/environment/"), None)
            .await,
    ];
    for reply in answers {
        reply.data();
        assert!(!String::from_utf8_lossy(&reply.bytes).contains("hunter2"));
    }
    // A password that was read as a mask, posted back, is still the password; a new one replaces it.
    let path = format!("{p}/credentials/1/");
    let opened = async || {
        use dbtcloud_core::catalog::CatalogExt;
        use dbtcloud_core::connection::Credentials;
        let account = dbtcloud_core::id::AccountId::new(world.account);
        let record = world.plane.catalog().fetch::<Credentials>(account, 1).await.unwrap();
        let sealed = record.secrets["password"].clone();
        world
            .plane
            .vault()
            .unwrap()
            .open("credentials.password", &sealed)
            .await
            .unwrap()
            .expose()
            .to_owned()
    };
    let read = world.get(&path).await;
    assert_eq!(read["password"], "**********");
    world.post(&path, read.clone()).await;
    assert_eq!(opened().await, "hunter2");
    world.post(&path, json!({"password": "hunter3"})).await;
    assert_eq!(opened().await, "hunter3");
}
