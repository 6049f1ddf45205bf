//! Schedules against an oracle that shares nothing with them.
//!
//! The oracle walks UTC minute by minute, asks chrono-tz for the offset at each, and applies the rules of
//! `dbtcloud_core::schedule` word for word. It never maps a wall-clock time back to an instant, never jumps, and
//! never reads an expression: expressions are made as structures that are spelled out for the crate under test.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test; clippy's allowance covers functions marked as tests only"
)]

#[path = "schedule_oracle/expressions.rs"]
mod expressions;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use chrono::{DateTime, Datelike, NaiveDate, Offset, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};
use dbtcloud_core::Timestamp;
use dbtcloud_core::schedule::{
    CronExpression, DUE_COUNT_LIMIT, Due, EVERY_MINUTES_LIMIT, EveryMinutes, Schedule, ScheduleError, Zone,
};
use expressions::{Expr, Item, Spec, expression, fixed, star};
use proptest::prelude::*;
use proptest::sample::{Index, select};

const MINUTE_MICROS: i64 = 60_000_000;
const DAY: i64 = 24 * 60;

// ---- the oracle --------------------------------------------------------------------------------------------

/// Offset from UTC in minutes at a UTC minute.
fn offset(zone: Tz, minute: i64) -> i64 {
    let instant = DateTime::from_timestamp(minute * 60, 0).unwrap().naive_utc();
    let seconds = zone.offset_from_utc_datetime(&instant).fix().local_minus_utc();
    assert_eq!(seconds % 60, 0, "{zone} has an offset with seconds at {instant}");
    i64::from(seconds) / 60
}

/// The wall clock at every UTC minute of a stretch, in minutes.
struct Clock {
    first: i64,
    walls: Vec<i64>,
}

/// Minutes walked before a window, so that what the clock has shown is known: more than any change.
const LEAD: i64 = 26 * 60;

impl Clock {
    fn new(zone: Tz, from: i64, to: i64) -> Self {
        let first = from - LEAD;
        Self {
            first,
            walls: (first..=to).map(|minute| minute + offset(zone, minute)).collect(),
        }
    }

    /// The instants at which the expression fires, in UTC minutes, by the two rules of the module.
    fn fires(&self, expr: &Expr) -> Vec<i64> {
        let minutes: Vec<bool> = (0..60).map(|minute| expr.minute.names_value(minute)).collect();
        let hours: Vec<bool> = (0..24).map(|hour| expr.hour.names_value(hour)).collect();
        let mut dates = BTreeMap::new();
        let mut names = |wall: i64| {
            let date = wall.div_euclid(DAY);
            let of_day = wall.rem_euclid(DAY) as usize;
            minutes[of_day % 60]
                && hours[of_day / 60]
                && *dates.entry(date).or_insert_with(|| {
                    let date =
                        i32::try_from(date).unwrap() + NaiveDate::from_ymd_opt(1970, 1, 1).unwrap().num_days_from_ce();
                    expr.names_date(NaiveDate::from_num_days_from_ce_opt(date).unwrap())
                })
        };
        let frequent = expr.is_frequent();
        let mut shown = self.walls[0];
        let mut fires = Vec::new();
        for (minute, &wall) in (self.first..).zip(&self.walls) {
            // Rule 2: every instant whose wall-clock minute is named. Rule 1: every wall-clock minute when the
            // clock first shows it or, jumping, passes it.
            let due = if frequent {
                names(wall)
            } else {
                (shown + 1..=wall).any(&mut names)
            };
            shown = shown.max(wall);
            if due && minute >= self.first + LEAD {
                fires.push(minute);
            }
        }
        fires
    }
}

// ---- changes of the clock ----------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Change {
    zone: Tz,
    /// First UTC minute with the new offset.
    minute: i64,
    before: i64,
    after: i64,
}

fn minute_of(year: i32) -> i64 {
    NaiveDate::from_ymd_opt(year, 1, 1)
        .unwrap()
        .and_hms_opt(0, 0, 0)
        .unwrap()
        .and_utc()
        .timestamp()
        / 60
}

