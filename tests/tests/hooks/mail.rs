//! Notifications by mail, handed to a real mail server: who is told of what, and a server that is down, refuses, or is not
//! to be believed.

use dbtcloud_tests::scrape::Scrape;
use dbtcloud_tests::smtp::{self, Letter, Server};
use dbtcloud_tests::tls::{self, Authority};
use dbtcloud_tests::{fake, project};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Row as _};
use tempfile::TempDir;

use super::{Installation, LIMIT, let_time_pass, until};

const PASSWORD: &str = "correct-horse-battery";
const OPS: &str = "ops@acme.example";
const NOTIFICATIONS: &str = "v2/accounts/{a}/notifications/";

/// A user of the mail server who is let in with a password, at this URL.
async fn installation(url: &str, environment: Vec<(&'static str, String)>) -> (Installation, TempDir, i64) {
    let folder = tempfile::tempdir().unwrap();
    let password = smtp::password_file(folder.path(), PASSWORD);
    let mut installation = Installation::with(&[
        "--smtp-url",
        url,
        "--smtp-from",
        "dbt platform <dbt@platform.example>",
        "--smtp-password-file",
        password.to_str().unwrap(),
        "--public-url",
        "https://dbt.acme.example/",
    ]);
    installation.environment = environment;
    fake::install(installation.path());
    installation.start().await;
    let repository = fake::repository(&installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    (installation, folder, job)
}

fn plain(server: &Server) -> String {
    format!("smtp://ada%40acme.example@127.0.0.1:{}?tls=none", server.port())
}

/// Somebody outside who is told of these jobs. The row's id.
async fn outside(installation: &Installation, address: &str, jobs: &Value) -> i64 {
    let mut body = json!({"type": 4, "user_id": 1, "external_email": address, "state": 1,
        "on_success": [], "on_failure": [], "on_cancel": [], "on_warning": []});
    for (name, jobs) in jobs.as_object().unwrap() {
        body[name] = jobs.clone();
    }
    installation.api().post(NOTIFICATIONS, &body).await["id"]
        .as_i64()
        .unwrap()
}

/// Waits until so many mails came.
async fn came(server: &Server, count: usize) -> Vec<Letter> {
    until(LIMIT, || async {
        let letters = server.desk().letters.clone();
        if letters.len() >= count {
            Ok(letters)
        } else {
            Err(letters)
        }
    })
    .await
}

/// State, tries and error of every mail that was to be sent, the oldest first.
async fn posted(installation: &Installation) -> Vec<(String, i64, String)> {
    let path = installation.path().join("dbtcloud.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = options.connect().await.unwrap();
    let rows = "SELECT state, tries, COALESCE(error, '') FROM dispatches WHERE channel = 'notification' \
                ORDER BY run_id, addressee_id";
    let rows = sqlx::query(rows).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Waits until the mails that were to be sent stand so.
async fn stand(installation: &Installation, wanted: &[(&str, i64)]) -> Vec<String> {
    until(LIMIT, || async {
        let seen = posted(installation).await;
        let states: Vec<_> = seen.iter().map(|(state, tries, _)| (state.as_str(), *tries)).collect();
        if states == wanted {
            Ok(seen.into_iter().map(|(_, _, error)| error).collect())
        } else {
            Err(seen)
        }
    })
    .await
}

#[tokio::test]
async fn those_are_told_by_mail_who_want_it() {
    let server = Server::plain().await;
    let (mut installation, _folder, job) = installation(&plain(&server), Vec::new()).await;
    let broken = [
        ("dbt_project.yml", project::dbt_project("fake")),
        ("fake.sh", "exit 1".to_owned()),
    ];
    let broken: Vec<_> = broken.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let broken = project::repository(&installation.path().join("broken"), &broken);
    let broken = installation.job(&broken, &["dbt build"]).await;

    let person = json!({"type": 1, "user_id": 1, "state": 1, "on_success": [job], "on_failure": [broken],
        "on_cancel": [], "on_warning": []});
    installation.api().post(NOTIFICATIONS, &person).await;
    outside(
        &installation,
        OPS,
        &json!({"on_failure": [job, broken], "on_cancel": [job]}),
    )
    .await;
    outside(&installation, "all@acme.example", &json!({"on_success": [job]})).await;
    let slack = json!({"type": 2, "user_id": 1, "state": 1, "slack_channel_id": "C1", "slack_channel_name": "#dbt",
        "on_success": [job], "on_failure": [broken], "on_cancel": [job], "on_warning": []});
    installation.api().post(NOTIFICATIONS, &slack).await;

    let run = installation.api().trigger(job).await;
    let letters = came(&server, 2).await;
    let to: std::collections::BTreeSet<_> = letters.iter().map(|letter| letter.to.clone()).collect();
    assert_eq!(
        to,
        [vec!["all@acme.example".to_owned()], vec!["test@localhost".to_owned()]].into()
    );
    let letter = &letters[0];
    assert_eq!(letter.from, "dbt@platform.example");
    assert_eq!(
        letter.credentials,
        Some(("ada@acme.example".to_owned(), PASSWORD.to_owned()))
    );
    let subject = letter.header("Subject").unwrap();
    assert!(
        subject.starts_with("[dbtcloud] ") && subject.ends_with(" Success"),
        "{subject}"
    );
    assert!(
        letter.header("From").unwrap().contains("<dbt@platform.example>"),
        "{}",
        letter.text
    );
    assert_eq!(letter.header("Auto-Submitted").as_deref(), Some("auto-generated"));
    let link = format!("https://dbt.acme.example/deploy/1/projects/1/runs/{run}/");
    assert!(
        letter.text.lines().any(|line| line == link),
        "{link} is not in\n{}",
        letter.text
    );
    assert_ne!(letter.header("Message-ID"), letters[1].header("Message-ID"));

    installation.api().trigger(broken).await;
    let letters = came(&server, 4).await;
    let to: std::collections::BTreeSet<_> = letters[2..].iter().map(|letter| letter.to.clone()).collect();
    assert_eq!(to, [vec![OPS.to_owned()], vec!["test@localhost".to_owned()]].into());
    let text = &letters[2].text;
    assert!(letters[2].header("Subject").unwrap().ends_with(" Error"), "{text}");
    assert!(
        text.contains("Failed steps:\n- ") && text.contains("dbt build"),
        "{text}"
    );

    stand(&installation, &[("delivered", 1); 4]).await;
    assert_eq!(server.desk().letters.len(), 4, "nobody else was told");
    let log = std::fs::read_to_string(installation.log()).unwrap();
    assert!(!log.contains(PASSWORD), "{log}");
    let ready: Value = reqwest::get(format!("{}/readyz", installation.url()))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(ready["components"]["mail"], "ok");
    installation.stop().await;
}

#[tokio::test]
async fn a_mail_waits_for_a_server_that_is_down_or_busy() {
    let mut server = Server::plain().await;
    let (mut installation, _folder, job) = installation(&plain(&server), Vec::new()).await;
    let told = outside(&installation, OPS, &json!({"on_success": [job]})).await;
    server.close().await;
    let run = installation.api().trigger(job).await;
    installation.api().ended(run, LIMIT).await;
    until(LIMIT, || async {
        let seen = posted(&installation).await;
        let waits = seen.len() == 1 && seen[0].0 == "waiting" && seen[0].1 > 0 && !seen[0].2.is_empty();
        if waits { Ok(()) } else { Err(seen) }
    })
    .await;
    // Up again, and not ready to take it when it has heard it all.
    server.desk().answers.push_back("451 4.3.0 later");
    server.open().await;
    let_time_pass(&installation).await;
    came(&server, 1).await;
    until(LIMIT, || async {
        let seen = posted(&installation).await;
        let heard = seen[0].0 == "waiting" && seen[0].2.contains("later");
        if heard { Ok(()) } else { Err(seen) }
    })
    .await;
    let_time_pass(&installation).await;
    let letters = came(&server, 2).await;
    assert_eq!(letters[0].text, letters[1].text, "the same mail, to be known by its id");
    let id = letters[0].header("Message-ID").unwrap();
    assert!(
        id.starts_with(&format!("<dbtcloud.{told}.{run}.")) && id.ends_with("@platform.example>"),
        "{id}"
    );
    installation.stop().await;
}

#[tokio::test]
async fn a_refusal_is_for_good_unless_the_operator_can_mend_it() {
    let server = Server::plain().await;
    server.desk().refused.insert(OPS, "550 5.1.1 nobody of that name");
    server
        .desk()
        .refused
        .insert("all@acme.example", "530 5.7.0 authentication required");
    let (mut installation, _folder, job) = installation(&plain(&server), Vec::new()).await;
    installation.expected = vec!["given up"];
    outside(&installation, OPS, &json!({"on_success": [job]})).await;
    outside(&installation, "all@acme.example", &json!({"on_success": [job]})).await;
    installation.api().trigger(job).await;
    until(LIMIT, || async {
        let seen = posted(&installation).await;
        let [(refused, 1, why), (waits, _, mendable)] = &seen[..] else {
            return Err(seen);
        };
        let so = (refused.as_str(), waits.as_str()) == ("failed", "waiting");
        let told = why.contains("nobody of that name") && mendable.contains("authentication required");
        if so && told { Ok(()) } else { Err(seen) }
    })
    .await;
    let scrape = Scrape::of(&installation.url()).await;
    let failed = scrape.0["dbtcloud_dispatches"]
        .samples
        .iter()
        .find(|(_, labels, _)| labels["channel"] == "notification" && labels["result"] == "failed");
    assert_eq!(failed.unwrap().2, 1.0);
    assert!(server.desk().letters.is_empty());
    installation.stop().await;
}

#[tokio::test]
async fn a_server_is_believed_when_an_authority_of_the_machine_vouches() {
    let folder = tempfile::tempdir().unwrap();
    let (known, unknown) = (Authority::new("known"), Authority::new("unknown"));
    let file = tls::file(folder.path(), "ca.pem", known.certificate());
    for (server, scheme, arrives) in [
        (Server::tls(&known).await, "smtps", true),
        (Server::starttls(&known).await, "smtp", true),
        (Server::starttls(&unknown).await, "smtp", false),
        // One that does not know TLS: the password stays here.
        (Server::plain().await, "smtp", false),
    ] {
        let url = format!("{scheme}://ada@localhost:{}", server.port());
        let environment = vec![("SSL_CERT_FILE", file.display().to_string())];
        let (mut installation, _folder, job) = installation(&url, environment).await;
        outside(&installation, OPS, &json!({"on_success": [job]})).await;
        installation.api().trigger(job).await;
        if arrives {
            let letters = came(&server, 1).await;
            assert!(letters[0].secure);
            assert_eq!(letters[0].credentials, Some(("ada".to_owned(), PASSWORD.to_owned())));
        } else {
            until(LIMIT, || async {
                let seen = posted(&installation).await;
                let tried = seen.len() == 1 && !seen[0].2.is_empty();
                if tried { Ok(()) } else { Err(seen) }
            })
            .await;
            assert!(server.desk().letters.is_empty());
        }
        installation.stop().await;
    }
}

#[tokio::test]
async fn without_a_mail_server_nothing_is_sent_and_that_is_said() {
    let mut installation = Installation::new();
    fake::install(installation.path());
    installation.start().await;
    let repository = fake::repository(&installation.path().join("origin"));
    let job = installation.job(&repository, &["dbt build"]).await;
    outside(&installation, OPS, &json!({"on_success": [job]})).await;
    let run = installation.api().trigger(job).await;
    installation.api().ended(run, LIMIT).await;
    let answer = reqwest::get(format!("{}/readyz", installation.url())).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let ready: Value = answer.json().await.unwrap();
    let told = ready["components"]["mail"].as_str().unwrap();
    assert!(told.starts_with("degraded: ") && told.contains("smtp_url"), "{told}");
    installation.stop().await;
    assert_eq!(posted(&installation).await, []);
    let log = std::fs::read_to_string(installation.log()).unwrap();
    assert_eq!(log.matches("no mail is sent").count(), 1, "{log}");
}
