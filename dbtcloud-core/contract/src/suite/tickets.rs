//! What [`Tickets`](dbtcloud_core::ports::Tickets) means.

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::ports::{AgentIdentity, Claimed, Digest, TicketIssue};
use dbtcloud_core::run::{RunEvent, RunStatus};

use super::Stores;
use super::samples::{ACCOUNT, LATE, agent, at, change, claim_until, claimed, kind, together};

cases! { $ tickets_cases, tickets, Stores:
    a_ticket_tells_who_its_agent_is,
    an_unknown_ticket_is_denied,
    an_expired_ticket_is_denied,
    the_same_ticket_and_key_again_is_the_same,
    another_key_is_denied,
    issuing_twice_changes_nothing,
    an_earlier_ticket_stays_redeemable,
    a_key_stands_for_one_attempt,
    an_unknown_key_is_denied,
    attempts_are_apart,
    an_overtaken_agent_is_known_and_fenced,
    one_of_many_keys_is_bound,
    a_purge_drops_what_ended,
    a_purge_keeps_to_its_limit,
}

const fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

fn issue(ticket: u8, claimed: &Claimed) -> TicketIssue {
    TicketIssue {
        ticket: digest(ticket),
        account: ACCOUNT,
        run: claimed.run.id,
        attempt: claimed.run.attempt,
        expires_at: at(60),
    }
}

async fn a_ticket_tells_who_its_agent_is(stores: Stores) {
    let claimed = claimed(&stores).await;
    let identity = AgentIdentity {
        account: ACCOUNT,
        fence: agent(&claimed),
    };
    stores.tickets.issue(&issue(1, &claimed)).await.unwrap();
    assert!(!stores.tickets.redeemed(claimed.run.id, 1).await.unwrap());
    assert_eq!(
        stores.tickets.redeem(digest(1), digest(101), at(59)).await.unwrap(),
        identity
    );
    assert_eq!(stores.tickets.authenticate(digest(101)).await.unwrap(), identity);
    assert!(stores.tickets.redeemed(claimed.run.id, 1).await.unwrap());
}

async fn an_unknown_ticket_is_denied(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &claimed)).await.unwrap();
    assert_eq!(
        kind(stores.tickets.redeem(digest(2), digest(101), at(2)).await),
        ErrorKind::Denied
    );
    assert_eq!(kind(stores.tickets.authenticate(digest(101)).await), ErrorKind::Denied);
    assert_eq!(
        kind(stores.tickets.authenticate(digest(1)).await),
        ErrorKind::Denied,
        "a ticket is not a key"
    );
}

async fn an_expired_ticket_is_denied(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &claimed)).await.unwrap();
    assert_eq!(
        kind(stores.tickets.redeem(digest(1), digest(101), at(60)).await),
        ErrorKind::Denied
    );
    assert_eq!(
        kind(stores.tickets.redeem(digest(1), digest(101), at(61)).await),
        ErrorKind::Denied
    );
    assert!(!stores.tickets.redeemed(claimed.run.id, 1).await.unwrap());
}

async fn the_same_ticket_and_key_again_is_the_same(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &claimed)).await.unwrap();
    let first = stores.tickets.redeem(digest(1), digest(101), at(2)).await.unwrap();
    assert_eq!(
        stores.tickets.redeem(digest(1), digest(101), at(3)).await.unwrap(),
        first
    );
    let late = stores.tickets.redeem(digest(1), digest(101), at(61)).await.unwrap();
    assert_eq!(
        late, first,
        "the first answer may have been lost, and the ticket expired since"
    );
}

async fn another_key_is_denied(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &claimed)).await.unwrap();
    stores.tickets.redeem(digest(1), digest(101), at(2)).await.unwrap();
    assert_eq!(
        kind(stores.tickets.redeem(digest(1), digest(102), at(3)).await),
        ErrorKind::Denied
    );
    assert_eq!(kind(stores.tickets.authenticate(digest(102)).await), ErrorKind::Denied);
    stores
        .tickets
        .authenticate(digest(101))
        .await
        .expect("the first key stays bound");
}

async fn issuing_twice_changes_nothing(stores: Stores) {
    let claimed = claimed(&stores).await;
    let first = issue(1, &claimed);
    stores.tickets.issue(&first).await.unwrap();
    stores
        .tickets
        .issue(&TicketIssue {
            expires_at: LATE,
            attempt: 9,
            ..first.clone()
        })
        .await
        .unwrap();
    assert_eq!(
        kind(stores.tickets.redeem(digest(1), digest(101), at(60)).await),
        ErrorKind::Denied
    );
    stores.tickets.redeem(digest(1), digest(101), at(2)).await.unwrap();
    stores.tickets.issue(&first).await.unwrap();
    assert_eq!(
        kind(stores.tickets.redeem(digest(1), digest(102), at(3)).await),
        ErrorKind::Denied
    );
}

async fn an_earlier_ticket_stays_redeemable(stores: Stores) {
    let claimed = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &claimed)).await.unwrap();
    stores.tickets.issue(&issue(2, &claimed)).await.unwrap();
    let by_first = stores.tickets.redeem(digest(1), digest(101), at(2)).await.unwrap();
    let by_second = stores.tickets.redeem(digest(2), digest(101), at(3)).await.unwrap();
    assert_eq!(by_second, by_first, "both stand for the attempt");
    assert_eq!(
        kind(stores.tickets.redeem(digest(2), digest(102), at(3)).await),
        ErrorKind::Denied
    );
}

