//! What [`Outbox`](dbtcloud_core::ports::Outbox) means.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Batch, Consumer, Delivery, EventBody};
use dbtcloud_core::run::{RunEvent, RunStatus};

use super::Stores;
use super::samples::{ACCOUNT, LATE, agent, at, batch, change, chunk, claimed, kind, queued, running, together};

cases! { $ outbox_cases, outbox, Stores:
    a_consumer_is_told_what_it_wants_and_nothing_else,
    a_delivery_is_the_event_of_the_journal,
    what_was_taken_is_offered_again_after_its_time,
    of_a_run_only_the_earliest_is_offered,
    runs_do_not_wait_for_each_other,
    what_was_delivered_is_gone_for_its_consumer_alone,
    what_was_postponed_is_offered_then_and_not_before,
    the_longest_due_are_taken_first,
    a_refused_change_is_delivered_to_nobody,
    many_callers_take_each_delivery_once,
}

/// Takes all that a consumer is offered, for ten seconds.
async fn take(stores: &Stores, consumer: Consumer, seconds: i64) -> Vec<Delivery> {
    stores
        .outbox
        .take(consumer, at(seconds), at(seconds + 10), 1_000)
        .await
        .unwrap()
}

fn statuses(deliveries: &[Delivery]) -> Vec<RunStatus> {
    let status = |delivery: &Delivery| match delivery.event.body {
        EventBody::Run { status, .. } => Some(status),
        EventBody::Step { .. } | EventBody::Node { .. } => None,
    };
    deliveries.iter().filter_map(status).collect()
}

/// A run that ran from second 2 on and failed at second `seconds`.
async fn failed(stores: &Stores, seconds: i64) -> RunId {
    let claimed = running(stores).await;
    let end = Batch {
        event: Some(RunEvent::Failed),
        ..batch(2, at(seconds))
    };
    stores.runs.report(&agent(&claimed), &end).await.unwrap();
    claimed.run.id
}

async fn a_consumer_is_told_what_it_wants_and_nothing_else(stores: Stores) {
    let run = failed(&stores, 4).await;
    for consumer in Consumer::ALL {
        let mut told = Vec::new();
        loop {
            let offered = take(&stores, consumer, 5).await;
            let Some(delivery) = offered.first() else { break };
            assert_eq!(offered.len(), 1);
            told.extend(statuses(&offered));
            let sequence = delivery.event.sequence;
            stores.outbox.delivered(consumer, run, sequence).await.unwrap();
        }
        let happened = [
            RunStatus::Queued,
            RunStatus::Starting,
            RunStatus::Running,
            RunStatus::Error,
        ];
        let wanted: Vec<_> = happened.into_iter().filter(|status| consumer.wants(*status)).collect();
        assert_eq!(told, wanted, "{consumer:?}, in order");
        assert_eq!(stores.outbox.depth(consumer).await.unwrap(), 0);
    }
    let cancelled = queued(&stores).await.id;
    stores
        .runs
        .request_cancel(ACCOUNT, cancelled, "no", at(6))
        .await
        .unwrap();
    assert_eq!(
        statuses(&take(&stores, Consumer::Follow, 6).await),
        [RunStatus::Cancelled]
    );
    let given_up = claimed(&stores).await;
    let change = change(RunStatus::Starting, RunEvent::Failed, at(7));
    stores.runs.change(&given_up.fence, &change).await.unwrap();
    assert_eq!(statuses(&take(&stores, Consumer::Follow, 7).await), [RunStatus::Error]);
}

async fn a_delivery_is_the_event_of_the_journal(stores: Stores) {
    let run = failed(&stores, 4).await;
    let taken = take(&stores, Consumer::Follow, 4).await;
    let last = stores
        .journal
        .of_run(ACCOUNT, run, 0, 100)
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert_eq!(taken, [Delivery { event: last, tries: 1 }], "due when it happened");
}

async fn what_was_taken_is_offered_again_after_its_time(stores: Stores) {
    failed(&stores, 4).await;
    let first = take(&stores, Consumer::Follow, 4).await;
    assert_eq!(take(&stores, Consumer::Follow, 13).await, [], "it is somebody's");
    let second = take(&stores, Consumer::Follow, 14).await;
    assert_eq!(second.len(), 1);
    assert_eq!((second[0].tries, &second[0].event), (2, &first[0].event));
    assert_eq!(stores.outbox.depth(Consumer::Follow).await.unwrap(), 1);
}

async fn of_a_run_only_the_earliest_is_offered(stores: Stores) {
    let run = failed(&stores, 4).await;
    let first = take(&stores, Consumer::Notify, 5).await;
    assert_eq!(statuses(&first), [RunStatus::Running]);
    assert_eq!(
        take(&stores, Consumer::Notify, 6).await,
        [],
        "not while the first is on its way"
    );
    let sequence = first[0].event.sequence;
    stores
        .outbox
        .postpone(Consumer::Notify, run, sequence, at(60))
        .await
        .unwrap();
    assert_eq!(take(&stores, Consumer::Notify, 7).await, [], "nor while it waits");
    stores.outbox.delivered(Consumer::Notify, run, sequence).await.unwrap();
    assert_eq!(statuses(&take(&stores, Consumer::Notify, 8).await), [RunStatus::Error]);
}

