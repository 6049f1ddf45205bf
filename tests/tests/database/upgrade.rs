//! The binary on databases of other versions: what it says, with which exit code, and that what was under way ends.

use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_runtime::protocol::{PROTOCOL_HEADER, PROTOCOL_READ};
use dbtcloud_sql::SqlStorage;
use dbtcloud_tests::installation::{Installation, binary, key_file};
use dbtcloud_tests::{fake, postgres, released};
use serde_json::json;
use sha2::Digest;

use crate::migrate;

const LIMIT: Duration = Duration::from_secs(60);

/// The id of a record of the newest schema that says which binaries still work beside it.
fn later(oldest: u32) -> String {
    format!(
        "INSERT INTO schema_migrations (number, name, oldest_binary) VALUES ({}, 'later', {oldest})",
        SqlStorage::SCHEMA_VERSION + 1
    )
}

/// From schema 1 to the newest, by the commands of the manual; then what a person of before sees.
async fn comes_along(url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let newest = SqlStorage::SCHEMA_VERSION;
    released::load(url, 1).await;
    let told = |more: &[&str]| migrate(folder.path(), &[&["--database-url", url], more].concat());
    let (fine, said) = told(&["--check"]);
    let what = format!("the schema is version 1, this binary needs {newest}; run `dbtcloud migrate`");
    assert!(!fine && said.contains(&what), "{said}");
    let (fine, said) = told(&[]);
    assert!(
        fine && said.contains(&format!("the schema is version {newest}")),
        "{said}"
    );
    let (fine, said) = told(&["--check"]);
    assert!(fine, "{said}");

    // The administrator of the rows gets a token that the test knows.
    let digest = "SELECT lookup FROM tokens";
    let old = released::ask(url, digest).await.remove(0);
    let fresh = hex(&sha2::Sha256::digest(TOKEN.as_bytes()));
    released::execute(
        url,
        &format!("UPDATE tokens SET lookup = '{fresh}', body = replace(body, '{old}', '{fresh}')"),
    )
    .await;
    let mut installation = Installation::existing(url, TOKEN, 1);
    fake::install(installation.path());
    installation.expected.push("execution");
    installation.start().await;
    let api = installation.api().clone();
    let run = api.get("v2/accounts/{a}/runs/1/?include_related=run_steps").await;
    assert_eq!(run["status"], json!(10), "{run:#}");
    let log = run["run_steps"][3]["logs"].as_str().unwrap();
    assert!(log.contains("counted 4"), "{log}");
    // What executed has no agent any more, what waited has no repository: both end, and say why.
    for run in [4, 5] {
        let ended = api.ended(run, LIMIT).await;
        assert_eq!(ended["status"], json!(20), "{ended:#}");
        assert!(ended["status_message"].as_str().unwrap().len() > 10, "{ended:#}");
    }
    installation.stop().await;

    released::execute(url, &later(newest + 1)).await;
    let what = format!(
        "needs a dbtcloud of schema {} or newer, this binary is of schema {newest}",
        newest + 1
    );
    for more in [&[][..], &["--check"]] {
        let (fine, said) = told(more);
        assert!(
            !fine && said.contains(&what) && said.contains("run a newer dbtcloud"),
            "{said}"
        );
    }
    let key = key_file(tempfile::tempdir_in(folder.path()).unwrap().keep().as_path());
    let output = std::process::Command::new(binary())
        .args(["serve", "--database-url", url, "--key-file", &key, "--data-dir"])
        .arg(folder.path())
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains(&what), "{said}");
}

const TOKEN: &str = "dbtu_of_the_tests";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn an_installation_of_schema_1_comes_along_on_sqlite() {
    let home = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/dbtcloud.db", home.path().display());
    std::fs::write(home.path().join("dbtcloud.db"), "").unwrap();
    comes_along(&url).await;
}

#[tokio::test]
async fn an_installation_of_schema_1_comes_along_on_postgres() {
    let database = tokio::task::spawn_blocking(postgres::database).await.unwrap();
    comes_along(&database.url()).await;
}

/// The release before: its schema is ours, the database is already the next one's.
#[tokio::test]
async fn an_old_server_serves_on_beside_a_new_schema_as_long_as_that_says_so() {
    let database = tokio::task::spawn_blocking(postgres::database).await.unwrap();
    let mut installation = Installation::on(&database.url(), &[]);
    fake::install(installation.path());
    installation.start().await;
    let api = installation.api().clone();
    let repository = fake::repository(&installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    let ready = format!("{}/readyz", installation.url());
    let read = async || {
        let answer = reqwest::get(&ready).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };

    // Expand: a column and a table that this binary knows nothing of, and a running run meanwhile.
    let run = api.trigger(job).await;
    released::execute(
        &database.url(),
        "ALTER TABLE runs ADD COLUMN novelty TEXT; CREATE TABLE novelties (id BIGINT PRIMARY KEY)",
    )
    .await;
    released::execute(&database.url(), &later(SqlStorage::SCHEMA_VERSION)).await;
    let ended = api.ended(run, LIMIT).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");
    assert_eq!(read().await.0, 200);
    installation.stop().await;

    // Its own agents are understood; one of a release that is too far away is told so, and may ask again elsewhere.
    installation.environment = vec![("DBTCLOUD_AGENT_URL", installation.url())];
    installation.expected.push("is not read here");
    installation.start().await;
    let asked = reqwest::Client::new()
        .post(format!("{}/agent/v1/report", installation.url()))
        .header(PROTOCOL_HEADER, PROTOCOL_READ.end() + 1);
    let answer = asked.send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let said = answer.text().await.unwrap();
    assert!(said.contains("upgrade the older ones"), "{said}");
    let ended = api.ended(api.trigger(job).await, LIMIT).await;
    assert_eq!(ended["status"], json!(10), "{ended:#}");

    // Contract: the server that was not stopped in time says so to its load balancer.
    installation.expected.push("not ready");
    let oldest = format!(
        "UPDATE schema_migrations SET oldest_binary = {}",
        SqlStorage::SCHEMA_VERSION + 1
    );
    released::execute(&database.url(), &oldest).await;
    let (_, said) = until(LIMIT, || async {
        let answer = read().await;
        (answer.0 == 503).then_some(answer.clone()).ok_or(answer)
    })
    .await;
    assert!(said.contains("run a newer dbtcloud"), "{said}");
    installation.stop().await;
}
