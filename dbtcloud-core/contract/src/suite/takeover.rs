//! What reclaim, renew and release in [`Runs`](dbtcloud_core::ports::Runs) mean, and what many claimers
//! at one time may not do.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{JobId, RunId};
use dbtcloud_core::ports::{Fence, Holder};
use dbtcloud_core::run::{Limits, RunEvent, RunStatus, admit};

use super::Stores;
use super::queue::{ask, slotted};
use super::samples::{
    ACCOUNT, LATE, STRANGER, agent, at, batch, change, claim_until, claimed, enqueue, kind, new_run, owner, queued,
    together,
};

cases! { $ takeover_cases, takeover, Stores:
    an_expired_lease_is_taken_over,
    a_lease_in_force_is_not_taken_over,
    reclaim_is_for_live_runs_only,
    reclaim_keeps_to_its_limit,
    renewal_extends_and_tells,
    renewal_leaves_out_the_overtaken,
    renewal_tells_of_a_run_that_ended,
    release_lets_another_reclaim_at_once,
    release_by_an_overtaken_fence_does_nothing,
    many_claimers_never_claim_twice,
    many_claimers_never_hold_a_slot_twice,
    many_claimers_never_run_an_exclusive_job_twice,
    many_reclaimers_take_over_once,
    rounds_of_admission_drain_the_queue,
}

