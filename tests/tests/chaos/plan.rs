//! What goes wrong and when: faults in lanes, one lane for each thing that can fail, all drawn from a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice of a seed, another for each `who`.
    pub fn new(seed: u64, who: u64) -> Self {
        Self(seed ^ who.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// A number below `limit`.
    pub fn draw(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }

    /// A span from one to the other, in milliseconds.
    pub fn span(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.draw(to - from))
    }
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// One of the servers, by its place.
    Server(usize),
    /// The database.
    Database,
    /// The object store.
    Objects,
    /// Whatever agent is alive.
    Agent,
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL, and a start after a while.
    Killed,
    /// SIGSTOP, and SIGCONT after a while.
    Paused,
    /// A stop in good order, and a start after a while.
    Restarted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "killed",
            Self::Paused => "paused",
            Self::Restarted => "restarted",
        })
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Since the beginning.
    pub at: Duration,
    /// To whom.
    pub target: Target,
    /// What; `None` is the end of it.
    pub fault: Option<Fault>,
}

/// How one lane fails.
struct Lane {
    target: Target,
    /// Between two faults, in milliseconds.
    gap: (u64, u64),
    /// Faults with the spans they last, drawn with equal chance.
    faults: &'static [(Fault, u64, u64)],
}

/// A pause that is longer than a lease of 15 s is among them: others take over, and who wakes up is fenced.
const SCHEDULER: &[(Fault, u64, u64)] = &[
    (Fault::Killed, 100, 4_000),
    (Fault::Killed, 100, 4_000),
    (Fault::Paused, 200, 3_000),
    (Fault::Paused, 16_000, 20_000),
];
const APP: &[(Fault, u64, u64)] = &[(Fault::Killed, 100, 3_000), (Fault::Paused, 200, 6_000)];
const CLEANUP: &[(Fault, u64, u64)] = &[(Fault::Killed, 100, 3_000), (Fault::Paused, 200, 8_000)];
const GATEWAY: &[(Fault, u64, u64)] = &[(Fault::Killed, 50, 1_000), (Fault::Paused, 200, 2_000)];
const DATABASE: &[(Fault, u64, u64)] = &[(Fault::Killed, 0, 3_000), (Fault::Restarted, 0, 3_000)];
const OBJECTS: &[(Fault, u64, u64)] = &[(Fault::Killed, 0, 4_000), (Fault::Paused, 1_000, 8_000)];
const AGENT: &[(Fault, u64, u64)] = &[
    (Fault::Killed, 0, 1),
    (Fault::Paused, 100, 3_000),
    (Fault::Paused, 100, 3_000),
];

/// Everything that goes wrong within `span`, in order; servers are by place as `roles` has them.
pub fn plan(seed: u64, span: Duration, roles: &[&str]) -> Vec<Event> {
    let server = |(place, role): (usize, &&str)| {
        let (gap, faults) = match *role {
            "scheduler" => ((3_000, 15_000), SCHEDULER),
            "app" => ((3_000, 15_000), APP),
            "gateway" => ((8_000, 25_000), GATEWAY),
            _ => ((5_000, 20_000), CLEANUP),
        };
        Lane {
            target: Target::Server(place),
            gap,
            faults,
        }
    };
    let mut lanes: Vec<Lane> = roles.iter().enumerate().map(server).collect();
    for (target, gap, faults) in [
        (Target::Database, (8_000, 20_000), DATABASE),
        (Target::Objects, (6_000, 20_000), OBJECTS),
        (Target::Agent, (1_500, 5_000), AGENT),
    ] {
        lanes.push(Lane { target, gap, faults });
    }
    let mut events = Vec::new();
    for (number, lane) in (0..).zip(lanes) {
        let mut dice = Dice::new(seed, number);
        let mut at = Duration::ZERO;
        loop {
            at += dice.span(lane.gap.0, lane.gap.1);
            if at > span {
                break;
            }
            let place = usize::try_from(dice.draw(lane.faults.len() as u64)).unwrap_or(0);
            let (fault, from, to) = lane.faults[place];
            let target = lane.target;
            events.push(Event {
                at,
                target,
                fault: Some(fault),
            });
            at += dice.span(from, to);
            events.push(Event {
                at,
                target,
                fault: None,
            });
        }
    }
    events.sort_by_key(|event| (event.at, event.target));
    events
}

/// How many of each kind there are, for people.
pub fn count(events: &[Event], roles: &[&str]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events {
        let Some(fault) = event.fault else { continue };
        let who = match event.target {
            Target::Server(place) => roles[place],
            Target::Database => "database",
            Target::Objects => "object store",
            Target::Agent => "agent",
        };
        *counts.entry(format!("{who} {fault}")).or_default() += 1;
    }
    counts
}
