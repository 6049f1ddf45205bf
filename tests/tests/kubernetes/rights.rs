//! The Role that is shipped: it is enough, and nothing of it can be spared.

use std::path::PathBuf;
use std::time::Duration;

use dbtcloud_contract::wait::until;
use dbtcloud_core::id::{AccountId, ProjectId, UserId};
use dbtcloud_core::ports::{Executor, Observation, Volume, VolumeId, Workload};
use dbtcloud_core::{Error, ErrorKind};
use dbtcloud_kubernetes::{Access, KubernetesExecutor, KubernetesVolume, Options, RIGHTS, Right};
use dbtcloud_tests::cluster;
use dbtcloud_tests::project::workspace;
use serde_json::{Value, json};

use crate::stage::{Stage, run, script};

/// Somebody who may do what a Role says in the stage's namespace.
pub(crate) struct Somebody {
    role: Value,
    pub(crate) kubeconfig: PathBuf,
    _root: tempfile::TempDir,
}

impl Somebody {
    pub(crate) fn new(stage: &Stage) -> Self {
        let namespace = &stage.namespace;
        let shipped = std::fs::read_to_string(workspace().join("examples/deploy/kustomize/base/role.yaml")).unwrap();
        let role: Value = serde_saphyr::from_str(&shipped).unwrap();
        namespace.kubectl(&["create", "serviceaccount", "executor"]);
        let account = format!("--serviceaccount={}:executor", namespace.name());
        namespace.kubectl(&[
            "create",
            "rolebinding",
            "executor",
            "--role=dbtcloud-executor",
            &account,
        ]);
        let token = namespace.kubectl(&["create", "token", "executor"]);
        let shown = namespace.kubectl(&["config", "view", "--raw", "--flatten", "--output", "json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": shown["clusters"][0]["cluster"]}],
            "users": [{"name": "u", "user": {"token": token.trim()}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": namespace.name()}}],
        });
        let root = tempfile::tempdir().unwrap();
        let kubeconfig = root.path().join("kubeconfig");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self {
            role,
            kubeconfig,
            _root: root,
        }
    }

    fn options(&self, stage: &Stage) -> Options {
        let access = Access::Kubeconfig {
            path: self.kubeconfig.clone(),
            context: None,
        };
        // The namespace is the context's.
        Options::new(access, cluster::busybox())
            .with_overlay(json!({"spec": {"containers": [{"name": "main", "imagePullPolicy": "IfNotPresent"}]}}))
            .with_installation(&stage.namespace.name()[stage.namespace.name().len() - 5..])
    }

    /// Gives the Role without one right.
    fn grant(&self, stage: &Stage, without: Option<&Right>) {
        let mut role = self.role.clone();
        for rule in role["rules"].as_array_mut().unwrap() {
            let about = |right: &Right| {
                rule["resources"] == json!([right.resource]) && rule["apiGroups"] == json!([right.group])
            };
            if without.is_some_and(about) {
                let verbs = rule["verbs"].as_array_mut().unwrap();
                verbs.retain(|verb| verb != without.unwrap().verb);
            }
        }
        let rules = role["rules"].as_array_mut().unwrap();
        rules.retain(|rule| rule["verbs"] != json!([]));
        let file = self.kubeconfig.with_file_name("role.json");
        std::fs::write(&file, role.to_string()).unwrap();
        stage
            .namespace
            .kubectl(&["apply", "--filename", file.to_str().unwrap()]);
    }
}

/// Everything that executor and volumes do, to the end. The first thing that was not allowed.
async fn everything(options: &Options) -> Result<(), Error> {
    let executor = KubernetesExecutor::open(options.clone()).await?;
    let volumes = KubernetesVolume::open(options.clone()).await?;
    let volume = VolumeId {
        account: AccountId::new(1),
        project: ProjectId::new(2),
        user: UserId::new(3),
    };
    insist(|| volumes.ensure(volume)).await?;
    insist(|| volumes.mount(volume)).await?;
    insist(|| volumes.remove(volume)).await?;

    // Watched, explained, cancelled before it has a pod.
    let mut waits = script(run(1), "true");
    waits.placement.service_account = Some("nobody".into());
    insist(|| executor.start(&waits)).await?;
    until_seen(
        &executor,
        1,
        |seen| matches!(seen, Observation::Pending { reason } if reason.contains("nobody")),
    )
    .await?;
    insist(|| executor.cancel(run(1), Duration::ZERO)).await?;
    until_seen(&executor, 1, |seen| matches!(seen, Observation::Exited(_))).await?;
    insist(|| executor.remove(run(1))).await?;

    // Cancelled while it runs.
    let long = script(run(2), "trap 'exit 0' INT; while :; do sleep 0.1; done");
    insist(|| executor.start(&long)).await?;
    until_seen(&executor, 2, |seen| matches!(seen, Observation::Running { .. })).await?;
    insist(|| executor.cancel(run(2), Duration::from_secs(1))).await?;
    until_seen(&executor, 2, |seen| matches!(seen, Observation::Exited(_))).await?;
    insist(|| executor.remove(run(2))).await?;

    let mut service = script(run(3), "trap 'exit 0' INT; httpd -f -p $DBTCLOUD_PORT -h /work & wait");
    service.workload = Workload::Service;
    insist(|| executor.start(&service)).await?;
    // Another instance has to look for the address.
    let other = KubernetesExecutor::open(options.clone()).await?;
    until_seen(&other, 3, |seen| {
        matches!(seen, Observation::Running { address: Some(_) })
    })
    .await?;
    insist(|| executor.remove(run(3))).await?;
    insist(|| executor.list()).await?;
    Ok(())
}

