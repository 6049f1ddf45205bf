//! Whatever happened to a backup is found by looking at it, with the name of what is amiss, and before a restore has
//! touched anything.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::stage::{Base, SECRET, Stage, new_key, refused, said};

type Damage = fn(&Path);

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

fn cut(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
}

fn lose(file: &Path) {
    std::fs::remove_file(file).unwrap();
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn every_damage_is_found_and_names_its_file() {
    let mut stage = Stage::new(Base::Embedded).await;
    let run = stage.run_quick().await;
    stage.flush(run).await;
    let whole = stage.home.path().join("whole");
    stage.backup(&whole.display().to_string());
    stage.installation.stop().await;

    // What is written is for its user alone, and has no secret.
    assert_eq!(std::fs::metadata(&whole).unwrap().permissions().mode() & 0o777, 0o700);
    let made = files(&whole);
    for file in &made {
        let mode = std::fs::metadata(file).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
        let bytes = std::fs::read(file).unwrap();
        let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!found, "{}", file.display());
    }
    let object = made.iter().find(|file| file.ends_with("run_results.json")).unwrap();
    let object = object.strip_prefix(&whole).unwrap().display().to_string();
    let log = made
        .iter()
        .find(|file| file.display().to_string().ends_with(".log.zst"))
        .unwrap();
    let log = log.strip_prefix(&whole).unwrap().display().to_string();

    let damaged = stage.home.path().join("damaged");
    let newer: (&str, Damage) = ("newer than this one", |file| {
        replace(file, "\"schema\": ", "\"schema\": 9")
    });
    let cases: Vec<(&str, Damage, String)> = vec![
        ("database.db", flip, "database.db is damaged".to_owned()),
        ("database.db", cut, "database.db is damaged: ".to_owned()),
        ("database.db", lose, "database.db is missing".to_owned()),
        ("objects.jsonl", flip, "objects.jsonl is damaged".to_owned()),
        ("objects.jsonl", cut, "objects.jsonl is damaged".to_owned()),
        ("objects.jsonl", lose, "objects.jsonl is missing".to_owned()),
        (&object, flip, format!("{object} is damaged")),
        (&object, cut, format!("{object} is damaged")),
        (&object, lose, format!("{object} is missing")),
        (&log, flip, format!("{log} is damaged")),
        (&log, lose, format!("{log} is missing")),
        ("manifest.json", flip, "manifest.json is damaged".to_owned()),
        ("manifest.json", cut_more, "manifest.json is damaged".to_owned()),
        ("manifest.json", lose, "manifest.json is missing".to_owned()),
        ("manifest.json", newer.1, newer.0.to_owned()),
    ];
    for (file, damage, expected) in cases {
        copy(&whole, &damaged);
        damage(&damaged.join(file));
        let from = damaged.display().to_string();
        let told = refused(&stage.verify(&from));
        assert!(told.contains(&expected), "{file}: {told}");
        assert_eq!(told.matches(&expected).count(), 1, "{file}: {told}");
    }
    // All of it is told at once.
    copy(&whole, &damaged);
    flip(&damaged.join("database.db"));
    lose(&damaged.join(&object));
    let told = refused(&stage.verify(&damaged.display().to_string()));
    assert!(
        told.contains("database.db is damaged") && told.contains(&format!("{object} is missing")),
        "{told}"
    );

    // A key file that is another's, and none.
    let other = stage.home.path().join("other");
    new_key(&other);
    let from = whole.display().to_string();
    for (key, expected) in [
        (other.display().to_string(), "it lacks keys "),
        ("/nowhere/key".to_owned(), "/nowhere/key: "),
    ] {
        let data = stage.home.path().join("data").display().to_string();
        let arguments = ["--from", &from, "--key-file", &key, "--data-dir", &data];
        for more in [&["--verify"][..], &[]] {
            let output = crate::stage::dbtcloud("restore", &[&arguments[..], more].concat());
            let told = refused(&output);
            assert!(told.contains(expected), "{told}");
        }
        assert!(!Path::new(&data).exists(), "nothing is touched");
    }
    said(&stage.verify(&from));
    assert_eq!(files(&whole), made, "nothing is left");
}

fn cut_more(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    for file in files(from) {
        let there = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(there.parent().unwrap()).unwrap();
        std::fs::copy(&file, there).unwrap();
    }
}
