//! What [`Volume`] means. What an execution sees of a volume is told by the tests of its executor.
#![expect(
    clippy::disallowed_methods,
    reason = "a volume is a directory: a suite must write into it"
)]

use std::sync::Arc;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{AccountId, ProjectId, UserId};
use dbtcloud_core::ports::{Volume, VolumeId};

use super::samples::{kind, together};

cases! { $ volume_cases, volume, Arc<dyn Volume>:
    what_was_ensured_is_there,
    what_was_not_ensured_is_not_found,
    ensuring_again_changes_nothing_in_it,
    volumes_are_apart,
    mounts_are_apart,
    removing_destroys_all_in_it,
    removing_what_is_not_there_is_fine,
    the_list_has_all_that_exist,
    many_ensure_one_volume,
}

type Volumes = Arc<dyn Volume>;

const fn id(account: i64, project: i64, user: i64) -> VolumeId {
    VolumeId {
        account: AccountId::new(account),
        project: ProjectId::new(project),
        user: UserId::new(user),
    }
}

async fn listed(volumes: &Volumes) -> Vec<String> {
    let mut names: Vec<_> = volumes.list().await.unwrap().iter().map(ToString::to_string).collect();
    names.sort();
    names
}

async fn what_was_ensured_is_there(volumes: Volumes) {
    volumes.ensure(id(1, 2, 3)).await.unwrap();
    let path = volumes.path(id(1, 2, 3)).await.unwrap();
    assert!(path.is_absolute() && path.is_dir(), "{}", path.display());
    std::fs::create_dir_all(path.join("models/ünï")).unwrap();
    std::fs::write(path.join("models/ünï/a.sql"), "select 1").unwrap();
    let again = volumes.path(id(1, 2, 3)).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(again.join("models/ünï/a.sql")).unwrap(),
        "select 1"
    );
}

async fn what_was_not_ensured_is_not_found(volumes: Volumes) {
    assert_eq!(kind(volumes.path(id(1, 2, 3)).await), ErrorKind::NotFound);
    assert_eq!(kind(volumes.mount(id(1, 2, 3)).await), ErrorKind::NotFound);
    assert_eq!(listed(&volumes).await, [""; 0], "asking makes nothing");
}

async fn ensuring_again_changes_nothing_in_it(volumes: Volumes) {
    volumes.ensure(id(1, 2, 3)).await.unwrap();
    let path = volumes.path(id(1, 2, 3)).await.unwrap();
    std::fs::write(path.join("kept"), "content").unwrap();
    let mount = volumes.mount(id(1, 2, 3)).await.unwrap();
    volumes.ensure(id(1, 2, 3)).await.unwrap();
    assert_eq!(volumes.path(id(1, 2, 3)).await.unwrap(), path);
    assert_eq!(volumes.mount(id(1, 2, 3)).await.unwrap(), mount);
    assert_eq!(std::fs::read_to_string(path.join("kept")).unwrap(), "content");
}

/// Volumes whose names share their beginnings.
const ALIKE: [VolumeId; 5] = [id(1, 2, 3), id(1, 2, 33), id(11, 2, 3), id(1, 22, 3), id(12, 3, 1)];

async fn volumes_are_apart(volumes: Volumes) {
    for id in ALIKE {
        volumes.ensure(id).await.unwrap();
        std::fs::write(volumes.path(id).await.unwrap().join("name"), id.to_string()).unwrap();
    }
    for id in ALIKE {
        let path = volumes.path(id).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("name")).unwrap(), id.to_string());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
    }
    volumes.remove(ALIKE[0]).await.unwrap();
    for id in &ALIKE[1..] {
        assert!(volumes.path(*id).await.unwrap().join("name").exists(), "{id}");
    }
}

async fn mounts_are_apart(volumes: Volumes) {
    let mut sources = Vec::new();
    for id in ALIKE {
        volumes.ensure(id).await.unwrap();
        sources.push(volumes.mount(id).await.unwrap().source);
    }
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), ALIKE.len());
}

async fn removing_destroys_all_in_it(volumes: Volumes) {
    volumes.ensure(id(1, 2, 3)).await.unwrap();
    let path = volumes.path(id(1, 2, 3)).await.unwrap();
    std::fs::create_dir_all(path.join("a/b/c")).unwrap();
    std::fs::write(path.join("a/b/c/d"), "secret").unwrap();
    volumes.remove(id(1, 2, 3)).await.unwrap();
    assert!(!path.join("a").exists());
    assert_eq!(kind(volumes.path(id(1, 2, 3)).await), ErrorKind::NotFound);
    assert_eq!(listed(&volumes).await, [""; 0]);
    volumes.ensure(id(1, 2, 3)).await.unwrap();
    let path = volumes.path(id(1, 2, 3)).await.unwrap();
    assert_eq!(
        std::fs::read_dir(path).unwrap().count(),
        0,
        "the new one has nothing of the old one"
    );
}

async fn removing_what_is_not_there_is_fine(volumes: Volumes) {
    volumes.remove(id(1, 2, 3)).await.unwrap();
    volumes.ensure(id(1, 2, 3)).await.unwrap();
    volumes.remove(id(1, 2, 3)).await.unwrap();
    volumes.remove(id(1, 2, 3)).await.unwrap();
}

async fn the_list_has_all_that_exist(volumes: Volumes) {
    let mut expected: Vec<_> = ALIKE.iter().map(ToString::to_string).collect();
    for id in ALIKE {
        volumes.ensure(id).await.unwrap();
        volumes.ensure(id).await.unwrap();
    }
    expected.sort();
    assert_eq!(listed(&volumes).await, expected);
}

async fn many_ensure_one_volume(volumes: Volumes) {
    let paths = together(8, |writer| {
        let volumes = volumes.clone();
        async move {
            volumes.ensure(id(1, 2, 3)).await.unwrap();
            let path = volumes.path(id(1, 2, 3)).await.unwrap();
            std::fs::write(path.join(writer.to_string()), "x").unwrap();
            path
        }
    });
    let paths = paths.await;
    assert_eq!(
        std::fs::read_dir(&paths[0]).unwrap().count(),
        8,
        "nobody's ensure undid another's"
    );
    assert_eq!(listed(&volumes).await.len(), 1);
}
