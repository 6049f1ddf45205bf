//! What [`Logs`](dbtcloud_core::ports::Logs) means.

use bytes::Bytes;
use dbtcloud_core::error::{ErrorKind, Result};
use dbtcloud_core::id::{JobId, RunId};
use dbtcloud_core::ports::{Batch, Claimed, LOG_READ_LIMIT_BYTES, LogPage, LogPart, RunPart};
use dbtcloud_core::run::{RunEvent, StepStatus};

use super::Stores;
use super::samples::{
    ACCOUNT, LATE, STRANGER, agent, at, batch, chunk, claim_until, enqueue, free_run, kind, running, step, together,
};

cases! { $ logs_cases, logs, Stores:
    a_log_is_read_in_parts,
    reading_beyond_the_end_is_empty,
    a_step_without_a_log_has_an_empty_one,
    bytes_are_bytes,
    a_read_is_bounded,
    large_logs_come_back_whole,
    steps_have_logs_of_their_own,
    what_is_not_there_is_not_found,
    a_moved_log_is_dropped,
    a_log_is_moved_in_parts_while_it_grows,
    a_part_that_does_not_fit_conflicts,
    a_second_move_is_fine,
    many_movers_move_each_part_once,
    a_reader_sees_every_byte_or_that_it_moved,
    an_expired_log_is_forgotten,
    logs_of_a_run_that_executes_do_not_expire,
    unmoved_are_the_ended_with_bytes,
    unmoved_are_the_live_with_many_bytes,
    unmoved_goes_on_after_a_run,
}

async fn append(stores: &Stores, claimed: &Claimed, number: u64, chunks: Vec<dbtcloud_core::ports::LogChunk>) {
    let report = Batch {
        logs: chunks,
        ..batch(number, at(5))
    };
    stores.runs.report(&agent(claimed), &report).await.unwrap();
}

/// A running run with steps 1 and 2, of which the first has this log.
async fn with_log(stores: &Stores, parts: &[&'static [u8]]) -> Claimed {
    let claimed = running(stores).await;
    let steps = vec![step(1, StepStatus::Running), step(2, StepStatus::Running)];
    stores
        .runs
        .report(
            &agent(&claimed),
            &Batch {
                steps,
                ..batch(2, at(3))
            },
        )
        .await
        .unwrap();
    let mut offset = 0;
    for (number, part) in (3..).zip(parts) {
        append(stores, &claimed, number, vec![chunk(1, offset, *part)]).await;
        offset += part.len() as u64;
    }
    claimed
}

async fn read(stores: &Stores, claimed: &Claimed, offset: u64, limit: u32) -> LogPage {
    stores
        .logs
        .read(ACCOUNT, claimed.run.id, 1, offset, limit)
        .await
        .unwrap()
}

async fn end(stores: &Stores, claimed: &Claimed, number: u64) {
    let report = Batch {
        event: Some(RunEvent::Succeeded),
        ..batch(number, at(9))
    };
    stores.runs.report(&agent(claimed), &report).await.unwrap();
}

fn page(offset: u64, bytes: &'static [u8], length: u64) -> LogPage {
    LogPage {
        offset,
        bytes: Bytes::from_static(bytes),
        length,
    }
}

async fn a_log_is_read_in_parts(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello", b" ", b"big world"]).await;
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(0, b"hello big world", 15));
    assert_eq!(
        read(&stores, &claimed, 3, 4).await,
        page(3, b"lo b", 15),
        "across what was sent in parts"
    );
    assert_eq!(read(&stores, &claimed, 5, 1).await, page(5, b" ", 15));
    assert_eq!(read(&stores, &claimed, 6, 100).await, page(6, b"big world", 15));
    assert_eq!(read(&stores, &claimed, 14, 100).await, page(14, b"d", 15));
}

async fn reading_beyond_the_end_is_empty(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello"]).await;
    assert_eq!(read(&stores, &claimed, 5, 100).await, page(5, b"", 5));
    let beyond = read(&stores, &claimed, 99, 100).await;
    assert_eq!((beyond.bytes.len(), beyond.length), (0, 5));
    assert_eq!(read(&stores, &claimed, 2, 0).await.bytes.len(), 0);
}

async fn a_step_without_a_log_has_an_empty_one(stores: Stores) {
    let claimed = with_log(&stores, &[]).await;
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(0, b"", 0));
}

async fn bytes_are_bytes(stores: Stores) {
    let all: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let claimed = with_log(&stores, &[b"\0\0", b"\xff\xfe\xc3", b"\x28\r\n\0"]).await;
    append(&stores, &claimed, 6, vec![chunk(1, 9, all.clone())]).await;
    let read = read(&stores, &claimed, 0, 10_000).await;
    assert_eq!(read.bytes[..9], b"\0\0\xff\xfe\xc3\x28\r\n\0"[..]);
    assert_eq!(read.bytes[9..], all);
}