/// Every change of the clock in every zone from 2000 to 2037; of zones that change alike, one.
fn changes() -> &'static [Change] {
    static CHANGES: OnceLock<Vec<Change>> = OnceLock::new();
    CHANGES.get_or_init(|| {
        let mut found = BTreeMap::new();
        for &zone in &TZ_VARIANTS {
            let mut at = minute_of(2000);
            let mut before = offset(zone, at);
            while at < minute_of(2038) {
                // No zone has changed twice within four days since 1900.
                let next = at + 4 * DAY;
                let after = offset(zone, next);
                if after != before {
                    let (mut low, mut high) = (at, next);
                    while low + 1 < high {
                        let middle = low.midpoint(high);
                        if offset(zone, middle) == before {
                            low = middle
                        } else {
                            high = middle
                        }
                    }
                    found.entry((high, before, after)).or_insert(Change {
                        zone,
                        minute: high,
                        before,
                        after,
                    });
                }
                (at, before) = (next, after);
            }
        }
        found.into_values().collect()
    })
}

/// One change of every shape: offsets before and after, and time of day.
fn shapes() -> Vec<Change> {
    let mut shapes = BTreeMap::new();
    for change in changes() {
        shapes.insert(
            (
                change.before,
                change.after,
                (change.minute + change.before).rem_euclid(DAY),
            ),
            *change,
        );
    }
    shapes.into_values().collect()
}

// ---- comparison --------------------------------------------------------------------------------------------

fn schedule(text: &str, zone: Tz) -> Schedule {
    Schedule::cron(text, zone.name()).unwrap()
}

fn timestamp(minute: i64) -> Timestamp {
    Timestamp::from_micros(minute * MINUTE_MICROS)
}

/// All instants in `[from, to]` by repeated `next_after`.
fn walked(schedule: &Schedule, from: i64, to: i64) -> Vec<i64> {
    let mut after = Timestamp::from_micros(from * MINUTE_MICROS - 1);
    let mut instants = Vec::new();
    while let Some(instant) = schedule.next_after(after) {
        assert!(instant > after, "{schedule:?}: {instant} does not follow {after}");
        if instant > timestamp(to) {
            break;
        }
        assert_eq!(
            instant.as_micros() % MINUTE_MICROS,
            0,
            "{schedule:?}: {instant} is no whole minute"
        );
        instants.push(instant.as_micros() / MINUTE_MICROS);
        after = instant;
    }
    instants
}

/// `None` when no day ever satisfies the expression, which must then be refused.
fn accepted(expr: &Expr) -> Option<CronExpression> {
    match expr.text().parse::<CronExpression>() {
        Ok(parsed) => Some(parsed),
        Err(ScheduleError::NeverFires { .. }) => {
            let days = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap().iter_days().take(45 * 366);
            for date in days {
                assert!(!expr.names_date(date), "{} was refused but names {date}", expr.text());
            }
            None
        }
        Err(error) => panic!("{}: {error}", expr.text()),
    }
}

