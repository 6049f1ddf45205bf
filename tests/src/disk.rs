//! A file system that is soon full.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own; gone with the value.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it.
    ///
    /// # Panics
    /// When this is not root.
    pub fn mount(path: &Path, megabytes: u32) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status();
        assert!(
            status.unwrap().success(),
            "this test mounts a small file system: run it as root"
        );
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
