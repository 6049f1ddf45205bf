//! What [`Sessions`](dbtcloud_core::ports::Sessions) means.

use std::collections::BTreeSet;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{ProjectId, SessionId, UserId};
use dbtcloud_core::ports::{NewSession, SessionChange};
use dbtcloud_core::session::{Session, SessionEvent, SessionStatus};

use super::Stores;
use super::samples::{ACCOUNT, STRANGER, at, kind, together};

cases! { $ sessions_cases, sessions, Stores:
    opening_makes_a_session,
    opening_again_gives_the_same,
    sessions_of_others_are_apart,
    a_new_one_is_opened_after_the_end,
    many_openers_open_one,
    another_account_sees_nothing,
    a_start_sets_the_address,
    a_stop_clears_the_address,
    activity_is_noted_when_told,
    resuming_counts_the_generation_up,
    starting_and_resuming_is_no_new_generation,
    another_status_conflicts,
    another_generation_conflicts,
    an_illegal_event_conflicts,
    a_terminal_session_absorbs,
    one_of_many_changes_wins,
    scan_goes_by_id_and_state,
    ended_sessions_are_forgotten_and_others_are_not,
}

const NEW: NewSession = NewSession {
    account: ACCOUNT,
    project: ProjectId::new(10),
    user: UserId::new(5),
};

fn change(from: SessionStatus, event: SessionEvent, generation: u32) -> SessionChange {
    SessionChange {
        from,
        event,
        generation,
        address: None,
        active: false,
    }
}

async fn apply(stores: &Stores, session: &Session, event: SessionEvent, seconds: i64) -> Session {
    let change = change(session.status, event, session.generation);
    stores
        .sessions
        .change(session.account, session.id, &change, at(seconds))
        .await
        .unwrap()
}

async fn opening_makes_a_session(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let expected = Session {
        id: session.id,
        account: ACCOUNT,
        project: NEW.project,
        user: NEW.user,
        status: SessionStatus::Starting,
        generation: 1,
        address: None,
        created_at: at(1),
        updated_at: at(1),
        active_at: at(1),
    };
    assert_eq!(session, expected);
    assert_eq!(stores.sessions.get(ACCOUNT, session.id).await.unwrap(), expected);
}

async fn opening_again_gives_the_same(stores: Stores) {
    let mut session = stores.sessions.open(NEW, at(1)).await.unwrap();
    for event in [SessionEvent::Started, SessionEvent::Suspend, SessionEvent::Suspended] {
        assert_eq!(
            stores.sessions.open(NEW, at(9)).await.unwrap(),
            session,
            "as it is, whatever its state"
        );
        session = apply(&stores, &session, event, 2).await;
    }
    assert_eq!(stores.sessions.open(NEW, at(9)).await.unwrap(), session);
}

async fn sessions_of_others_are_apart(stores: Stores) {
    let mut ids = BTreeSet::new();
    for new in [
        NEW,
        NewSession {
            user: UserId::new(6),
            ..NEW
        },
        NewSession {
            project: ProjectId::new(11),
            ..NEW
        },
        NewSession {
            account: STRANGER,
            ..NEW
        },
    ] {
        ids.insert(stores.sessions.open(new, at(1)).await.unwrap().id);
    }
    assert_eq!(ids.len(), 4);
}

async fn a_new_one_is_opened_after_the_end(stores: Stores) {
    for event in [SessionEvent::Close, SessionEvent::Failed] {
        let first = stores.sessions.open(NEW, at(1)).await.unwrap();
        apply(&stores, &first, event, 2).await;
        let second = stores.sessions.open(NEW, at(3)).await.unwrap();
        assert!(second.id > first.id);
        assert_eq!((second.status, second.generation), (SessionStatus::Starting, 1));
        apply(&stores, &second, event, 4).await;
    }
}

async fn many_openers_open_one(stores: Stores) {
    for user in 0..10 {
        let new = NewSession {
            user: UserId::new(100 + user),
            ..NEW
        };
        let ids = together(8, |_| {
            let sessions = stores.sessions.clone();
            async move { sessions.open(new, at(1)).await.unwrap().id }
        });
        assert_eq!(ids.await.into_iter().collect::<BTreeSet<_>>().len(), 1);
    }
}

