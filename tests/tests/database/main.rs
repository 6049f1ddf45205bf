//! The real binary and its database: how it gets in, what it shows of itself there, and what becomes of it when the
//! database restarts or is of another version.

mod restart;
mod tls;
mod upgrade;

use std::path::Path;
use std::process::Command;

use dbtcloud_tests::installation::{binary, key_file};

/// What `dbtcloud migrate` says to a URL, and whether it went well.
fn migrate(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let key = folder.join("key");
    let key = match key.exists() {
        true => key.display().to_string(),
        false => key_file(folder),
    };
    let output = Command::new(binary())
        .args(["migrate", "--key-file", &key, "--data-dir"])
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.success(), said.concat())
}
