//! The chart of `examples/deploy/helm` and the plain manifests, on a cluster: everything they render is taken by the API
//! server in a namespace that lets in only restricted pods; what they install works, is upgraded without a request lost,
//! and is gone when it is uninstalled, but for what it says.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_tests::api::Api;
use dbtcloud_tests::cluster::{self, Namespace, kubectl};
use dbtcloud_tests::postgres::{self, GUARDED_ROLE, PASSWORD};
use dbtcloud_tests::project::{self, workspace};
use dbtcloud_tests::s3;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::origin::Origin;
use crate::world;

/// Labels of a namespace that refuses any pod that is not restricted, and warns of what would make one.
const RESTRICTED: [(&str, &str); 2] = [
    ("pod-security.kubernetes.io/enforce", "restricted"),
    ("pod-security.kubernetes.io/warn", "restricted"),
];
/// How long a change of the installation may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two requests of somebody who uses it meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn helm() -> Command {
    let mut helm = Command::new(workspace().join(".cache/bin/helm"));
    helm.arg("--kubeconfig")
        .arg(cluster::kubeconfig())
        .current_dir(workspace());
    helm
}

/// What a program said, which went well.
fn said(output: Output, what: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The kinds of others that the chart can make are there from now on.
async fn define_kinds() {
    let files = said(
        Command::new(workspace().join("tests/kubernetes/crds"))
            .output()
            .unwrap(),
        "crds",
    );
    for file in files.lines() {
        said(
            kubectl()
                .args(["apply", "--server-side", "--force-conflicts", "-f", file])
                .output()
                .unwrap(),
            file,
        );
    }
    for kind in [
        "httproutes.gateway.networking.k8s.io",
        "servicemonitors.monitoring.coreos.com",
    ] {
        let established = ["wait", "--for=condition=established", "--timeout=60s"];
        said(
            kubectl().args(established).arg(format!("crd/{kind}")).output().unwrap(),
            kind,
        );
    }
}

/// The documents of a YAML text that are not empty.
fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Has `kubectl apply` take objects on the server's side, all of them in one namespace.
fn apply(namespace: &Namespace, objects: &[&Value], more: &[&str]) -> Output {
    let mut list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    for object in list["items"].as_array_mut().unwrap() {
        object["metadata"]["namespace"] = json!(namespace.name());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objects.json");
    std::fs::write(&file, list.to_string()).unwrap();
    let arguments = [
        "apply",
        "--server-side",
        "--validate=strict",
        "-f",
        file.to_str().unwrap(),
    ];
    namespace.try_kubectl(&[&arguments[..], more].concat())
}

/// Has the API server look at objects as if they were to be made; a warning is a failure too.
fn take(namespace: &Namespace, what: &str, text: &str) {
    let objects = documents(text);
    // A pod is refused while there is no account for it.
    let accounts: Vec<&Value> = objects
        .iter()
        .filter(|object| object["kind"] == "ServiceAccount")
        .collect();
    if !accounts.is_empty() {
        said(apply(namespace, &accounts, &[]), what);
    }
    let output = apply(namespace, &objects.iter().collect::<Vec<_>>(), &["--dry-run=server"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let taken = said(output, what).lines().count();
    assert!(!told.contains("Warning"), "{what}: {told}");
    assert_eq!(taken, objects.len(), "{what}: {told}");
    assert!(taken > 1, "{what} makes nothing");
}

#[tokio::test]
async fn the_cluster_takes_what_is_rendered() {
    define_kinds().await;
    for values in ["default", "production", "restricted"] {
        let namespace = Namespace::labelled("render", &RESTRICTED).await;
        let mut render = helm();
        render.args([
            "template",
            "dbtcloud",
            "examples/deploy/helm",
            "--namespace",
            namespace.name(),
        ]);
        // Runs have a namespace of their own there; here it is the same.
        render.args(["--set", &format!("runner.namespace={}", namespace.name())]);
        if values != "default" {
            render.args(["--values", &format!("examples/deploy/helm/ci/{values}.yaml")]);
        }
        take(&namespace, values, &said(render.output().unwrap(), values));
    }
    for overlay in ["production", "production/migrate", "trial", "trial/migrate"] {
        let namespace = Namespace::labelled("kustomize", &RESTRICTED).await;
        let folder = workspace().join("examples/deploy/kustomize/overlays").join(overlay);
        let rendered = said(kubectl().arg("kustomize").arg(folder).output().unwrap(), overlay);
        take(&namespace, overlay, &rendered);
    }
}

/// Passes connections of pods on to what listens on this machine's loopback. Its port.
async fn reachable(port: u16) -> u16 {
    let listener = TcpListener::bind((cluster::host(), 0)).await.unwrap();
    let open = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    open
}

/// An installation by the chart, on a database and a bucket of this test.
struct Installed {
    namespace: Namespace,
    database: postgres::Database,
    values: tempfile::NamedTempFile,
}

impl Installed {
    async fn new() -> Self {
        let namespace = Namespace::labelled("chart", &RESTRICTED).await;
        let database = postgres::database();
        let bucket = s3::bucket();
        let url = url::Url::parse(&bucket.url()).unwrap();
        let endpoint = url
            .query_pairs()
            .find(|(name, _)| name == "endpoint")
            .unwrap()
            .1
            .into_owned();
        let store = url::Url::parse(&endpoint).unwrap().port().unwrap();
        let secret = |name: &str, pairs: &[(&str, &str)]| {
            let literals: Vec<String> = pairs
                .iter()
                .map(|(key, value)| format!("--from-literal={key}={value}"))
                .collect();
            let mut arguments = vec!["create", "secret", "generic", name];
            arguments.extend(literals.iter().map(String::as_str));
            namespace.kubectl(&arguments);
        };
        secret("database", &[("pgpass", PASSWORD)]);
        secret("store", &[("id", s3::ADMIN), ("secret", s3::SECRET)]);
        let [gateway, app] = ["gateway", "app"].map(|_| free_address(&namespace));
        let (repository, tag) = split(&cluster::control_plane());
        let (runner, runner_tag) = split(&cluster::runner());
        let image = |repository: &str, tag: &str| json!({"registry": "", "repository": repository, "tag": tag});
        let values = json!({
            "image": image(&repository, &tag),
            "runner": {"image": image(&runner, &runner_tag)},
            "drainSeconds": 5,
            "externalDatabase": {
                "host": cluster::host(), "port": reachable(database.port()).await, "user": GUARDED_ROLE,
                "database": database.name(), "sslmode": "disable",
                "existingSecret": "database", "existingSecretPasswordKey": "pgpass",
            },
            "objectStorage": {
                "bucket": bucket.name(), "prefix": "chart", "region": "us-east-1",
                "endpoint": format!("http://{}:{}", cluster::host(), reachable(store).await),
                "existingSecret": "store", "existingSecretAccessKeyIdKey": "id", "existingSecretSecretAccessKeyKey": "secret",
            },
            "postgresql": {"enabled": false},
            "seaweedfs": {"enabled": false},
            // The tests' cluster has no names.
            "gateway": {"service": {"clusterIP": gateway}},
            "app": {"service": {"clusterIP": app}},
        });
        let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
        std::fs::write(file.path(), values.to_string()).unwrap();
        Self {
            namespace,
            database,
            values: file,
        }
    }

    /// `helm` on it, which waits until everything is ready.
    async fn helm(&self, arguments: &[&str]) -> Output {
        let mut helm = tokio::process::Command::from(helm());
        helm.args(["--namespace", self.namespace.name()]).args(arguments);
        helm.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
    }

    /// Installs or upgrades it with more settings.
    async fn change(&self, what: &str, set: &str) -> Output {
        let values = self.values.path().to_str().unwrap();
        let timeout = format!("{}s", PATIENCE.as_secs());
        let arguments = [
            "dbtcloud",
            "examples/deploy/helm",
            "--values",
            values,
            "--wait",
            "--timeout",
            &timeout,
            "--set",
            set,
        ];
        self.helm(&[&[what][..], &arguments].concat()).await
    }

    /// The gateway's address.
    fn url(&self) -> String {
        let service = ["get", "service", "dbtcloud-gateway", "-o", "jsonpath={.spec.clusterIP}"];
        format!("http://{}:8080", self.namespace.kubectl(&service))
    }

    /// What pods of a component are called.
    fn pods(&self, component: &str) -> BTreeSet<String> {
        let selector = format!("--selector=app.kubernetes.io/component={component}");
        let pods = self
            .namespace
            .kubectl(&["get", "pods", &selector, "-o", "jsonpath={.items[*].metadata.name}"]);
        pods.split_whitespace().map(str::to_owned).collect()
    }

    /// Kind and name of everything in the namespace that somebody made.
    fn left(&self) -> BTreeSet<String> {
        let kinds = "all,secrets,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,\
            persistentvolumeclaims,jobs,horizontalpodautoscalers,ingresses";
        let all = self.namespace.kubectl(&["get", kinds, "-o", "name"]);
        let own = [
            "configmap/kube-root-ca.crt",
            "serviceaccount/default",
            "secret/database",
            "secret/store",
        ];
        all.lines()
            .filter(|name| !own.contains(name))
            .map(str::to_owned)
            .collect()
    }
}

/// Repository and tag of an image.
fn split(image: &str) -> (String, String) {
    let (repository, tag) = image.rsplit_once(':').unwrap();
    (repository.to_owned(), tag.to_owned())
}

/// An address for a service, which the cluster gives out and takes back.
fn free_address(namespace: &Namespace) -> String {
    namespace.kubectl(&["create", "service", "clusterip", "address", "--tcp=1"]);
    let address = namespace.kubectl(&["get", "service", "address", "-o", "jsonpath={.spec.clusterIP}"]);
    namespace.kubectl(&["delete", "service", "address"]);
    address
}

/// Somebody who asks and changes things all the time, each time on a connection of its own, as most clients do.
struct Somebody {
    enough: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    asking: tokio::task::JoinHandle<Vec<String>>,
}

impl Somebody {
    fn new(url: &str, token: &str, account: i64) -> Self {
        let (enough, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (done, counted) = (enough.clone(), answers.clone());
        let (url, token) = (url.to_owned(), token.to_owned());
        let asking = tokio::spawn(async move {
            let mut lost = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let api = Api::new(&url, &token, account);
                let project = json!({"name": format!("project {number}")});
                let (method, body) = if number.is_multiple_of(4) {
                    (Method::POST, Some(&project))
                } else {
                    (Method::GET, None)
                };
                match api.send(method.clone(), "v3/accounts/{a}/projects/", body).await {
                    Ok((status, _)) if status.is_success() => {}
                    Ok((status, body)) => lost.push(format!("{number}: {method} {status} {body}")),
                    Err(error) => lost.push(format!("{number}: {method} {error:?}")),
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            lost
        });
        Self {
            enough,
            answers,
            asking,
        }
    }

    /// How many answers it had, and which requests were lost.
    async fn stop(self) -> (usize, Vec<String>) {
        self.enough.store(true, Ordering::Relaxed);
        let lost = self.asking.await.unwrap();
        (self.answers.load(Ordering::Relaxed), lost)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_works_is_upgraded_and_goes() {
    let installed = Installed::new().await;
    said(installed.change("install", "settings.log=info").await, "install");
    let bootstrap = [
        "exec",
        "deployment/dbtcloud-app",
        "-c",
        "app",
        "--",
        "dbtcloud",
        "bootstrap",
        "--json",
    ];
    let made: Value = serde_json::from_str(&installed.namespace.kubectl(&bootstrap)).unwrap();
    let (token, account) = (made["token"].as_str().unwrap(), made["account_id"].as_i64().unwrap());
    let url = installed.url();
    let api = Api::new(&url, token, account);
    api.post("v3/accounts/{a}/projects/", &json!({"name": "first"})).await;

    // What a scheduler needs is there, asked from where one stands.
    let tested = installed
        .helm(&["test", "dbtcloud", "--logs", "--timeout", "120s"])
        .await;
    let told = said(tested, "test");
    assert!(told.contains("nothing is wrong"), "{told}");

    // A project runs to success, in a pod of the runner.
    let origin = Origin::new().await;
    let (folder, repository) = origin.of("harbour");
    project::repository_of(&project::harbour(), &folder);
    let job = world::job(&api, &repository, &["dbt build"]).await;
    let run = api.ended(api.trigger(job).await, PATIENCE).await;
    assert_eq!(run["status"], json!(10), "{run:#}");
    let artifacts = api
        .get(&format!("v2/accounts/{{a}}/runs/{}/artifacts/", run["id"]))
        .await;
    assert!(
        artifacts.as_array().unwrap().iter().any(|path| path == "manifest.json"),
        "{artifacts}"
    );

    // Every component is there more than once, and each is what it is to be.
    for component in ["gateway", "app", "scheduler", "cleanup"] {
        assert_eq!(installed.pods(component).len(), 2, "{component}");
    }
    let key = || {
        installed
            .namespace
            .kubectl(&["get", "secret", "dbtcloud-key", "-o", "jsonpath={.data.key}"])
    };
    let sealed_by = key();

    // An upgrade replaces every pod while somebody asks, and the key stays.
    let before: Vec<_> = ["gateway", "app"].map(|component| installed.pods(component)).into();
    let somebody = Somebody::new(&url, token, account);
    said(installed.change("upgrade", "settings.log=debug").await, "upgrade");
    let gone = || async {
        let now: Vec<_> = ["gateway", "app"].map(|component| installed.pods(component)).into();
        let old = before
            .iter()
            .zip(&now)
            .any(|(before, now)| before.intersection(now).next().is_some());
        if old { Err(now) } else { Ok(()) }
    };
    until(PATIENCE, gone).await;
    let (answers, lost) = somebody.stop().await;
    assert!(answers > 50, "only {answers} requests were made meanwhile");
    assert!(lost.is_empty(), "{} of {answers} were lost: {lost:#?}", lost.len());
    assert_eq!(key(), sealed_by);

    // One whose migration fails changes nothing, and the next one that is right goes through.
    let running = installed.pods("app");
    let failed = installed
        .change("upgrade", "externalDatabase.database=nowhere,migrations.backoffLimit=0")
        .await;
    assert!(!failed.status.success());
    let why = installed.namespace.kubectl(&["logs", "job/dbtcloud-migrate"]);
    assert!(why.contains("the database does not exist"), "{why}");
    assert_eq!(installed.pods("app"), running);
    said(installed.change("upgrade", "settings.log=debug").await, "upgrade");
    assert_eq!(installed.pods("app"), running);
    api.get("v3/accounts/{a}/projects/").await;

    // What was installed goes; the key stays, as it says.
    said(
        installed
            .helm(&["uninstall", "dbtcloud", "--wait", "--timeout", "120s"])
            .await,
        "uninstall",
    );
    let only: BTreeSet<String> = ["secret/dbtcloud-key".to_owned()].into();
    let cleared = || async {
        if installed.left() == only {
            Ok(())
        } else {
            Err(installed.left())
        }
    };
    until(PATIENCE, cleared).await;
    assert_ne!(installed.database.ask("SELECT count(*) FROM accounts"), "0");
}
