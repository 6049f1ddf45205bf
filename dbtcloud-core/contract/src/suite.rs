//! One suite per port. A case is an async function over the port; an adapter's test runs every case by
//! name, each over a fresh subject, with one macro:
//!
//! ```
//! use dbtcloud_contract::memory::MemoryStorage;
//! use dbtcloud_contract::suite::Subject;
//! dbtcloud_contract::storage_suite!(memory, || async { Subject::storage(MemoryStorage::new()) });
//! # fn main() {}
//! ```
//!
//! A case that is in no list is dead code and fails the build under `-D warnings`.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use dbtcloud_core::ports::{
    Artifacts, Audit, Catalog, Clock, Dispatches, History, Journal, Leases, Logs, Outbox, Runs, Schedules, Sessions,
    Storage, Tickets, Volume, Wakeups,
};

/// Declares the cases of a file: the table that runs them by name, and the macro that makes a test of each.
macro_rules! cases {
    ($d:tt $list:ident, $module:ident, $subject:ty: $($case:ident),+ $(,)?) => {
        /// Every case, by name.
        pub static CASES: &[$crate::suite::Case<$subject>] = &[$($crate::suite::Case {
            name: stringify!($case),
            run: |subject| Box::pin($case(subject)),
        }),+];

        #[doc(hidden)]
        #[macro_export]
        macro_rules! $list {
            ($d factory:path, $d([$d meta:meta])*) => {$(
                #[test]
                $d(#[$d meta])*
                fn $case() {
                    $crate::suite::run($crate::suite::$module::CASES, stringify!($case), $d factory);
                }
            )+};
        }
    };
}

pub mod agents;
pub mod artifacts;
pub mod audit;
pub mod catalog;
pub mod changes;
pub mod clock;
pub mod dispatches;
pub mod executor;
pub mod history;
pub mod journal;
pub mod leases;
pub mod lines;
pub mod listing;
pub mod logs;
pub mod model;
pub mod outbox;
pub mod queue;
pub mod reports;
pub mod requests;
pub mod runs;
mod samples;
pub mod schedules;
pub mod sessions;
pub mod takeover;
pub mod tickets;
pub mod vault;
pub mod volume;
pub mod wakeups;

/// What a case is run on, and what must live as long as it does (a temporary directory, a database).
pub struct Subject<T> {
    value: T,
    kept: Vec<Box<dyn Any + Send>>,
}

impl<T> Subject<T> {
    /// A subject.
    pub fn new(value: T) -> Self {
        Self {
            value,
            kept: Vec::new(),
        }
    }

    /// The same, with something that is dropped after the case.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self.kept.push(Box::new(kept));
        self
    }
}

impl Subject<Stores> {
    /// A storage.
    pub fn storage(storage: impl Storage) -> Self {
        Self::new(Stores::of(Arc::new(storage)))
    }
}

impl Subject<Arc<dyn Artifacts>> {
    /// An artifact store.
    pub fn artifacts(artifacts: impl Artifacts + 'static) -> Self {
        Self::new(Arc::new(artifacts))
    }
}

impl Subject<Arc<dyn Volume>> {
    /// Volumes.
    pub fn volume(volume: impl Volume + 'static) -> Self {
        Self::new(Arc::new(volume))
    }
}

impl Subject<Arc<dyn executor::Fixture>> {
    /// An executor's world.
    pub fn executor(fixture: impl executor::Fixture + 'static) -> Self {
        Self::new(Arc::new(fixture))
    }
}

impl Subject<Arc<dyn Clock>> {
    /// A clock.
    pub fn clock(clock: impl Clock + 'static) -> Self {
        Self::new(Arc::new(clock))
    }
}

