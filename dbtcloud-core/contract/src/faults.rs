//! Wrappers that make calls fail the way networks do, from a seed and without a clock. The same seed and
//! the same order of calls give the same faults.
//!
//! A call can fail *before* (nothing happened, `Unavailable`), fail *after* (it happened, and the answer is
//! lost: `Unavailable`), or arrive *twice* (it happened twice, and the second answer is given). Code that
//! keeps to the ports' promises survives all three.
//!
//! A [`Scene`] adds what needs a clock or a process: calls that take long, and callers that die in them.

mod artifacts;
mod executor;
mod storage;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};

pub use artifacts::FaultyArtifacts;
pub use executor::FaultyExecutor;
pub use storage::FaultyStorage;

/// On which side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it has happened.
    Before,
    /// It has happened, and the caller does not know yet.
    After,
}

/// What surrounds every call: a simulation lets time pass here, or never returns because the process that
/// called has died.
#[async_trait]
pub trait Scene: Send + Sync {
    /// A call is on one side of happening.
    async fn pass(&self, call: &'static str, moment: Moment);
}

/// How often calls go wrong, each in percent of all calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rates {
    /// Nothing happens.
    pub before: u8,
    /// It happens, and nobody is told.
    pub after: u8,
    /// It happens twice.
    pub twice: u8,
}

impl Rates {
    /// Nothing goes wrong.
    pub const CALM: Self = Self {
        before: 0,
        after: 0,
        twice: 0,
    };

    /// Of ten calls, three go wrong, one in each way.
    pub const ROUGH: Self = Self {
        before: 10,
        after: 10,
        twice: 10,
    };
}

/// What went wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It failed before anything happened.
    Before,
    /// It failed after it had happened.
    After,
    /// It happened twice.
    Twice,
}

/// A source of faults. Shared by all wrappers of one world, so that one seed tells one story.
pub struct Faults {
    seed: u64,
    state: Mutex<State>,
    scene: Option<Arc<dyn Scene>>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults")
            .field("seed", &self.seed)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    random: u64,
    rates: Rates,
    struck: Vec<(&'static str, Fault)>,
}

impl State {
    fn percent(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) % 100
    }
}

impl Faults {
    /// Faults from a seed.
    pub fn new(seed: u64, rates: Rates) -> Self {
        // xorshift stands still at 0.
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            seed,
            state: Mutex::new(State {
                random,
                rates,
                struck: Vec::new(),
            }),
            scene: None,
        }
    }

    /// The same with something around every call.
    #[must_use]
    pub fn in_scene(mut self, scene: Arc<dyn Scene>) -> Self {
        self.scene = Some(scene);
        self
    }

    /// The seed, for the message of a test that fails.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Changes how often calls go wrong from now on; [`Rates::CALM`] ends the storm.
    pub fn set(&self, rates: Rates) {
        self.lock().rates = rates;
    }

    /// What went wrong so far, in order: the name of the call and the fault.
    pub fn struck(&self) -> Vec<(&'static str, Fault)> {
        self.lock().struck.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws what happens to one call.
    fn draw(&self, call: &'static str, repeatable: bool) -> Option<Fault> {
        let mut state = self.lock();
        let percent = state.percent();
        let Rates { before, after, twice } = state.rates;
        let [before, after, twice] = [before, after, twice].map(u64::from);
        let fault = if percent < before {
            Fault::Before
        } else if percent < before + after {
            Fault::After
        } else if percent < before + after + twice && repeatable {
            Fault::Twice
        } else {
            return None;
        };
        state.struck.push((call, fault));
        Some(fault)
    }

    /// Makes a call go the way that was drawn. A call that is not `repeatable` (it makes a new thing every
    /// time) never happens twice of itself.
    async fn strike<T, F>(&self, name: &'static str, repeatable: bool, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.pass(name, Moment::Before).await;
        let answer = match self.draw(name, repeatable) {
            None => call().await,
            Some(Fault::Before) => Err(Error::unavailable(format!("{name}: scripted to fail before"))),
            Some(Fault::After) => {
                let _ = call().await;
                Err(Error::unavailable(format!("{name}: scripted to fail after")))
            }
            Some(Fault::Twice) => {
                let _ = call().await;
                call().await
            }
        };
        self.pass(name, Moment::After).await;
        answer
    }

    /// Whether a store tears what it is given, by the rate of what happens twice.
    fn tears(&self, call: &'static str) -> bool {
        let mut state = self.lock();
        let torn = state.percent() < u64::from(state.rates.twice);
        if torn {
            state.struck.push((call, Fault::Twice));
        }
        torn
    }

    async fn pass(&self, call: &'static str, moment: Moment) {
        if let Some(scene) = &self.scene {
            scene.pass(call, moment).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn story(seed: u64) -> (Vec<(&'static str, Fault)>, u32, u32) {
        let faults = Faults::new(seed, Rates::ROUGH);
        let (happened, failed) = (AtomicU32::new(0), AtomicU32::new(0));
        futures::executor::block_on(async {
            for _ in 0..1_000 {
                let call = || async {
                    happened.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                if faults.strike("call", true, call).await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        (faults.struck(), happened.into_inner(), failed.into_inner())
    }

    #[test]
    fn the_same_seed_tells_the_same_story() {
        let (struck, happened, failed) = story(7);
        assert_eq!(story(7).0, struck);
        assert_ne!(story(8).0, struck);
        let count = |fault| u32::try_from(struck.iter().filter(|(_, one)| *one == fault).count()).unwrap();
        assert_eq!(failed, count(Fault::Before) + count(Fault::After));
        assert_eq!(happened, 1_000 - count(Fault::Before) + count(Fault::Twice));
        for fault in [Fault::Before, Fault::After, Fault::Twice] {
            assert!((50..200).contains(&count(fault)), "{fault:?}: {}", count(fault));
        }
    }

    #[test]
    fn a_calm_source_strikes_nothing() {
        let faults = Faults::new(0, Rates::CALM);
        futures::executor::block_on(async {
            for _ in 0..1_000 {
                faults.strike("call", true, || async { Ok(()) }).await.unwrap();
            }
        });
        assert_eq!(faults.struck(), []);
    }
}
