#![allow(clippy::unwrap_used, clippy::panic)]

use dbtcloud_contract::wait::until;
use dbtcloud_core::Timestamp;
use dbtcloud_core::run::{StepKind, StepStatus};
use proptest::prelude::*;

use super::super::plane::{Fault, Plane};
use super::*;
use dbtcloud_core::secret::Secret;

const LIMIT: Duration = Duration::from_secs(30);

fn step(index: u32, status: StepStatus) -> StepState {
    StepState {
        index,
        name: format!("step {index}"),
        kind: StepKind::Command,
        status,
        started_at: None,
        finished_at: None,
        exit_code: None,
        message: None,
        backend: None,
    }
}

fn node(name: &str, message: usize) -> NodeReport {
    NodeReport {
        step: 1,
        unique_id: format!("model.p.{name}"),
        resource_type: "model".to_owned(),
        name: name.to_owned(),
        status: "success".to_owned(),
        message: Some("\u{1}".repeat(message)),
        execution_time: None,
        index: None,
        total: None,
        at: Timestamp::EPOCH,
    }
}

fn deadline() -> Instant {
    Instant::now() + LIMIT
}

async fn uplink(plane: &Plane) -> Uplink {
    let uplink = Uplink::new(&plane.server().parse().unwrap(), None).unwrap();
    // There is no plan; the key is bound all the same.
    let ticket = Secret::new("ticket");
    let redeem = uplink.redeem(&ticket);
    let _ = tokio::time::timeout(Duration::from_millis(200), redeem).await;
    uplink
}

#[test]
fn a_step_is_over_after_its_log_and_once_per_batch() {
    let dir = tempfile::tempdir().unwrap();
    let reporter = Reporter::new(dir.path().to_path_buf(), 1 << 30);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        reporter.run(Some(RunEvent::Started), RunPatch::default());
        reporter.step(step(1, StepStatus::Pending));
        reporter.step(step(1, StepStatus::Running));
        reporter.log(1, &vec![b'x'; 3 << 20]).await;
        reporter.step(step(1, StepStatus::Success));
        reporter.run(None, RunPatch::message("a"));
        reporter.run(Some(RunEvent::Succeeded), RunPatch::message("b"));
    });
    let reports = reporter.drain();
    let mut length = 0;
    for report in &reports {
        assert!(report.steps.len() <= 1);
        for part in &report.logs {
            assert_eq!(part.offset, length);
            length += part.bytes.len() as u64;
        }
        if report.steps.iter().any(|state| state.status == StepStatus::Success) {
            assert_eq!(length, 3 << 20);
        }
        assert!(report.encode().is_ok());
    }
    assert_eq!(
        reports.iter().filter_map(|report| report.event).collect::<Vec<_>>(),
        [RunEvent::Started, RunEvent::Succeeded]
    );
}

#[test]
fn headers_stay_below_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let reporter = Reporter::new(dir.path().to_path_buf(), 1 << 30);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for index in 0..500 {
            reporter.node(node(&index.to_string(), 2 * MESSAGE_LIMIT_BYTES)).await;
        }
    });
    let reports = reporter.drain();
    assert!(reports.len() > 1);
    assert!(reports.iter().all(|report| report.encode().is_ok()));
    assert_eq!(reports.iter().map(|report| report.nodes.len()).sum::<usize>(), 500);
}

#[tokio::test]
async fn who_has_too_much_to_say_waits_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new(dir.path(), None);
    let uplink = uplink(&plane).await;
    plane.down();
    let limit = 8 << 20;
    let reporter = Reporter::new(dir.path().to_path_buf(), limit);
    reporter.run(Some(RunEvent::Started), RunPatch::default());
    let told = std::sync::atomic::AtomicU64::new(0);
    let order = std::sync::atomic::Ordering::SeqCst;
    let piece: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let talk = async {
        for _ in 0..40 {
            reporter.log(1, &piece).await;
            told.fetch_add(1, order);
        }
        for index in 0..ITEM_LIMIT + 10 {
            reporter.node(node(&index.to_string(), 0)).await;
        }
        reporter.run(Some(RunEvent::Succeeded), RunPatch::default());
    };
    let watch = async {
        until(LIMIT, || async { (told.load(order) >= 11).then_some(()).ok_or(()) }).await;
        let held = reporter.queue().spool.len();
        assert!(held <= limit + super::super::spool::MEMORY_LIMIT_BYTES, "{held}");
        assert!(told.load(order) < 20, "it waits");
        until(LIMIT, || async { (!reporter.heard()).then_some(()).ok_or(()) }).await;
        plane.up();
    };
    let halt = Halt::default();
    let (ended, (), ()) = tokio::join!(reporter.deliver(&uplink, &halt, deadline()), talk, watch);
    assert_eq!(ended, Ended::Delivered);
    let seen = plane.seen();
    assert_eq!(seen.wrong, Vec::<String>::new());
    assert_eq!(seen.logs[&1], piece.repeat(40));
    assert_eq!(seen.nodes.len(), ITEM_LIMIT + 10);
}

