//! Volumes as directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use dbtcloud_core::ErrorKind;
use dbtcloud_core::id::{AccountId, ProjectId, UserId};
use dbtcloud_core::ports::{Volume, VolumeId};
use dbtcloud_local::DirectoryVolume;

dbtcloud_contract::volume_suite!(directories, || async {
    let root = tempfile::tempdir().unwrap();
    let volume = DirectoryVolume::new(root.path()).unwrap();
    dbtcloud_contract::suite::Subject::volume(volume).keeping(root)
});

fn id(account: i64, project: i64, user: i64) -> VolumeId {
    VolumeId {
        account: AccountId::new(account),
        project: ProjectId::new(project),
        user: UserId::new(user),
    }
}

#[tokio::test]
async fn ensure_path_mount_list_remove() {
    let root = tempfile::tempdir().unwrap();
    let volume = DirectoryVolume::new(root.path().join("volumes")).unwrap();
    let one = id(1, 2, 3);
    assert_eq!(volume.path(one).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(volume.mount(one).await.unwrap_err().kind(), ErrorKind::NotFound);
    volume.remove(one).await.unwrap();
    assert!(volume.list().await.unwrap().is_empty());

    volume.ensure(one).await.unwrap();
    let path = volume.path(one).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    fs::write(path.join("model.sql"), "select 1").unwrap();
    volume.ensure(one).await.unwrap();
    assert_eq!(fs::read(path.join("model.sql")).unwrap(), b"select 1");
    let mount = volume.mount(one).await.unwrap();
    assert_eq!((mount.source.as_str(), &mount.target), (path.to_str().unwrap(), &path));

    // Another instance sees the same; what is not a volume is none.
    volume.ensure(id(1, 2, 30)).await.unwrap();
    fs::create_dir(root.path().join("volumes/lost+found")).unwrap();
    fs::write(root.path().join("volumes/develop-9-9-9"), "").unwrap();
    let other = DirectoryVolume::new(root.path().join("volumes")).unwrap();
    assert_eq!(other.list().await.unwrap(), [id(1, 2, 3), id(1, 2, 30)]);

    other.remove(one).await.unwrap();
    volume.remove(one).await.unwrap();
    assert!(!path.exists());
    assert_eq!(volume.list().await.unwrap(), [id(1, 2, 30)]);
}

#[tokio::test]
async fn removes_what_a_checkout_may_leave() {
    let root = tempfile::tempdir().unwrap();
    let volume = DirectoryVolume::new(root.path()).unwrap();
    let outside = root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    volume.ensure(id(1, 1, 1)).await.unwrap();
    let path = volume.path(id(1, 1, 1)).await.unwrap();
    fs::create_dir_all(path.join("a/b")).unwrap();
    std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
    fs::set_permissions(path.join("a"), fs::Permissions::from_mode(0o500)).unwrap();
    volume.remove(id(1, 1, 1)).await.unwrap();
    assert!(!path.exists());
    assert!(outside.join("kept").exists());
}

#[tokio::test]
async fn a_removal_that_died_is_finished_by_the_next_one_to_open() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join(".removed-develop-1-1-1-5-5-5/a")).unwrap();
    let volume = DirectoryVolume::new(root.path()).unwrap();
    assert!(volume.list().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensures_and_removals_at_once() {
    let root = tempfile::tempdir().unwrap();
    let volume = DirectoryVolume::new(root.path()).unwrap();
    for _ in 0..50 {
        let calls: Vec<_> = (0..8)
            .map(|n| {
                let volume = volume.clone();
                tokio::spawn(async move {
                    if n % 2 == 0 {
                        volume.ensure(id(1, 1, 1)).await
                    } else {
                        volume.remove(id(1, 1, 1)).await
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    }
    volume.ensure(id(1, 1, 1)).await.unwrap();
    assert_eq!(volume.list().await.unwrap(), [id(1, 1, 1)]);
}

#[tokio::test]
async fn an_unusable_root_is_unavailable_and_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = DirectoryVolume::new(file.path().join("volumes")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("volumes"), "{error}");
}
