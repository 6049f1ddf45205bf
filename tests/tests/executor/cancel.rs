//! Cancellation.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use dbtcloud_core::ports::Executor;

use crate::support::{DEAF, Fixture, LONG, POLITE, Starter, eventually, id, lives, script, with_out};
#[tokio::test]
async fn cancel_interrupts_and_waits() {
    let fixture = Fixture::new();
    fixture.executor.cancel(id(1), Duration::ZERO).await.unwrap();
    fixture
        .executor
        .start(&with_out(&fixture, script(1, POLITE)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    let exit = fixture.exit(id(1)).await;
    assert_eq!((exit.code, exit.signal), (Some(42), None));
    fixture.executor.cancel(id(1), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn cancel_escalates_after_the_grace_and_not_before() {
    let fixture = Fixture::new();
    fixture
        .executor
        .start(&with_out(&fixture, script(1, DEAF)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    let begin = Instant::now();
    let grace = Duration::from_millis(700);
    fixture.executor.cancel(id(1), grace).await.unwrap();
    let exit = fixture.exit(id(1)).await;
    assert!(begin.elapsed() >= grace);
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    assert!(exit.message.contains("grace") && !exit.out_of_memory, "{exit:?}");
    assert_eq!(fs::read_to_string(fixture.file("out.interrupts")).unwrap(), "x\n");
}

#[tokio::test]
async fn a_shorter_grace_shortens_and_a_longer_one_does_not_lengthen() {
    let fixture = Fixture::new();
    fixture
        .executor
        .start(&with_out(&fixture, script(1, DEAF)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    for grace in [LONG, Duration::from_millis(100), LONG] {
        fixture.executor.cancel(id(1), grace).await.unwrap();
    }
    assert_eq!(fixture.exit(id(1)).await.signal, Some(9));
    // One interrupt, however often it is asked: a second one means something else to most programs.
    assert_eq!(fs::read_to_string(fixture.file("out.interrupts")).unwrap(), "x\n");
}

#[tokio::test]
async fn the_grace_is_kept_after_the_caller_was_killed() {
    let fixture = Fixture::new();
    let out = fixture.file("out");
    let mut starter = Starter::new(&fixture, 1, 1, &DEAF.replace("$OUT", out.to_str().unwrap()));
    starter.wait_until_started(1);
    let main = fixture.pid_in("out").await;
    starter.kill_9();
    assert!(lives(main));
    let begin = Instant::now();
    // The caller is a whole process that is gone before the grace is.
    let control = fixture.directory(id(1)).join("control");
    let cancelled = Command::new("sh")
        .args(["-c", "echo 'cancel 0.400' >\"$0\""])
        .arg(control)
        .status();
    assert!(cancelled.unwrap().success());
    eventually("it is killed", || async { (!lives(main)).then_some(()) }).await;
    assert!(begin.elapsed() >= Duration::from_millis(400));
    assert_eq!(fixture.exit(id(1)).await.signal, Some(9));
}

#[tokio::test]
async fn a_lifetime_ends_it_without_any_caller() {
    let fixture = Fixture::new();
    let mut spec = script(1, "trap '' INT TERM; exec sleep 600");
    spec.limits.lifetime = Some(Duration::from_millis(300));
    fixture.executor.start(&spec).await.unwrap();
    let exit = fixture.exit(id(1)).await;
    assert_eq!(exit.signal, Some(9));
    assert!(exit.message.contains("lifetime"), "{exit:?}");
}

#[tokio::test]
async fn a_server_that_ignores_interrupts_does_not_pass_that_on() {
    let fixture = Fixture::new();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' INT HUP TERM QUIT; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap());
    let mut starter = Starter::by(command, &fixture, 1, 1, "exec sleep 600");
    starter.wait_until_started(1);
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(2));
}
