#![allow(clippy::unwrap_used)]
use super::*;

fn run(adapter: &str, connection: Value, credentials: Value, extended: Value) -> Result<Profile, ProfileError> {
    generate(&ProfileInput {
        profile: "shop",
        target: "prod",
        adapter,
        connection: connection.as_object().unwrap(),
        credentials: credentials.as_object().unwrap(),
        schema: Some("analytics"),
        threads: 4,
        extended_attributes: extended.as_object().unwrap(),
        application_name: Some("dbtcloud_run_7"),
    })
}

fn target(profile: &Profile) -> Value {
    serde_json::from_str::<Value>(&profile.text).unwrap()["shop"]["outputs"]["prod"].clone()
}

#[test]
fn postgres_in_dbt_clouds_words() {
    let profile = run(
        "postgres",
        json!({"hostname": "db.example", "dbname": "dw", "port": "5433", "tunnel_enabled": false}),
        json!({"username": "loader", "password": "hunter2", "default_schema": "x"}),
        json!({}),
    )
    .unwrap();
    assert_eq!(
        target(&profile),
        json!({
            "type": "postgres", "host": "db.example", "port": 5433, "user": "loader", "dbname": "dw", "schema": "analytics",
            "password": "{{ env_var('DBT_ENV_SECRET_DBTCLOUD_PROFILE_PASSWORD') }}", "threads": 4,
            "application_name": "dbtcloud_run_7",
        })
    );
    assert_eq!(profile.ignored, ["tunnel_enabled"]);
    assert_eq!(
        profile.env["DBT_ENV_SECRET_DBTCLOUD_PROFILE_PASSWORD"].expose(),
        "hunter2"
    );
    assert!(!format!("{profile:?}").contains("hunter2"));
}

#[test]
fn extended_attributes_win_and_keep_their_jinja() {
    let profile = run(
        "postgres",
        json!({"hostname": "db", "dbname": "dw"}),
        json!({"username": "u", "password": "old"}),
        json!({"host": "{{ env_var('DBT_HOST') }}", "password": "{{ env_var('DBT_ENV_SECRET_X') }}", "role": "r", "sslpassword": "plain-secret", "nested": {"api_key": "k"}}),
    )
    .unwrap();
    let target = target(&profile);
    assert_eq!(target["host"], "{{ env_var('DBT_HOST') }}");
    assert_eq!(target["password"], "{{ env_var('DBT_ENV_SECRET_X') }}");
    assert_eq!(target["role"], "r");
    assert_eq!(
        target["nested"]["api_key"],
        "{{ env_var('DBT_ENV_SECRET_DBTCLOUD_PROFILE_NESTED_API_KEY') }}"
    );
}

#[test]
fn jinja_in_data_is_not_evaluated() {
    let profile = run(
        "postgres",
        json!({"host": "{{ 7 * 7 }}", "dbname": "dw"}),
        json!({"user": "u", "password": "{% raw %}"}),
        json!({}),
    )
    .unwrap();
    assert_eq!(target(&profile)["host"], "{{ env_var('DBT_DBTCLOUD_PROFILE_HOST') }}");
    assert_eq!(profile.env["DBT_DBTCLOUD_PROFILE_HOST"].expose(), "{{ 7 * 7 }}");
    assert_eq!(
        profile.env["DBT_ENV_SECRET_DBTCLOUD_PROFILE_PASSWORD"].expose(),
        "{% raw %}"
    );
}

#[test]
fn what_is_missing_is_named() {
    let field = |result: Result<Profile, ProfileError>| match result {
        Err(ProfileError::Missing { field, .. } | ProfileError::Invalid { field, .. }) => field,
        other => unreachable!("{other:?}"),
    };
    let user = json!({"user": "u", "password": "p"});
    assert_eq!(
        field(run("postgres", json!({"dbname": "d"}), user.clone(), json!({}))),
        "host"
    );
    assert_eq!(
        field(run(
            "postgres",
            json!({"host": "h", "dbname": ""}),
            user.clone(),
            json!({})
        )),
        "dbname"
    );
    assert_eq!(
        field(run(
            "postgres",
            json!({"host": "h", "dbname": "d"}),
            json!({"user": "u"}),
            json!({})
        )),
        "password"
    );
    assert_eq!(
        field(run(
            "postgres",
            json!({"host": "h", "dbname": "d", "port": "x"}),
            user.clone(),
            json!({})
        )),
        "port"
    );
    assert_eq!(
        field(run("snowflake", json!({"account": "a"}), user, json!({}))),
        "database"
    );
    assert_eq!(
        field(run(
            "databricks",
            json!({"host": "h", "http_path": "p"}),
            json!({}),
            json!({})
        )),
        "token"
    );
    assert!(matches!(
        run("oracle", json!({}), json!({}), json!({})),
        Err(ProfileError::UnknownAdapter { .. })
    ));
}

