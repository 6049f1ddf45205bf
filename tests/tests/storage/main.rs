//! The storage ports on the databases: the contract's suite on both engines, and what only a database can
//! get wrong (schema, faults, races between processes).

mod faults;
mod group;
mod migrations;
mod names;
mod pace;
mod plans;
mod races;
mod schema;
mod subjects;
mod transfer;
mod upgrade;

use dbtcloud_contract::suite::Subject;

dbtcloud_contract::storage_suite!(sqlite, || async {
    let file = subjects::sqlite().await;
    Subject::storage(file.storage.clone()).keeping(file)
});

dbtcloud_contract::storage_suite!(postgres, || async {
    let database = subjects::postgres().await;
    Subject::storage(database.storage.clone()).keeping(database)
});

/// Random stories, told to the database and to the model in memory.
#[test]
fn sqlite_agrees_with_memory() {
    dbtcloud_contract::suite::model::agrees_with_memory(1, 60, || async {
        let file = subjects::sqlite().await;
        Subject::storage(file.storage.clone()).keeping(file)
    });
}

#[test]
fn postgres_agrees_with_memory() {
    dbtcloud_contract::suite::model::agrees_with_memory(2, 60, || async {
        let database = subjects::postgres().await;
        Subject::storage(database.storage.clone()).keeping(database)
    });
}

/// The same with many seeds: `cargo test -p dbtcloud-tests --test storage -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn both_agree_with_memory_at_length() {
    for seed in 100..120 {
        dbtcloud_contract::suite::model::agrees_with_memory(seed, 60, || async {
            let file = subjects::sqlite().await;
            Subject::storage(file.storage.clone()).keeping(file)
        });
        dbtcloud_contract::suite::model::agrees_with_memory(seed + 1_000, 20, || async {
            let database = subjects::postgres().await;
            Subject::storage(database.storage.clone()).keeping(database)
        });
    }
}
