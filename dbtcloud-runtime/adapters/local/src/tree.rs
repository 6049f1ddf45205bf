//! Removing directories of which somebody else decided the content.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What directories on their way out are called; never the name of an execution or a volume.
pub(crate) const TRASH_PREFIX: &str = ".removed-";

/// How often removal begins again when somebody still writes into the tree.
const ATTEMPTS: u32 = 5;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Takes `path` away under its name at once, then deletes what was in it. `Ok` when it is not there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    loop {
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{TRASH_PREFIX}{}-{}-{serial}",
            name.to_string_lossy(),
            std::process::id()
        );
        let trash = parent.join(name);
        match fs::rename(path, &trash) {
            Ok(()) => return delete(&trash),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => return Ok(()),
                // Left by a process of the same number that died, or that of another container.
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {}
                _ => return Err(error),
            },
        }
    }
}

/// Deletes what a process that died left on its way out.
pub(crate) fn empty_trash(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TRASH_PREFIX) {
            delete(&entry.path())?;
        }
    }
    Ok(())
}

fn delete(path: &Path) -> io::Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound if !path.exists() => return Ok(()),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty => last = Some(error),
                io::ErrorKind::PermissionDenied => {
                    open_up(path);
                    last = Some(error);
                }
                _ => return Err(error),
            },
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from(io::ErrorKind::Other)))
}

/// Makes every directory below writable to us; what cannot be is told by the next removal.
fn open_up(path: &Path) {
    let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_read_only_directories_and_is_content_when_there_is_nothing() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), b"x").unwrap();
        fs::set_permissions(tree.join("a/b"), Permissions::from_mode(0o500)).unwrap();
        remove(&tree).unwrap();
        remove(&tree).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn empties_only_the_trash() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(".removed-run-1-1-5/work")).unwrap();
        fs::create_dir_all(root.path().join("run-1-1")).unwrap();
        empty_trash(root.path()).unwrap();
        let left: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["run-1-1"]);
    }
}
