//! What a Job, its Pod and what was noted about them mean, in words that say what to do.

use std::time::Duration;

use dbtcloud_core::Timestamp;
use dbtcloud_core::environment::overlay::MAIN_CONTAINER;
use dbtcloud_core::ports::Exit;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::failure::{Heals, advice, will_heal};
use crate::pod::{CANCELLED, VERDICT};

/// How long an image may fail to be pulled.
const IMAGE_PATIENCE: Duration = Duration::from_secs(120);
/// How long a ConfigMap or Secret that a container needs may be missing.
const CONFIG_PATIENCE: Duration = Duration::from_secs(60);
/// SIGKILL.
const KILL: i32 = 9;
/// What is added to a signal's number to make an exit code.
const SIGNALLED: i32 = 128;

/// What is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It waits.
    Pending {
        /// What for.
        reason: String,
        /// Whether that can come to a good end.
        heals: Heals,
        /// Whether the events may tell more.
        ask: bool,
    },
    /// It runs; a service also answers.
    Running {
        /// Whether it is ready to answer.
        ready: bool,
    },
    /// It ended.
    Exited(Exit),
}

/// What is known of an execution that is there.
pub(crate) fn explain(job: Option<&Job>, pod: Option<&Pod>, note: Option<&str>) -> Seen {
    let annotations = [job.map(ResourceExt::annotations), pod.map(ResourceExt::annotations)];
    let verdict = annotations.into_iter().flatten().find_map(|all| all.get(VERDICT));
    if let Some(exit) = verdict.and_then(|text| read_verdict(text)) {
        return Seen::Exited(exit);
    }
    match (pod, job) {
        (Some(pod), job) => of_pod(pod, job, note),
        (None, Some(job)) => of_job(job, note),
        (None, None) => waiting("its pod is not there yet", Heals::Perhaps, true),
    }
}

/// The end that was decided, as an annotation keeps it: when and why.
pub(crate) fn write_verdict(at: Timestamp, message: &str) -> String {
    format!("{} {message}", at.as_micros())
}

fn read_verdict(text: &str) -> Option<Exit> {
    let (at, message) = text.split_once(' ')?;
    Some(exit(Timestamp::from_micros(at.parse().ok()?), message.to_owned()))
}

fn exit(at: Timestamp, message: String) -> Exit {
    Exit {
        code: None,
        signal: None,
        out_of_memory: false,
        at,
        message,
    }
}

pub(crate) fn instant(time: Option<&Time>) -> Timestamp {
    time.map_or(Timestamp::EPOCH, |time| Timestamp::from_micros(time.0.as_microsecond()))
}

fn waiting(reason: impl Into<String>, heals: Heals, ask: bool) -> Seen {
    Seen::Pending {
        reason: reason.into(),
        heals,
        ask,
    }
}

fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = job.status.as_ref()?.conditions.as_ref()?.iter();
    conditions.find(|condition| condition.type_ == kind && condition.status == "True")
}

fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let mut conditions = pod.status.as_ref()?.conditions.as_ref()?.iter();
    conditions.find(|condition| condition.type_ == kind)
}

/// Whether the Job says of itself that it is over. Its pod tells more.
pub(crate) fn is_over(job: &Job) -> bool {
    condition(job, "Failed")
        .or_else(|| condition(job, "Complete"))
        .is_some()
}

/// A Job without a pod.
fn of_job(job: &Job, note: Option<&str>) -> Seen {
    if let Some(failed) = condition(job, "Failed") {
        let reason = failed.reason.as_deref().unwrap_or_default();
        let told = match reason {
            "DeadlineExceeded" => deadline(job),
            _ => format!(
                "its pod is gone and did not leave word; its Job failed ({reason}: {})",
                failed.message.as_deref().unwrap_or_default()
            ),
        };
        return Seen::Exited(exit(instant(failed.last_transition_time.as_ref()), told));
    }
    if let Some(complete) = condition(job, "Complete") {
        let mut done = exit(instant(complete.last_transition_time.as_ref()), String::new());
        done.code = Some(0);
        return Seen::Exited(done);
    }
    if job.annotations().contains_key(CANCELLED) {
        return match condition(job, "Suspended") {
            Some(suspended) => {
                let at = instant(suspended.last_transition_time.as_ref());
                Seen::Exited(exit(at, "cancelled before it began".to_owned()))
            }
            None => waiting("it is being cancelled", Heals::Perhaps, false),
        };
    }
    match note {
        Some(note) => waiting(format!("no pod can be made: {}", advice(note)), will_heal(note), true),
        None => waiting("the cluster has not made its pod yet", Heals::Perhaps, true),
    }
}

