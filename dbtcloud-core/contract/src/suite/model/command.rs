//! What can be commanded. Things are named by the order in which they came to be, modulo how many there
//! are, so that a story means the same on both sides.

use dbtcloud_core::run::{RunEvent, StepStatus};
use dbtcloud_core::session::SessionEvent;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(super) enum Command {
    Wait {
        seconds: i64,
    },
    Insert {
        kind: u8,
        account: i64,
        name: u8,
        lookup: Option<u8>,
    },
    Update {
        row: usize,
        stale: bool,
        name: u8,
        lookup: Option<u8>,
        deleted: bool,
    },
    Enqueue {
        account: i64,
        job: i64,
        instant: Option<i64>,
        exclusive: bool,
        takes_slot: bool,
        delay: i64,
        /// What sets it off: the API, the schedule, a merge, one pull request or another.
        cause: u8,
    },
    Claim {
        admissions: Vec<(usize, Option<u32>)>,
    },
    Reclaim,
    Renew {
        claim: usize,
    },
    Release {
        claim: usize,
    },
    Change {
        claim: usize,
        event: RunEvent,
        stale: bool,
        text: Option<u8>,
    },
    Cancel {
        run: usize,
        stranger: bool,
    },
    Report(Report),
    Moved {
        run: usize,
        step: u32,
        wrong: bool,
        percent: u8,
    },
    Expire {
        run: usize,
    },
    Take {
        consumer: usize,
        seconds: i64,
        limit: u32,
    },
    Settle {
        delivery: usize,
        /// Forgotten, or put off for so long.
        postpone: Option<i64>,
    },
    Put {
        job: i64,
        version: u64,
        next: Option<i64>,
    },
    Fire {
        job: i64,
        stale: bool,
        next: Option<i64>,
        run: bool,
    },
    Open {
        user: i64,
    },
    Session {
        session: usize,
        event: SessionEvent,
        stale: bool,
        address: Option<u8>,
        active: bool,
    },
    Acquire {
        name: u8,
        owner: u8,
        seconds: i64,
    },
    GiveUp {
        name: u8,
        owner: u8,
    },
    Issue {
        claim: usize,
        ticket: u8,
        seconds: i64,
    },
    Redeem {
        ticket: u8,
        key: u8,
    },
    Authenticate {
        key: u8,
    },
    Purge {
        age: i64,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) claim: usize,
    /// How far from the number that is next.
    pub(super) slip: i64,
    pub(super) event: Option<RunEvent>,
    pub(super) steps: Vec<(u32, StepStatus)>,
    /// Which step, how many bytes, how far from the end of its log.
    pub(super) log: Option<(u32, usize, i64)>,
    pub(super) node: bool,
    pub(super) text: Option<u8>,
}

pub(super) fn commands(limit: usize) -> impl Strategy<Value = Vec<Command>> {
    proptest::collection::vec(command(), 1..limit)
}

/// Mostly nothing, sometimes a little too little or too much.
fn slip() -> impl Strategy<Value = i64> {
    prop_oneof![8 => Just(0_i64), 1 => Just(-1), 1 => Just(1)]
}

fn agent_event() -> impl Strategy<Value = RunEvent> {
    proptest::sample::select(vec![
        RunEvent::Started,
        RunEvent::Succeeded,
        RunEvent::Warned,
        RunEvent::Failed,
        RunEvent::Stopped,
    ])
}

fn driver_event() -> impl Strategy<Value = RunEvent> {
    proptest::sample::select(vec![
        RunEvent::Requeued,
        RunEvent::CancelRequested,
        RunEvent::Failed,
        RunEvent::Stopped,
    ])
}

fn report() -> impl Strategy<Value = Report> {
    let status = || proptest::sample::select(StepStatus::ALL.as_slice());
    (
        any::<usize>(),
        slip(),
        proptest::option::weighted(0.3, agent_event()),
        proptest::collection::vec((1_u32..4, status()), 0..3),
        proptest::option::of((1_u32..4, 0_usize..40, slip())),
        any::<bool>(),
        proptest::option::weighted(0.2, any::<u8>()),
    )
        .prop_map(|(claim, slip, event, steps, log, node, text)| Report {
            claim,
            slip,
            event,
            steps,
            log,
            node,
            text,
        })
}

