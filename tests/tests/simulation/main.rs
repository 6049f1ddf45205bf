//! The whole control plane on a made-up clock and network: thousands of storms, each from a seed, and the rules that
//! hold through all of them. See "Prove it" in `CONTRIBUTING.md`.

mod agent;
mod engine;
mod oracle;
mod story;
mod world;

use dbtcloud_contract::memory::Mutation;
use story::{Setup, Story, play};

/// Seeds of one of the tests below, and how many there are of them. Each is a storm of minutes.
const SEEDS: u64 = 450;
/// Seeds in which a broken rule must be found.
const FIND_WITHIN: u64 = 1_000;

/// The seed that somebody wants to see again.
fn wanted() -> Option<u64> {
    std::env::var("DBTCLOUD_SEED").ok()?.parse().ok()
}

fn check(story: &Story) {
    let Story { seed, violations, .. } = story;
    assert!(
        violations.is_empty(),
        "seed {seed}: {violations:#?}\nagain: DBTCLOUD_SEED={seed} cargo nextest run -p dbtcloud-tests -E 'test(one_storm)' --no-capture"
    );
}

/// How many seeds each of the tests takes; more by `DBTCLOUD_SEEDS`.
fn seeds() -> u64 {
    let told = std::env::var("DBTCLOUD_SEEDS").ok();
    told.and_then(|count| count.parse().ok()).unwrap_or(SEEDS)
}

fn storms(part: u64) {
    let (mut runs, mut told) = (0, 0);
    let count = seeds();
    for seed in part * count..(part + 1) * count {
        let story = play(&Setup::storm(seed));
        check(&story);
        runs += story.runs;
        told += story.told;
    }
    println!("{count} seeds, {runs} runs, {told} lines of trace");
    assert!(runs as u64 > 10 * count, "storms without runs prove nothing: {runs}");
}

macro_rules! storms {
    ($($name:ident $part:literal),+) => {$(
        #[test]
        fn $name() {
            storms($part);
        }
    )+};
}

storms!(storms_a 0, storms_b 1, storms_c 2, storms_d 3);

/// Tells the whole trace of the seed in `DBTCLOUD_SEED`.
#[test]
fn one_storm() {
    let seed = wanted().unwrap_or(0);
    let story = play(&Setup {
        aloud: wanted().is_some(),
        ..Setup::storm(seed)
    });
    println!(
        "seed {seed}: {} runs, {} lines, hash {:016x}",
        story.runs, story.told, story.hash
    );
    check(&story);
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 0..10 {
        let (first, second) = (play(&Setup::storm(seed)), play(&Setup::storm(seed)));
        assert_eq!((first.hash, first.told), (second.hash, second.told), "seed {seed}");
        assert_ne!(first.hash, play(&Setup::storm(seed + 1_000_000)).hash);
    }
}

/// The first seed in which a broken rule is found, and what was found.
fn found(setup: impl Fn(u64) -> Setup) -> Option<(u64, String)> {
    (0..FIND_WITHIN).find_map(|seed| Some((seed, play(&setup(seed)).violations.into_iter().next()?)))
}

fn breaks(mutation: Mutation) {
    let found = found(|seed| Setup {
        mutation: Some(mutation),
        ..Setup::storm(seed)
    });
    println!("{mutation:?}: {found:?}");
    assert!(
        found.is_some(),
        "{mutation:?} was not noticed within {FIND_WITHIN} seeds"
    );
}

macro_rules! noticed {
    ($($name:ident $mutation:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            breaks(Mutation::$mutation);
        }
    )+};
}

noticed! {
    without_the_fence_it_fails IgnoreFence,
    without_the_key_of_instants_it_fails ForgetInstants,
    without_the_key_of_a_request_it_fails ForgetRequests,
    without_the_key_of_slots_it_fails IgnoreSlots,
    without_the_key_of_a_job_it_fails IgnoreExclusive,
    without_the_number_of_a_report_it_fails AcceptTwice,
    without_the_state_that_a_change_is_from_it_fails IgnoreFrom,
    without_the_journal_it_fails KeepSilent,
    without_the_key_of_an_attempt_it_fails IgnoreKeys,
}

#[test]
fn a_log_that_is_not_read_back_is_found_missing() {
    let found = found(|seed| Setup {
        blind: true,
        ..Setup::storm(seed)
    });
    println!("{found:?}");
    assert!(found.is_some(), "not noticed within {FIND_WITHIN} seeds");
}

#[test]
fn one_run_of_a_small_account_waits_for_few_of_a_large_one() {
    for seed in 0..40 {
        let story = play(&Setup::crowd(seed));
        check(&story);
        assert!(story.runs > 40, "no crowd: {} runs", story.runs);
    }
}
