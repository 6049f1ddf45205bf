//! The names of states: enum, CHECK constraint and what is stored agree.

use std::collections::BTreeSet;

use dbtcloud_core::audit::{Action, Actor};
use dbtcloud_core::ports::{Channel, DispatchState};
use dbtcloud_core::run::{RunStatus, StepKind, StepStatus};
use dbtcloud_core::session::SessionStatus;
use dbtcloud_tests::postgres;

/// The quoted words of a constraint.
fn words(constraint: &str) -> BTreeSet<&str> {
    constraint.split('\'').skip(1).step_by(2).collect()
}

/// Table and column, and the names that the enum has.
fn expected() -> Vec<(&'static str, &'static str, BTreeSet<&'static str>)> {
    let live = RunStatus::ALL.into_iter().filter(|status| !status.is_terminal());
    vec![
        ("audit", "action", Action::ALL.into_iter().map(Action::name).collect()),
        ("audit", "actor", Actor::KINDS.into_iter().collect()),
        (
            "dispatches",
            "channel",
            Channel::ALL.into_iter().map(Channel::name).collect(),
        ),
        (
            "dispatches",
            "state",
            DispatchState::ALL.into_iter().map(DispatchState::name).collect(),
        ),
        (
            "runs",
            "status",
            RunStatus::ALL.into_iter().map(RunStatus::name).collect(),
        ),
        ("run_queue", "state", live.map(RunStatus::name).collect()),
        (
            "run_steps",
            "status",
            StepStatus::ALL.into_iter().map(StepStatus::name).collect(),
        ),
        (
            "run_steps",
            "kind",
            StepKind::ALL.into_iter().map(StepKind::name).collect(),
        ),
        (
            "sessions",
            "status",
            SessionStatus::ALL.into_iter().map(SessionStatus::name).collect(),
        ),
    ]
}

#[tokio::test]
async fn postgresql_knows_the_names_of_the_enums() {
    let database = postgres::database();
    let storage = dbtcloud_sql::SqlStorage::connect(&database.url(), dbtcloud_sql::Options::new())
        .await
        .unwrap();
    storage.migrate().await.unwrap();
    for (table, column, names) in expected() {
        let constraint = database.ask(&format!(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = '{table}_{column}_check'"
        ));
        assert_eq!(words(&constraint), names, "{table}.{column}: {constraint}");
    }
}

#[test]
fn sqlite_knows_the_names_of_the_enums() {
    let schema = include_str!("sqlite-schema.sql");
    for (table, column, names) in expected() {
        let table = schema
            .split("CREATE TABLE ")
            .find(|part| part.starts_with(table))
            .expect("the table");
        let line = table
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{column} TEXT")))
            .expect(column);
        assert_eq!(words(line), names, "{line}");
    }
}
