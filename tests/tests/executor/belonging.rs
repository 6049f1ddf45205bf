//! Everything it starts belongs to it and ends with it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use dbtcloud_core::ports::{Executor, Observation};

use crate::support::{Fixture, LONG, POLITE, environment_of, id, kill, lives, pids, script, supervisor_of, with_out};
/// A grandchild in a session of its own whose parent has gone, with an empty environment.
const ESCAPE: &str = "setsid env -i sh -c 'sleep 600 & echo $! >\"$0\"' \"$OUT\" &";

#[tokio::test]
async fn what_daemonizes_ends_with_it() {
    let fixture = Fixture::new();
    for (run, rest) in [
        (1, "while [ ! -s \"$OUT\" ]; do sleep 0.01; done; exit 5"),
        (2, "exec sleep 600"),
    ] {
        let _ = fs::remove_file(fixture.file("out"));
        fixture
            .executor
            .start(&with_out(&fixture, script(run, &format!("{ESCAPE} {rest}"))))
            .await
            .unwrap();
        let escaped = fixture.pid_in("out").await;
        if run == 2 {
            assert!(lives(escaped));
            fixture.executor.cancel(id(run), Duration::ZERO).await.unwrap();
        }
        let exit = fixture.exit(id(run)).await;
        assert_eq!(exit.code, (run == 1).then_some(5), "{exit:?}");
        assert!(!lives(escaped), "told as ended while something of it lives");
    }
}

#[tokio::test]
async fn what_is_detached_stays() {
    let fixture = Fixture::new();
    let text = "DBTCLOUD_DETACHED=1 setsid sh -c 'echo $$ >\"$OUT\"; exec sleep 600' & \
        while [ ! -s \"$OUT\" ]; do sleep 0.01; done; sleep 600 & exit 0";
    fixture
        .executor
        .start(&with_out(&fixture, script(1, text)))
        .await
        .unwrap();
    let daemon = fixture.pid_in("out").await;
    assert_eq!(fixture.exit(id(1)).await.code, Some(0));
    fixture.executor.remove(id(1)).await.unwrap();
    assert!(lives(daemon));
    let left = pids().into_iter().filter(|pid| {
        environment_of(*pid)
            .iter()
            .any(|line| line.starts_with("DBTCLOUD_EXECUTION=") && line.contains(fixture.root.path().to_str().unwrap()))
    });
    assert_eq!(left.collect::<Vec<_>>(), [daemon]);
}

#[tokio::test]
async fn remove_ends_first() {
    let fixture = Fixture::new();
    let text = format!("{ESCAPE} trap '' INT TERM; sleep 600 & wait");
    fixture
        .executor
        .start(&with_out(&fixture, script(1, &text)))
        .await
        .unwrap();
    let escaped = fixture.pid_in("out").await;
    fixture.executor.remove(id(1)).await.unwrap();
    assert!(!lives(escaped));
    assert!(!fixture.directory(id(1)).exists());
    // The name is free again.
    fixture.executor.start(&script(1, "exit 1")).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.code, Some(1));
}

#[tokio::test]
async fn a_killed_supervisor_takes_everything_with_it_and_is_explained() {
    let fixture = Fixture::new();
    fixture
        .executor
        .start(&with_out(
            &fixture,
            script(1, "echo $$ >\"$OUT\"; setsid sleep 600 & exec sleep 600"),
        ))
        .await
        .unwrap();
    let main = fixture.pid_in("out").await;
    kill(supervisor_of(&fixture, id(1)), "-KILL");
    let exit = fixture.exit(id(1)).await;
    assert_eq!((exit.code, exit.signal), (None, None));
    assert!(exit.message.contains("supervisor"), "{exit:?}");
    assert!(!lives(main));
    // Told the same way again, and never started twice.
    fixture.executor.start(&script(1, "exit 0")).await.unwrap();
    assert_eq!(
        fixture.executor.observe(id(1)).await.unwrap(),
        Observation::Exited(exit)
    );
    fixture.executor.remove(id(1)).await.unwrap();
}

#[tokio::test]
async fn signals_to_a_group_do_not_reach_the_supervisor() {
    let fixture = Fixture::new();
    fixture.executor.start(&script(1, "kill -KILL 0")).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(9));
    fixture
        .executor
        .start(&with_out(&fixture, script(2, POLITE)))
        .await
        .unwrap();
    fixture.pid_in("out").await;
    let supervisor = supervisor_of(&fixture, id(2));
    for signal in ["-INT", "-TERM", "-HUP", "-QUIT"] {
        assert!(
            Command::new("kill")
                .args([signal, "--", &format!("-{supervisor}")])
                .status()
                .unwrap()
                .success()
        );
    }
    fixture.executor.cancel(id(2), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(2)).await.code, Some(42));
}
