//! What [`Artifacts`] means.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dbtcloud_core::error::{Error, ErrorKind, Result};
use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{
    ARTIFACT_PATH_LIMIT_BYTES, Area, ArtifactKey, ArtifactMeta, Artifacts, ByteRange, ByteStream,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::samples::{ACCOUNT, STRANGER, kind, together};

cases! { $ artifacts_cases, artifacts, Arc<dyn Artifacts>:
    what_was_put_is_there,
    what_was_never_put_is_not_found,
    a_second_put_writes_over,
    an_empty_file_is_a_file,
    bytes_are_bytes,
    a_large_file_streams_through,
    ranges_are_cut_to_what_there_is,
    a_range_of_a_large_file,
    a_failed_stream_leaves_nothing,
    a_failed_stream_leaves_what_was_there,
    an_error_of_the_stream_comes_back_unchanged,
    odd_names_are_names,
    long_names_are_names,
    a_very_long_part_is_kept_or_refused,
    lists_are_by_area_and_path,
    a_list_can_be_of_one_area,
    accounts_are_apart,
    runs_are_apart,
    removing_takes_all_of_one_run,
    removing_one_area_leaves_the_others,
    removing_nothing_is_fine,
    every_run_with_a_file_is_told,
    many_puts_of_one_file_leave_one_whole,
    many_files_at_one_time,
}

type Store = Arc<dyn Artifacts>;

const RUN: RunId = RunId::new(5);

fn key(area: Area, path: &str) -> ArtifactKey {
    ArtifactKey {
        account: ACCOUNT,
        run: RUN,
        area,
        path: path.parse().expect("a legal path"),
    }
}

fn bytes(parts: Vec<&'static [u8]>) -> ByteStream {
    stream::iter(parts).map(|part| Ok(Bytes::from_static(part))).boxed()
}

async fn put(store: &Store, key: &ArtifactKey, content: &'static [u8]) {
    let length = store.put(key, bytes(vec![content])).await.unwrap();
    assert_eq!(length, content.len() as u64);
}

async fn read_range(store: &Store, key: &ArtifactKey, start: u64, end: Option<u64>) -> Vec<u8> {
    let stream = store.open(key, ByteRange { start, end }).await.unwrap();
    stream.try_collect::<Vec<Bytes>>().await.unwrap().concat()
}

async fn read(store: &Store, key: &ArtifactKey) -> Vec<u8> {
    read_range(store, key, 0, None).await
}

async fn paths(store: &Store, account: AccountId, run: RunId, area: Option<Area>) -> Vec<(Area, String)> {
    let listed = store.list(account, run, area).await.unwrap();
    listed
        .into_iter()
        .map(|meta| (meta.area, meta.path.to_string()))
        .collect()
}

async fn what_was_put_is_there(store: Store) {
    let key = key(Area::Step(3), "target/manifest.json");
    let length = store.put(&key, bytes(vec![b"{\"a\"", b"", b":1}"])).await.unwrap();
    assert_eq!(length, 7);
    assert_eq!(read(&store, &key).await, b"{\"a\":1}");
    let meta = ArtifactMeta {
        area: Area::Step(3),
        path: key.path.clone(),
        bytes: 7,
    };
    assert_eq!(store.stat(&key).await.unwrap(), Some(meta.clone()));
    assert_eq!(store.list(ACCOUNT, RUN, None).await.unwrap(), [meta]);
}

async fn what_was_never_put_is_not_found(store: Store) {
    let absent = key(Area::Step(1), "target/manifest.json");
    let opened = store.open(&absent, ByteRange::default()).await.map(|_| ());
    assert_eq!(kind(opened), ErrorKind::NotFound, "at once, not in the stream");
    assert_eq!(store.stat(&absent).await.unwrap(), None);
    assert_eq!(store.list(ACCOUNT, RUN, None).await.unwrap(), []);
    put(&store, &absent, b"x").await;
    for other in [key(Area::Step(2), "target/manifest.json"), key(Area::Step(1), "target")] {
        assert_eq!(store.stat(&other).await.unwrap(), None, "{other:?}");
        assert_eq!(
            kind(store.open(&other, ByteRange::default()).await.map(|_| ())),
            ErrorKind::NotFound
        );
    }
}

async fn a_second_put_writes_over(store: Store) {
    let key = key(Area::Step(1), "run_results.json");
    put(&store, &key, b"the first and longer one").await;
    put(&store, &key, b"the second").await;
    assert_eq!(read(&store, &key).await, b"the second");
    assert_eq!(store.stat(&key).await.unwrap().map(|meta| meta.bytes), Some(10));
    assert_eq!(paths(&store, ACCOUNT, RUN, None).await.len(), 1);
}

async fn an_empty_file_is_a_file(store: Store) {
    for (index, parts) in [(1, vec![]), (2, vec![&b""[..], b""])] {
        let key = key(Area::Step(index), "empty");
        assert_eq!(store.put(&key, bytes(parts)).await.unwrap(), 0);
        assert_eq!(store.stat(&key).await.unwrap().map(|meta| meta.bytes), Some(0));
        assert_eq!(read(&store, &key).await, b"");
    }
    assert_eq!(paths(&store, ACCOUNT, RUN, None).await.len(), 2);
}

async fn bytes_are_bytes(store: Store) {
    let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let (key, content) = (key(Area::Logs, "step.bin"), Bytes::from(all.clone()));
    store
        .put(&key, stream::once(async move { Ok(content) }).boxed())
        .await
        .unwrap();
    assert!(read(&store, &key).await == all);
}

const PIECE: u64 = 60_000;

/// Piece `index` of a file in which no two pieces are alike.
fn piece(index: u64) -> Bytes {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(PIECE as usize).collect()
}

/// So many pieces, made when they are asked for.
fn pieces(count: u64) -> ByteStream {
    stream::iter(0..count).map(|index| Ok(piece(index))).boxed()
}

async fn a_large_file_streams_through(store: Store) {
    let key = key(Area::Step(1), "target/manifest.json");
    let count = 350;
    assert_eq!(store.put(&key, pieces(count)).await.unwrap(), count * PIECE, "21 MB");
    assert_eq!(
        store.stat(&key).await.unwrap().map(|meta| meta.bytes),
        Some(count * PIECE)
    );
    let mut stream = store.open(&key, ByteRange::default()).await.unwrap();
    let (mut index, mut rest, mut largest) = (0, Vec::new(), 0);
    while let Some(part) = stream.try_next().await.unwrap() {
        largest = largest.max(part.len());
        rest.extend_from_slice(&part);
        while rest.len() as u64 >= PIECE {
            let next: Vec<u8> = rest.drain(..PIECE as usize).collect();
            assert!(next == piece(index), "piece {index} is another one");
            index += 1;
        }
    }
    assert_eq!((index, rest.len()), (count, 0));
    assert!(
        largest <= 9 * 1024 * 1024,
        "a stream comes in parts, not as one of {largest} bytes"
    );
}

async fn ranges_are_cut_to_what_there_is(store: Store) {
    let key = key(Area::Step(1), "file");
    put(&store, &key, b"0123456789").await;
    for (start, end, expected) in [
        (0, Some(4), &b"0123"[..]),
        (4, Some(5), b"4"),
        (4, None, b"456789"),
        (8, Some(100), b"89"),
        (0, Some(0), b""),
        (10, None, b""),
        (10, Some(20), b""),
        (99, None, b""),
        (99, Some(100), b""),
        (5, Some(5), b""),
    ] {
        assert_eq!(read_range(&store, &key, start, end).await, expected, "{start}..{end:?}");
    }
}

async fn a_range_of_a_large_file(store: Store) {
    let key = key(Area::Step(1), "file");
    store.put(&key, pieces(50)).await.unwrap();
    let seen = read_range(&store, &key, 20 * PIECE, Some(22 * PIECE)).await;
    assert!(seen == [piece(20), piece(21)].concat());
    let end = read_range(&store, &key, 50 * PIECE - 3, None).await;
    assert_eq!(end, piece(49)[PIECE as usize - 3..]);
}

/// A stream that gives so many pieces and then fails.
fn broken(count: u64) -> ByteStream {
    let failure = stream::once(async { Err(Error::fenced("the sender was overtaken")) });
    pieces(count).chain(failure).boxed()
}

async fn a_failed_stream_leaves_nothing(store: Store) {
    for (index, count) in [(1, 0), (2, 1), (3, 200)] {
        let key = key(Area::Step(index), "file");
        store.put(&key, broken(count)).await.unwrap_err();
        assert_eq!(store.stat(&key).await.unwrap(), None, "after {count} pieces");
    }
    assert_eq!(store.list(ACCOUNT, RUN, None).await.unwrap(), []);
}

async fn a_failed_stream_leaves_what_was_there(store: Store) {
    let key = key(Area::Step(1), "file");
    put(&store, &key, b"before").await;
    for count in [0, 1, 200] {
        store.put(&key, broken(count)).await.unwrap_err();
        assert_eq!(read(&store, &key).await, b"before", "after {count} pieces");
    }
    assert_eq!(paths(&store, ACCOUNT, RUN, None).await.len(), 1);
}

async fn an_error_of_the_stream_comes_back_unchanged(store: Store) {
    let error = store.put(&key(Area::Step(1), "file"), broken(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(error.to_string(), "the sender was overtaken");
}

/// Names that a careless adapter mixes up, cuts or encodes twice.
const ODD_NAMES: [&str; 20] = [
    "a",
    "A",
    "a b",
    " a",
    "a ",
    "a.",
    ".a",
    "...",
    "a%20b",
    "a%2Fb",
    "%",
    "a+b",
    "a&b=c?d#e",
    "日本/ünï.sql",
    "u\u{0308}",
    "ü",
    "it's \"quoted\"",
    "~",
    "-rf",
    "*.{sql,yml}",
];

async fn odd_names_are_names(store: Store) {
    for (index, name) in (0_u64..).zip(ODD_NAMES) {
        let content = piece(index).slice(..9);
        store
            .put(&key(Area::Step(1), name), stream::once(async { Ok(content) }).boxed())
            .await
            .unwrap();
    }
    for (index, name) in (0_u64..).zip(ODD_NAMES) {
        assert_eq!(
            read(&store, &key(Area::Step(1), name)).await,
            piece(index)[..9],
            "{name:?}"
        );
    }
    let mut expected: Vec<_> = ODD_NAMES
        .iter()
        .map(|name| (Area::Step(1), (*name).to_owned()))
        .collect();
    expected.sort();
    assert_eq!(paths(&store, ACCOUNT, RUN, None).await, expected);
    store.remove(ACCOUNT, RUN, None).await.unwrap();
    assert_eq!(store.list(ACCOUNT, RUN, None).await.unwrap(), []);
}

async fn long_names_are_names(store: Store) {
    let part = "p".repeat(150);
    let mut name = [part.as_str(); 5].join("/");
    name.push_str(&"x".repeat(ARTIFACT_PATH_LIMIT_BYTES - name.len()));
    assert_eq!(name.len(), ARTIFACT_PATH_LIMIT_BYTES);
    let key = key(Area::Step(u32::MAX), &name);
    put(&store, &key, b"far away").await;
    assert_eq!(read(&store, &key).await, b"far away");
    assert_eq!(paths(&store, ACCOUNT, RUN, None).await, [(Area::Step(u32::MAX), name)]);
}

async fn a_very_long_part_is_kept_or_refused(store: Store) {
    let key = key(Area::Step(1), &"p".repeat(ARTIFACT_PATH_LIMIT_BYTES));
    match store.put(&key, bytes(vec![b"content"])).await {
        Ok(_) => assert_eq!(read(&store, &key).await, b"content"),
        // File systems allow 255 bytes between two slashes.
        Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid),
    }
}

async fn lists_are_by_area_and_path(store: Store) {
    let names = ["b", "a/b", "a/a", "a.txt", "a-b", "c/d/e"];
    for area in [Area::Logs, Area::Step(10), Area::Step(2)] {
        for name in names {
            put(&store, &key(area, name), b"x").await;
        }
    }
    let mut expected = Vec::new();
    for area in [Area::Step(2), Area::Step(10), Area::Logs] {
        expected.extend(["a-b", "a.txt", "a/a", "a/b", "b", "c/d/e"].map(|name| (area, name.to_owned())));
    }
    assert_eq!(
        paths(&store, ACCOUNT, RUN, None).await,
        expected,
        "areas by number, paths by bytes"
    );
}

async fn a_list_can_be_of_one_area(store: Store) {
    for area in [Area::Step(1), Area::Step(11), Area::Logs] {
        put(&store, &key(area, "file"), b"x").await;
    }
    for area in [Area::Step(1), Area::Step(11), Area::Logs] {
        let expected = [(area, "file".to_owned())];
        assert_eq!(
            paths(&store, ACCOUNT, RUN, Some(area)).await,
            expected,
            "1 is not the beginning of 11"
        );
    }
    assert_eq!(paths(&store, ACCOUNT, RUN, Some(Area::Step(2))).await, []);
}

async fn accounts_are_apart(store: Store) {
    let own = key(Area::Step(1), "file");
    let theirs = ArtifactKey {
        account: STRANGER,
        ..own.clone()
    };
    put(&store, &own, b"mine").await;
    assert_eq!(store.stat(&theirs).await.unwrap(), None);
    assert_eq!(
        kind(store.open(&theirs, ByteRange::default()).await.map(|_| ())),
        ErrorKind::NotFound
    );
    assert_eq!(store.list(STRANGER, RUN, None).await.unwrap(), []);
    store.remove(STRANGER, RUN, None).await.unwrap();
    put(&store, &theirs, b"theirs").await;
    assert_eq!(read(&store, &own).await, b"mine");
}

async fn runs_are_apart(store: Store) {
    for run in [1, 11, 2] {
        put(
            &store,
            &ArtifactKey {
                run: RunId::new(run),
                ..key(Area::Step(1), "file")
            },
            b"x",
        )
        .await;
    }
    assert_eq!(
        paths(&store, ACCOUNT, RunId::new(1), None).await.len(),
        1,
        "1 is not the beginning of 11"
    );
    store.remove(ACCOUNT, RunId::new(1), None).await.unwrap();
    assert_eq!(paths(&store, ACCOUNT, RunId::new(1), None).await.len(), 0);
    assert_eq!(paths(&store, ACCOUNT, RunId::new(11), None).await.len(), 1);
    assert_eq!(paths(&store, ACCOUNT, RunId::new(2), None).await.len(), 1);
}

async fn removing_takes_all_of_one_run(store: Store) {
    for area in [Area::Step(1), Area::Step(2), Area::Logs] {
        put(&store, &key(area, "a/b/c"), b"x").await;
        put(&store, &key(area, "d"), b"x").await;
    }
    store.remove(ACCOUNT, RUN, None).await.unwrap();
    assert_eq!(store.list(ACCOUNT, RUN, None).await.unwrap(), []);
    assert_eq!(store.stat(&key(Area::Logs, "d")).await.unwrap(), None);
    put(&store, &key(Area::Logs, "d"), b"again").await;
    assert_eq!(read(&store, &key(Area::Logs, "d")).await, b"again");
}

async fn removing_one_area_leaves_the_others(store: Store) {
    let areas = [Area::Step(1), Area::Step(11), Area::Logs];
    for area in areas {
        put(&store, &key(area, "a/b"), b"x").await;
        put(&store, &key(area, "c"), b"x").await;
    }
    for (removed, left) in [(Area::Step(1), 4), (Area::Logs, 2), (Area::Step(3), 2)] {
        store.remove(ACCOUNT, RUN, Some(removed)).await.unwrap();
        let kept = paths(&store, ACCOUNT, RUN, None).await;
        assert!(kept.iter().all(|(area, _)| *area != removed), "{kept:?}");
        assert_eq!(kept.len(), left, "{kept:?}");
    }
}

async fn every_run_with_a_file_is_told(store: Store) {
    let told = async || {
        let runs = store.runs().await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        runs.into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(told().await, BTreeSet::new());
    let mut expected = BTreeSet::new();
    for account in [ACCOUNT, STRANGER] {
        for run in (1..10).map(|run| RunId::new(run * 7)) {
            for area in [Area::Step(1), Area::Logs] {
                let key = ArtifactKey {
                    account,
                    run,
                    ..key(area, "a/b")
                };
                put(&store, &key, b"x").await;
            }
            expected.insert((account, run));
        }
    }
    assert_eq!(told().await, expected);
    store.remove(STRANGER, RunId::new(7), Some(Area::Logs)).await.unwrap();
    assert_eq!(told().await, expected, "it has another file");
    store.remove(STRANGER, RunId::new(7), None).await.unwrap();
    expected.remove(&(STRANGER, RunId::new(7)));
    // Object stores forget what looks like an empty directory in their own time.
    let mut told = told().await;
    told.remove(&(STRANGER, RunId::new(7)));
    assert_eq!(told, expected);
}

async fn removing_nothing_is_fine(store: Store) {
    store.remove(ACCOUNT, RUN, None).await.unwrap();
    put(&store, &key(Area::Step(1), "file"), b"x").await;
    store.remove(ACCOUNT, RUN, None).await.unwrap();
    store.remove(ACCOUNT, RUN, None).await.unwrap();
}

async fn many_puts_of_one_file_leave_one_whole(store: Store) {
    let key = key(Area::Step(1), "file");
    let puts = together(4, |writer| {
        let (store, key) = (store.clone(), key.clone());
        let index = writer as u64;
        let content = stream::iter(0..40).map(move |_| Ok(piece(index))).boxed();
        async move { store.put(&key, content).await }
    });
    for put in puts.await {
        assert_eq!(put.unwrap(), 40 * PIECE);
    }
    let seen = read(&store, &key).await;
    let writer = (0..4)
        .find(|writer| seen[..PIECE as usize] == piece(*writer))
        .expect("the content of one writer");
    assert!(seen == vec![piece(writer); 40].concat(), "and of one only");
    assert_eq!(paths(&store, ACCOUNT, RUN, None).await.len(), 1);
}

async fn many_files_at_one_time(store: Store) {
    let written = Arc::new(AtomicU64::new(0));
    let results = together(16, |index| {
        let (store, written) = (store.clone(), written.clone());
        async move {
            let key = key(Area::Step(1), &format!("models/m{index}.sql"));
            let length = store.put(&key, pieces(index as u64)).await?;
            written.fetch_add(length, Ordering::Relaxed);
            Result::<()>::Ok(())
        }
    });
    results.await.into_iter().collect::<Result<()>>().unwrap();
    let listed = store.list(ACCOUNT, RUN, None).await.unwrap();
    assert_eq!(listed.len(), 16);
    assert_eq!(
        listed.iter().map(|meta| meta.bytes).sum::<u64>(),
        written.load(Ordering::Relaxed)
    );
}
