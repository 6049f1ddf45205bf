//! Artifacts in a directory, in memory, on S3 and on Azure: what the contract asks for, and what only one of them
//! can get wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, ArtifactKey, Artifacts, ByteRange, ByteStream};
use dbtcloud_core::{Error, ErrorKind};
use dbtcloud_opendal::{OpendalArtifacts, Options};
use dbtcloud_tests::{azure, s3};
use futures::{StreamExt, TryStreamExt, stream};

const ACCOUNT: AccountId = AccountId::new(1);
const RUN: RunId = RunId::new(7);

dbtcloud_contract::artifacts_suite!(directory, || async {
    let root = tempfile::tempdir().unwrap();
    let artifacts = local(&format!("file://{}", root.path().display()));
    dbtcloud_contract::suite::Subject::artifacts(artifacts).keeping(root)
});

dbtcloud_contract::artifacts_suite!(memory, || async {
    dbtcloud_contract::suite::Subject::artifacts(local("memory://"))
});

dbtcloud_contract::artifacts_suite!(seaweedfs, || async {
    let bucket = s3::bucket();
    let artifacts = OpendalArtifacts::from_url(&bucket.url(), &bucket.options()).unwrap();
    dbtcloud_contract::suite::Subject::artifacts(artifacts)
});

dbtcloud_contract::artifacts_suite!(azurite, || async {
    let container = azure::container();
    let artifacts = OpendalArtifacts::from_url(&container.url(), &container.options()).unwrap();
    dbtcloud_contract::suite::Subject::artifacts(artifacts)
});

fn local(url: &str) -> OpendalArtifacts {
    OpendalArtifacts::from_url(url, &Options::new()).unwrap()
}

/// The store under test and, when it is one, its directory.
struct Store {
    artifacts: OpendalArtifacts,
    directory: Option<tempfile::TempDir>,
}

/// The directory is the first.
fn stores() -> Vec<Store> {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/not%20yet/there", directory.path().display());
    let (bucket, container) = (s3::bucket(), azure::container());
    let mut stores = vec![Store {
        artifacts: local(&url),
        directory: Some(directory),
    }];
    stores.extend(
        [
            local("memory://"),
            OpendalArtifacts::from_url(&bucket.url(), &bucket.options()).unwrap(),
            OpendalArtifacts::from_url(&container.url(), &container.options()).unwrap(),
        ]
        .map(|artifacts| Store {
            artifacts,
            directory: None,
        }),
    );
    stores
}

fn key(area: Area, path: &str) -> ArtifactKey {
    ArtifactKey {
        account: ACCOUNT,
        run: RUN,
        area,
        path: path.parse().unwrap(),
    }
}

fn whole(text: impl Into<Bytes>) -> ByteStream {
    let bytes = text.into();
    Box::pin(stream::iter([Ok(bytes)]))
}