fn compare(expr: &Expr, change: Change, starts: &[i64]) {
    if accepted(expr).is_none() {
        return;
    }
    let (from, to) = (change.minute - DAY, change.minute + DAY + DAY / 2);
    let expected = Clock::new(change.zone, from, to).fires(expr);
    let schedule = schedule(&expr.text(), change.zone);
    assert_eq!(
        walked(&schedule, from, to),
        expected,
        "{} around {change:?}",
        expr.text()
    );
    for start in starts {
        let after = Timestamp::from_micros(from * MINUTE_MICROS + start);
        let next = expected
            .iter()
            .map(|minute| timestamp(*minute))
            .find(|instant| *instant > after);
        let found = schedule.next_after(after);
        match next {
            Some(next) => assert_eq!(found, Some(next), "{} around {change:?} after {after}", expr.text()),
            None => assert!(
                found.is_none_or(|found| found > timestamp(to)),
                "{} {change:?} {after}",
                expr.text()
            ),
        }
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

fn starts() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(0..5 * DAY / 2 * MINUTE_MICROS, 8)
}

/// Expressions whose times lie in the stretch that a change skips or repeats, and beside it.
fn aimed(change: Change, distance: i64, kind: usize) -> Expr {
    let wall = change.minute + change.before + distance;
    let (hour, minute) = ((wall.rem_euclid(DAY) / 60) as u32, (wall.rem_euclid(60)) as u32);
    let later = (hour + 1) % 24;
    let (minutes, hours) = match kind {
        0 => (vec![Item::One(minute)], vec![Item::One(hour)]),
        1 => (vec![Item::One(minute)], vec![Item::Star]),
        2 => (vec![Item::StarStep(15)], vec![Item::One(hour)]),
        3 => (vec![Item::Range(0, 59)], vec![Item::One(hour), Item::One(later)]),
        4 => (vec![Item::One(0)], vec![Item::StarStep(2)]),
        5 => (vec![Item::One(minute), Item::One(0)], vec![Item::Range(hour, 23)]),
        6 => (
            vec![Item::OneStep(minute, 7)],
            vec![Item::One(later), Item::One(hour), Item::OneStep(hour, 3)],
        ),
        _ => (vec![Item::StarStep(7)], vec![Item::StarStep(3)]),
    };
    let date = DateTime::from_timestamp(wall * 60, 0).unwrap().date_naive();
    let weekday = date.weekday().num_days_from_sunday();
    Expr {
        minute: fixed(0, 59, minutes),
        hour: fixed(0, 23, hours),
        day: if kind % 3 == 1 {
            fixed(1, 31, vec![Item::One(date.day())])
        } else {
            star(1, 31)
        },
        month: star(1, 12),
        weekday: if kind % 3 == 2 {
            fixed(0, 6, vec![Item::One(weekday)])
        } else {
            star(0, 6)
        },
    }
}

#[test]
fn every_shape_of_change_in_every_zone() {
    let shapes = shapes();
    assert!(shapes.len() > 100, "only {} shapes of change were found", shapes.len());
    for change in shapes {
        let clock = Clock::new(change.zone, change.minute - DAY, change.minute + DAY);
        for kind in 0..8 {
            for distance in [-31, 0, 29] {
                let expr = aimed(change, distance, kind);
                let found = walked(
                    &schedule(&expr.text(), change.zone),
                    change.minute - DAY,
                    change.minute + DAY,
                );
                assert_eq!(found, clock.fires(&expr), "{} around {change:?}", expr.text());
            }
        }
    }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn any_expression_around_any_change(expr in expression(), at in any::<Index>(), starts in starts()) {
        compare(&expr, *at.get(changes()), &starts);
    }

    #[test]
    fn aimed_expressions_around_any_change(
        at in any::<Index>(), distance in -200..200_i64, kind in 0..8_usize, starts in starts(),
    ) {
        let change = *at.get(changes());
        compare(&aimed(change, distance, kind), change, &starts);
    }
}

proptest! {
    #![proptest_config(config(30))]

    #[test]
    fn any_expression_over_four_months(expr in expression(), zone in select(&TZ_VARIANTS[..]), week in 0..1900_i64) {
        if accepted(&expr).is_some() {
            let from = minute_of(2000) + week * 7 * DAY;
            let to = from + 120 * DAY;
            let expected = Clock::new(zone, from, to).fires(&expr);
            prop_assert_eq!(walked(&schedule(&expr.text(), zone), from, to), expected, "{} {}", expr.text(), zone);
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// A second oracle, over long times: the `cron` crate's own search, where its rules and ours agree.
    #[test]
    fn the_cron_crate_agrees_in_utc(expr in expression(), year in 2000..2040_i32) {
        if accepted(&expr).is_none() || expr.day.has_last() {
            return Ok(());
        }
        let either = !expr.day.starts_with_star() && !expr.weekday.starts_with_star();
        let list = |spec: &Spec, to| {
            let values: Vec<String> = (spec.low..=to).filter(|value| spec.names_value(*value)).map(|v| v.to_string()).collect();
            values.join(",")
        };
        let weekdays: Vec<String> = (0..7)
            .filter(|day| expr.weekday.names_value(*day) || *day == 0 && expr.weekday.names_value(7))
            .map(|day| (day + 1).to_string())
            .collect();
        let time = format!("0 {} {}", list(&expr.minute, 59), list(&expr.hour, 23));
        let (day, month, weekday) = (list(&expr.day, 31), list(&expr.month, 12), weekdays.join(","));
        let texts = if either {
            vec![format!("{time} {day} {month} *"), format!("{time} * {month} {weekday}")]
        } else {
            vec![format!("{time} {day} {month} {weekday}")]
        };
        let from = DateTime::from_timestamp(minute_of(year) * 60, 0).unwrap();
        let mut expected: Vec<i64> = texts
            .iter()
            .flat_map(|text| {
                let schedule: cron::Schedule = text.parse().unwrap();
                schedule.after(&from).take(50).map(|at| at.timestamp() / 60).collect::<Vec<_>>()
            })
            .collect();
        expected.sort_unstable();
        expected.dedup();
        expected.truncate(50);
        let found = schedule(&expr.text(), Tz::UTC).next_n(timestamp(minute_of(year)), expected.len());
        prop_assert_eq!(found, expected.into_iter().map(timestamp).collect::<Vec<_>>(), "{}", expr.text());
    }

    #[test]
    fn same_question_same_answer(expr in expression(), zone in select(&TZ_VARIANTS[..]), micros in any::<i32>(), n in 0..20_usize) {
        if accepted(&expr).is_none() {
            return Ok(());
        }
        let schedule = schedule(&expr.text(), zone);
        let start = Timestamp::from_micros(minute_of(2020) * MINUTE_MICROS + i64::from(micros) * 40_000_001);
        let listed = schedule.next_n(start, n);
        prop_assert_eq!(&listed, &schedule.clone().next_n(start, n));
        let mut after = start;
        for instant in &listed {
            prop_assert!(*instant > after);
            prop_assert_eq!(schedule.next_after(after), Some(*instant));
            after = *instant;
        }
        prop_assert_eq!(listed.len(), n);
    }

    #[test]
    fn text_and_stored_form_round_trip(expr in expression(), zone in select(&TZ_VARIANTS[..])) {
        let Some(parsed) = accepted(&expr) else { return Ok(()) };
        prop_assert_eq!(parsed.to_string(), expr.text());
        prop_assert_eq!(&parsed.to_string().parse::<CronExpression>().unwrap(), &parsed);
        prop_assert_eq!(parsed.is_frequent(), expr.is_frequent());
        let zone: Zone = zone.name().parse().unwrap();
        let schedule = Schedule::Cron { expression: parsed, zone };
        let json = serde_json::to_string(&schedule).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Schedule>(&json).unwrap(), &schedule);
        prop_assert!(!schedule.describe().is_empty());
    }

    #[test]
    fn any_text_is_an_answer(text in r"[ -~]{0,40}", fields in prop::collection::vec(r"[0-9*/,L?A-Z-]{1,6}", 4..7)) {
        for text in [text, fields.join(" ")] {
            if let Ok(parsed) = text.parse::<CronExpression>() {
                let schedule = Schedule::Cron { expression: parsed, zone: Zone::UTC };
                prop_assert!(schedule.next_after(Timestamp::EPOCH).is_some(), "{}", text);
            }
            let _ = text.parse::<Zone>();
        }
    }

    #[test]
    fn any_instant_is_an_answer(expr in expression(), zone in select(&TZ_VARIANTS[..]), micros in any::<i64>()) {
        if accepted(&expr).is_some() {
            let after = Timestamp::from_micros(micros);
            prop_assert!(schedule(&expr.text(), zone).next_after(after).is_none_or(|next| next > after));
        }
    }

    #[test]
    fn due_is_what_a_walk_finds(expr in expression(), at in any::<Index>(), from in 0..3 * DAY, length in 0..2 * DAY) {
        if accepted(&expr).is_none() {
            return Ok(());
        }
        let change = *at.get(changes());
        let schedule = schedule(&expr.text(), change.zone);
        let from = change.minute - 2 * DAY + from;
        let walked = walked(&schedule, from + 1, from + length);
        let expected = walked.last().map(|latest| Due {
            latest: timestamp(*latest),
            count: u32::try_from(walked.len()).unwrap().min(DUE_COUNT_LIMIT),
        });
        prop_assert_eq!(schedule.due(timestamp(from), timestamp(from + length)), expected);
    }

    #[test]
    fn a_grid_is_every_minute_that_divides(minutes in 1..EVERY_MINUTES_LIMIT, offset in any::<Index>(), start in -50_000..50_000_i64) {
        let offset = u32::try_from(offset.index(minutes as usize)).unwrap();
        let schedule = Schedule::EveryMinutes(EveryMinutes::new(minutes).unwrap().with_offset(offset).unwrap());
        let end = start + 3 * i64::from(minutes);
        let expected: Vec<i64> =
            (start..=end).filter(|at| (at - i64::from(offset)).rem_euclid(i64::from(minutes)) == 0).collect();
        prop_assert_eq!(walked(&schedule, start, end), expected);
        let json = serde_json::to_string(&schedule).unwrap();
        prop_assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    }
}

// ---- why the cron crate's own search is not used -----------------------------------------------------------

/// The crate's instants after a local time, as text.
fn crate_search(text: &str, zone: Tz, after: &str, count: usize) -> Vec<String> {
    let schedule: cron::Schedule = text.parse().unwrap();
    let after: DateTime<chrono::FixedOffset> = after.parse().unwrap();
    let after = after.with_timezone(&zone);
    schedule.after(&after).take(count).map(|at| at.to_rfc3339()).collect()
}

/// Should one of these fail after an update of the crate, read the section on it in `dbtcloud_core::schedule`
/// again: something written there has ceased to be true.
#[test]
fn what_the_cron_crate_does_otherwise() {
    let berlin = Tz::Europe__Berlin;
    // A skipped time is lost: nothing on 29 March 2026.
    assert_eq!(
        crate_search("0 30 2 * * *", berlin, "2026-03-28T12:00:00+01:00", 1),
        ["2026-03-30T02:30:00+02:00"]
    );
    // A repeated time fires twice, though it is a daily one.
    assert_eq!(
        crate_search("0 30 2 * * *", berlin, "2026-10-25T01:00:00+02:00", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"]
    );
    // Both days restricted: only a Friday the 13th.
    assert_eq!(
        crate_search("0 0 0 13 * 6", Tz::UTC, "2026-01-01T00:00:00Z", 1),
        ["2026-02-13T00:00:00+00:00"]
    );
    // Sunday is 1, not 0; 4 January 2026 is one.
    assert_eq!(
        crate_search("0 0 0 * * 1", Tz::UTC, "2026-01-01T00:00:00Z", 1),
        ["2026-01-04T00:00:00+00:00"]
    );
    assert!("0 0 0 * * 0".parse::<cron::Schedule>().is_err());
    // No last day, and no time after the year 2100.
    assert!("0 0 0 L * *".parse::<cron::Schedule>().is_err());
    assert!(crate_search("0 0 0 * * *", Tz::UTC, "2101-01-01T00:00:00Z", 1).is_empty());
    // Six and seven fields are read as seconds and years; a day that never comes is accepted.
    assert!("0 0 30 2 *".parse::<cron::Schedule>().is_err());
    assert!("0 0 0 30 2 *".parse::<cron::Schedule>().is_ok());
    // Every 20 minutes within the repeated hour: the passes are interleaved, so that time runs backwards...
    let frequent = |after| crate_search("0 0/20 * * * *", berlin, after, 3);
    assert_eq!(
        frequent("2026-10-25T01:50:00+02:00"),
        [
            "2026-10-25T02:00:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:20:00+02:00"
        ]
    );
    // ...from the end of the first pass the second is forgotten...
    assert_eq!(frequent("2026-10-25T02:40:00+02:00")[0], "2026-10-25T03:00:00+01:00");
    // ...and from the second pass the answer lies before the question.
    assert_eq!(frequent("2026-10-25T02:10:00+01:00")[0], "2026-10-25T02:20:00+02:00");
}
