//! When a job is due: cron expressions, grids of minutes and calendars, in any time zone.
//!
//! Pure: an instant goes in, the next instant comes out. Nothing here reads a clock, a file or the environment.
//!
//! # What a change of the clock does
//!
//! Which of two rules holds is a property of the expression ([`CronExpression::is_frequent`]):
//!
//! 1. **Once.** Every wall-clock minute that the expression names fires once: at the first instant at which the
//!    wall clock shows that minute *or a later one*. So a time inside a skipped stretch fires at the first instant
//!    after it, however long the stretch is (30 minutes on Lord Howe, a whole day in Apia); several skipped times
//!    fire together, as one; a time in a repeated stretch fires at its first occurrence only.
//! 2. **Elapsed time**, for expressions that fire at least hourly: their minute field starts with `*`, or their
//!    hour field names all 24 hours. They fire at every instant whose wall-clock minute they name: in both
//!    occurrences of a repeated stretch, and not for a skipped one, so that runs neither pause nor bunch. Hence
//!    `*/10 2 * * *`, confined to an hour that is skipped, stays silent on that day; `0,10,20 2 * * *` does not.
//!
//! [`EveryMinutes`] knows no zone and is always evenly spaced.
//!
//! Source: cron(8) of cronie, after Vixie's ISC cron 4.1: special handling "only applies to jobs that run at a
//! specific time and jobs that run with a granularity greater than one hour. Jobs that run more frequently are
//! scheduled normally"; FreeBSD's `cron -s` likewise treats jobs of every hour apart from rarer ones. Debian's
//! cron(8) draws the line at any `*` in the hour or minute field, which would lose or double a run of `0 */6 * * *`
//! where the clock changes at midnight (Santiago, Havana); hence the former. Unlike cron(8), which takes changes of
//! more than three hours for corrections, there is no such limit: a scheduled run is not lost.
//!
//! # What the `cron` crate does here
//!
//! It expands fields into sets, and no more. Its search loses times that fall into a gap; in an overlap it fires a
//! daily time twice and, depending on where it starts, runs backwards in time or forgets the second pass; it
//! combines the two day fields with *and*, has no `L`, and ends in the year 2100. Days and changes of the clock are
//! therefore walked here. `tests/schedule_oracle.rs` holds a proof of each of these.
//!
//! # Missed instants
//!
//! A scheduler advances from the *scheduled* instant, never from now, and turns everything missed into one run:
//! [`Schedule::due`] gives the newest missed instant and the count, at the same cost after a second or a year.

mod calendar;
mod describe;
mod error;
mod every;
mod expression;
mod instant;
mod parse;
mod wall;
mod zone;

#[cfg(test)]
mod clock_change_tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use calendar::{Calendar, DateRule, HourInterval, Hours, TimeRule, Weekdays};
pub use error::{Field, ScheduleError, VALUE_SHOWN_LIMIT};
pub use every::{EVERY_MINUTES_LIMIT, EveryMinutes};
pub use expression::{CronExpression, EXPRESSION_LIMIT};
pub use zone::Zone;

use crate::time::Timestamp;

/// Years that a search looks ahead. The longest pause a valid expression can make is 40 years (29 February on one
/// given weekday, across 2100), so within this a valid expression always fires.
pub const SEARCH_YEARS: i32 = 41;

/// Most instants that [`Schedule::next_n`] gives at once.
pub const NEXT_LIMIT: usize = 1_000;

/// The count at which [`Due::count`] stops.
pub const DUE_COUNT_LIMIT: u32 = 1_000;