async fn a_read_is_bounded(stores: Stores) {
    let claimed = with_log(&stores, &[]).await;
    let megabyte = Bytes::from(vec![7; 1024 * 1024]);
    append(&stores, &claimed, 3, vec![chunk(1, 0, megabyte.clone())]).await;
    append(&stores, &claimed, 4, vec![chunk(1, 1024 * 1024, megabyte)]).await;
    let page = read(&stores, &claimed, 1, u32::MAX).await;
    assert_eq!(
        (page.bytes.len(), page.length),
        (LOG_READ_LIMIT_BYTES as usize, 2 * 1024 * 1024)
    );
}

async fn large_logs_come_back_whole(stores: Stores) {
    let claimed = with_log(&stores, &[]).await;
    let byte = |index: usize| (index * 31 % 251).to_le_bytes()[0];
    let whole: Vec<u8> = (0..3_500_000).map(byte).collect();
    let mut offset = 0;
    for (number, part) in (3..).zip(whole.chunks(999_983)) {
        append(&stores, &claimed, number, vec![chunk(1, offset, part.to_vec())]).await;
        offset += part.len() as u64;
    }
    let mut seen = Vec::new();
    loop {
        let page = read(&stores, &claimed, seen.len() as u64, 700_001).await;
        assert_eq!(page.offset, seen.len() as u64);
        assert_eq!(page.length, whole.len() as u64);
        if page.bytes.is_empty() {
            break;
        }
        seen.extend_from_slice(&page.bytes);
    }
    assert!(seen == whole, "the bytes are those that were sent");
}

async fn steps_have_logs_of_their_own(stores: Stores) {
    let (a, b) = (
        with_log(&stores, &[b"of a"]).await,
        with_log(&stores, &[b"of b!"]).await,
    );
    append(
        &stores,
        &a,
        4,
        vec![chunk(2, 0, "second"), chunk(1, 4, " more"), chunk(2, 6, " more")],
    )
    .await;
    assert_eq!(read(&stores, &a, 0, 100).await, page(0, b"of a more", 9));
    assert_eq!(read(&stores, &b, 0, 100).await, page(0, b"of b!", 5));
    assert_eq!(
        stores.logs.read(ACCOUNT, a.run.id, 2, 0, 100).await.unwrap(),
        page(0, b"second more", 11)
    );
    let steps = stores.runs.steps(ACCOUNT, a.run.id).await.unwrap();
    assert_eq!(steps.iter().map(|step| step.log_bytes).collect::<Vec<_>>(), [9, 11]);
}

async fn what_is_not_there_is_not_found(stores: Stores) {
    let run = with_log(&stores, &[b"hello"]).await.run.id;
    for (account, run, step) in [(STRANGER, run, 1), (ACCOUNT, run, 9), (ACCOUNT, RunId::new(987_654), 1)] {
        assert_eq!(
            kind(stores.logs.read(account, run, step, 0, 10).await),
            ErrorKind::NotFound
        );
        assert_eq!(
            kind(stores.logs.moved(account, run, step, part(0, 5)).await),
            ErrorKind::NotFound
        );
        if step == 1 {
            assert_eq!(
                kind(stores.history.expire(account, run, RunPart::Logs, at(9)).await),
                ErrorKind::NotFound
            );
        }
    }
    assert_eq!(stores.logs.read(ACCOUNT, run, 1, 0, 10).await.unwrap().bytes.len(), 5);
}

const fn part(start: u64, end: u64) -> LogPart {
    LogPart { start, end }
}

async fn moved(stores: &Stores, claimed: &Claimed, step: u32, start: u64, end: u64) -> Result<()> {
    stores.logs.moved(ACCOUNT, claimed.run.id, step, part(start, end)).await
}

/// Where the log of step 1 is: its first byte in the database, and the ends of its parts.
async fn place(stores: &Stores, claimed: &Claimed) -> (u64, Vec<u64>) {
    let mut steps = stores.runs.steps(ACCOUNT, claimed.run.id).await.unwrap();
    let step = steps.swap_remove(0);
    (step.log_first, step.log_parts)
}

async fn a_moved_log_is_dropped(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello", b" world"]).await;
    append(&stores, &claimed, 5, vec![chunk(2, 0, "stays")]).await;
    end(&stores, &claimed, 6).await;
    moved(&stores, &claimed, 1, 0, 11).await.unwrap();
    assert_eq!(
        read(&stores, &claimed, 0, 100).await,
        page(11, b"", 11),
        "it begins at the first byte there is"
    );
    assert_eq!(place(&stores, &claimed).await, (11, vec![11]));
    let other = stores.logs.read(ACCOUNT, claimed.run.id, 2, 0, 100).await.unwrap();
    assert_eq!(other, page(0, b"stays", 5));
}

