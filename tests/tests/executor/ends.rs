//! How it ended, what it was given, and what cannot be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dbtcloud_core::ErrorKind;
use dbtcloud_core::ports::{Executor, Observation, Workload};
use dbtcloud_core::secret::Secret;
use dbtcloud_local::LocalExecutor;

use crate::support::{DEAF, Fixture, LONG, argv_of, environment_of, eventually, id, lives, pids, script, with_out};
#[tokio::test]
async fn tells_codes_and_signals_apart() {
    let fixture = Fixture::new();
    for (run, (text, code, signal)) in [
        ("exit 0", Some(0), None),
        ("echo what went wrong >&2; exit 3", Some(3), None),
        ("exit 137", Some(137), None),
        ("exit 200", Some(200), None),
        ("kill -KILL $$", None, Some(9)),
        ("kill -TERM $$", None, Some(15)),
        ("kill -INT $$", None, Some(2)),
        ("kill -SEGV $$", None, Some(11)),
    ]
    .into_iter()
    .enumerate()
    {
        if text == "exit 137" && fs::canonicalize("/bin/sh").unwrap().ends_with("bash") {
            continue; // Bash does not tell.
        }
        let run = i64::try_from(run).unwrap();
        fixture.executor.start(&script(run, text)).await.unwrap();
        let exit = fixture.exit(id(run)).await;
        assert_eq!(
            (exit.code, exit.signal, exit.out_of_memory),
            (code, signal, false),
            "{text}: {exit:?}"
        );
        assert_eq!(exit.message.contains("what went wrong"), code == Some(3), "{exit:?}");
        // Told until it is removed, also to another instance; a second start changes nothing.
        fixture.executor.start(&script(run, "exit 9")).await.unwrap();
        let other = LocalExecutor::new(fixture.file("executions")).unwrap();
        assert_eq!(other.observe(id(run)).await.unwrap(), Observation::Exited(exit.clone()));
        assert!(exit.at >= other.list().await.unwrap().last().unwrap().started_at);
        fixture.executor.remove(id(run)).await.unwrap();
        assert_eq!(fixture.executor.observe(id(run)).await.unwrap(), Observation::Absent);
        fixture.executor.remove(id(run)).await.unwrap();
    }
    assert!(fixture.executor.list().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(fixture.file("executions")).unwrap().count(), 0);
}

#[tokio::test]
async fn environment_is_the_specs_and_the_ticket_is_nowhere_else() {
    let fixture = Fixture::new();
    // Not that of this case in another process.
    let ticket = format!("ticket-{}", fixture.root.path().file_name().unwrap().to_str().unwrap());
    let ticket = ticket.as_str();
    let mut spec = script(1, "env -0 >\"$OUT\"; echo $$ >\"$PID\"; exec sleep 600");
    spec.environment
        .insert("OUT".into(), fixture.file("env").to_str().unwrap().into());
    spec.environment
        .insert("PID".into(), fixture.file("pid").to_str().unwrap().into());
    spec.environment
        .insert("ODD".into(), "a 'b' \"c\" $(d) `e` \\ é\nf=g\n".into());
    spec.environment.insert("environment".into(), "x".into());
    spec.environment.insert("setsid".into(), "y".into());
    spec.ticket = Some(Secret::new(ticket));
    // Not by sh, which adds PWD of its own.
    spec.command = vec![
        "env".into(),
        "-u".into(),
        "NOTHING".into(),
        "sh".into(),
        "-c".into(),
        spec.command[2].clone(),
    ];
    fixture.executor.start(&spec).await.unwrap();
    let main = fixture.pid_in("pid").await;
    let mut expected = spec.environment.clone();
    expected.insert("DBTCLOUD_TICKET".into(), ticket.into());
    expected.insert(
        "DBTCLOUD_EXECUTION".into(),
        fixture.directory(id(1)).to_str().unwrap().into(),
    );
    let text = fs::read_to_string(fixture.file("env")).unwrap();
    let mut seen: BTreeMap<String, String> = text
        .split_terminator('\0')
        .map(|line| {
            line.split_once('=')
                .map(|(name, value)| (name.into(), value.into()))
                .unwrap()
        })
        .collect();
    seen.remove("PWD");
    assert_eq!(seen, expected);

    for pid in pids() {
        assert!(!argv_of(pid).contains(ticket), "argv of {pid}");
        assert!(
            pid == main || !environment_of(pid).iter().any(|line| line.contains(ticket)),
            "environment of {pid}"
        );
    }
    for entry in fs::read_dir(fixture.directory(id(1))).unwrap() {
        let path = entry.unwrap().path();
        let regular = path.metadata().unwrap().is_file();
        assert!(
            !regular || !String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(ticket),
            "{path:?}"
        );
    }
    assert_eq!(
        fs::metadata(fixture.directory(id(1))).unwrap().permissions().mode() & 0o077,
        0
    );
    eventually("it holds nothing open but the three", || async {
        (fs::read_dir(format!("/proc/{main}/fd")).unwrap().count() == 3).then_some(())
    })
    .await;
    fixture.executor.remove(id(1)).await.unwrap();
    assert!(!lives(main));
}

