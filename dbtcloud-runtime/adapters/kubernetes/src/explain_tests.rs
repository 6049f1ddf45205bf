//! Pods as clusters have shown them, cut to what counts.

use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    let pod = json!({
        "metadata": {"name": "run-1-1-x", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "node", "containers": [
            {"name": "main", "image": "dbt:1", "resources": {"limits": {"memory": "1Gi"}}},
        ]},
        "status": status,
    });
    serde_json::from_value(pod).unwrap()
}

fn job(status: Value) -> Job {
    let job = json!({
        "metadata": {"name": "run-1-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"activeDeadlineSeconds": 60, "template": {}},
        "status": status,
    });
    serde_json::from_value(job).unwrap()
}

fn ended(phase: &str, terminated: Value) -> Value {
    json!({"phase": phase, "containerStatuses": [{
        "name": "main", "image": "dbt:1", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": terminated},
    }]})
}

fn waits(reason: &str, message: &str) -> Pod {
    pod(json!({"phase": "Pending", "containerStatuses": [{
        "name": "main", "image": "dbt:1", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
    }]}))
}

fn told(seen: Seen) -> Exit {
    match seen {
        Seen::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn codes_and_signals() {
    for (code, expected) in [
        (0, (Some(0), None)),
        (3, (Some(3), None)),
        (137, (None, Some(9))),
        (255, (Some(255), None)),
    ] {
        let terminated = json!({"exitCode": code, "reason": "Error", "finishedAt": "2026-01-01T00:01:00Z"});
        let exit = told(explain(None, Some(&pod(ended("Failed", terminated))), None));
        assert_eq!((exit.code, exit.signal), expected);
        assert_eq!(exit.at, Timestamp::from_micros(1_767_225_660_000_000));
    }
}

#[test]
fn memory_names_its_limit() {
    let terminated = json!({"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:01:00Z"});
    let exit = told(explain(None, Some(&pod(ended("Failed", terminated))), None));
    assert!(
        exit.out_of_memory
            && exit
                .message
                .contains("its limit of 1Gi; raise execution.resources.limits.memory")
    );
}

#[test]
fn nodes_that_give_up_are_named() {
    let evicted = json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage.",
    });
    let exit = told(explain(None, Some(&pod(evicted)), None));
    assert!(
        exit.message.contains("node node evicted its pod (The node was low on"),
        "{exit:?}"
    );
    assert_eq!((exit.code, exit.signal), (None, None));
    let lost = json!({"phase": "Failed", "conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "node gone",
        "lastTransitionTime": "2026-01-01T00:02:00Z",
    }]});
    assert!(
        told(explain(None, Some(&pod(lost)), None))
            .message
            .contains("its node is gone")
    );
}

#[test]
fn a_deadline_is_told_by_the_job() {
    let target = json!({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]});
    let terminated = json!({"exitCode": 130, "finishedAt": "2026-01-01T00:01:00Z"});
    let exit = told(explain(
        Some(&job(target)),
        Some(&pod(ended("Failed", terminated))),
        None,
    ));
    assert_eq!(exit.message, "it lived longer than it may (60 s)");
}

#[test]
fn what_may_heal_and_what_cannot() {
    let heals = |pod: &Pod| match explain(None, Some(pod), None) {
        Seen::Pending { heals, .. } => heals,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        heals(&waits("ImagePullBackOff", "no such host")),
        Heals::Within(IMAGE_PATIENCE)
    );
    assert_eq!(heals(&waits("InvalidImageName", "")), Heals::Never);
    assert_eq!(
        heals(&waits("CreateContainerConfigError", "")),
        Heals::Within(CONFIG_PATIENCE)
    );
    assert_eq!(heals(&waits("ContainerCreating", "")), Heals::Perhaps);
    let refused = "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": privileged";
    assert!(matches!(
        explain(Some(&job(json!({}))), None, Some(refused)),
        Seen::Pending { heals: Heals::Never, reason, .. } if reason.contains("Pod Security level")
    ));
}

#[test]
fn verdicts_are_read_as_they_were_written() {
    let mut job = job(json!({}));
    let at = Timestamp::from_micros(5);
    job.annotations_mut()
        .insert(VERDICT.to_owned(), write_verdict(at, "it cannot begin"));
    let exit = told(explain(Some(&job), None, None));
    assert_eq!((exit.at, exit.message.as_str()), (at, "it cannot begin"));
}
