//! The wall clock: which minutes of the calendar an expression names, whatever the zone. Pure arithmetic.

use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike};

use super::SEARCH_YEARS;
use super::expression::Sets;

/// The first whole minute at or after `from` that the expression names, within [`SEARCH_YEARS`].
pub(super) fn first_at_or_after(sets: &Sets, from: NaiveDateTime) -> Option<NaiveDateTime> {
    let last_year = from.year().checked_add(SEARCH_YEARS)?;
    let mut date = from.date();
    let mut earliest = minute_at_or_after(from.time());
    while date.year() <= last_year {
        if sets.months & (1 << date.month()) == 0 {
            date = first_of_next_month(date)?;
            earliest = Some((0, 0));
            continue;
        }
        if names_day(sets, date)
            && let Some((hour, minute)) = earliest.and_then(|earliest| first_time(sets, earliest))
        {
            return date.and_hms_opt(hour, minute, 0);
        }
        date = date.succ_opt()?;
        earliest = Some((0, 0));
    }
    None
}

/// Whether the day satisfies the two day fields; see [`super::CronExpression`] for the rule.
fn names_day(sets: &Sets, date: NaiveDate) -> bool {
    let of_month = sets.days & (1 << date.day()) != 0
        || sets.last_day && date.succ_opt().is_none_or(|tomorrow| tomorrow.month() != date.month());
    let of_week = sets.weekdays & (1 << date.weekday().num_days_from_sunday()) != 0;
    if sets.either_day() {
        of_month || of_week
    } else {
        of_month && of_week
    }
}

/// The first hour and minute of a day named by the expression, at or after `earliest`.
fn first_time(sets: &Sets, earliest: (u32, u32)) -> Option<(u32, u32)> {
    let (hour, minute) = earliest;
    let this_hour = sets.hours & (1 << hour) != 0;
    let later = sets.minutes >> minute << minute;
    if this_hour && later != 0 {
        return Some((hour, later.trailing_zeros()));
    }
    let hours = sets.hours & !((2 << hour) - 1);
    (hours != 0 && sets.minutes != 0).then(|| (hours.trailing_zeros(), sets.minutes.trailing_zeros()))
}

/// The time rounded up to a whole minute; nothing after the last minute of the day.
fn minute_at_or_after(time: NaiveTime) -> Option<(u32, u32)> {
    let whole = time.second() == 0 && time.nanosecond() == 0;
    let minute = time.hour() * 60 + time.minute() + u32::from(!whole);
    (minute < 24 * 60).then_some((minute / 60, minute % 60))
}

fn first_of_next_month(date: NaiveDate) -> Option<NaiveDate> {
    match date.month() {
        12 => NaiveDate::from_ymd_opt(date.year().checked_add(1)?, 1, 1),
        month => NaiveDate::from_ymd_opt(date.year(), month + 1, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::CronExpression;

    fn next(text: &str, from: &str) -> String {
        let expression: CronExpression = text.parse().unwrap();
        let found = first_at_or_after(expression.sets(), from.parse().unwrap());
        found.unwrap().format("%Y-%m-%dT%H:%M").to_string()
    }

    #[test]
    fn at_or_after_rounds_up_to_the_minute() {
        assert_eq!(next("* * * * *", "2026-01-01T00:00:00"), "2026-01-01T00:00");
        assert_eq!(next("* * * * *", "2026-01-01T00:00:00.000001"), "2026-01-01T00:01");
        assert_eq!(next("* * * * *", "2026-12-31T23:59:01"), "2027-01-01T00:00");
        assert_eq!(next("59 23 * * *", "2026-01-01T23:59:00"), "2026-01-01T23:59");
        assert_eq!(next("59 23 * * *", "2026-01-01T23:59:30"), "2026-01-02T23:59");
        assert_eq!(next("30 9,17 * * *", "2026-01-01T09:31:00"), "2026-01-01T17:30");
    }

    #[test]
    fn days_of_month_and_week() {
        assert_eq!(next("0 0 L * *", "2026-02-01T00:00:00"), "2026-02-28T00:00");
        assert_eq!(next("0 0 L * *", "2028-02-01T00:00:00"), "2028-02-29T00:00");
        assert_eq!(next("0 0 15,L 4 *", "2026-04-16T00:00:00"), "2026-04-30T00:00");
        // The 13th is a Tuesday in January 2026, the first Friday of that week the 16th.
        assert_eq!(next("0 0 13 * 5", "2026-01-10T00:00:00"), "2026-01-13T00:00");
        assert_eq!(next("0 0 13 * 5", "2026-01-13T00:01:00"), "2026-01-16T00:00");
        // A star makes both necessary: an odd day that is a Monday.
        assert_eq!(next("0 0 */2 * 1", "2026-01-01T00:00:00"), "2026-01-05T00:00");
        assert_eq!(next("0 0 */2 * 1", "2026-01-06T00:00:00"), "2026-01-19T00:00");
        // A full list is a restriction, so either is enough: every day.
        assert_eq!(next("0 0 1-31 * 1", "2026-01-06T00:00:00"), "2026-01-06T00:00");
        assert_eq!(next("0 0 ? * 0", "2026-01-06T00:00:00"), "2026-01-11T00:00");
    }

    #[test]
    fn the_longest_pause_on_the_calendar_is_found() {
        // A 29 February on one weekday: 28 years, and 40 across 2100, which is no leap year.
        let expression: CronExpression = "0 0 29 2 */7".parse().unwrap();
        let mut at: NaiveDateTime = "2000-01-01T00:00:00".parse().unwrap();
        let mut longest = 0;
        while at.year() < 2800 {
            let found = first_at_or_after(expression.sets(), at).unwrap();
            longest = longest.max(found.year() - at.year());
            at = found + chrono::TimeDelta::minutes(1);
        }
        assert_eq!(longest, 40);
        assert!(longest < SEARCH_YEARS);
    }

    #[test]
    fn the_end_of_the_calendar_is_an_answer() {
        let expression: CronExpression = "0 0 1 1 *".parse().unwrap();
        assert_eq!(first_at_or_after(expression.sets(), NaiveDateTime::MAX), None);
        let last = NaiveDate::MAX.and_hms_opt(0, 0, 0).unwrap();
        assert_eq!(first_at_or_after(expression.sets(), last), None);
    }
}