#[tokio::test]
async fn there_are_signs_of_life_and_commands_are_heard() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new(dir.path(), None);
    let uplink = uplink(&plane).await;
    let reporter = Reporter::new(dir.path().to_path_buf(), 1 << 20);
    let halt = Halt::default();
    reporter.run(Some(RunEvent::Started), RunPatch::default());
    let talk = async {
        until(LIMIT, || async { (plane.seen().number >= 3).then_some(()).ok_or(()) }).await;
        plane.seen().status = Some(RunStatus::Cancelling);
        assert_eq!(halt.raised().await, Reason::Cancelled);
        reporter.run(Some(RunEvent::Stopped), RunPatch::default());
    };
    let (ended, ()) = tokio::join!(reporter.deliver(&uplink, &halt, deadline()), talk);
    assert_eq!(ended, Ended::Delivered);
    assert_eq!(plane.seen().status, Some(RunStatus::Cancelled));
}

#[tokio::test]
async fn it_gives_up_at_the_deadline_and_on_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new(dir.path(), None);
    let uplink = uplink(&plane).await;
    for (fault, expected) in [
        (Fault::Refuse(503), Ended::Undelivered),
        (Fault::Refuse(409), Ended::Refused("no".to_owned())),
        (Fault::Refuse(400), Ended::Refused("no".to_owned())),
        (Fault::Refuse(410), Ended::Fenced),
    ] {
        plane.seen().fault = fault;
        let (reporter, halt) = (Reporter::new(dir.path().to_path_buf(), 1 << 20), Halt::default());
        reporter.run(Some(RunEvent::Started), RunPatch::default());
        let ended = reporter
            .deliver(&uplink, &halt, Instant::now() + Duration::from_secs(1))
            .await;
        assert_eq!(ended, expected);
        assert!(halt.reason().is_some_and(|reason| reason.is_silent()));
        // Whoever still talks is not held up.
        reporter.log(1, &vec![0; 8 << 20]).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn every_byte_once_whatever_the_plane_does(
        sizes in proptest::collection::vec(1usize..300_000, 5..20),
        faults in proptest::collection::vec(0u8..5, 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let plane = Plane::new(dir.path(), None);
            let uplink = uplink(&plane).await;
            let reporter = Reporter::new(dir.path().to_path_buf(), 1 << 20);
            reporter.run(Some(RunEvent::Started), RunPatch::default());
            let mut expected = std::collections::BTreeMap::<u32, Vec<u8>>::new();
            let talk = async {
                for (index, size) in sizes.iter().enumerate() {
                    let step = (index % 3) as u32 + 1;
                    let bytes: Vec<u8> = (0..*size).map(|n| ((n * 7 + index) % 256) as u8).collect();
                    reporter.log(step, &bytes).await;
                    expected.entry(step).or_default().extend(bytes);
                }
                reporter.run(Some(RunEvent::Succeeded), RunPatch::default());
            };
            let trouble = async {
                for fault in faults {
                    let asked = plane.seen().requests;
                    plane.seen().fault = match fault {
                        0 => Fault::LoseAnswers,
                        1 => Fault::Refuse(503),
                        2 => Fault::Flaky,
                        3 => { plane.down(); plane.up(); Fault::None }
                        _ => Fault::None,
                    };
                    let enough = || async {
                        let seen = plane.seen();
                        let over = seen.status.unwrap().is_terminal();
                        (over || seen.requests > asked + 2).then_some(()).ok_or(())
                    };
                    until(LIMIT, enough).await;
                }
                plane.seen().fault = Fault::None;
            };
            let halt = Halt::default();
            let (ended, (), ()) = tokio::join!(reporter.deliver(&uplink, &halt, deadline()), talk, trouble);
            assert_eq!(ended, Ended::Delivered);
            let seen = plane.seen();
            assert_eq!(seen.wrong, Vec::<String>::new());
            assert!(seen.logs == expected);
        });
    }
}