fn deadline(job: &Job) -> String {
    let limit = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    format!("it lived longer than it may ({} s)", limit.unwrap_or_default())
}

/// Whether nothing of a pod executes, nor will.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || is_leaving(pod) && node_of(pod).is_none()
}

/// Whether a pod was told to end.
pub(crate) fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// How long it may take to.
pub(crate) fn grace_of(pod: &Pod) -> Duration {
    let seconds = pod.metadata.deletion_grace_period_seconds;
    Duration::from_secs(seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0))
}

/// What there is to say of one that is not told to have ended.
pub(crate) fn unconfirmed(pod: &Pod) -> String {
    let node = node_of(pod).unwrap_or("(none)");
    format!(
        "its pod was told to end, and node {node} does not confirm it: the node is lost or cannot end what it runs; if it \
         is lost for good, delete it from the cluster"
    )
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn of_pod(pod: &Pod, job: Option<&Job>, note: Option<&str>) -> Seen {
    if has_ended(pod) {
        return Seen::Exited(end_of(pod, job));
    }
    let status = pod.status.as_ref();
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Running" | "Unknown") => Seen::Running {
            ready: pod_condition(pod, "Ready").is_some_and(|ready| ready.status == "True") && !is_leaving(pod),
        },
        _ => pending(pod, note),
    }
}

fn main_of(pod: &Pod) -> Option<&ContainerStatus> {
    let mut all = pod.status.as_ref()?.container_statuses.as_ref()?.iter();
    all.find(|container| container.name == MAIN_CONTAINER)
}

fn pending(pod: &Pod, note: Option<&str>) -> Seen {
    let Some(node) = node_of(pod) else {
        let scheduled = pod_condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False");
        let Some(scheduled) = scheduled else {
            return waiting("the scheduler has not looked at it yet", Heals::Perhaps, false);
        };
        let message = scheduled.message.as_deref().unwrap_or("no reason was given");
        return waiting(
            format!("no node can take it; add nodes, or mend its resources, node selector or tolerations ({message})"),
            Heals::Perhaps,
            false,
        );
    };
    let status = pod.status.as_ref();
    let containers = status
        .and_then(|status| status.init_container_statuses.as_ref())
        .into_iter()
        .chain(status.and_then(|status| status.container_statuses.as_ref()))
        .flatten();
    for container in containers {
        let Some(waits) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
            continue;
        };
        let message = waits.message.as_deref().unwrap_or_default();
        let (told, heals) = match waits.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => (
                format!(
                    "the image {} cannot be pulled; is its name right, and may node {node} pull it? ({message})",
                    container.image
                ),
                Heals::Within(IMAGE_PATIENCE),
            ),
            "ErrImageNeverPull" => (
                format!(
                    "the image {} is not on node {node}, and it is never to be pulled",
                    container.image
                ),
                Heals::Never,
            ),
            "InvalidImageName" => (format!("'{}' is no name of an image", container.image), Heals::Never),
            reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => (
                format!(
                    "its container cannot be made on node {node}; is a ConfigMap or Secret of the overlay missing? \
                     ({reason}: {message})"
                ),
                Heals::Within(CONFIG_PATIENCE),
            ),
            "CrashLoopBackOff" => (
                format!("its container {} ends again and again ({message})", container.name),
                Heals::Within(CONFIG_PATIENCE),
            ),
            _ => continue,
        };
        return waiting(told, heals, false);
    }
    match note {
        Some(note) => waiting(format!("node {node} cannot begin it yet: {note}"), Heals::Perhaps, true),
        None => waiting(format!("node {node} is beginning it"), Heals::Perhaps, true),
    }
}