async fn a_log_is_moved_in_parts_while_it_grows(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello", b" ", b"world"]).await;
    moved(&stores, &claimed, 1, 0, 7).await.unwrap();
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(7, b"orld", 11));
    assert_eq!(read(&stores, &claimed, 9, 1).await, page(9, b"l", 11));
    append(&stores, &claimed, 6, vec![chunk(1, 11, " and more")]).await;
    assert_eq!(read(&stores, &claimed, 5, 100).await, page(7, b"orld and more", 20));
    moved(&stores, &claimed, 1, 7, 12).await.unwrap();
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(12, b"and more", 20));
    moved(&stores, &claimed, 1, 12, 20).await.unwrap();
    assert_eq!(place(&stores, &claimed).await, (20, vec![7, 12, 20]));
    append(&stores, &claimed, 7, vec![chunk(1, 20, "!")]).await;
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(20, b"!", 21));
    let step = stores.runs.steps(ACCOUNT, claimed.run.id).await.unwrap().swap_remove(0);
    for (offset, expected) in [
        (0, Some(part(0, 7))),
        (6, Some(part(0, 7))),
        (7, Some(part(7, 12))),
        (19, Some(part(12, 20))),
        (20, None),
    ] {
        assert_eq!(step.log_part(offset), expected, "{offset}");
    }
}

async fn a_part_that_does_not_fit_conflicts(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello"]).await;
    for (start, end) in [(0, 0), (0, 6), (1, 5), (5, 5), (3, 2)] {
        let refused = moved(&stores, &claimed, 1, start, end).await;
        assert_eq!(kind(refused), ErrorKind::Conflict, "{start}..{end}");
    }
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(0, b"hello", 5));
    assert_eq!(place(&stores, &claimed).await, (0, vec![]));
    moved(&stores, &claimed, 1, 0, 3).await.unwrap();
    for (start, end) in [(0, 4), (0, 2), (2, 5), (4, 5), (3, 6), (3, 3)] {
        let refused = moved(&stores, &claimed, 1, start, end).await;
        assert_eq!(kind(refused), ErrorKind::Conflict, "{start}..{end}");
    }
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(3, b"lo", 5));
}

async fn a_second_move_is_fine(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello"]).await;
    for (start, end) in [(0, 2), (0, 2), (2, 5), (0, 2), (2, 5)] {
        moved(&stores, &claimed, 1, start, end).await.unwrap();
    }
    assert_eq!(place(&stores, &claimed).await, (5, vec![2, 5]));
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(5, b"", 5));
}

async fn many_movers_move_each_part_once(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello", b" world"]).await;
    let run = claimed.run.id;
    let results = together(4, |_| {
        let stores = stores.clone();
        async move {
            for start in 0..11 {
                stores
                    .logs
                    .moved(ACCOUNT, run, 1, part(start, start + 1))
                    .await
                    .unwrap();
            }
        }
    });
    results.await;
    assert_eq!(place(&stores, &claimed).await, (11, (1..=11).collect()));
}

async fn a_reader_sees_every_byte_or_that_it_moved(stores: Stores) {
    let claimed = with_log(&stores, &[]).await;
    let whole: Vec<u8> = (0_u32..400_000).flat_map(u32::to_le_bytes).collect();
    for (number, (index, piece)) in (3..).zip(whole.chunks(800_000).enumerate()) {
        append(
            &stores,
            &claimed,
            number,
            vec![chunk(1, index as u64 * 800_000, piece.to_vec())],
        )
        .await;
    }
    let (run, length) = (claimed.run.id, whole.len() as u64);
    let (mover, whole) = (stores.clone(), std::sync::Arc::new(whole));
    let moving = tokio::spawn(async move {
        let mut start = 0;
        while start < length {
            let end = length.min(start + 70_001);
            mover.logs.moved(ACCOUNT, run, 1, part(start, end)).await.unwrap();
            start = end;
        }
    });
    loop {
        let over = moving.is_finished();
        for offset in (0..length).step_by(299_993) {
            let page = stores.logs.read(ACCOUNT, run, 1, offset, 300_000).await.unwrap();
            assert!(page.offset >= offset);
            let from = page.offset as usize;
            let expected = &whole[from..whole.len().min(from + 300_000)];
            assert!(page.bytes == expected, "other bytes than those at {from}");
        }
        if over {
            break;
        }
        // A storage that never waits would keep the mover from its thread.
        tokio::task::yield_now().await;
    }
    moving.await.unwrap();
}

