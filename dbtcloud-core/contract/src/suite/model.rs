//! The model test: a storage is given the same random commands as [`MemoryStorage`] and must answer the
//! same. It finds what nobody thought of a case for; what it finds becomes a case.

mod command;
mod picture;
mod side;

use std::future::Future;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::{Stores, Subject};
use crate::memory::MemoryStorage;
use command::commands;
use side::Side;

/// How many commands one story has at most.
const STORY_LIMIT: usize = 60;

/// Tells `cases` random stories to a fresh storage of the factory and to memory, and compares every answer
/// and, at the end, everything that can be read. The same seed tells the same stories.
///
/// What is not compared, because the ports leave it open: the numbers that ids, epochs and sequences have,
/// the order of answers that promise none, the instant a requeued run is due, the terms of leases.
///
/// # Panics
/// When the two differ, with the shortest story that shows it.
///
/// ```
/// use dbtcloud_contract::{memory::MemoryStorage, suite::{Subject, model}};
/// model::agrees_with_memory(1, 5, || async { Subject::storage(MemoryStorage::new()) });
/// ```
pub fn agrees_with_memory<F>(seed: u64, cases: u32, factory: impl Fn() -> F)
where
    F: Future<Output = Subject<Stores>>,
{
    let config = Config {
        cases,
        max_shrink_iters: 500,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let told = TestRunner::new_with_rng(config, rng).run(&commands(STORY_LIMIT), |story| {
        runtime.block_on(async {
            let subject = factory().await;
            let mut theirs = Side::new(subject.value.clone());
            let mut model = Side::new(Stores::of(std::sync::Arc::new(MemoryStorage::new())));
            for (index, command) in story.iter().enumerate() {
                let (expected, actual) = (model.obey(command).await, theirs.obey(command).await);
                same(&format!("command {index}, {command:?}"), &expected, &actual)?;
            }
            same("everything at the end", &model.picture().await, &theirs.picture().await)?;
            drop(subject);
            Ok(())
        })
    });
    if let Err(failure) = told {
        panic!("seed {seed}: the storage differs from the model: {failure}");
    }
}

fn same(what: &str, expected: &str, actual: &str) -> Result<(), TestCaseError> {
    if expected == actual {
        return Ok(());
    }
    let mut difference = String::new();
    for (model, theirs) in expected.lines().zip(actual.lines()).filter(|(a, b)| a != b).take(12) {
        difference.push_str(&format!("\n  model: {model}\n  other: {theirs}"));
    }
    let lengths = (expected.lines().count(), actual.lines().count());
    Err(TestCaseError::fail(format!("{what}: lines {lengths:?}{difference}")))
}