async fn an_expired_lease_is_taken_over(stores: Stores) {
    let run = queued(&stores).await.id;
    let first = claim_until(&stores, run, at(1), at(10)).await;
    let taken = stores.runs.reclaim(&owner("b"), at(11), at(20), 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(
        (taken[0].run.status, taken[0].run.attempt),
        (RunStatus::Starting, 1),
        "only the driver changes"
    );
    assert_ne!(taken[0].fence, first.fence);
    let started = change(RunStatus::Starting, RunEvent::Failed, at(12));
    assert_eq!(
        kind(stores.runs.change(&first.fence, &started).await),
        ErrorKind::Fenced
    );
    stores
        .runs
        .report(&agent(&first), &batch(1, at(12)))
        .await
        .expect("the agent's fence is its attempt");
    stores.runs.change(&taken[0].fence, &started).await.unwrap();
}

async fn a_lease_in_force_is_not_taken_over(stores: Stores) {
    let run = queued(&stores).await.id;
    claim_until(&stores, run, at(1), at(10)).await;
    assert_eq!(stores.runs.reclaim(&owner("b"), at(9), at(20), 10).await.unwrap(), []);
    assert_eq!(
        stores
            .runs
            .reclaim(&owner("b"), at(11), at(20), 10)
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        stores.runs.reclaim(&owner("c"), at(12), at(30), 10).await.unwrap(),
        [],
        "it has a new lease"
    );
    assert_eq!(
        stores
            .runs
            .reclaim(&owner("c"), at(21), at(30), 10)
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn reclaim_is_for_live_runs_only(stores: Stores) {
    queued(&stores).await;
    let ended = queued(&stores).await.id;
    let ended = claim_until(&stores, ended, at(1), at(10)).await;
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    stores.runs.change(&ended.fence, &failed).await.unwrap();
    let cancelling = queued(&stores).await.id;
    claim_until(&stores, cancelling, at(1), at(10)).await;
    stores
        .runs
        .request_cancel(ACCOUNT, cancelling, "stop", at(2))
        .await
        .unwrap();
    let taken = stores.runs.reclaim(&owner("b"), at(11), at(20), 10).await.unwrap();
    assert_eq!(taken.iter().map(|taken| taken.run.id).collect::<Vec<_>>(), [cancelling]);
}

async fn reclaim_keeps_to_its_limit(stores: Stores) {
    for _ in 0..5 {
        let run = queued(&stores).await.id;
        claim_until(&stores, run, at(1), at(10)).await;
    }
    assert_eq!(
        stores.runs.reclaim(&owner("b"), at(11), LATE, 3).await.unwrap().len(),
        3
    );
    assert_eq!(
        stores.runs.reclaim(&owner("b"), at(11), LATE, 3).await.unwrap().len(),
        2
    );
}

async fn renewal_extends_and_tells(stores: Stores) {
    let run = queued(&stores).await.id;
    let claimed = claim_until(&stores, run, at(1), at(10)).await;
    stores.runs.request_cancel(ACCOUNT, run, "stop", at(2)).await.unwrap();
    let renewed = stores.runs.renew(&[claimed.fence], at(30)).await.unwrap();
    assert_eq!(renewed.len(), 1);
    assert_eq!(renewed[0].run.status, RunStatus::Cancelling, "the run as it is now");
    assert_eq!(stores.runs.reclaim(&owner("b"), at(20), LATE, 10).await.unwrap(), []);
}

async fn renewal_leaves_out_the_overtaken(stores: Stores) {
    let (first, second) = (queued(&stores).await.id, queued(&stores).await.id);
    let lost = claim_until(&stores, first, at(1), at(10)).await;
    let kept = claim_until(&stores, second, at(1), at(50)).await;
    let taken = stores.runs.reclaim(&owner("b"), at(11), at(20), 10).await.unwrap();
    let unknown = Fence::issue(RunId::new(987_654), Holder::Driver { epoch: 1 });
    let fences = [lost.fence, kept.fence, unknown, agent(&kept)];
    let renewed = stores.runs.renew(&fences, LATE).await.unwrap();
    assert_eq!(
        renewed.iter().map(|renewed| renewed.run.id).collect::<Vec<_>>(),
        [second]
    );
    let again = stores.runs.reclaim(&owner("c"), at(21), at(30), 10).await.unwrap();
    assert_eq!(
        again.len(),
        1,
        "the overtaken driver did not extend its successor's lease"
    );
    assert_eq!(again[0].run.id, taken[0].run.id);
    assert_eq!(stores.runs.renew(&[], LATE).await.unwrap(), []);
}

async fn renewal_tells_of_a_run_that_ended(stores: Stores) {
    let claimed = claimed(&stores).await;
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(2));
    stores.runs.change(&claimed.fence, &failed).await.unwrap();
    let renewed = stores.runs.renew(&[claimed.fence], LATE).await.unwrap();
    assert_eq!(
        renewed.iter().map(|renewed| renewed.run.status).collect::<Vec<_>>(),
        [RunStatus::Error]
    );
    assert_eq!(stores.runs.reclaim(&owner("b"), LATE, LATE, 10).await.unwrap(), []);
}

async fn release_lets_another_reclaim_at_once(stores: Stores) {
    let run = queued(&stores).await.id;
    let claimed = claim_until(&stores, run, at(1), at(50)).await;
    stores.runs.release(&[claimed.fence], at(5)).await.unwrap();
    assert_eq!(stores.runs.get(ACCOUNT, run).await.unwrap().status, RunStatus::Starting);
    assert_eq!(
        stores.runs.reclaim(&owner("b"), at(5), at(60), 10).await.unwrap().len(),
        1
    );
    stores.runs.release(&[], at(5)).await.unwrap();
}

async fn release_by_an_overtaken_fence_does_nothing(stores: Stores) {
    let run = queued(&stores).await.id;
    let lost = claim_until(&stores, run, at(1), at(10)).await;
    stores.runs.reclaim(&owner("b"), at(11), at(50), 10).await.unwrap();
    stores.runs.release(&[lost.fence], at(12)).await.unwrap();
    assert_eq!(stores.runs.reclaim(&owner("c"), at(13), LATE, 10).await.unwrap(), []);
}

async fn many_claimers_never_claim_twice(stores: Stores) {
    let mut ids = Vec::new();
    for _ in 0..200 {
        ids.push(queued(&stores).await.id);
    }
    let claims = together(8, |claimer| {
        let (runs, mut ids) = (stores.runs.clone(), ids.clone());
        // Each begins elsewhere, so that they meet in the middle of each other's lists.
        ids.rotate_left(claimer * 25);
        async move {
            let mut claimed = Vec::new();
            for part in ids.chunks(10) {
                let admissions: Vec<_> = part.iter().map(|run| ask(*run, None)).collect();
                let name = owner(&format!("claimer-{claimer}"));
                claimed.extend(runs.claim(&name, &admissions, at(1), LATE).await.unwrap());
            }
            claimed
        }
    });
    let claims: Vec<_> = claims.await.into_iter().flatten().collect();
    assert_eq!(claims.len(), 200, "every run is claimed, none twice");
    assert_eq!(
        claims
            .iter()
            .map(|claimed| claimed.run.id)
            .collect::<BTreeSet<_>>()
            .len(),
        200
    );
    assert!(claims.iter().all(|claimed| claimed.run.attempt == 1));
}

async fn many_claimers_never_hold_a_slot_twice(stores: Stores) {
    let ids = slotted(&stores, ACCOUNT, 1..41).await;
    together(8, |claimer| {
        let (runs, mut ids) = (stores.runs.clone(), ids.clone());
        ids.rotate_left(claimer * 5);
        async move {
            for (index, run) in ids.into_iter().enumerate() {
                let admission = [ask(run, Some(u32::try_from(index % 4).unwrap()))];
                runs.claim(&owner(&format!("claimer-{claimer}")), &admission, at(1), LATE)
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    let busy = stores.runs.queue(at(2), 100, None).await.unwrap().busy;
    let slots: Vec<_> = busy.iter().map(|busy| busy.slot).collect();
    assert_eq!(slots.iter().collect::<BTreeSet<_>>().len(), slots.len(), "{slots:?}");
    assert_eq!(slots.len(), 4, "no slot stays empty while runs wait");
}

async fn many_claimers_never_run_an_exclusive_job_twice(stores: Stores) {
    let mut ids = Vec::new();
    for index in 0..40 {
        ids.push(
            enqueue(&stores, &new_run(ACCOUNT, JobId::new(1 + index % 5)), at(0))
                .await
                .id,
        );
    }
    together(8, |claimer| {
        let (runs, mut ids) = (stores.runs.clone(), ids.clone());
        ids.rotate_left(claimer * 5);
        async move {
            for (index, run) in ids.into_iter().enumerate() {
                let slot = u32::try_from(claimer * 100 + index).unwrap();
                let name = owner(&format!("claimer-{claimer}"));
                runs.claim(&name, &[ask(run, Some(slot))], at(1), LATE).await.unwrap();
            }
        }
    })
    .await;
    let busy = stores.runs.queue(at(2), 100, None).await.unwrap().busy;
    let jobs: Vec<_> = busy.iter().map(|busy| busy.job).collect();
    assert_eq!(jobs.iter().collect::<BTreeSet<_>>().len(), jobs.len(), "{jobs:?}");
    assert_eq!(jobs.len(), 5, "every job runs");
}

async fn many_reclaimers_take_over_once(stores: Stores) {
    for _ in 0..40 {
        let run = queued(&stores).await.id;
        claim_until(&stores, run, at(1), at(10)).await;
    }
    let taken = together(8, |claimer| {
        let runs = stores.runs.clone();
        async move {
            let mut taken = Vec::new();
            loop {
                let name = owner(&format!("reclaimer-{claimer}"));
                let more = runs.reclaim(&name, at(11), LATE, 7).await.unwrap();
                if more.is_empty() {
                    return taken;
                }
                taken.extend(more.into_iter().map(|claimed| claimed.run.id));
            }
        }
    });
    let mut taken: Vec<_> = taken.await.into_iter().flatten().collect();
    taken.sort_unstable();
    let count = taken.len();
    taken.dedup();
    assert_eq!((taken.len(), count), (40, 40));
}

async fn rounds_of_admission_drain_the_queue(stores: Stores) {
    for account in [ACCOUNT, STRANGER] {
        for job in 0..6 {
            enqueue(
                &stores,
                &new_run(account, JobId::new(account.get() * 100 + job / 2)),
                at(0),
            )
            .await;
        }
    }
    let limits = Limits {
        slots: [(ACCOUNT, 2), (STRANGER, 1)].into(),
        capacity: 10,
        ..Limits::default()
    };
    let mut ended = 0;
    for round in 0..20 {
        let snapshot = stores.runs.queue(at(round), 100, None).await.unwrap();
        let decision = admit(&snapshot, &limits);
        let claimed = stores
            .runs
            .claim(&owner("a"), &decision.admitted, at(round), LATE)
            .await
            .unwrap();
        assert_eq!(claimed.len(), decision.admitted.len(), "nobody was quicker");
        for claimed in claimed {
            let failed = change(RunStatus::Starting, RunEvent::Failed, at(round));
            stores.runs.change(&claimed.fence, &failed).await.unwrap();
            ended += 1;
        }
    }
    assert_eq!(ended, 12);
}
