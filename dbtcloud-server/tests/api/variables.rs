//! Environment variables: single, bulk, and the three views.

use serde_json::{Value, json};

use super::world::World;

#[tokio::test]
async fn the_three_views_leave_out_what_is_not_there() {
    let world = World::new().await;
    let made = world.made().await;
    let v = format!("/api/v3/accounts/{{a}}/projects/{}/environment-variables", made.project);
    let bulk = json!({"env_var": {"new_name": "DBT_REGION", "project": "eu", "Production": "us"}});
    let done = world.post(&format!("{v}/bulk/"), bulk).await;
    assert_eq!(done["new_var_ids"].as_array().unwrap().len(), 2);
    let job = json!({"name": "DBT_ONLY_JOB", "type": "job", "job_definition_id": made.job, "raw_value": "j"});
    let job = world.post(&format!("{v}/"), job).await["id"].clone();
    let secret = json!({"name": "DBT_ENV_SECRET_KEY", "type": "project", "raw_value": "s3cret"});
    world.post(&format!("{v}/"), secret).await;

    let view = world.get(&format!("{v}/environment/")).await;
    assert_eq!(view["environments"], json!(["project", "Production"]));
    assert_eq!(view["variables"]["DBT_REGION"]["Production"]["value"], "us");
    assert_eq!(
        view["variables"]["DBT_ENV_SECRET_KEY"]["project"]["value"],
        "**********"
    );
    assert!(view["variables"].get("DBT_ONLY_JOB").is_none());

    let view = world.get(&format!("{v}/job/?job_definition_id={}", made.job)).await;
    assert_eq!(view["DBT_ONLY_JOB"], json!({"job": {"id": job, "value": "j"}}));
    assert_eq!(
        view["DBT_REGION"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["environment", "project"]
    );
    assert_eq!(
        world.ask("GET", &format!("{v}/job/"), None).await.fields(),
        ["job_definition_id"]
    );

    let view = world.get(&format!("{v}/user/")).await;
    assert_eq!(
        view["DBT_REGION"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["project"]
    );
}

#[tokio::test]
async fn bulk_writes_renames_and_removes() {
    let world = World::new().await;
    let made = world.made().await;
    let v = format!("/api/v3/accounts/{{a}}/projects/{}/environment-variables", made.project);
    let bulk = |method: &'static str, body: Value| {
        let (world, path) = (&world, format!("{v}/bulk/"));
        async move { world.ask(method, &path, Some(body)).await }
    };
    let values = async || world.get(&format!("{v}/environment")).await["variables"].clone();
    bulk(
        "POST",
        json!({"env_var": {"new_name": "DBT_A", "project": "1", "Production": "2"}}),
    )
    .await
    .data();
    bulk("POST", json!({"env_var": {"new_name": "DBT_A", "project": "1"}}))
        .await
        .fields();
    bulk("PUT", json!({"env_vars": {"name": "DBT_A", "Production": ""}}))
        .await
        .data();
    assert_eq!(values().await["DBT_A"].as_object().unwrap().len(), 1);
    bulk(
        "PUT",
        json!({"env_vars": {"name": "DBT_A", "new_name": "DBT_B", "project": "3"}}),
    )
    .await
    .data();
    assert_eq!(
        values().await.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["DBT_B"]
    );
    assert_eq!(values().await["DBT_B"]["project"]["value"], "3");
    let odd = bulk("PUT", json!({"env_vars": {"name": "DBT_B", "Nowhere": "x"}})).await;
    assert_eq!(odd.fields(), ["Nowhere"]);
    bulk("DELETE", json!({"name": "DBT_B"})).await.data();
    assert_eq!(values().await, json!({}));
    bulk("DELETE", json!({"name": "DBT_B"})).await.refused(404);
}

#[tokio::test]
async fn a_client_that_repeats_itself_makes_one_variable() {
    let world = World::new().await;
    let made = world.made().await;
    let v = format!("/api/v3/accounts/{{a}}/projects/{}/environment-variables", made.project);
    // As dbt-jobs-as-code sends it.
    let body = |value: &str| {
        json!({
            "name": "DBT_X", "type": "job", "display_value": null, "job_definition_id": made.job, "id": null,
            "project_id": made.project, "account_id": 1, "raw_value": value,
        })
    };
    let first = world.post(&format!("{v}/"), body("1")).await;
    let second = world.post(&format!("{v}/"), body("2")).await;
    assert_eq!(first["id"], second["id"]);
    assert_eq!(second["display_value"], "2");
    let path = format!("{v}/{}/", first["id"]);
    assert_eq!(world.post(&path, body("3")).await["display_value"], "3");
    assert_eq!(world.ask("DELETE", &path, None).await.data()["state"], 2);
    world.ask("DELETE", &path, None).await.refused(404);
    assert_eq!(
        world.get(&format!("{v}/job/?job_definition_id={}", made.job)).await,
        json!({})
    );
}