async fn an_expired_log_is_forgotten(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello"]).await;
    append(&stores, &claimed, 4, vec![chunk(2, 0, "second")]).await;
    moved(&stores, &claimed, 1, 0, 2).await.unwrap();
    end(&stores, &claimed, 5).await;
    for _ in 0..2 {
        stores
            .history
            .expire(ACCOUNT, claimed.run.id, RunPart::Logs, at(9))
            .await
            .unwrap();
        assert_eq!(place(&stores, &claimed).await, (5, vec![]));
        assert_eq!(
            read(&stores, &claimed, 0, 100).await,
            page(5, b"", 5),
            "the length stays"
        );
        let second = stores.logs.read(ACCOUNT, claimed.run.id, 2, 0, 100).await.unwrap();
        assert_eq!(second, page(6, b"", 6));
    }
    assert_eq!(stores.logs.unmoved(RunId::new(0), 1, 10).await.unwrap(), []);
}

async fn logs_of_a_run_that_executes_do_not_expire(stores: Stores) {
    let claimed = with_log(&stores, &[b"hello"]).await;
    assert_eq!(
        kind(
            stores
                .history
                .expire(ACCOUNT, claimed.run.id, RunPart::Logs, at(9))
                .await
        ),
        ErrorKind::Conflict
    );
    assert_eq!(read(&stores, &claimed, 0, 100).await, page(0, b"hello", 5));
}

async fn unmoved_are_the_live_with_many_bytes(stores: Stores) {
    let live = with_log(&stores, &[b"hello", b" world"]).await;
    append(&stores, &live, 5, vec![chunk(2, 0, "hello world")]).await;
    let unmoved = async |least| stores.logs.unmoved(RunId::new(0), least, 10).await.unwrap();
    assert_eq!(unmoved(11).await, [(ACCOUNT, live.run.id)], "once, whatever its steps");
    assert_eq!(unmoved(12).await, [], "of one step, not of the run");
    moved(&stores, &live, 1, 0, 4).await.unwrap();
    moved(&stores, &live, 2, 0, 4).await.unwrap();
    assert_eq!(unmoved(8).await, [], "what was moved does not count");
    assert_eq!(unmoved(7).await, [(ACCOUNT, live.run.id)]);
    end(&stores, &live, 6).await;
    assert_eq!(unmoved(8).await, [(ACCOUNT, live.run.id)], "ended");
}

async fn unmoved_are_the_ended_with_bytes(stores: Stores) {
    let _live = with_log(&stores, &[b"live"]).await;
    let empty = with_log(&stores, &[]).await;
    end(&stores, &empty, 3).await;
    let ended = with_log(&stores, &[b"one"]).await;
    append(&stores, &ended, 4, vec![chunk(2, 0, "two")]).await;
    end(&stores, &ended, 5).await;
    let none = RunId::new(0);
    assert_eq!(
        stores.logs.unmoved(none, 100, 10).await.unwrap(),
        [(ACCOUNT, ended.run.id)],
        "once, whatever its steps"
    );
    moved(&stores, &ended, 1, 0, 3).await.unwrap();
    assert_eq!(
        stores.logs.unmoved(none, 100, 10).await.unwrap().len(),
        1,
        "the other step has bytes still"
    );
    moved(&stores, &ended, 2, 0, 3).await.unwrap();
    assert_eq!(stores.logs.unmoved(none, 100, 10).await.unwrap(), []);
}

async fn unmoved_goes_on_after_a_run(stores: Stores) {
    let mut runs = Vec::new();
    for index in 0..5 {
        let account = if index == 3 { STRANGER } else { ACCOUNT };
        let run = enqueue(&stores, &free_run(account, JobId::new(index)), at(0)).await.id;
        let claimed = claim_until(&stores, run, at(1), LATE).await;
        let steps = vec![step(1, StepStatus::Running)];
        let report = Batch {
            event: Some(RunEvent::Started),
            steps,
            logs: vec![chunk(1, 0, "x")],
            ..batch(1, at(2))
        };
        stores.runs.report(&agent(&claimed), &report).await.unwrap();
        end(&stores, &claimed, 2).await;
        runs.push((account, run));
    }
    assert_eq!(stores.logs.unmoved(RunId::new(0), 100, 2).await.unwrap(), runs[..2]);
    assert_eq!(
        stores.logs.unmoved(runs[1].1, 100, 10).await.unwrap(),
        runs[2..],
        "over all accounts"
    );
    assert_eq!(stores.logs.unmoved(runs[4].1, 100, 10).await.unwrap(), []);
}
