//! Starting, and dying while starting.

use std::fs;
use std::time::{Duration, Instant};

use dbtcloud_core::ports::{Executor, Observation};

use crate::support::{Fixture, LONG, Starter, environment_of, eventually, id, pids, script, supervisor_of};
#[tokio::test]
async fn outlives_the_process_that_started_it() {
    let fixture = Fixture::new();
    let mut starter = Starter::new(&fixture, 1, 2, "[ \"$RUN\" = 2 ] || exec sleep 600; exit 7");
    starter.wait_until_started(2);
    starter.kill_9();
    assert_eq!(fixture.exit(id(2)).await.code, Some(7));
    assert_eq!(
        fixture.executor.observe(id(1)).await.unwrap(),
        Observation::Running { address: None }
    );
    let listed: Vec<_> = fixture
        .executor
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(listed, [id(1), id(2)]);
    assert!(
        !environment_of(supervisor_of(&fixture, id(1)))
            .iter()
            .any(|line| line.contains("hunter2"))
    );
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(2));
}

#[tokio::test]
async fn a_starter_killed_at_any_moment_leaves_zero_or_one() {
    let fixture = Fixture::new();
    let text = format!("echo x >>{}/$RUN", fixture.root.path().display());
    let mut next = 1;
    for round in 0..12_u64 {
        let mut starter = Starter::new(&fixture, next, next + 10_000, &text);
        starter.wait_until_started(next);
        // A different moment every round, on purpose: it is the starter that is cut off, not we who wait.
        tokio::time::sleep(Duration::from_micros(round * 1_137)).await;
        starter.kill_9();
        let mut run = next;
        loop {
            let seen = fixture.executor.observe(id(run)).await.unwrap();
            let mut spec = script(run, &text);
            spec.environment.insert("RUN".into(), run.to_string());
            fixture.executor.start(&spec).await.unwrap();
            assert_eq!(fixture.exit(id(run)).await.code, Some(0));
            assert_eq!(
                fs::read_to_string(fixture.file(&run.to_string())).unwrap(),
                "x\n",
                "run {run} was {seen:?}"
            );
            run += 1;
            if seen == Observation::Absent {
                break;
            }
        }
        next = run;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_most_one_is_started_by_many() {
    let fixture = Fixture::new();
    let text = format!("echo x >>{}/$RUN", fixture.root.path().display());
    let runs = 20;
    let mut others: Vec<_> = (0..2).map(|_| Starter::new(&fixture, 1, runs, &text)).collect();
    for run in 1..=runs {
        let starts = (0..4).map(|_| {
            let (executor, mut spec) = (fixture.executor.clone(), script(run, &text));
            spec.environment.insert("RUN".into(), run.to_string());
            tokio::spawn(async move { executor.start(&spec).await.unwrap() })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap();
        }
        assert_ne!(fixture.executor.observe(id(run)).await.unwrap(), Observation::Absent);
    }
    others.iter_mut().for_each(|other| other.wait_until_started(runs));
    for run in 1..=runs {
        assert_eq!(fixture.exit(id(run)).await.code, Some(0));
        assert_eq!(
            fs::read_to_string(fixture.file(&run.to_string())).unwrap(),
            "x\n",
            "run {run}"
        );
    }
}

#[tokio::test]
async fn what_a_crash_in_the_middle_of_a_start_leaves_can_be_started_and_removed() {
    let fixture = Fixture::new();
    // The states between the steps: nothing in it; a lock; everything laid out but no supervisor.
    let states: [&[&str]; 4] = [
        &[],
        &["lock"],
        &["lock", "ending", "output.log"],
        &["lock", "ending", "work/stray", "address"],
    ];
    for (run, files) in states.into_iter().enumerate() {
        let run = i64::try_from(run).unwrap();
        let lay_out = || {
            fs::create_dir_all(fixture.directory(id(run)).join("work")).unwrap();
            for file in files {
                fs::write(fixture.directory(id(run)).join(file), "").unwrap();
            }
        };
        lay_out();
        assert_eq!(fixture.executor.observe(id(run)).await.unwrap(), Observation::Absent);
        assert!(fixture.executor.list().await.unwrap().is_empty());
        fixture.executor.cancel(id(run), Duration::ZERO).await.unwrap();
        fixture.executor.remove(id(run)).await.unwrap();
        assert!(!fixture.directory(id(run)).exists());
        lay_out();
        fixture
            .executor
            .start(&script(run, "[ ! -e stray ] && exit 6"))
            .await
            .unwrap();
        assert_eq!(fixture.exit(id(run)).await.code, Some(6));
        fixture.executor.remove(id(run)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remove_and_start_at_once_leave_one_or_none() {
    let fixture = Fixture::new();
    for round in 0..20 {
        let (one, two) = (fixture.executor.clone(), fixture.executor.clone());
        let start = tokio::spawn(async move { one.start(&script(1, "exec sleep 600")).await });
        let remove = tokio::spawn(async move { two.remove(id(1)).await });
        start.await.unwrap().unwrap();
        remove.await.unwrap().unwrap();
        let seen = fixture.executor.observe(id(1)).await.unwrap();
        let ours = format!("DBTCLOUD_EXECUTION={}", fixture.directory(id(1)).display());
        let alive = pids().iter().any(|pid| environment_of(*pid).contains(&ours));
        assert_eq!(alive, seen != Observation::Absent, "round {round}: {seen:?}");
        fixture.executor.remove(id(1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once() {
    let fixture = Fixture::new();
    let begin = Instant::now();
    let starts: Vec<_> = (1..=200)
        .map(|run| {
            let executor = fixture.executor.clone();
            tokio::spawn(async move { executor.start(&script(run, "exec sleep 600")).await })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let started = begin.elapsed();
    assert_eq!(fixture.executor.list().await.unwrap().len(), 200);
    for run in 1..=200 {
        fixture.executor.cancel(id(run), LONG).await.unwrap();
    }
    for run in 1..=200 {
        assert_eq!(fixture.exit(id(run)).await.signal, Some(2));
        fixture.executor.remove(id(run)).await.unwrap();
    }
    eprintln!(
        "200 started in {started:?}, ended and removed in {:?}",
        begin.elapsed() - started
    );
    assert!(fixture.executor.list().await.unwrap().is_empty());
    eventually("no zombies of ours", || async {
        let us = std::process::id().to_string();
        let ours = pids().into_iter().filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with("Z ") && rest.split(' ').nth(1) == Some(&us))
        });
        (ours.count() == 0).then_some(())
    })
    .await;
}