#[tokio::test]
async fn a_service_tells_its_address() {
    let fixture = Fixture::new();
    let mut spec = script(
        1,
        "read x <\"$GO\"; echo http://127.0.0.1:4711 >\"$DBTCLOUD_ADDRESS_FILE\"; exec sleep 600",
    );
    spec.workload = Workload::Service;
    spec.environment
        .insert("GO".into(), fixture.file("go").to_str().unwrap().into());
    assert!(
        Command::new("mkfifo")
            .arg(fixture.file("go"))
            .status()
            .unwrap()
            .success()
    );
    fixture.executor.start(&spec).await.unwrap();
    assert_eq!(
        fixture.executor.observe(id(1)).await.unwrap(),
        Observation::Running { address: None }
    );
    fs::write(fixture.file("go"), "\n").unwrap();
    let address = eventually("it answers", || async {
        match fixture.executor.observe(id(1)).await.unwrap() {
            Observation::Running { address } => address,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(address.await, "http://127.0.0.1:4711");
    fixture.executor.cancel(id(1), LONG).await.unwrap();
    assert_eq!(fixture.exit(id(1)).await.signal, Some(2));
}

#[tokio::test]
async fn errors_name_the_thing() {
    let fixture = Fixture::new();
    let mut spec = script(1, "");
    spec.command = vec!["no-such-program".into()];
    let error = fixture.executor.start(&spec).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some("command")));
    assert_eq!(fixture.executor.observe(id(1)).await.unwrap(), Observation::Absent);

    fs::write(fixture.file("file"), "").unwrap();
    let error = LocalExecutor::new(fixture.file("file")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("/file"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_then_works_again() {
    let fixture = Fixture::new();
    let Some(small) = SmallDisk::new(&fixture.file("small")) else {
        return;
    };
    let executor = LocalExecutor::new(small.0.join("executions")).unwrap();
    let deaf = with_out(&fixture, script(1, DEAF));
    executor.start(&deaf).await.unwrap();
    fixture.pid_in("out").await;
    let mut fillers = 0;
    for content in [&[0; 4096][..], &[]] {
        while fs::write(small.0.join(format!("filler{fillers}")), content).is_ok() {
            fillers += 1;
        }
    }
    let error = executor.start(&script(2, "exit 0")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("No space left") && error.to_string().contains("run-2-1"),
        "{error}"
    );
    // What runs there already can end.
    executor.cancel(id(1), Duration::from_millis(50)).await.unwrap();
    eventually("it ends", || async {
        matches!(executor.observe(id(1)).await.unwrap(), Observation::Exited(_)).then_some(())
    })
    .await;
    (0..fillers).for_each(|n| fs::remove_file(small.0.join(format!("filler{n}"))).unwrap());
    executor.start(&script(2, "exit 0")).await.unwrap();
    executor.remove(id(1)).await.unwrap();
    executor.remove(id(2)).await.unwrap();
}

/// A file system of its own that is soon full; only root can have one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k,nr_inodes=64", "none"])
            .arg(path)
            .output();
        mount
            .is_ok_and(|done| done.status.success())
            .then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
