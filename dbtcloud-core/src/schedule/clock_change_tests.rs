//! The rules for changes of the clock, on concrete dates that can be checked against tz database and almanac.

use super::*;

fn at(text: &str) -> Timestamp {
    let at: chrono::DateTime<chrono::FixedOffset> = text.parse().unwrap();
    Timestamp::from_micros(at.timestamp_micros())
}

/// Asserts the instants that follow `after`, all written with their local offsets.
fn fires(cron: &str, zone: &str, after: &str, expected: &[&str]) {
    let schedule = Schedule::cron(cron, zone).unwrap();
    let found = schedule.next_n(at(after), expected.len());
    let wanted: Vec<Timestamp> = expected.iter().map(|text| at(text)).collect();
    assert_eq!(found, wanted, "{cron} in {zone} after {after}");
}

#[test]
fn a_skipped_time_fires_once_at_the_end_of_the_gap() {
    // Berlin, 29 March 2026: 02:00+01:00 becomes 03:00+02:00.
    fires(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-03-28T02:30:00+01:00",
        &["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
    );
    fires(
        "0 2 * * *",
        "Europe/Berlin",
        "2026-03-28T02:00:00+01:00",
        &["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"],
    );
}

#[test]
fn several_skipped_times_and_the_end_of_the_gap_fire_as_one() {
    fires(
        "0,15,30,45 2,3 * * *",
        "Europe/Berlin",
        "2026-03-29T00:00:00+01:00",
        &[
            "2026-03-29T03:00:00+02:00",
            "2026-03-29T03:15:00+02:00",
            "2026-03-29T03:30:00+02:00",
            "2026-03-29T03:45:00+02:00",
            "2026-03-30T02:00:00+02:00",
        ],
    );
}

#[test]
fn a_repeated_time_fires_at_its_first_occurrence_only() {
    // Berlin, 25 October 2026: 03:00+02:00 becomes 02:00+01:00.
    let expected = ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"];
    fires("30 2 * * *", "Europe/Berlin", "2026-10-24T02:30:00+02:00", &expected);
    // From every point of the two passes.
    fires("30 2 * * *", "Europe/Berlin", "2026-10-25T02:29:59+02:00", &expected);
    fires(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T02:30:00+02:00",
        &expected[1..],
    );
    fires(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T02:00:00+01:00",
        &expected[1..],
    );
    fires(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T02:30:00+01:00",
        &expected[1..],
    );
    fires(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T02:59:59+01:00",
        &expected[1..],
    );
}

#[test]
fn hourly_and_more_frequent_follow_elapsed_time() {
    fires(
        "30 * * * *",
        "Europe/Berlin",
        "2026-03-29T01:30:00+01:00",
        &["2026-03-29T03:30:00+02:00", "2026-03-29T04:30:00+02:00"],
    );
    fires(
        "30 0-23 * * *",
        "Europe/Berlin",
        "2026-10-25T01:30:00+02:00",
        &[
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-25T03:30:00+01:00",
        ],
    );
    fires(
        "*/20 * * * *",
        "Europe/Berlin",
        "2026-10-25T02:40:00+02:00",
        &[
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:20:00+01:00",
            "2026-10-25T02:40:00+01:00",
        ],
    );
    // Confined to the hour that is skipped: silent. Confined to the hour that is repeated: both passes.
    fires(
        "*/30 2 * * *",
        "Europe/Berlin",
        "2026-03-28T12:00:00+01:00",
        &["2026-03-30T02:00:00+02:00"],
    );
    fires(
        "*/30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T02:30:00+02:00",
        &[
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-26T02:00:00+01:00",
        ],
    );
}

#[test]
fn every_few_hours_neither_loses_nor_doubles_a_run() {
    fires(
        "0 */2 * * *",
        "Europe/Berlin",
        "2026-03-29T00:00:00+01:00",
        &["2026-03-29T03:00:00+02:00", "2026-03-29T04:00:00+02:00"],
    );
    fires(
        "0 */2 * * *",
        "Europe/Berlin",
        "2026-10-25T00:00:00+02:00",
        &["2026-10-25T02:00:00+02:00", "2026-10-25T04:00:00+01:00"],
    );
    // Havana, 1 November 2026: 01:00-04:00 becomes 00:00-05:00.
    fires(
        "0 */6 * * *",
        "America/Havana",
        "2026-10-31T18:00:00-04:00",
        &["2026-11-01T00:00:00-04:00", "2026-11-01T06:00:00-05:00"],
    );
}

#[test]
fn the_gap_of_half_an_hour_on_lord_howe() {
    // 4 October 2026: 02:00+10:30 becomes 02:30+11:00; 5 April 2026: 02:00+11:00 becomes 01:30+10:30.
    fires(
        "15 2 * * *",
        "Australia/Lord_Howe",
        "2026-10-03T12:00:00+10:30",
        &["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"],
    );
    fires(
        "45 1 * * *",
        "Australia/Lord_Howe",
        "2026-04-04T12:00:00+11:00",
        &["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"],
    );
    fires(
        "45 * * * *",
        "Australia/Lord_Howe",
        "2026-04-05T01:00:00+11:00",
        &[
            "2026-04-05T01:45:00+11:00",
            "2026-04-05T01:45:00+10:30",
            "2026-04-05T02:45:00+10:30",
        ],
    );
}

#[test]
fn the_day_that_apia_skipped() {
    // After 29 December 2011 23:59:59-10:00 came 31 December 2011 00:00+14:00: Friday the 30th never was.
    fires(
        "0 6 * * *",
        "Pacific/Apia",
        "2011-12-29T06:00:00-10:00",
        &[
            "2011-12-31T00:00:00+14:00",
            "2011-12-31T06:00:00+14:00",
            "2012-01-01T06:00:00+14:00",
        ],
    );
    fires(
        "0 6 * * FRI",
        "Pacific/Apia",
        "2011-12-29T06:00:00-10:00",
        &["2011-12-31T00:00:00+14:00", "2012-01-06T06:00:00+14:00"],
    );
    fires(
        "0 * * * *",
        "Pacific/Apia",
        "2011-12-29T22:00:00-10:00",
        &[
            "2011-12-29T23:00:00-10:00",
            "2011-12-31T00:00:00+14:00",
            "2011-12-31T01:00:00+14:00",
        ],
    );
}

#[test]
fn changes_at_midnight() {
    // Santiago, 6 September 2026: 00:00-04:00 becomes 01:00-03:00; 5 April 2026: 00:00-03:00 becomes 23:00-04:00.
    fires(
        "0 0 * * *",
        "America/Santiago",
        "2026-09-05T12:00:00-04:00",
        &["2026-09-06T01:00:00-03:00", "2026-09-07T00:00:00-03:00"],
    );
    fires(
        "30 23 * * *",
        "America/Santiago",
        "2026-04-04T12:00:00-03:00",
        &["2026-04-04T23:30:00-03:00", "2026-04-05T23:30:00-04:00"],
    );
    fires(
        "30 23 4 * *",
        "America/Santiago",
        "2026-04-04T23:30:00-03:00",
        &["2026-05-04T23:30:00-04:00"],
    );
    fires(
        "30 * * * *",
        "America/Santiago",
        "2026-04-04T23:30:00-03:00",
        &["2026-04-04T23:30:00-04:00", "2026-04-05T00:30:00-04:00"],
    );
}

#[test]
fn ramadan_in_casablanca() {
    // The clock goes back for Ramadan, 15 February 2026 03:00+01:00 to 02:00+00:00, and on again on 22 March 2026.
    fires(
        "30 2 * * *",
        "Africa/Casablanca",
        "2026-02-14T12:00:00+01:00",
        &["2026-02-15T02:30:00+01:00", "2026-02-16T02:30:00+00:00"],
    );
    fires(
        "30 2 * * *",
        "Africa/Casablanca",
        "2026-03-21T12:00:00+00:00",
        &["2026-03-22T03:00:00+01:00", "2026-03-23T02:30:00+01:00"],
    );
}

#[test]
fn a_weekday_belongs_to_the_zone_not_to_utc() {
    fires(
        "0 6 * * 1",
        "Asia/Tokyo",
        "2026-01-01T00:00:00+09:00",
        &["2026-01-05T06:00:00+09:00", "2026-01-12T06:00:00+09:00"],
    );
    fires(
        "0 0 L * *",
        "Pacific/Kiritimati",
        "2026-01-01T00:00:00+14:00",
        &["2026-01-31T00:00:00+14:00"],
    );
}

#[test]
fn the_search_for_a_rare_day_crosses_changes_of_the_clock() {
    fires(
        "*/30 * 29 2 *",
        "Europe/Berlin",
        "2026-06-01T00:00:00+02:00",
        &["2028-02-29T00:00:00+01:00"],
    );
    // The second pass is not overlooked on the way to next year, nor the return of the offset in spring.
    fires(
        "*/30 2 25 10 *",
        "Europe/Berlin",
        "2026-10-25T02:30:00+02:00",
        &[
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2027-10-25T02:00:00+02:00",
        ],
    );
    fires(
        "*/30 * 1 7 *",
        "Europe/Berlin",
        "2026-07-02T00:00:00+02:00",
        &["2027-07-01T00:00:00+02:00"],
    );
}

#[test]
fn next_n_is_next_after_repeated() {
    let schedule = Schedule::cron("*/7 1-3 * * *", "Europe/London").unwrap();
    let mut after = at("2026-03-28T00:00:00+00:00");
    for instant in schedule.next_n(after, 100) {
        assert_eq!(schedule.next_after(after), Some(instant));
        assert!(instant > after);
        after = instant;
    }
    assert!(schedule.next_n(after, 0).is_empty());
}
