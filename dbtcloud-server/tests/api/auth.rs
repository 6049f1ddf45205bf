//! Who gets in, and what they may do there.

use std::time::Duration;

use dbtcloud_core::account::Account;
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::AccountId;
use serde_json::json;

use super::world::{NOON, World};

const ACCOUNTS: &str = "/api/v2/accounts/";

#[tokio::test]
async fn both_schemes_everywhere_and_no_bare_token() {
    let world = World::new().await;
    let token = world.token.clone();
    for path in [
        "/api/v2/accounts/",
        "/api/v3/accounts/{a}/projects/",
        "/api/v2/accounts/{a}/jobs/",
        "/api/v2/whoami",
    ] {
        for good in [
            format!("Token {token}"),
            format!("Bearer {token}"),
            format!("bearer {token}"),
        ] {
            world.ask_as(&good, "GET", path, None).await.data();
        }
        for bad in [
            token.clone(),
            String::new(),
            "Token".to_owned(),
            format!("Basic {token}"),
            format!("Token {token}x"),
        ] {
            let reply = world.ask_as(&bad, "GET", path, None).await;
            reply.refused(401);
            assert!(reply.headers.contains_key("www-authenticate"));
        }
    }
    let long = format!("Token {}", "x".repeat(5_000));
    world.ask_as(&long, "GET", ACCOUNTS, None).await.refused(401);
}

#[tokio::test]
async fn a_token_ends_when_it_expires_or_is_deleted() {
    let world = World::new().await;
    let token = world
        .service("brief", &[("readonly", None)], Some(NOON.plus(Duration::from_secs(60))))
        .await;
    let bearer = format!("Bearer {token}");
    world.ask_as(&bearer, "GET", ACCOUNTS, None).await.data();
    world.clock.advance(Duration::from_secs(60));
    world.ask_as(&bearer, "GET", ACCOUNTS, None).await.refused(401);
}

#[tokio::test]
async fn another_account_is_not_there() {
    let world = World::new().await;
    let other = world
        .storage
        .create(AccountId::new(0), &Account::new("Other"), NOON)
        .await
        .unwrap();
    for path in [
        format!("/api/v2/accounts/{}/", other.id),
        format!("/api/v2/accounts/{}/jobs/", other.id),
        format!("/api/v3/accounts/{}/projects/1/", other.id),
        "/api/v2/accounts/424242/runs/".to_owned(),
    ] {
        let message = world.ask("GET", &path, None).await.refused(404);
        assert!(message.contains("permissions"), "{message}");
    }
    let listed = world.get(ACCOUNTS).await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn permission_sets_say_what_a_service_token_may_do() {
    let world = World::new().await;
    let made = world.made().await;
    let job = format!("/api/v2/accounts/{{a}}/jobs/{}/", made.job);
    let new_job = json!({"project_id": made.project, "environment_id": made.environment, "name": "Other"});
    // set, may run, may change jobs, may change environments, may create projects
    for (set, runs, jobs, environments, projects) in [
        ("account_admin", true, true, true, true),
        ("owner", true, true, true, true),
        ("team_admin", true, true, true, false),
        ("job_admin", true, true, false, false),
        ("job_runner", true, false, false, false),
        ("git_admin", false, false, true, false),
        ("job_viewer", false, false, false, false),
        ("readonly", false, false, false, false),
    ] {
        let token = format!("Token {}", world.service(set, &[(set, None)], None).await);
        world.ask_as(&token, "GET", &job, None).await.data();
        let answers = [
            (
                runs,
                world
                    .ask_as(&token, "POST", &format!("{job}run/"), Some(json!({})))
                    .await,
            ),
            (
                jobs,
                world
                    .ask_as(&token, "POST", "/api/v2/accounts/{a}/jobs/", Some(new_job.clone()))
                    .await,
            ),
            (
                environments,
                world
                    .ask_as(
                        &token,
                        "POST",
                        &format!("/api/v3/accounts/{{a}}/projects/{}/environments/", made.project),
                        Some(json!({"name": set})),
                    )
                    .await,
            ),
            (
                projects,
                world
                    .ask_as(
                        &token,
                        "POST",
                        "/api/v3/accounts/{a}/projects/",
                        Some(json!({"name": set})),
                    )
                    .await,
            ),
        ];
        for (may, reply) in answers {
            if may {
                reply.data();
            } else {
                assert!(reply.refused(403).contains("permissions"), "{set}");
            }
        }
    }
    let unknown = format!("Token {}", world.service("odd", &[("no_such_set", None)], None).await);
    world.ask_as(&unknown, "GET", &job, None).await.refused(404);
}

#[tokio::test]
async fn a_grant_in_one_project_sees_only_that_project() {
    let world = World::new().await;
    let (one, two) = (world.made().await, world.made().await);
    let token = format!(
        "Token {}",
        world.service("one", &[("job_admin", Some(one.project))], None).await
    );
    let ids = |value: serde_json::Value| -> Vec<i64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["id"].as_i64().unwrap())
            .collect()
    };
    let list = async |path: &str| ids(world.ask_as(&token, "GET", path, None).await.data());
    assert_eq!(list("/api/v3/accounts/{a}/projects/").await, [one.project]);
    assert_eq!(list("/api/v2/accounts/{a}/jobs/").await, [one.job]);
    assert_eq!(
        list(&format!("/api/v2/accounts/{{a}}/jobs/?project_id={}", two.project)).await,
        [] as [i64; 0]
    );
    let other = format!("/api/v2/accounts/{{a}}/jobs/{}/", two.job);
    world.ask_as(&token, "GET", &other, None).await.refused(404);
    world
        .ask_as(&token, "POST", &format!("{other}run/"), Some(json!({})))
        .await
        .refused(404);
    let run = world.post(&format!("{other}run/"), json!({})).await["id"]
        .as_i64()
        .unwrap();
    world
        .ask_as(&token, "GET", &format!("/api/v2/accounts/{{a}}/runs/{run}/"), None)
        .await
        .refused(404);
    assert_eq!(list("/api/v2/accounts/{a}/runs/").await, [] as [i64; 0]);
    // A job cannot be moved into a project that may not be changed.
    let moved = json!({"project_id": two.project, "environment_id": two.environment});
    let own = format!("/api/v2/accounts/{{a}}/jobs/{}/", one.job);
    world.ask_as(&token, "POST", &own, Some(moved)).await.refused(404);
}
