//! A small file system of one test's own, to be filled up or made read-only. Mounting needs root.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its name says what it is for.
const BALLAST: &str = "ballast";

/// In memory; gone with the value.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it.
    ///
    /// # Panics
    /// Without the right to.
    pub fn mount(path: &Path, megabytes: u32) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path);
        assert!(
            mount.status().unwrap().success(),
            "this test mounts a small file system: run it as root"
        );
        Self(path.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves no room on it.
    ///
    /// # Panics
    /// When the ballast cannot be made.
    pub fn fill(&self) {
        let mut ballast = File::create(self.0.join(BALLAST)).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn free(&self) {
        std::fs::remove_file(self.0.join(BALLAST)).unwrap();
    }

    /// Refuses every change from now on.
    ///
    /// # Panics
    /// While a file is open for writing.
    pub fn read_only(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,ro"]).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
