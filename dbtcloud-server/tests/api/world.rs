//! A whole installation in memory, at a standing clock, with one account and an administrator.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use bytes::Bytes;
use dbtcloud_contract::memory::{ManualClock, MemoryArtifacts, MemoryStorage, ScriptedExecutor, TransparentVault};
use dbtcloud_core::Timestamp;
use dbtcloud_core::account::{Grant, Token, TokenOwner};
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::{AccountId, ProjectId, RunId};
use dbtcloud_core::ports::{
    Area, ArtifactKey, Artifacts, Batch, Clock, Digest, Fence, LogChunk, Owner, RunPatch, Runs, TicketIssue, Tickets,
};
use dbtcloud_core::run::{Admission, RunEvent, StepKind, StepState, StepStatus};
use dbtcloud_runtime::dial::Dialer;
use dbtcloud_runtime::dispatch::Webhooks;
use dbtcloud_runtime::{AgentLaunch, Config, ControlPlane};
use dbtcloud_server::bootstrap::Bootstrap;
use dbtcloud_server::{Options, auth::digest};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// 2026-01-05 10:00:00 UTC, a Monday.
pub const NOON: Timestamp = Timestamp::from_micros(1_767_607_200_000_000);

/// An answer.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// `data` of an answer that must be a success.
    pub fn data(&self) -> Value {
        let json = self.json();
        assert!(self.status.is_success(), "{} {json:#}", self.status);
        assert_eq!(json["status"]["code"], self.status.as_u16());
        assert_eq!(json["status"]["is_success"], true);
        json["data"].clone()
    }

    /// `status.user_message` of an answer that must be this failure.
    #[track_caller]
    pub fn refused(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.bytes));
        let json = self.json();
        assert_eq!(json["status"]["code"], status);
        assert_eq!(json["status"]["is_success"], false);
        json["status"]["user_message"].as_str().unwrap().to_owned()
    }

    /// The fields of a 400.
    #[track_caller]
    pub fn fields(&self) -> Vec<String> {
        self.refused(400);
        self.json()["data"].as_object().unwrap().keys().cloned().collect()
    }
}

pub struct World {
    pub storage: MemoryStorage,
    pub artifacts: MemoryArtifacts,
    pub clock: ManualClock,
    pub plane: ControlPlane,
    pub router: Router,
    pub account: i64,
    pub token: String,
}