/// One storage, door by door: cases name the port they mean.
#[derive(Clone)]
pub struct Stores {
    /// Its audit log.
    pub audit: Arc<dyn Audit>,
    /// Its catalog.
    pub catalog: Arc<dyn Catalog>,
    /// What it is to send.
    pub dispatches: Arc<dyn Dispatches>,
    /// Its history.
    pub history: Arc<dyn History>,
    /// Its journal.
    pub journal: Arc<dyn Journal>,
    /// Its leases.
    pub leases: Arc<dyn Leases>,
    /// Its logs.
    pub logs: Arc<dyn Logs>,
    /// Its outbox.
    pub outbox: Arc<dyn Outbox>,
    /// Its runs.
    pub runs: Arc<dyn Runs>,
    /// Its schedules.
    pub schedules: Arc<dyn Schedules>,
    /// Its sessions.
    pub sessions: Arc<dyn Sessions>,
    /// Its tickets.
    pub tickets: Arc<dyn Tickets>,
    /// Its bells.
    pub wakeups: Arc<dyn Wakeups>,
}

impl Stores {
    /// The doors of a storage.
    pub fn of<S: Storage>(storage: Arc<S>) -> Self {
        Self {
            audit: storage.clone(),
            catalog: storage.clone(),
            dispatches: storage.clone(),
            history: storage.clone(),
            journal: storage.clone(),
            leases: storage.clone(),
            logs: storage.clone(),
            outbox: storage.clone(),
            runs: storage.clone(),
            schedules: storage.clone(),
            sessions: storage.clone(),
            tickets: storage.clone(),
            wakeups: storage,
        }
    }
}

/// A case on its way.
pub type CaseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One case of a suite.
pub struct Case<T> {
    /// Its name.
    pub name: &'static str,
    /// Runs it; it panics when the subject does not do what the port promises.
    pub run: fn(T) -> CaseFuture,
}

/// Runs one case on what the factory makes, on a runtime of its own with several threads.
///
/// # Panics
/// When the case fails.
pub fn run<T, F>(cases: &[Case<T>], name: &str, factory: impl FnOnce() -> F)
where
    T: Clone,
    F: Future<Output = Subject<T>>,
{
    let case = cases
        .iter()
        .find(|case| case.name == name)
        .expect("a case of this name");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let subject = factory().await;
        (case.run)(subject.value.clone()).await;
        drop(subject);
    });
}

/// Every case of every storage port, with the suite it is of.
pub fn storage_cases() -> impl Iterator<Item = (&'static str, &'static Case<Stores>)> {
    let suites = [
        ("agents", agents::CASES),
        ("audit", audit::CASES),
        ("catalog", catalog::CASES),
        ("changes", changes::CASES),
        ("dispatches", dispatches::CASES),
        ("history", history::CASES),
        ("journal", journal::CASES),
        ("leases", leases::CASES),
        ("lines", lines::CASES),
        ("listing", listing::CASES),
        ("logs", logs::CASES),
        ("outbox", outbox::CASES),
        ("queue", queue::CASES),
        ("reports", reports::CASES),
        ("requests", requests::CASES),
        ("runs", runs::CASES),
        ("schedules", schedules::CASES),
        ("sessions", sessions::CASES),
        ("takeover", takeover::CASES),
        ("tickets", tickets::CASES),
        ("wakeups", wakeups::CASES),
    ];
    suites
        .into_iter()
        .flat_map(|(suite, cases)| cases.iter().map(move |case| (suite, case)))
}