/// How a pod ended that has ended. It depends on what does not change any more.
fn end_of(pod: &Pod, job: Option<&Job>) -> Exit {
    let container = main_of(pod);
    let terminated = container.and_then(|container| {
        let state = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        state.or_else(|| container.last_state.as_ref()?.terminated.as_ref())
    });
    let at = terminated
        .and_then(|terminated| terminated.finished_at.as_ref())
        .or_else(|| pod_condition(pod, "DisruptionTarget")?.last_transition_time.as_ref())
        .or(pod.metadata.creation_timestamp.as_ref());
    let mut end = exit(instant(at), String::new());
    if let Some(terminated) = terminated {
        let code = terminated.exit_code;
        end.out_of_memory = terminated.reason.as_deref() == Some("OOMKilled");
        if end.out_of_memory {
            end.signal = Some(KILL);
        } else if terminated.reason.as_deref() == Some("ContainerStatusUnknown") {
            // Whoever looked could not find out.
        } else if (SIGNALLED + 1..=SIGNALLED + 64).contains(&code) {
            end.signal = Some(code - SIGNALLED);
        } else {
            end.code = Some(code);
        }
    }
    let mut told = Vec::new();
    if let Some(why) = why(pod, job, terminated) {
        told.push(why);
    }
    let last_words = terminated
        .and_then(|terminated| terminated.message.as_deref())
        .map(str::trim);
    if let Some(words) = last_words.filter(|words| !words.is_empty() && end.code != Some(0)) {
        told.push(words.to_owned());
    }
    end.message = told.join("; ");
    end
}

fn why(pod: &Pod, job: Option<&Job>, terminated: Option<&ContainerStateTerminated>) -> Option<String> {
    let status = pod.status.as_ref();
    let node = node_of(pod).unwrap_or("(none)");
    let message = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
    let reason = terminated.and_then(|terminated| terminated.reason.as_deref());
    if reason == Some("OOMKilled") {
        let limits = pod
            .spec
            .as_ref()?
            .containers
            .iter()
            .find(|one| one.name == MAIN_CONTAINER);
        let limit = limits.and_then(|main| main.resources.as_ref()?.limits.as_ref()?.get("memory"));
        return Some(match limit {
            Some(limit) => format!(
                "it used more memory than its limit of {}; raise execution.resources.limits.memory of the \
                 environment, or lower dbt's threads",
                limit.0
            ),
            None => format!("node {node} ran out of memory; set execution.resources of the environment"),
        });
    }
    match status.and_then(|status| status.reason.as_deref()) {
        Some("Evicted") => return Some(format!("node {node} evicted its pod ({message})")),
        Some("DeadlineExceeded") => return Some("it lived longer than it may".to_owned()),
        Some("NodeLost" | "NodeShutdown" | "Terminated" | "Shutdown") => {
            return Some(format!("node {node} was lost or shut down ({message})"));
        }
        // The node itself did not let it in: resources that others took meanwhile, a host that is full.
        Some(reason) => return Some(format!("node {node} refused its pod ({reason}: {message})")),
        None => {}
    }
    if let Some(job) = job {
        let failed = condition(job, "FailureTarget").or_else(|| condition(job, "Failed"));
        if failed.is_some_and(|failed| failed.reason.as_deref() == Some("DeadlineExceeded")) {
            return Some(deadline(job));
        }
    }
    if let Some(disruption) = pod_condition(pod, "DisruptionTarget").filter(|one| one.status == "True") {
        let why = match disruption.reason.as_deref().unwrap_or_default() {
            "PreemptionByScheduler" => "a pod of a higher priority took its place",
            "DeletionByTaintManager" => "its node got a taint that it does not tolerate, or was lost",
            "EvictionByEvictionAPI" => "it was evicted, as when a node is drained",
            "DeletionByPodGC" => "its node is gone",
            _ => "its node had to give it up",
        };
        let message = disruption.message.as_deref().unwrap_or_default();
        return Some(format!("{why} (node {node}: {message})"));
    }
    if matches!(reason, Some("StartError" | "ContainerCannotRun")) {
        return Some("its program could not be started: is it in the image?".to_owned());
    }
    if pod.annotations().contains_key(CANCELLED) {
        return Some("cancelled".to_owned());
    }
    was_deleted(pod, terminated).then(|| "its pod was deleted while it ran, by hand or by a tool".to_owned())
}

/// Whether somebody deleted it before it ended.
fn was_deleted(pod: &Pod, terminated: Option<&ContainerStateTerminated>) -> bool {
    let Some(by) = &pod.metadata.deletion_timestamp else {
        return false;
    };
    match terminated.and_then(|terminated| terminated.finished_at.as_ref()) {
        Some(finished) => instant(Some(finished)).plus(grace_of(pod)) >= instant(Some(by)),
        None => true,
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