async fn read(artifacts: &OpendalArtifacts, key: &ArtifactKey, start: u64, end: Option<u64>) -> Vec<u8> {
    let parts = artifacts.open(key, ByteRange { start, end }).await.unwrap();
    parts.try_collect::<Vec<Bytes>>().await.unwrap().concat()
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[tokio::test]
async fn put_open_stat_list_remove() {
    for Store { artifacts, .. } in stores() {
        let one = key(Area::Step(0), "manifest.json");
        assert_eq!(artifacts.stat(&one).await.unwrap(), None);
        assert_eq!(
            artifacts.open(&one, ByteRange::default()).await.err().unwrap().kind(),
            ErrorKind::NotFound
        );
        assert!(artifacts.list(ACCOUNT, RUN, None).await.unwrap().is_empty());
        artifacts.remove(ACCOUNT, RUN, None).await.unwrap();

        assert_eq!(artifacts.put(&one, whole("0123456789")).await.unwrap(), 10);
        assert_eq!(artifacts.stat(&one).await.unwrap().unwrap().bytes, 10);
        for (start, end, expected) in [
            (0, None, "0123456789"),
            (3, None, "3456789"),
            (3, Some(5), "34"),
            (9, Some(100), "9"),
            (0, Some(0), ""),
            (10, None, ""),
            (11, Some(12), ""),
            (5, Some(3), ""),
            (u64::MAX, None, ""),
            (0, Some(u64::MAX), "0123456789"),
        ] {
            assert_eq!(
                read(&artifacts, &one, start, end).await,
                expected.as_bytes(),
                "{start}..{end:?}"
            );
        }
        assert_eq!(artifacts.put(&one, whole("again")).await.unwrap(), 5);
        assert_eq!(read(&artifacts, &one, 0, None).await, b"again");
        assert_eq!(artifacts.put(&one, Box::pin(stream::empty())).await.unwrap(), 0);
        assert_eq!(read(&artifacts, &one, 0, None).await, b"");
        assert_eq!(artifacts.stat(&one).await.unwrap().unwrap().bytes, 0);

        // Another run whose number begins with the same digits, and another account.
        let other_run = ArtifactKey {
            run: RunId::new(77),
            ..one.clone()
        };
        let other_account = ArtifactKey {
            account: AccountId::new(11),
            ..one.clone()
        };
        artifacts.put(&other_run, whole("x")).await.unwrap();
        artifacts.put(&other_account, whole("x")).await.unwrap();
        artifacts.remove(ACCOUNT, RUN, None).await.unwrap();
        artifacts.remove(ACCOUNT, RUN, None).await.unwrap();
        assert_eq!(artifacts.stat(&one).await.unwrap(), None);
        assert!(artifacts.list(ACCOUNT, RUN, None).await.unwrap().is_empty());
        for other in [&other_run, &other_account] {
            assert_eq!(artifacts.list(other.account, other.run, None).await.unwrap().len(), 1);
        }
    }
}

#[tokio::test]
async fn lists_are_complete_and_in_order() {
    for Store { artifacts, .. } in stores() {
        let long = "x".repeat(768);
        let mut expected = Vec::new();
        for area in [Area::Step(0), Area::Step(2), Area::Step(10), Area::Logs] {
            for path in [
                "A",
                "a/b/c.sql",
                "a b/ c",
                "a%2Fb",
                "a-b",
                "a.b",
                "z/é日本",
                "log?#*:",
                long.as_str(),
            ] {
                let key = key(area, path);
                let bytes = path.len() as u64;
                artifacts.put(&key, whole(path.to_owned())).await.unwrap();
                assert_eq!(read(&artifacts, &key, 0, None).await, path.as_bytes());
                assert_eq!(artifacts.stat(&key).await.unwrap().unwrap().bytes, bytes);
                expected.push((area, path.to_owned(), bytes));
            }
        }
        for many in 0..300 {
            artifacts
                .put(&key(Area::Step(3), &format!("m/{many}")), whole("y"))
                .await
                .unwrap();
            expected.push((Area::Step(3), format!("m/{many}"), 1));
        }
        expected.sort();
        let seen = |list: Vec<dbtcloud_core::ports::ArtifactMeta>| {
            list.into_iter()
                .map(|one| (one.area, one.path.to_string(), one.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(seen(artifacts.list(ACCOUNT, RUN, None).await.unwrap()), expected);
        expected.retain(|one| one.0 == Area::Step(2));
        assert_eq!(
            seen(artifacts.list(ACCOUNT, RUN, Some(Area::Step(2))).await.unwrap()),
            expected
        );
        assert!(
            artifacts
                .list(ACCOUNT, RUN, Some(Area::Step(1)))
                .await
                .unwrap()
                .is_empty()
        );
        // What is a directory is no file.
        assert_eq!(artifacts.stat(&key(Area::Step(0), "a/b")).await.unwrap(), None);
        assert_eq!(artifacts.stat(&key(Area::Step(0), "A/b")).await.unwrap(), None);
        let not_found = artifacts
            .open(&key(Area::Step(0), "A/b"), ByteRange::default())
            .await
            .err()
            .unwrap();
        assert_eq!(not_found.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_failed_stream_leaves_what_was_there() {
    for Store { artifacts, directory } in stores() {
        let one = key(Area::Logs, "step.log");
        let failing = || -> ByteStream {
            let failure = Error::fenced("run 7 attempt 1");
            Box::pin(stream::iter([
                Ok(Bytes::from(vec![b'n'; 100_000])),
                Err(failure),
                Ok(Bytes::from("more")),
            ]))
        };
        for before in [None, Some(b"old".as_slice())] {
            if let Some(before) = before {
                artifacts.put(&one, whole(before.to_vec())).await.unwrap();
            }
            let error = artifacts.put(&one, failing()).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (ErrorKind::Fenced, "run 7 attempt 1")
            );
            match before {
                None => assert_eq!(artifacts.stat(&one).await.unwrap(), None),
                Some(before) => assert_eq!(read(&artifacts, &one, 0, None).await, before),
            }
            assert_eq!(
                artifacts.list(ACCOUNT, RUN, None).await.unwrap().len(),
                usize::from(before.is_some())
            );
        }
        // A put that is dropped in the middle.
        let endless = stream::iter([Ok(Bytes::from("new"))]).chain(stream::pending());
        let put = artifacts.put(&one, Box::pin(endless));
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(50), put)
                .await
                .is_err()
        );
        assert_eq!(read(&artifacts, &one, 0, None).await, b"old");
        artifacts.remove(ACCOUNT, RUN, None).await.unwrap();
        if let Some(directory) = directory {
            for _ in 0..1000 {
                if files_below(directory.path()).is_empty() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            assert_eq!(files_below(directory.path()), Vec::<PathBuf>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_puts_and_reads_see_whole_files() {
    for Store { artifacts, .. } in stores() {
        let one = key(Area::Step(0), "run_results.json");
        artifacts.put(&one, whole(vec![0; 1000])).await.unwrap();
        let writers: Vec<_> = (1..=8_u8)
            .map(|byte| {
                let (artifacts, one) = (artifacts.clone(), one.clone());
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let parts = stream::iter((0..10).map(move |_| Ok(Bytes::from(vec![byte; 100]))));
                        assert_eq!(artifacts.put(&one, Box::pin(parts)).await.unwrap(), 1000);
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            let seen = read(&artifacts, &one, 0, None).await;
            assert_eq!(seen.len(), 1000);
        }
        for writer in writers {
            writer.await.unwrap();
        }
        let last = read(&artifacts, &one, 0, None).await;
        assert!(last.iter().all(|byte| *byte == last[0]));
    }
}

/// A file far larger than what may be held, written and read at a stretch.
#[tokio::test]
async fn memory_is_bounded() {
    let Store {
        artifacts,
        directory: _directory,
    } = stores().remove(0);
    let one = key(Area::Logs, "debug.log");
    let (part, parts) = (Bytes::from(vec![b'x'; 1 << 20]), 300_u64);
    let before = resident_kib();
    let bytes = stream::iter((0..parts).map(move |_| Ok(part.clone())));
    assert_eq!(artifacts.put(&one, Box::pin(bytes)).await.unwrap(), parts << 20);
    let mut stream = artifacts.open(&one, ByteRange::default()).await.unwrap();
    let (mut length, mut peak) = (0, 0);
    while let Some(part) = stream.try_next().await.unwrap() {
        length += part.len() as u64;
        peak = peak.max(resident_kib());
    }
    assert_eq!(length, parts << 20);
    assert!(
        peak.saturating_sub(before) < 100 * 1024,
        "{before} KiB before, {peak} KiB at most"
    );
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_directory_cannot_hold_a_file_and_a_directory_of_one_name_and_says_so() {
    let Store {
        artifacts,
        directory: _directory,
    } = stores().remove(0);
    artifacts.put(&key(Area::Step(0), "a"), whole("x")).await.unwrap();
    artifacts.put(&key(Area::Step(0), "b/c"), whole("x")).await.unwrap();
    for path in ["a/b", "b"] {
        let error = artifacts.put(&key(Area::Step(0), path), whole("y")).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::Invalid, Some("path")),
            "{error}"
        );
    }
    assert_eq!(artifacts.list(ACCOUNT, RUN, None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn urls_that_cannot_be_are_refused_without_being_repeated() {
    for url in ["nonsense:hunter2", "nonsense", "file://host/path", "http://hunter2"] {
        let error = OpendalArtifacts::from_url(url, &Options::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
        assert!(error.to_string().contains("file:///"), "{error}");
        assert!(!error.chain().contains("hunter2"), "{error}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = format!("file://{}/x", file.path().display());
    assert_eq!(
        OpendalArtifacts::from_url(&below, &Options::new()).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_shows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().to_str().unwrap().to_owned();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none", &disk])
        .output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        return; // Only root can have a file system of its own.
    }
    let artifacts = local(&format!("file://{disk}"));
    let one = key(Area::Step(0), "manifest.json");
    artifacts.put(&one, whole("old")).await.unwrap();
    let too_much = stream::iter((0..64).map(|_| Ok(Bytes::from(vec![0; 64 * 1024]))));
    let error = artifacts.put(&one, Box::pin(too_much)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("manifest.json: no space left"), "{error}");
    assert_eq!(read(&artifacts, &one, 0, None).await, b"old");
    assert_eq!(artifacts.list(ACCOUNT, RUN, None).await.unwrap().len(), 1);
    // What did not fit is taken away again.
    for attempt in 0.. {
        match artifacts
            .put(&key(Area::Step(0), "next"), whole(vec![0; 512 * 1024]))
            .await
        {
            Ok(_) => break,
            Err(error) => assert!(attempt < 100, "{error}"),
        }
    }
    assert!(Command::new("umount").arg("-l").arg(&disk).status().unwrap().success());
}

/// Parts on their way to a bucket, and who takes them away.
#[tokio::test]
async fn an_upload_that_does_not_end_leaves_no_part_behind() {
    let bucket = s3::bucket();
    let artifacts = OpendalArtifacts::from_url(&bucket.url(), &bucket.options()).unwrap();
    let one = key(Area::Step(0), "manifest.json");
    let part = Bytes::from(vec![b'x'; 1 << 20]);
    let parts = |count: usize| {
        stream::iter(0..count).map({
            let part = part.clone();
            move |_| Ok(part.clone())
        })
    };

    // One that fails after three parts.
    let broken = parts(24).chain(stream::once(async { Err(Error::fenced("overtaken")) }));
    let error = artifacts.put(&one, Box::pin(broken)).await.unwrap_err();
    assert_eq!(error.to_string(), "overtaken");
    assert!(
        !bucket.has_incomplete_uploads(),
        "a failed put takes its parts away before it returns"
    );

    // One that is dropped in the middle.
    let (sent, mut seen) = tokio::sync::watch::channel(0);
    let endless = parts(24)
        .inspect(move |_| sent.send_modify(|sent| *sent += 1))
        .chain(stream::pending());
    let put = artifacts.put(&one, Box::pin(endless));
    tokio::select! {
        _ = put => panic!("it does not end"),
        _ = async {
            seen.wait_for(|sent| *sent == 24).await.unwrap();
            while !bucket.has_incomplete_uploads() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        } => {}
    }
    let began = std::time::Instant::now();
    while bucket.has_incomplete_uploads() {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(20),
            "parts of a dropped put are left"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    assert_eq!(artifacts.stat(&one).await.unwrap(), None);
    assert_eq!(artifacts.put(&one, Box::pin(parts(24))).await.unwrap(), 24 << 20);
    assert!(!bucket.has_incomplete_uploads());
}

const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// What is wrong with a store is told so that it can be mended, and never passes for "not there".
#[tokio::test]
async fn a_store_that_cannot_be_used_says_why() {
    let (bucket, container) = (s3::bucket(), azure::container());
    let closed = dbtcloud_tests::postgres::closed_port();
    let key_of = |name: &str, secret: &str| Options::new().with_key(name, dbtcloud_core::secret::Secret::new(secret));
    let cases = [
        (
            bucket.url_of("elsewhere"),
            bucket.options(),
            ErrorKind::Invalid,
            "bucket elsewhere at",
            "does not exist; create it",
        ),
        (
            container.url_of("elsewhere"),
            container.options(),
            ErrorKind::Invalid,
            "container elsewhere at",
            "does not exist; create it",
        ),
        (
            bucket.url(),
            key_of(s3::ADMIN, "hunter2"),
            ErrorKind::Denied,
            "does not accept the credentials",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            bucket.url(),
            key_of("nobody", "hunter2"),
            ErrorKind::Denied,
            "does not accept the credentials",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            bucket.url(),
            key_of(s3::READER, s3::SECRET),
            ErrorKind::Denied,
            "grant reading, writing, listing",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            container.url(),
            key_of("devstoreaccount1", "aHVudGVyMg=="),
            ErrorKind::Denied,
            "does not accept the credentials",
            "AZURE_STORAGE_ACCOUNT_KEY",
        ),
        (
            format!("s3://b?endpoint=http://127.0.0.1:{closed}"),
            bucket.options(),
            ErrorKind::Unavailable,
            "cannot be reached",
            "check the endpoint",
        ),
    ];
    for (url, options, kind, what, advice) in cases {
        let artifacts = OpendalArtifacts::from_url(&url, &options).unwrap();
        let error = artifacts.check().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(
            error.to_string().contains(what) && error.to_string().contains(advice),
            "{url}: {error}"
        );
        assert!(!error.chain().contains("hunter2"), "{}", error.chain());
    }
    for (url, options) in [(bucket.url(), bucket.options()), (container.url(), container.options())] {
        OpendalArtifacts::from_url(&url, &options)
            .unwrap()
            .check()
            .await
            .unwrap();
    }
    // The bucket is gone: nothing is known of what was in it.
    for (url, options) in [
        (bucket.url_of("elsewhere"), bucket.options()),
        (container.url_of("elsewhere"), container.options()),
    ] {
        let artifacts = OpendalArtifacts::from_url(&url, &options).unwrap();
        let one = key(Area::Step(0), "manifest.json");
        let answers = [
            artifacts.stat(&one).await.err(),
            artifacts.open(&one, ByteRange::default()).await.err(),
            artifacts.list(ACCOUNT, RUN, None).await.err(),
            artifacts.remove(ACCOUNT, RUN, None).await.err(),
        ];
        for answer in answers {
            let error = answer.unwrap_or_else(|| panic!("{url}: 'not there' is not known"));
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("does not exist; create it"), "{error}");
        }
    }
}