#[test]
fn a_missing_field_may_come_from_extended_attributes() {
    assert!(
        run(
            "postgres",
            json!({"dbname": "d"}),
            json!({"user": "u", "password": "p"}),
            json!({"host": "h"})
        )
        .is_ok()
    );
}

#[test]
fn bigquery_gets_its_key_file_back() {
    let profile = run(
        "bigquery",
        json!({"project_id": "p", "private_key_id": "kid", "private_key": "-----BEGIN\nsecret\n", "client_email": "e", "client_id": "c",
               "auth_uri": "a", "token_uri": "t", "auth_provider_x509_cert_url": "x", "client_x509_cert_url": "y", "timeout_seconds": 300}),
        json!({}),
        json!({}),
    )
    .unwrap();
    let target = target(&profile);
    assert_eq!(target["method"], "service-account-json");
    assert_eq!(target["project"], "p");
    assert_eq!(target["job_execution_timeout_seconds"], 300);
    assert_eq!(target["keyfile_json"]["client_email"], "e");
    assert_eq!(
        target["keyfile_json"]["private_key"],
        "{{ env_var('DBT_ENV_SECRET_DBTCLOUD_PROFILE_PRIVATE_KEY') }}"
    );
    assert!(target.get("private_key").is_none() && target.get("client_email").is_none());
    assert!(!profile.text.contains("BEGIN"));
}

#[test]
fn a_key_file_given_whole_loses_its_secret_only() {
    let file = json!({"type": "service_account", "private_key": "s3cret", "client_email": "e"});
    let profile = run(
        "bigquery",
        json!({"project": "p"}),
        json!({"keyfile_json": file}),
        json!({}),
    )
    .unwrap();
    assert_eq!(target(&profile)["keyfile_json"]["client_email"], "e");
    assert!(!profile.text.contains("s3cret"));
}

#[test]
fn the_other_adapters_are_written() {
    let cases = [
        (
            "snowflake",
            json!({"account": "a", "database": "d", "warehouse": "w"}),
            json!({"user": "u", "private_key": "K3Y", "private_key_passphrase": "P4SS"}),
        ),
        (
            "redshift",
            json!({"hostname": "h", "dbname": "d"}),
            json!({"username": "u", "password": "P4SS"}),
        ),
        (
            "databricks",
            json!({"host": "h", "http_path": "/sql", "catalog": "c"}),
            json!({"token": "K3Y"}),
        ),
        (
            "databricks",
            json!({"host": "h", "http_path": "/sql"}),
            json!({"client_id": "i", "client_secret": "K3Y"}),
        ),
        (
            "spark",
            json!({"method": "thrift", "host": "h", "port": 10001}),
            json!({"user": "u", "token": "K3Y"}),
        ),
        (
            "trino",
            json!({"host": "h", "catalog": "c", "method": "ldap"}),
            json!({"user": "u", "password": "P4SS"}),
        ),
        (
            "duckdb",
            json!({"path": "/x.duckdb", "settings": {"motherduck_token": "K3Y"}, "secrets": [{"type": "s3", "secret": "P4SS"}]}),
            json!({}),
        ),
    ];
    for (adapter, connection, credentials) in cases {
        let profile = run(adapter, connection, credentials, json!({})).unwrap();
        let target = target(&profile);
        assert_eq!(
            (target["type"].as_str(), target["schema"].as_str()),
            (Some(adapter), Some("analytics"))
        );
        assert!(
            !profile.text.contains("K3Y") && !profile.text.contains("P4SS"),
            "{adapter}"
        );
        assert!(
            profile.env.keys().all(|name| name.starts_with(SECRET_PREFIX)),
            "{adapter}"
        );
        assert!(!profile.env.is_empty(), "{adapter}");
    }
}

#[test]
fn names_decide_what_is_secret() {
    for name in [
        "password",
        "sslpassword_token",
        "jwt_token",
        "aws_secret_access_key",
        "PRIVATE_KEY",
        "keyfile_json",
    ] {
        assert!(is_secret(name), "{name}");
    }
    for name in [
        "token_uri",
        "private_key_path",
        "private_key_id",
        "host",
        "keepalives_idle",
        "secrets",
    ] {
        assert!(!is_secret(name), "{name}");
    }
}

#[test]
fn characters_yaml_refuses_are_escaped() {
    assert_eq!(yaml_safe("\"a\u{7f}\u{2028}é😀\""), "\"a\\u007f\\u2028é😀\"");
}
