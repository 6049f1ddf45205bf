//! From the wall clock to instants: what a change of the clock does to a schedule. See [`super`] for the rules.

use chrono::{DateTime, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone};
use chrono_tz::{GapInfo, Tz};

use super::expression::CronExpression;
use super::wall;
use super::zone::Zone;
use crate::time::Timestamp;

/// Step of the look-out for changes of the clock. No zone has changed twice within it: the two closest changes
/// in the database since 1900 are four days apart.
const LOOKOUT: TimeDelta = TimeDelta::days(1);

/// The first instant after `after` at which the expression fires in the zone.
pub(super) fn next_after(expression: &CronExpression, zone: Zone, after: Timestamp) -> Option<Timestamp> {
    let after = from_timestamp(after)?;
    let next = if expression.is_frequent() {
        next_elapsed(expression, zone.rules(), after)
    } else {
        next_once(expression, zone.rules(), after)
    }?;
    (next <= last_instant()?).then(|| Timestamp::from_micros(next.and_utc().timestamp_micros()))
}

/// Each wall-clock minute once: at its first occurrence, or at the end of the gap that swallows it.
///
/// That is the first instant at which the wall clock shows this minute *or a later one*, hence a function that
/// never decreases, and the walk over wall-clock minutes yields instants in order.
fn next_once(expression: &CronExpression, rules: Tz, after: NaiveDateTime) -> Option<NaiveDateTime> {
    // Wall-clock minutes at or before the one shown now have passed, at the latest now.
    let mut wall = wall::first_at_or_after(expression.sets(), following(local(rules, after)?)?)?;
    loop {
        if let Some(instant) = first_showing(rules, wall)
            && instant > after
        {
            return Some(instant);
        }
        wall = wall::first_at_or_after(expression.sets(), following(wall)?)?;
    }
}

/// Every instant whose wall-clock minute the expression names: twice in a repeated hour, never in a skipped one.
fn next_elapsed(expression: &CronExpression, rules: Tz, after: NaiveDateTime) -> Option<NaiveDateTime> {
    let mut since = after;
    let mut from = following(local(rules, after)?)?;
    loop {
        let wall = wall::first_at_or_after(expression.sets(), from)?;
        let instant = wall.checked_sub_signed(offset(rules, since))?;
        // While the clock is not changed on the way, this is it; else look again from the change on.
        match first_change(rules, since, instant.min(last_instant()?)) {
            None => return Some(instant),
            Some(change) => {
                since = change;
                from = local(rules, change)?;
            }
        }
    }
}

/// The first instant at which the wall clock shows `wall` or, when that is skipped, a later time.
fn first_showing(rules: Tz, wall: NaiveDateTime) -> Option<NaiveDateTime> {
    match rules.from_local_datetime(&wall) {
        MappedLocalTime::Single(instant) => Some(instant.naive_utc()),
        MappedLocalTime::Ambiguous(one, other) => Some(one.naive_utc().min(other.naive_utc())),
        MappedLocalTime::None => GapInfo::new(&wall, &rules)?.end.map(|end| end.naive_utc()),
    }
}

/// The first instant in `(from, to]` at which the offset is another than at `from`.
fn first_change(rules: Tz, from: NaiveDateTime, to: NaiveDateTime) -> Option<NaiveDateTime> {
    let before = offset(rules, from);
    let mut unchanged = from;
    while unchanged < to {
        let probe = unchanged.checked_add_signed(LOOKOUT)?.min(to);
        if offset(rules, probe) == before {
            unchanged = probe;
            continue;
        }
        // Changes fall on whole seconds, which `from` need not.
        let (mut low, mut high) = (unchanged.and_utc().timestamp(), probe.and_utc().timestamp());
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if offset(rules, from_seconds(middle)?) == before {
                low = middle
            } else {
                high = middle
            }
        }
        return from_seconds(high);
    }
    None
}

fn offset(rules: Tz, instant: NaiveDateTime) -> TimeDelta {
    TimeDelta::seconds(i64::from(
        rules.offset_from_utc_datetime(&instant).fix().local_minus_utc(),
    ))
}

fn local(rules: Tz, instant: NaiveDateTime) -> Option<NaiveDateTime> {
    instant.checked_add_signed(offset(rules, instant))
}

/// The smallest step up: from "at or after" to "after".
fn following(wall: NaiveDateTime) -> Option<NaiveDateTime> {
    wall.checked_add_signed(TimeDelta::microseconds(1))
}

fn from_seconds(seconds: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp(seconds, 0).map(|instant| instant.naive_utc())
}

/// The instant in chrono's terms; one before the year 1 counts as its beginning, none after the year 9999.
fn from_timestamp(at: Timestamp) -> Option<NaiveDateTime> {
    let first = NaiveDate::from_ymd_opt(1, 1, 1)?.and_time(NaiveTime::MIN);
    if at.as_micros() < first.and_utc().timestamp_micros() {
        return first.checked_sub_signed(TimeDelta::microseconds(1));
    }
    let at = DateTime::from_timestamp_micros(at.as_micros())?.naive_utc();
    (at <= last_instant()?).then_some(at)
}

/// The last minute of the year 9999, the end of every schedule.
fn last_instant() -> Option<NaiveDateTime> {
    NaiveDate::from_ymd_opt(9999, 12, 31)?.and_hms_opt(23, 59, 0)
}