fn command() -> impl Strategy<Value = Command> {
    let stale = || proptest::bool::weighted(0.15);
    let lookup = || proptest::option::of(0_u8..4);
    let rarely = || proptest::option::weighted(0.2, 0_u8..9);
    prop_oneof![
        3 => (1_i64..40).prop_map(|seconds| Command::Wait { seconds }),
        2 => (0_u8..3, 1_i64..3, 0_u8..6, lookup())
            .prop_map(|(kind, account, name, lookup)| Command::Insert { kind, account, name, lookup }),
        2 => (any::<usize>(), stale(), 0_u8..6, lookup(), stale())
            .prop_map(|(row, stale, name, lookup, deleted)| Command::Update { row, stale, name, lookup, deleted }),
        6 => (1_i64..3, 0_i64..3, proptest::option::weighted(0.3, 0_i64..4), any::<bool>(), any::<bool>(), 0_i64..20, 0_u8..5)
            .prop_map(|(account, job, instant, exclusive, takes_slot, delay, cause)| {
                Command::Enqueue { account, job, instant, exclusive, takes_slot, delay, cause }
            }),
        8 => proptest::collection::vec((any::<usize>(), proptest::option::of(0_u32..3)), 1..4)
            .prop_map(|admissions| Command::Claim { admissions }),
        2 => Just(Command::Reclaim),
        1 => any::<usize>().prop_map(|claim| Command::Renew { claim }),
        1 => any::<usize>().prop_map(|claim| Command::Release { claim }),
        4 => (any::<usize>(), driver_event(), stale(), rarely())
            .prop_map(|(claim, event, stale, text)| Command::Change { claim, event, stale, text }),
        2 => (any::<usize>(), stale()).prop_map(|(run, stranger)| Command::Cancel { run, stranger }),
        14 => report().prop_map(Command::Report),
        3 => (any::<usize>(), 1_u32..4, stale(), 1_u8..=100)
            .prop_map(|(run, step, wrong, percent)| Command::Moved { run, step, wrong, percent }),
        1 => any::<usize>().prop_map(|run| Command::Expire { run }),
        3 => (0_usize..3, 1_i64..40, 1_u32..4)
            .prop_map(|(consumer, seconds, limit)| Command::Take { consumer, seconds, limit }),
        3 => (any::<usize>(), proptest::option::weighted(0.4, 0_i64..60))
            .prop_map(|(delivery, postpone)| Command::Settle { delivery, postpone }),
        3 => (0_i64..3, 0_u64..4, proptest::option::weighted(0.8, 0_i64..60))
            .prop_map(|(job, version, next)| Command::Put { job, version, next }),
        3 => (0_i64..3, stale(), proptest::option::weighted(0.8, 0_i64..60), any::<bool>())
            .prop_map(|(job, stale, next, run)| Command::Fire { job, stale, next, run }),
        2 => (0_i64..3).prop_map(|user| Command::Open { user }),
        4 => (any::<usize>(), proptest::sample::select(SessionEvent::ALL.as_slice()), stale(), rarely(), any::<bool>())
            .prop_map(|(session, event, stale, address, active)| {
                Command::Session { session, event, stale, address, active }
            }),
        2 => (0_u8..2, 0_u8..3, 1_i64..30).prop_map(|(name, owner, seconds)| Command::Acquire { name, owner, seconds }),
        1 => (0_u8..2, 0_u8..3).prop_map(|(name, owner)| Command::GiveUp { name, owner }),
        2 => (any::<usize>(), 0_u8..6, 1_i64..60)
            .prop_map(|(claim, ticket, seconds)| Command::Issue { claim, ticket, seconds }),
        3 => (0_u8..6, 0_u8..4).prop_map(|(ticket, key)| Command::Redeem { ticket, key }),
        1 => (0_u8..4).prop_map(|key| Command::Authenticate { key }),
        1 => (0_i64..100).prop_map(|age| Command::Purge { age }),
    ]
}