async fn runs_do_not_wait_for_each_other(stores: Stores) {
    let stuck = failed(&stores, 4).await;
    let first = take(&stores, Consumer::Notify, 5).await;
    let sequence = first[0].event.sequence;
    stores
        .outbox
        .postpone(Consumer::Notify, stuck, sequence, LATE)
        .await
        .unwrap();
    let other = failed(&stores, 6).await;
    let taken = take(&stores, Consumer::Notify, 7).await;
    assert_eq!(taken.iter().map(|one| one.event.run).collect::<Vec<_>>(), [other]);
}

async fn what_was_delivered_is_gone_for_its_consumer_alone(stores: Stores) {
    let run = failed(&stores, 4).await;
    let taken = take(&stores, Consumer::Follow, 5).await;
    for _ in 0..2 {
        let sequence = taken[0].event.sequence;
        stores.outbox.delivered(Consumer::Follow, run, sequence).await.unwrap();
    }
    assert_eq!(stores.outbox.depth(Consumer::Follow).await.unwrap(), 0);
    assert_eq!(stores.outbox.depth(Consumer::Notify).await.unwrap(), 2);
    assert_eq!(take(&stores, Consumer::Follow, 60).await, []);
    assert_eq!(
        statuses(&take(&stores, Consumer::Lineage, 60).await),
        [RunStatus::Running]
    );
    let unknown = RunId::new(987_654);
    stores.outbox.delivered(Consumer::Follow, unknown, 1).await.unwrap();
    stores
        .outbox
        .postpone(Consumer::Follow, unknown, 1, at(9))
        .await
        .unwrap();
    assert_eq!(take(&stores, Consumer::Follow, 60).await, []);
}

async fn what_was_postponed_is_offered_then_and_not_before(stores: Stores) {
    let run = failed(&stores, 4).await;
    let sequence = take(&stores, Consumer::Follow, 5).await[0].event.sequence;
    stores
        .outbox
        .postpone(Consumer::Follow, run, sequence, at(100))
        .await
        .unwrap();
    assert_eq!(take(&stores, Consumer::Follow, 99).await, []);
    assert_eq!(take(&stores, Consumer::Follow, 100).await[0].tries, 2);
    stores
        .outbox
        .postpone(Consumer::Follow, run, sequence, at(101))
        .await
        .unwrap();
    assert_eq!(take(&stores, Consumer::Follow, 101).await[0].tries, 3, "sooner, too");
}

async fn the_longest_due_are_taken_first(stores: Stores) {
    let mut ends = Vec::new();
    for seconds in [9, 5, 7] {
        ends.push((at(seconds), failed(&stores, seconds).await));
    }
    ends.sort();
    let taken = stores.outbox.take(Consumer::Follow, at(20), LATE, 2).await.unwrap();
    let runs = |taken: &[Delivery]| taken.iter().map(|one| one.event.run).collect::<Vec<_>>();
    assert_eq!(runs(&taken), [ends[0].1, ends[1].1]);
    assert_eq!(runs(&take(&stores, Consumer::Follow, 20).await), [ends[2].1]);
    assert_eq!(take(&stores, Consumer::Follow, 20).await, []);
}

async fn a_refused_change_is_delivered_to_nobody(stores: Stores) {
    let starting = claimed(&stores).await;
    let half = Batch {
        event: Some(RunEvent::Started),
        logs: vec![chunk(1, 0, "of a step that was never reported")],
        ..batch(1, at(3))
    };
    assert_eq!(
        kind(stores.runs.report(&agent(&starting), &half).await),
        ErrorKind::Invalid
    );
    assert_eq!(stores.outbox.depth(Consumer::Notify).await.unwrap(), 0);
    let running = running(&stores).await;
    let stale = change(RunStatus::Starting, RunEvent::Failed, at(3));
    assert_eq!(
        kind(stores.runs.change(&running.fence, &stale).await),
        ErrorKind::Conflict
    );
    let gap = Batch {
        event: Some(RunEvent::Failed),
        ..batch(9, at(3))
    };
    assert_eq!(
        kind(stores.runs.report(&agent(&running), &gap).await),
        ErrorKind::Conflict
    );
    assert_eq!(stores.outbox.depth(Consumer::Follow).await.unwrap(), 0);
    assert_eq!(stores.outbox.depth(Consumer::Notify).await.unwrap(), 1, "its start");
}

async fn many_callers_take_each_delivery_once(stores: Stores) {
    let mut runs = BTreeSet::new();
    for _ in 0..12 {
        runs.insert(failed(&stores, 4).await);
    }
    let taken = together(8, |_| {
        let outbox = stores.outbox.clone();
        async move {
            let mut taken = Vec::new();
            loop {
                let more = outbox.take(Consumer::Follow, at(5), LATE, 2).await.unwrap();
                if more.is_empty() || taken.len() > 12 {
                    return taken;
                }
                taken.extend(more.into_iter().map(|one| one.event.run));
            }
        }
    });
    let mut taken: Vec<RunId> = taken.await.into_iter().flatten().collect();
    // A caller passes over what another is just taking: whoever asks last finds what is left.
    taken.extend(take(&stores, Consumer::Follow, 5).await.iter().map(|one| one.event.run));
    assert_eq!(taken.len(), 12, "none twice: {taken:?}");
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), runs);
    assert_eq!(stores.outbox.depth(Consumer::Follow).await.unwrap(), 12);
}