/// When a job is due.
///
/// Serialised with a `type` and the parts in words:
/// `{"type":"cron","expression":"0 6 * * 1","zone":"Europe/Berlin"}`,
/// `{"type":"every_minutes","minutes":15,"offset":0}`,
/// `{"type":"calendar","date":{…},"time":{…},"zone":"UTC"}`.
///
/// ```
/// use dbtcloud_core::Timestamp;
/// use dbtcloud_core::schedule::Schedule;
/// let schedule = Schedule::cron("30 2 * * *", "Europe/Berlin")?;
/// // On 29 March 2026 the clock goes from 02:00 to 03:00 at 01:00 UTC: 02:30 does not exist.
/// let midnight = Timestamp::from_micros(1_774_738_800_000_000);
/// let next: Vec<String> = schedule.next_n(midnight, 2).iter().map(Timestamp::to_string).collect();
/// assert_eq!(next, ["2026-03-29T01:00:00.000000Z", "2026-03-30T00:30:00.000000Z"]);
/// assert_eq!(schedule.describe(), "At 02:30 in Europe/Berlin");
/// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Schedule {
    /// At the minutes a cron expression names.
    Cron {
        /// The expression.
        expression: CronExpression,
        /// The zone whose wall clock counts; UTC when absent.
        #[serde(default)]
        zone: Zone,
    },
    /// At a fixed distance in elapsed time.
    EveryMinutes(EveryMinutes),
    /// On picked days at picked hours.
    Calendar(Calendar),
}

/// What came due while nobody looked.
///
/// ```
/// use dbtcloud_core::schedule::Due;
/// # use dbtcloud_core::{Timestamp, schedule::Schedule};
/// let hourly = Schedule::cron("0 * * * *", "UTC")?;
/// let due = hourly.due(Timestamp::EPOCH, Timestamp::from_micros(9_000_000_000)); // 02:30
/// assert_eq!(due, Some(Due { latest: Timestamp::from_micros(7_200_000_000), count: 2 }));
/// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The newest of the instants.
    pub latest: Timestamp,
    /// How many there are; [`DUE_COUNT_LIMIT`] when there are that many or more.
    pub count: u32,
}

impl Schedule {
    /// A cron schedule from its texts.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Schedule;
    /// assert!(Schedule::cron("0 6 * * MON-FRI", "America/New_York").is_ok());
    /// let error = Schedule::cron("0 6 * * MON-FRI", "America/New_Yrok").unwrap_err();
    /// assert!(error.to_string().contains("America/New_York"));
    /// ```
    pub fn cron(expression: &str, zone: &str) -> Result<Self, ScheduleError> {
        Ok(Self::Cron {
            expression: expression.parse()?,
            zone: zone.parse()?,
        })
    }