/// One test per case of every storage port.
///
/// `storage_suite!(module, factory)`, where the factory is called for every case and gives a future of a
/// [`Subject`](crate::suite::Subject). Attributes in front of the module's name go to every test, for
/// example `storage_suite!(#[ignore = "needs a server"] postgres, factory)`.
#[macro_export]
macro_rules! storage_suite {
    ($(#[$meta:meta])* $module:ident, $factory:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            async fn factory() -> $crate::suite::Subject<$crate::suite::Stores> {
                ($factory)().await
            }
            mod agents {
                $crate::agents_cases!(super::factory, $([$meta])*);
            }
            mod audit {
                $crate::audit_cases!(super::factory, $([$meta])*);
            }
            mod catalog {
                $crate::catalog_cases!(super::factory, $([$meta])*);
            }
            mod changes {
                $crate::changes_cases!(super::factory, $([$meta])*);
            }
            mod dispatches {
                $crate::dispatches_cases!(super::factory, $([$meta])*);
            }
            mod history {
                $crate::history_cases!(super::factory, $([$meta])*);
            }
            mod journal {
                $crate::journal_cases!(super::factory, $([$meta])*);
            }
            mod leases {
                $crate::leases_cases!(super::factory, $([$meta])*);
            }
            mod lines {
                $crate::lines_cases!(super::factory, $([$meta])*);
            }
            mod listing {
                $crate::listing_cases!(super::factory, $([$meta])*);
            }
            mod logs {
                $crate::logs_cases!(super::factory, $([$meta])*);
            }
            mod outbox {
                $crate::outbox_cases!(super::factory, $([$meta])*);
            }
            mod queue {
                $crate::queue_cases!(super::factory, $([$meta])*);
            }
            mod reports {
                $crate::reports_cases!(super::factory, $([$meta])*);
            }
            mod requests {
                $crate::requests_cases!(super::factory, $([$meta])*);
            }
            mod runs {
                $crate::runs_cases!(super::factory, $([$meta])*);
            }
            mod schedules {
                $crate::schedules_cases!(super::factory, $([$meta])*);
            }
            mod sessions {
                $crate::sessions_cases!(super::factory, $([$meta])*);
            }
            mod takeover {
                $crate::takeover_cases!(super::factory, $([$meta])*);
            }
            mod tickets {
                $crate::tickets_cases!(super::factory, $([$meta])*);
            }
            mod wakeups {
                $crate::wakeups_cases!(super::factory, $([$meta])*);
            }
        }
    };
}

/// One test per case of [`artifacts`](mod@crate::suite::artifacts). The factory gives a `Subject::artifacts(..)`. See [`storage_suite!`].
#[macro_export]
macro_rules! artifacts_suite {
    ($(#[$meta:meta])* $module:ident, $factory:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            async fn factory() -> $crate::suite::Subject<::std::sync::Arc<dyn $crate::ports::Artifacts>> {
                ($factory)().await
            }
            $crate::artifacts_cases!(factory, $([$meta])*);
        }
    };
}

/// One test per case of [`clock`](mod@crate::suite::clock). The factory gives a `Subject::clock(..)`. See [`storage_suite!`].
#[macro_export]
macro_rules! clock_suite {
    ($(#[$meta:meta])* $module:ident, $factory:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            async fn factory() -> $crate::suite::Subject<::std::sync::Arc<dyn $crate::ports::Clock>> {
                ($factory)().await
            }
            $crate::clock_cases!(factory, $([$meta])*);
        }
    };
}

/// One test per case of [`executor`](mod@crate::suite::executor). The factory gives a `Subject::executor(fixture)`. See [`storage_suite!`].
#[macro_export]
macro_rules! executor_suite {
    ($(#[$meta:meta])* $module:ident, $factory:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            async fn factory() -> $crate::suite::Subject<::std::sync::Arc<dyn $crate::suite::executor::Fixture>> {
                ($factory)().await
            }
            $crate::executor_cases!(factory, $([$meta])*);
        }
    };
}

/// One test per case of [`vault`](mod@crate::suite::vault). The factory gives a `Subject::new(Vaults { .. })`. See [`storage_suite!`].
#[macro_export]
macro_rules! vault_suite {
    ($(#[$meta:meta])* $module:ident, $factory:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            async fn factory() -> $crate::suite::Subject<$crate::suite::vault::Vaults> {
                ($factory)().await
            }
            $crate::vault_cases!(factory, $([$meta])*);
        }
    };
}

/// One test per case of [`volume`](mod@crate::suite::volume). The factory gives a `Subject::volume(..)`. See [`storage_suite!`].
#[macro_export]
macro_rules! volume_suite {
    ($(#[$meta:meta])* $module:ident, $factory:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            async fn factory() -> $crate::suite::Subject<::std::sync::Arc<dyn $crate::ports::Volume>> {
                ($factory)().await
            }
            $crate::volume_cases!(factory, $([$meta])*);
        }
    };
}