async fn another_account_sees_nothing(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    assert_eq!(
        kind(stores.sessions.get(STRANGER, session.id).await),
        ErrorKind::NotFound
    );
    let close = change(SessionStatus::Starting, SessionEvent::Close, 1);
    assert_eq!(
        kind(stores.sessions.change(STRANGER, session.id, &close, at(2)).await),
        ErrorKind::NotFound
    );
    let unknown = SessionId::new(987_654);
    assert_eq!(kind(stores.sessions.get(ACCOUNT, unknown).await), ErrorKind::NotFound);
    assert_eq!(
        kind(stores.sessions.change(ACCOUNT, unknown, &close, at(2)).await),
        ErrorKind::NotFound
    );
    assert_eq!(stores.sessions.get(ACCOUNT, session.id).await.unwrap(), session);
}

async fn a_start_sets_the_address(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let started = SessionChange {
        address: Some("http://10.0.0.1:80".to_owned()),
        ..change(SessionStatus::Starting, SessionEvent::Started, 1)
    };
    let running = stores
        .sessions
        .change(ACCOUNT, session.id, &started, at(5))
        .await
        .unwrap();
    assert_eq!((running.status, running.generation), (SessionStatus::Running, 1));
    assert_eq!(running.address.as_deref(), Some("http://10.0.0.1:80"));
    assert_eq!(
        (running.created_at, running.updated_at, running.active_at),
        (at(1), at(5), at(1))
    );
    assert_eq!(stores.sessions.get(ACCOUNT, session.id).await.unwrap(), running);
    let kept = apply(&stores, &running, SessionEvent::Resume, 6).await;
    assert_eq!(
        kept.address, running.address,
        "who does not know the address does not clear it"
    );
    let moved = SessionChange {
        address: Some("http://10.0.0.2:80".to_owned()),
        ..change(SessionStatus::Running, SessionEvent::Started, 1)
    };
    let moved = stores
        .sessions
        .change(ACCOUNT, session.id, &moved, at(7))
        .await
        .unwrap();
    assert_eq!(moved.address.as_deref(), Some("http://10.0.0.2:80"));
}

async fn a_stop_clears_the_address(stores: Stores) {
    for event in [SessionEvent::Suspend, SessionEvent::Close, SessionEvent::Failed] {
        let session = stores.sessions.open(NEW, at(1)).await.unwrap();
        let address = Some("http://10.0.0.1:80".to_owned());
        let started = SessionChange {
            address: address.clone(),
            ..change(SessionStatus::Starting, SessionEvent::Started, 1)
        };
        stores
            .sessions
            .change(ACCOUNT, session.id, &started, at(5))
            .await
            .unwrap();
        let stop = SessionChange {
            address,
            ..change(SessionStatus::Running, event, 1)
        };
        let stopped = stores.sessions.change(ACCOUNT, session.id, &stop, at(6)).await.unwrap();
        assert_eq!(stopped.address, None, "an address is where a running server answers");
        apply(&stores, &stopped, SessionEvent::Close, 7).await;
    }
}

async fn activity_is_noted_when_told(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let idle = apply(&stores, &session, SessionEvent::Started, 5).await;
    assert_eq!((idle.updated_at, idle.active_at), (at(5), at(1)));
    let beat = SessionChange {
        active: true,
        ..change(SessionStatus::Running, SessionEvent::Started, 1)
    };
    let active = stores.sessions.change(ACCOUNT, session.id, &beat, at(6)).await.unwrap();
    assert_eq!(active.active_at, at(6));
}

async fn resuming_counts_the_generation_up(stores: Stores) {
    let mut session = stores.sessions.open(NEW, at(1)).await.unwrap();
    for event in [
        SessionEvent::Started,
        SessionEvent::Suspend,
        SessionEvent::Suspended,
        SessionEvent::Resume,
    ] {
        session = apply(&stores, &session, event, 2).await;
    }
    assert_eq!((session.status, session.generation), (SessionStatus::Starting, 2));
}

async fn starting_and_resuming_is_no_new_generation(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let again = apply(&stores, &session, SessionEvent::Resume, 2).await;
    assert_eq!((again.status, again.generation), (SessionStatus::Starting, 1));
}

async fn another_status_conflicts(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let stale = change(SessionStatus::Running, SessionEvent::Suspend, 1);
    assert_eq!(
        kind(stores.sessions.change(ACCOUNT, session.id, &stale, at(2)).await),
        ErrorKind::Conflict
    );
    assert_eq!(stores.sessions.get(ACCOUNT, session.id).await.unwrap(), session);
}