/// Ids of what a job needs.
#[derive(Clone, Copy)]
pub struct Made {
    pub project: i64,
    pub environment: i64,
    pub job: i64,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Options {
            public_url: Some("https://dbt.example".to_owned()),
            ..Options::default()
        })
        .await
    }

    pub async fn with(options: Options) -> Self {
        let storage = MemoryStorage::new();
        let artifacts = MemoryArtifacts::new();
        let clock = ManualClock::at(NOON);
        let agent = AgentLaunch {
            command: vec!["agent".to_owned()],
            server: "http://127.0.0.1:1".to_owned(),
            work_dir: "/work".into(),
            cache_dir: "/cache".into(),
            environment: std::collections::BTreeMap::new(),
        };
        let config = Config::new("test", agent);
        let plane = ControlPlane::builder(storage.clone(), ScriptedExecutor::new(clock.clone()), config)
            .artifacts(artifacts.clone())
            .vault(TransparentVault::new("k"))
            .webhooks(Webhooks::new(Dialer::plain()))
            .clock(clock.clone())
            .build();
        let bootstrap = Bootstrap {
            account: "Acme".to_owned(),
            email: "ada@acme.example".to_owned(),
            first_name: "Ada".to_owned(),
            last_name: "Lovelace".to_owned(),
        };
        let made = bootstrap.run(&storage, NOON).await.unwrap().unwrap();
        let router = dbtcloud_server::router(plane.clone(), options);
        Self {
            storage,
            artifacts,
            clock,
            plane,
            router,
            account: made.account.id.get(),
            token: made.token.expose().to_owned(),
        }
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            bytes,
        }
    }

    /// A request; `{a}` in the path is the account.
    pub async fn ask_as(&self, authorization: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
        let uri = path.replace("{a}", &self.account.to_string());
        let mut request = Request::builder().method(method).uri(uri);
        if !authorization.is_empty() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        self.ask_as(&format!("Token {}", self.token), method, path, body).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None).await.data()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", path, Some(body)).await.data()
    }

    pub async fn made(&self) -> Made {
        let id = |value: Value| value["id"].as_i64().unwrap();
        let project = id(self
            .post("/api/v3/accounts/{a}/projects/", json!({"name": "Shop"}))
            .await);
        let repository = json!({"remote_url": "https://github.com/acme/shop.git", "git_clone_strategy": "deploy_key"});
        let repository = self
            .post(
                &format!("/api/v3/accounts/{{a}}/projects/{project}/repositories/"),
                repository,
            )
            .await;
        let connection = json!({
            "name": "Warehouse", "adapter_version": "postgres_v0",
            "config": {"hostname": "db.acme.example", "dbname": "shop", "port": 5432},
        });
        let connection = id(self.post("/api/v3/accounts/{a}/connections/", connection).await);
        let link = json!({"repository_id": repository["id"], "connection_id": connection});
        self.post(&format!("/api/v3/accounts/{{a}}/projects/{project}/"), link)
            .await;
        let credentials = json!({
            "type": "postgres", "username": "dbt", "password": "hunter2", "default_schema": "analytics", "threads": 4,
        });
        let credentials = self
            .post(
                &format!("/api/v3/accounts/{{a}}/projects/{project}/credentials/"),
                credentials,
            )
            .await;
        let environment = json!({
            "name": "Production", "type": "deployment", "deployment_type": "production", "dbt_version": "1.11",
            "connection_id": connection, "credentials_id": credentials["id"],
        });
        let environment = id(self
            .post(
                &format!("/api/v3/accounts/{{a}}/projects/{project}/environments/"),
                environment,
            )
            .await);
        let job = json!({"project_id": project, "environment_id": environment, "name": "Nightly"});
        let job = id(self.post("/api/v2/accounts/{a}/jobs/", job).await);
        Made {
            project,
            environment,
            job,
        }
    }

    /// A service token with these permission sets.
    pub async fn service(&self, name: &str, sets: &[(&str, Option<i64>)], expires_at: Option<Timestamp>) -> String {
        let permissions = sets
            .iter()
            .map(|(set, project)| Grant {
                permission_set: (*set).to_owned(),
                project: project.map(ProjectId::new),
            })
            .collect();
        let text = format!("dbts_{name}");
        let token = Token {
            name: name.to_owned(),
            owner: TokenOwner::Service { permissions },
            digest: digest(&text),
            expires_at,
        };
        self.storage
            .create(AccountId::new(self.account), &token, NOON)
            .await
            .unwrap();
        text
    }

    /// Claims a queued run and redeems its agent's ticket.
    pub async fn agent(&self, run: i64) -> Fence {
        let now = self.clock.now();
        let until = now.plus(Duration::from_secs(3_600));
        let admission = Admission {
            run: RunId::new(run),
            slot: Some(0),
        };
        let claimed = self
            .storage
            .claim(&Owner::new("test"), &[admission], now, until)
            .await
            .unwrap();
        let claimed = claimed.into_iter().next().expect("the run can be claimed");
        let (ticket, key) = (Digest([run as u8; 32]), Digest([run as u8 + 100; 32]));
        let issue = TicketIssue {
            ticket,
            account: AccountId::new(self.account),
            run: RunId::new(run),
            attempt: claimed.run.attempt,
            expires_at: until,
        };
        self.storage.issue(&issue).await.unwrap();
        self.storage.redeem(ticket, key, now).await.unwrap().fence
    }

    /// Reports one thing as a run's agent.
    pub async fn report(
        &self,
        fence: &Fence,
        number: u64,
        steps: Vec<StepState>,
        logs: Vec<(u32, u64, &str)>,
        event: Option<RunEvent>,
    ) {
        let logs = logs
            .into_iter()
            .map(|(step, offset, text)| LogChunk {
                step,
                offset,
                bytes: Bytes::from(text.to_owned()),
            })
            .collect();
        let patch = match event {
            Some(RunEvent::Succeeded | RunEvent::Failed) => RunPatch {
                artifacts_saved: Some(true),
                ..RunPatch::default()
            },
            _ => RunPatch::default(),
        };
        let batch = Batch {
            number,
            at: self.clock.now(),
            steps,
            nodes: Vec::new(),
            logs,
            event,
            patch,
        };
        self.storage.report(fence, &batch).await.unwrap();
    }

    /// A run of four steps that ends so; the last step's `run_results.json` is kept.
    pub async fn whole_run(&self, run: i64, end: StepStatus) {
        let fence = self.agent(run).await;
        let command = "Invoke dbt with `dbt build`";
        let steps = [
            ("Clone git repository", StepKind::Clone, StepStatus::Success),
            (
                "Create profile from connection Warehouse",
                StepKind::Profile,
                StepStatus::Success,
            ),
            ("Invoke dbt with `dbt deps`", StepKind::Deps, StepStatus::Success),
            (command, StepKind::Command, end),
        ];
        let mut number = 1;
        self.report(&fence, number, Vec::new(), Vec::new(), Some(RunEvent::Started))
            .await;
        for (index, (name, kind, status)) in (1..).zip(steps) {
            let begun = self.clock.now();
            self.clock.advance(Duration::from_secs(10));
            let running = step(index, name, kind, StepStatus::Running, begun, None);
            let ended = step(index, name, kind, status, begun, Some(self.clock.now()));
            let log = format!("log of step {index}\n");
            number += 1;
            self.report(&fence, number, vec![running], vec![(index, 0, &log)], None)
                .await;
            number += 1;
            self.report(&fence, number, vec![ended], Vec::new(), None).await;
        }
        self.keep(run, 4, "run_results.json", r#"{"results": []}"#).await;
        let event = if end == StepStatus::Error {
            RunEvent::Failed
        } else {
            RunEvent::Succeeded
        };
        self.report(&fence, number + 1, Vec::new(), Vec::new(), Some(event))
            .await;
    }

    /// Keeps a file of a run's step.
    pub async fn keep(&self, run: i64, step: u32, path: &str, text: &str) {
        let key = ArtifactKey {
            account: AccountId::new(self.account),
            run: RunId::new(run),
            area: Area::Step(step),
            path: path.parse().unwrap(),
        };
        let bytes = Bytes::from(text.to_owned());
        self.artifacts
            .put(&key, Box::pin(futures::stream::iter([Ok(bytes)])))
            .await
            .unwrap();
    }
}

pub fn step(
    index: u32,
    name: &str,
    kind: StepKind,
    status: StepStatus,
    begun: Timestamp,
    ended: Option<Timestamp>,
) -> StepState {
    StepState {
        index,
        name: name.to_owned(),
        kind,
        status,
        started_at: Some(begun),
        finished_at: ended,
        exit_code: ended.map(|_| i32::from(status == StepStatus::Error)),
        message: None,
        backend: None,
    }
}
