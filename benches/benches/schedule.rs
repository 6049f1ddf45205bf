//! The next instant of a schedule, in any time zone, beside the `cron` crate's own search in UTC.
//!
//! Ours walks wall clocks and changes of the clock; the yardstick knows neither zones (it is given UTC) nor
//! the rules of `dbtcloud_core::schedule`, so it does less.

use std::hint::black_box;
use std::str::FromStr;
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_core::Timestamp;
use dbtcloud_core::schedule::Schedule;

/// From every minute to once in four years.
const EXPRESSIONS: [&str; 10] = [
    "* * * * *",
    "*/5 * * * *",
    "0 * * * *",
    "30 2 * * *",
    "0 6 * * 1-5",
    "15 8,12,18 * * *",
    "0 0 1 * *",
    "0 9 1 1 *",
    "0 6 * 3,10 0",
    "0 0 29 2 *",
];
const ZONES: [&str; 6] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "America/Santiago",
];
const ROUNDS: usize = 15;
/// Starting points per round, spread over two years so that changes of the clock are met as often as in life.
const STARTS: i64 = 20_000;

fn starts() -> impl Iterator<Item = DateTime<Utc>> {
    let first = DateTime::from_timestamp(1_767_225_600, 0).unwrap_or_default();
    (0..STARTS).map(move |n| first + TimeDelta::seconds(n * 3_163))
}

fn ours(schedules: &[Schedule]) -> f64 {
    let began = Instant::now();
    for schedule in schedules {
        for start in starts() {
            black_box(schedule.next_after(Timestamp::from_micros(start.timestamp_micros())));
        }
    }
    began.elapsed().as_secs_f64() * 1e6 / (schedules.len() as f64 * STARTS as f64)
}

fn theirs(expression: &cron::Schedule) -> f64 {
    let began = Instant::now();
    for start in starts() {
        black_box(expression.after(&start).next());
    }
    began.elapsed().as_secs_f64() * 1e6 / STARTS as f64
}

fn main() {
    println!("schedule: microseconds for one next instant, median [min–max] of {ROUNDS} rounds of {STARTS} starts\n");
    let mut rows = Vec::new();
    let mut all = Figures::new();
    for text in EXPRESSIONS {
        // The yardstick wants seconds too, and counts Sunday as 1.
        let theirs_text = match text {
            "0 6 * * 1-5" => "0 0 6 * * MON-FRI".to_owned(),
            "0 6 * 3,10 0" => "0 0 6 * 3,10 SUN".to_owned(),
            same => format!("0 {same}"),
        };
        let yardstick = cron::Schedule::from_str(&theirs_text).unwrap();
        let parse = |zone: &str| Schedule::cron(text, zone).unwrap();
        let utc = [parse("UTC")];
        let zones: Vec<Schedule> = ZONES.iter().map(|zone| parse(zone)).collect();
        let (mut in_utc, mut in_zones, mut their) = (Figures::new(), Figures::new(), Figures::new());
        // The first of each is for the caches.
        let _ = (ours(&utc), ours(&zones), theirs(&yardstick));
        for _ in 0..ROUNDS {
            in_utc.add(ours(&utc));
            their.add(theirs(&yardstick));
            in_zones.add(ours(&zones));
        }
        let ratio = in_zones.over(&their);
        all.add(ratio.median());
        rows.push(vec![
            text.to_owned(),
            in_utc.to_string(),
            in_zones.to_string(),
            their.to_string(),
            in_utc.over(&their).to_string(),
            ratio.to_string(),
        ]);
    }
    table(
        &[
            "expression",
            "ours, UTC",
            "ours, six zones",
            "cron crate, UTC",
            "ratio UTC",
            "ratio zones",
        ],
        &rows,
    );
    println!("\nratio of six zones over the cron crate, median [min–max] of the expressions: {all}");
}