async fn another_generation_conflicts(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    for generation in [0, 2] {
        let stale = change(SessionStatus::Starting, SessionEvent::Started, generation);
        assert_eq!(
            kind(stores.sessions.change(ACCOUNT, session.id, &stale, at(2)).await),
            ErrorKind::Conflict
        );
    }
    assert_eq!(stores.sessions.get(ACCOUNT, session.id).await.unwrap(), session);
}

async fn an_illegal_event_conflicts(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let illegal = change(SessionStatus::Starting, SessionEvent::Suspended, 1);
    assert_eq!(
        kind(stores.sessions.change(ACCOUNT, session.id, &illegal, at(2)).await),
        ErrorKind::Conflict
    );
    assert_eq!(stores.sessions.get(ACCOUNT, session.id).await.unwrap(), session);
}

async fn a_terminal_session_absorbs(stores: Stores) {
    for end in [SessionEvent::Close, SessionEvent::Failed] {
        let session = stores.sessions.open(NEW, at(1)).await.unwrap();
        let ended = apply(&stores, &session, end, 2).await;
        for event in SessionEvent::ALL {
            let change = change(ended.status, event, 1);
            let after = stores
                .sessions
                .change(ACCOUNT, session.id, &change, at(3))
                .await
                .unwrap();
            assert_eq!((after.status, after.generation, after.address), (ended.status, 1, None));
        }
    }
}

async fn one_of_many_changes_wins(stores: Stores) {
    let session = stores.sessions.open(NEW, at(1)).await.unwrap();
    let events = [
        SessionEvent::Started,
        SessionEvent::Suspend,
        SessionEvent::Close,
        SessionEvent::Failed,
    ];
    let won = together(8, |index| {
        let (sessions, change) = (
            stores.sessions.clone(),
            change(SessionStatus::Starting, events[index % 4], 1),
        );
        async move {
            match sessions.change(ACCOUNT, session.id, &change, at(2)).await {
                Ok(session) => Some(session.status),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Conflict);
                    None
                }
            }
        }
    });
    let won: Vec<_> = won.await.into_iter().flatten().collect();
    let now = stores.sessions.get(ACCOUNT, session.id).await.unwrap();
    assert_eq!(won, [now.status]);
}

async fn scan_goes_by_id_and_state(stores: Stores) {
    let mut sessions = Vec::new();
    for user in 0..4 {
        let account = if user == 2 { STRANGER } else { ACCOUNT };
        sessions.push(
            stores
                .sessions
                .open(
                    NewSession {
                        account,
                        user: UserId::new(user),
                        ..NEW
                    },
                    at(1),
                )
                .await
                .unwrap(),
        );
    }
    sessions[1] = apply(&stores, &sessions[1], SessionEvent::Close, 2).await;
    sessions[3] = apply(&stores, &sessions[3], SessionEvent::Started, 2).await;
    let live = [SessionStatus::Starting, SessionStatus::Running];
    let none = SessionId::new(0);
    let seen = stores.sessions.scan(&live, none, 10).await.unwrap();
    assert_eq!(
        seen,
        [sessions[0].clone(), sessions[2].clone(), sessions[3].clone()],
        "over all accounts"
    );
    assert_eq!(stores.sessions.scan(&live, none, 2).await.unwrap(), seen[..2]);
    assert_eq!(
        stores.sessions.scan(&live, sessions[0].id, 10).await.unwrap(),
        seen[1..]
    );
    assert_eq!(
        stores.sessions.scan(&[SessionStatus::Closed], none, 10).await.unwrap(),
        sessions[1..2]
    );
    assert_eq!(stores.sessions.scan(&[], none, 10).await.unwrap(), []);
}

async fn ended_sessions_are_forgotten_and_others_are_not(stores: Stores) {
    let closed = stores.sessions.open(NEW, at(1)).await.unwrap();
    let closed = apply(&stores, &closed, SessionEvent::Close, 2).await;
    let open = stores.sessions.open(NEW, at(3)).await.unwrap();
    let these = [closed.id, open.id, SessionId::new(987)];
    assert_eq!(stores.sessions.forget(&these).await.unwrap(), 1);
    assert_eq!(stores.sessions.forget(&these).await.unwrap(), 0);
    assert_eq!(stores.sessions.forget(&[]).await.unwrap(), 0);
    let gone = stores.sessions.get(ACCOUNT, closed.id).await;
    assert_eq!(kind(gone), ErrorKind::NotFound);
    assert_eq!(stores.sessions.get(ACCOUNT, open.id).await.unwrap(), open);
}