    /// The first instant strictly after `after` at which the job is due.
    ///
    /// Depends on nothing but its arguments and the time zone rules of this build. Always a whole UTC second.
    /// `None` only at the end of time: after the year 9999, or the range of [`Timestamp`] for a grid.
    /// Costs microseconds; at worst, for an hourly job on one day in [`SEARCH_YEARS`], some milliseconds.
    ///
    /// ```
    /// use dbtcloud_core::Timestamp;
    /// use dbtcloud_core::schedule::Schedule;
    /// let daily = Schedule::cron("0 6 * * *", "UTC")?;
    /// let first = daily.next_after(Timestamp::EPOCH);
    /// assert_eq!(first, Some(Timestamp::from_micros(6 * 3_600_000_000)));
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron { expression, zone } => instant::next_after(expression, *zone, after),
            Self::EveryMinutes(every) => every.next_after(after),
            Self::Calendar(calendar) => calendar.next_after(after),
        }
    }

    /// The next `n` instants after `after`, ascending; never more than [`NEXT_LIMIT`].
    ///
    /// ```
    /// use dbtcloud_core::Timestamp;
    /// use dbtcloud_core::schedule::{NEXT_LIMIT, Schedule};
    /// let hourly = Schedule::cron("0 * * * *", "UTC")?;
    /// assert_eq!(hourly.next_n(Timestamp::EPOCH, 5).len(), 5);
    /// assert_eq!(hourly.next_n(Timestamp::EPOCH, usize::MAX).len(), NEXT_LIMIT);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn next_n(&self, after: Timestamp, n: usize) -> Vec<Timestamp> {
        self.instants_after(after).take(n.min(NEXT_LIMIT)).collect()
    }

    /// What came due in `(after, until]`; `None` when nothing did.
    ///
    /// For a scheduler that looks again after a while: `after` is the last instant it dealt with, `until` is now.
    /// The newest instant is found by bisection, so an outage of a year costs no more than one of a minute.
    ///
    /// ```
    /// use dbtcloud_core::Timestamp;
    /// use dbtcloud_core::schedule::{DUE_COUNT_LIMIT, Schedule};
    /// let each_minute = Schedule::cron("* * * * *", "UTC")?;
    /// let year_later = Timestamp::from_micros(365 * 86_400_000_000);
    /// let due = each_minute.due(Timestamp::EPOCH, year_later);
    /// assert_eq!(due.map(|due| (due.latest, due.count)), Some((year_later, DUE_COUNT_LIMIT)));
    /// assert_eq!(each_minute.due(year_later, year_later), None);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn due(&self, after: Timestamp, until: Timestamp) -> Option<Due> {
        let is_due = |from: i64| {
            self.next_after(Timestamp::from_micros(from))
                .filter(|instant| *instant <= until)
        };
        let mut latest = is_due(after.as_micros())?;
        // Everything up to `latest` is known to be followed by a due instant or to be one.
        let (mut low, mut high) = (latest.as_micros(), until.as_micros());
        while low < high {
            let middle = i64::midpoint(low, high);
            match is_due(middle) {
                Some(instant) => {
                    latest = instant;
                    low = instant.as_micros();
                }
                None => high = middle,
            }
        }
        let limit = DUE_COUNT_LIMIT as usize;
        let counted = self
            .instants_after(after)
            .take_while(|instant| *instant <= until)
            .take(limit)
            .count();
        Some(Due {
            latest,
            count: u32::try_from(counted).unwrap_or(DUE_COUNT_LIMIT),
        })
    }

    /// The five-field cron expression, for the kinds that have one; a grid of minutes has none.
    ///
    /// ```
    /// use dbtcloud_core::schedule::{EveryMinutes, Schedule};
    /// let daily = Schedule::cron("0 6 * * *", "UTC")?;
    /// assert_eq!(daily.expression().map(|cron| cron.as_str()), Some("0 6 * * *"));
    /// assert_eq!(Schedule::EveryMinutes(EveryMinutes::new(50)?).expression(), None);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn expression(&self) -> Option<&CronExpression> {
        match self {
            Self::Cron { expression, .. } => Some(expression),
            Self::EveryMinutes(_) => None,
            Self::Calendar(calendar) => Some(calendar.cron()),
        }
    }

    /// The zone whose wall clock counts; UTC for a grid of minutes.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Schedule;
    /// assert_eq!(Schedule::cron("0 6 * * *", "Asia/Tokyo")?.zone().name(), "Asia/Tokyo");
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn zone(&self) -> Zone {
        match self {
            Self::Cron { zone, .. } => *zone,
            Self::EveryMinutes(_) => Zone::UTC,
            Self::Calendar(calendar) => calendar.zone(),
        }
    }

    /// The schedule in short English, dbt Cloud's `cron_humanized`. The zone is named unless it is UTC.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Schedule;
    /// let describe = |cron, zone| Schedule::cron(cron, zone).map(|schedule| schedule.describe());
    /// assert_eq!(describe("0 * * * *", "UTC").as_deref(), Ok("Every hour"));
    /// assert_eq!(describe("0 6 * * 1", "Europe/Berlin").as_deref(), Ok("At 06:00 on Monday in Europe/Berlin"));
    /// ```
    pub fn describe(&self) -> String {
        match self {
            Self::Cron { expression, zone } => describe::expression(expression, *zone),
            Self::EveryMinutes(every) => describe::every(every.minutes(), every.offset()),
            Self::Calendar(calendar) => describe::expression(calendar.cron(), calendar.zone()),
        }
    }

    fn instants_after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(after), |instant| self.next_after(*instant))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> Timestamp {
        let at: chrono::DateTime<chrono::Utc> = text.parse().unwrap();
        Timestamp::from_micros(at.timestamp_micros())
    }

    #[test]
    fn the_stored_form_is_stable() {
        for json in [
            r#"{"type":"cron","expression":"0 6 * * MON","zone":"Europe/Berlin"}"#,
            r#"{"type":"every_minutes","minutes":15,"offset":5}"#,
            r#"{"type":"calendar","date":{"type":"every_day"},"time":{"type":"every_hour","interval":6},"zone":"UTC"}"#,
            r#"{"type":"calendar","date":{"type":"custom_cron","cron":"5 5 L * *"},"time":{"type":"every_hour","interval":1},"zone":"Asia/Tokyo"}"#,
        ] {
            let schedule: Schedule = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&schedule).unwrap(), json);
        }
        let bare: Schedule = serde_json::from_str(r#"{"type":"cron","expression":"0 6 * * *"}"#).unwrap();
        assert_eq!(bare, Schedule::cron("0 6 * * *", "UTC").unwrap());
    }

    #[test]
    fn a_refusal_reaches_the_reader_of_stored_json() {
        let fault = |json: &str| serde_json::from_str::<Schedule>(json).unwrap_err().to_string();
        assert!(fault(r#"{"type":"cron","expression":"0 99 * * *"}"#).contains(r#"hour "99""#));
        assert!(fault(r#"{"type":"cron","expression":"0 9 * * *","zone":"Europe/Berln"}"#).contains("Europe/Berlin"));
        assert!(fault(r#"{"type":"every_minutes","minutes":0}"#).contains(r#"minutes "0""#));
    }

    #[test]
    fn due_is_the_newest_and_the_count() {
        let weekly = Schedule::cron("0 6 * * 1", "UTC").unwrap();
        let (after, until) = (micros("2026-01-05T06:00:00Z"), micros("2026-02-02T05:59:59Z"));
        assert_eq!(
            weekly.due(after, until),
            Some(Due {
                latest: micros("2026-01-26T06:00:00Z"),
                count: 3
            })
        );
        assert_eq!(weekly.due(after, micros("2026-01-12T05:59:59Z")), None);
        assert_eq!(weekly.due(until, after), None);
        let exactly = micros("2026-01-12T06:00:00Z");
        assert_eq!(
            weekly.due(after, exactly),
            Some(Due {
                latest: exactly,
                count: 1
            })
        );
        let clumped = Schedule::cron("* * * 1-6 *", "UTC").unwrap();
        let due = clumped.due(micros("2025-01-01T00:00:00Z"), micros("2025-12-31T00:00:00Z"));
        assert_eq!(
            due,
            Some(Due {
                latest: micros("2025-06-30T23:59:00Z"),
                count: DUE_COUNT_LIMIT
            })
        );
    }

    #[test]
    fn the_ends_of_time_are_answers() {
        for schedule in [
            Schedule::cron("0 6 29 2 *", "Asia/Tokyo"),
            Schedule::cron("*/5 * * * *", "America/Lima"),
        ] {
            let schedule = schedule.unwrap();
            assert_eq!(schedule.next_after(Timestamp::from_micros(i64::MAX)), None);
            assert_eq!(schedule.next_after(micros("9999-12-31T23:59:00Z")), None);
            let first = schedule.next_after(Timestamp::from_micros(i64::MIN)).unwrap();
            assert!(
                first >= micros("0001-01-01T00:00:00Z") && first < micros("0005-01-01T00:00:00Z"),
                "{first}"
            );
        }
    }

    #[test]
    fn years_after_2100_are_reached() {
        let schedule = Schedule::cron("0 0 29 2 *", "UTC").unwrap();
        assert_eq!(
            schedule.next_after(micros("2096-03-01T00:00:00Z")),
            Some(micros("2104-02-29T00:00:00Z"))
        );
        let frequent = Schedule::cron("* * 29 2 *", "UTC").unwrap();
        assert_eq!(
            frequent.next_after(micros("2096-03-01T00:00:00Z")),
            Some(micros("2104-02-29T00:00:00Z"))
        );
    }
}