/// An outage is waited out; everything else is an answer.
async fn insist<T, F>(mut call: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let call = std::cell::RefCell::new(&mut call);
    until(cluster::LIMIT, || async {
        let asked = (call.borrow_mut())();
        match asked.await {
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error.chain()),
            answer => Ok(answer),
        }
    })
    .await
}

async fn until_seen(
    executor: &KubernetesExecutor,
    id: i64,
    wanted: impl Fn(&Observation) -> bool,
) -> Result<(), Error> {
    until(cluster::LIMIT, || async {
        match executor.observe(run(id)).await {
            Ok(seen) if wanted(&seen) => Ok(Ok(())),
            Ok(seen) => Err(format!("{seen:?}")),
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error.chain()),
            Err(error) => Ok(Err(error)),
        }
    })
    .await
}

#[tokio::test]
async fn the_role_is_enough() {
    let stage = Stage::new("role").await;
    let somebody = Somebody::new(&stage);
    somebody.grant(&stage, None);
    let options = somebody.options(&stage);
    if let Err(error) = everything(&options).await {
        panic!("{}", error.chain());
    }
    let executor = KubernetesExecutor::open(options).await.unwrap();
    let check = executor.check().await.unwrap();
    let missing: Vec<_> = check
        .answers
        .iter()
        .filter(|answer| answer.vital && answer.fault.is_some())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(check.namespace, stage.namespace.name());
    let names: Vec<_> = check.answers.iter().map(|answer| answer.about.as_str()).collect();
    assert!(
        names.contains(&"create jobs") && check.version.starts_with('v'),
        "{check:?}"
    );
}

/// The Role has the rights that the adapter says it uses, and no other.
#[tokio::test]
async fn the_role_has_no_right_too_many() {
    let shipped = std::fs::read_to_string(workspace().join("examples/deploy/kustomize/base/role.yaml")).unwrap();
    let role: Value = serde_saphyr::from_str(&shipped).unwrap();
    let mut granted = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        for verb in rule["verbs"].as_array().unwrap() {
            granted.push(format!(
                "{} {}",
                verb.as_str().unwrap(),
                rule["resources"][0].as_str().unwrap()
            ));
        }
    }
    let mut used: Vec<_> = RIGHTS.iter().map(ToString::to_string).collect();
    granted.sort();
    used.sort();
    assert_eq!(granted, used);
}

/// Takes each right away in turn: something is not allowed, and the message names the verb and the resource.
#[tokio::test]
async fn no_right_can_be_spared() {
    let tested = RIGHTS.iter().map(|right| async move {
        let stage = Stage::new("right").await;
        let somebody = Somebody::new(&stage);
        somebody.grant(&stage, Some(right));
        let options = somebody.options(&stage);
        let error = everything(&options)
            .await
            .expect_err(&format!("it works without {right}"));
        let told = error.chain();
        assert_eq!(error.kind(), ErrorKind::Denied, "{told}");
        assert!(
            told.contains(&format!("add verb {} on {}", right.verb, right.resource)),
            "{right}: {told}"
        );
        let executor = KubernetesExecutor::open(options).await.unwrap();
        let fault = executor.check().await.unwrap().fault().unwrap();
        assert!(
            fault.contains(&format!("needs the verb {} on {}", right.verb, right.resource)),
            "{fault}"
        );
    });
    // A few at a time: each has pods of its own.
    let tested = futures::stream::iter(tested);
    futures::StreamExt::for_each_concurrent(tested, 4, |test| test).await;
}
