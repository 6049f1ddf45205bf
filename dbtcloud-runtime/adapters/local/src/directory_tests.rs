use super::*;

fn directory() -> (tempfile::TempDir, ExecutionDirectory) {
    let root = tempfile::tempdir().unwrap();
    let directory = ExecutionDirectory::new(root.path().join("run-1-1"));
    (root, directory)
}

#[test]
fn every_row_of_the_table() {
    let (_root, directory) = directory();
    assert_eq!(directory.state().unwrap(), State::Absent);
    let file = directory.make().unwrap().unwrap();
    assert_eq!(directory.state().unwrap(), State::Absent);
    assert!(directory.take(&file).unwrap());
    assert_eq!(directory.state().unwrap(), State::Starting);
    drop(directory.prepare().unwrap());
    assert_eq!(directory.state().unwrap(), State::Starting);
    File::create(directory.path().join("started")).unwrap();
    assert_eq!(directory.state().unwrap(), State::Running);
    drop(file);
    assert_eq!(directory.state().unwrap(), State::Lost);
    assert!(directory.settle().unwrap());
    assert!(!directory.settle().unwrap());
    let State::Ended(ending) = directory.state().unwrap() else {
        panic!("expected an end")
    };
    let exit = directory.exit(&ending).unwrap();
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (None, None, false));
    assert!(exit.message.contains("supervisor"), "{}", exit.message);
}

#[test]
fn a_lock_excludes_and_follows_its_copies() {
    let (_root, directory) = directory();
    let first = directory.make().unwrap().unwrap();
    let second = directory.open().unwrap().unwrap();
    assert!(directory.take(&first).unwrap());
    assert!(!directory.take(&second).unwrap());
    let copy = first.try_clone().unwrap();
    drop(first);
    assert!(!directory.take(&second).unwrap());
    drop(copy);
    assert!(directory.take(&second).unwrap());
}

#[test]
fn the_lock_of_a_removed_directory_is_worth_nothing() {
    let (_root, directory) = directory();
    let old = directory.make().unwrap().unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    assert!(!directory.take(&old).unwrap());
    let _new = directory.make().unwrap().unwrap();
    assert!(!directory.take(&old).unwrap());
}

#[test]
fn endings_are_read_as_the_supervisor_writes_them() {
    let at = Timestamp::from_micros(5);
    let ending = Ending::parse("exit.137.signal.cancel", at).unwrap();
    assert_eq!(
        (ending.status, ending.how.as_str(), ending.why.as_str()),
        (137, "signal", "cancel")
    );
    for bad in ["exit.", "exit.x.code.none", "exit.1.code", "exit.1.code.none.more"] {
        assert_eq!(Ending::parse(bad, at), None, "{bad}");
    }
}

#[test]
fn output_is_held_to_its_limit_and_its_end_is_told() {
    let (_root, directory) = directory();
    let file = directory.make().unwrap().unwrap();
    assert!(directory.take(&file).unwrap());
    drop(directory.prepare().unwrap());
    let path = directory.path().join("output.log");
    let lines: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
    assert!(lines.len() as u64 > OUTPUT_LIMIT_BYTES);
    fs::write(&path, &lines).unwrap();
    directory.bound_output().unwrap();
    let kept = fs::read_to_string(&path).unwrap();
    assert!(kept.len() < 2 * usize::try_from(TAIL_LIMIT_BYTES).unwrap());
    assert!(kept.starts_with("[cut") && kept.ends_with("line 199999\n"));
    let ending = Ending::parse("exit.1.code.none", Timestamp::EPOCH).unwrap();
    assert!(directory.exit(&ending).unwrap().message.ends_with("line 199999"));
    assert!(
        !directory
            .exit(&Ending::parse("exit.0.code.none", Timestamp::EPOCH).unwrap())
            .unwrap()
            .message
            .contains("line")
    );
}

#[test]
fn nobody_listens_before_a_start_and_an_address_is_read_when_there_is_one() {
    let (_root, directory) = directory();
    assert!(!directory.tell("cancel 1").unwrap());
    let _file = directory.make().unwrap().unwrap();
    drop(directory.prepare().unwrap());
    assert!(!directory.tell("cancel 1").unwrap());
    assert_eq!(directory.address().unwrap(), None);
    fs::write(directory.address_file(), "http://127.0.0.1:1\n").unwrap();
    assert_eq!(directory.address().unwrap().as_deref(), Some("http://127.0.0.1:1"));
}
