//! The real server is killed at every place that has a name: before and after every commit and every act on the
//! outside. It is started again, settles, and the database is asked whether anything is missing. And every call of an
//! executor and every request of an agent is made twice.

mod points;
mod stage;
mod twice;

use dbtcloud_tests::postgres;
use stage::{Base, Stage};

/// Places of each database that are taken when nobody asks for all: some seconds each.
const SAMPLE: usize = 4;

/// Kills at places spread evenly over all of them, at every one with `DBTCLOUD_MATRIX=all`, or at those whose names
/// begin with what it says. Whether the workload
/// reaches all of them is looked at in any case.
async fn matrix(base: Base) {
    let told = std::env::var("DBTCLOUD_MATRIX").ok();
    let mut stage = Stage::new(base).await;
    let all = points::all();
    let without = points::without_a_door(&all);
    let wanted: Vec<_> = all.iter().filter(|point| !without.contains(point)).cloned().collect();
    let seen = stage.rehearse(&wanted).await;
    let missed: Vec<_> = all.iter().filter(|point| !seen.contains(*point)).collect();
    assert_eq!(missed, without, "places that the workload does not reach");
    let reached: Vec<_> = all.iter().filter(|point| seen.contains(*point)).collect();
    let every = if told.is_some() {
        1
    } else {
        reached.len().div_ceil(SAMPLE)
    };
    let wanted = told.filter(|told| told != "all").unwrap_or_default();
    let wanted = reached.into_iter().filter(|point| point.starts_with(&wanted));
    for point in wanted.step_by(every) {
        let began = std::time::Instant::now();
        stage.die_at(point).await;
        stage.settle(point).await;
        println!("{point}: {:?}", began.elapsed());
    }
    stage.finish().await;
}

#[tokio::test]
async fn nothing_is_lost_at_any_place_on_sqlite() {
    matrix(Base::Sqlite).await;
}

#[tokio::test]
async fn nothing_is_lost_at_any_place_on_postgres() {
    matrix(Base::Postgres(postgres::database())).await;
}

#[tokio::test]
async fn what_arrives_twice_is_done_once_on_sqlite() {
    twice::each_way(Base::Sqlite).await;
}

#[tokio::test]
async fn what_arrives_twice_is_done_once_on_postgres() {
    twice::each_way(Base::Postgres(postgres::database())).await;
}