async fn a_key_stands_for_one_attempt(stores: Stores) {
    let (a, b) = (claimed(&stores).await, claimed(&stores).await);
    stores.tickets.issue(&issue(1, &a)).await.unwrap();
    stores.tickets.issue(&issue(2, &b)).await.unwrap();
    let first = stores.tickets.redeem(digest(1), digest(101), at(2)).await.unwrap();
    assert_eq!(
        kind(stores.tickets.redeem(digest(2), digest(101), at(2)).await),
        ErrorKind::Denied
    );
    assert_eq!(stores.tickets.authenticate(digest(101)).await.unwrap(), first);
    stores
        .tickets
        .redeem(digest(2), digest(102), at(3))
        .await
        .expect("the ticket was not used up");
}

async fn an_unknown_key_is_denied(stores: Stores) {
    assert_eq!(kind(stores.tickets.authenticate(digest(7)).await), ErrorKind::Denied);
}

async fn attempts_are_apart(stores: Stores) {
    let first = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &first)).await.unwrap();
    let requeue = change(RunStatus::Starting, RunEvent::Requeued, at(2));
    stores.runs.change(&first.fence, &requeue).await.unwrap();
    let second = claim_until(&stores, first.run.id, at(3), LATE).await;
    stores.tickets.issue(&issue(2, &second)).await.unwrap();
    let a = stores.tickets.redeem(digest(1), digest(101), at(4)).await.unwrap();
    let b = stores.tickets.redeem(digest(2), digest(102), at(4)).await.unwrap();
    assert_eq!((a.fence, b.fence), (agent(&first), agent(&second)));
    assert!(stores.tickets.redeemed(first.run.id, 1).await.unwrap());
    assert!(stores.tickets.redeemed(first.run.id, 2).await.unwrap());
    assert!(!stores.tickets.redeemed(first.run.id, 3).await.unwrap());
}

async fn an_overtaken_agent_is_known_and_fenced(stores: Stores) {
    let first = claimed(&stores).await;
    stores.tickets.issue(&issue(1, &first)).await.unwrap();
    stores.tickets.redeem(digest(1), digest(101), at(2)).await.unwrap();
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(3));
    stores.runs.change(&first.fence, &failed).await.unwrap();
    let identity = stores.tickets.authenticate(digest(101)).await.unwrap();
    let report = stores
        .runs
        .report(&identity.fence, &super::samples::batch(1, at(4)))
        .await;
    assert_eq!(
        kind(report),
        ErrorKind::Fenced,
        "it is told to stop, not that nobody knows it"
    );
}

async fn one_of_many_keys_is_bound(stores: Stores) {
    for round in 0..10_u8 {
        let claimed = claimed(&stores).await;
        stores.tickets.issue(&issue(round, &claimed)).await.unwrap();
        let bound = together(8, |index| {
            let tickets = stores.tickets.clone();
            let key = digest(100 + round * 8 + u8::try_from(index).unwrap());
            async move {
                match tickets.redeem(digest(round), key, at(2)).await {
                    Ok(_) => Some(key),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Denied);
                        None
                    }
                }
            }
        });
        let bound: Vec<_> = bound.await.into_iter().flatten().collect();
        assert_eq!(bound.len(), 1);
        stores.tickets.authenticate(bound[0]).await.unwrap();
    }
}

/// A run that ended at this second, and whose ticket was redeemed.
async fn ended(stores: &Stores, ticket: u8, seconds: i64) -> Claimed {
    let claimed = claimed(stores).await;
    stores.tickets.issue(&issue(ticket, &claimed)).await.unwrap();
    stores
        .tickets
        .redeem(digest(ticket), digest(100 + ticket), at(2))
        .await
        .unwrap();
    let failed = change(RunStatus::Starting, RunEvent::Failed, at(seconds));
    stores.runs.change(&claimed.fence, &failed).await.unwrap();
    claimed
}

async fn a_purge_drops_what_ended(stores: Stores) {
    ended(&stores, 1, 10).await;
    ended(&stores, 2, 20).await;
    let live = claimed(&stores).await;
    stores.tickets.issue(&issue(3, &live)).await.unwrap();
    stores.tickets.redeem(digest(3), digest(103), at(2)).await.unwrap();
    assert_eq!(stores.tickets.spent(at(20)).await.unwrap(), 2, "a ticket and its key");
    while stores.tickets.purge(at(20), 100).await.unwrap() > 0 {}
    assert_eq!(stores.tickets.spent(at(20)).await.unwrap(), 0);
    assert_eq!(stores.tickets.spent(at(21)).await.unwrap(), 2);
    assert_eq!(kind(stores.tickets.authenticate(digest(101)).await), ErrorKind::Denied);
    assert_eq!(
        kind(stores.tickets.redeem(digest(1), digest(101), at(3)).await),
        ErrorKind::Denied
    );
    stores
        .tickets
        .authenticate(digest(102))
        .await
        .expect("it did not end before");
    stores
        .tickets
        .authenticate(digest(103))
        .await
        .expect("it has not ended");
}

async fn a_purge_keeps_to_its_limit(stores: Stores) {
    for ticket in 1..6 {
        ended(&stores, ticket, 10).await;
    }
    let mut rounds = 0;
    loop {
        let dropped = stores.tickets.purge(at(20), 2).await.unwrap();
        assert!(dropped <= 2);
        if dropped == 0 {
            break;
        }
        rounds += 1;
    }
    assert!(rounds >= 3, "five tickets need three rounds of two: {rounds}");
    for key in 101..106 {
        assert_eq!(kind(stores.tickets.authenticate(digest(key)).await), ErrorKind::Denied);
    }
}
