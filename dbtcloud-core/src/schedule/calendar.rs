//! Days and hours picked from a form, in the terms dbt Cloud's job settings use.

use serde::{Deserialize, Serialize};

use super::error::{Field, ScheduleError};
use super::expression::CronExpression;
use super::zone::Zone;
use crate::time::Timestamp;

macro_rules! number_set {
    ($(#[$docs:meta])* $name:ident, $field:expr, $limit:literal) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Vec<u32>", into = "Vec<u32>")]
        pub struct $name(u32);

        impl $name {
            #[doc = concat!("A set of numbers below ", $limit, "; at least one, repeats count once.")]
            ///
            /// ```
            #[doc = concat!("use dbtcloud_core::schedule::", stringify!($name), ";")]
            #[doc = concat!("assert!(", stringify!($name), "::new([]).is_err());")]
            #[doc = concat!("assert!(", stringify!($name), "::new([", $limit, "]).is_err());")]
            /// ```
            pub fn new(numbers: impl IntoIterator<Item = u32>) -> Result<Self, ScheduleError> {
                let expected = concat!("numbers below ", $limit, ", at least one");
                let mut set = 0;
                for number in numbers {
                    if number >= $limit {
                        return Err(ScheduleError::invalid($field, &number.to_string(), expected));
                    }
                    set |= 1 << number;
                }
                if set == 0 {
                    return Err(ScheduleError::invalid($field, "", expected));
                }
                Ok(Self(set))
            }

            /// The numbers, ascending.
            ///
            /// ```
            #[doc = concat!("use dbtcloud_core::schedule::", stringify!($name), ";")]
            #[doc = concat!("let set = ", stringify!($name), "::new([5, 1, 1])?;")]
            /// assert_eq!(set.iter().collect::<Vec<_>>(), [1, 5]);
            /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
            /// ```
            pub fn iter(self) -> impl Iterator<Item = u32> {
                (0..$limit).filter(move |number| self.0 & (1 << number) != 0)
            }

            fn list(self) -> String {
                self.iter().map(|number| number.to_string()).collect::<Vec<_>>().join(",")
            }
        }

        impl TryFrom<Vec<u32>> for $name {
            type Error = ScheduleError;

            fn try_from(numbers: Vec<u32>) -> Result<Self, Self::Error> {
                Self::new(numbers)
            }
        }

        impl From<$name> for Vec<u32> {
            fn from(set: $name) -> Self {
                set.iter().collect()
            }
        }
    };
}

number_set! {
    /// Days of the week, 0 Sunday to 6 Saturday; never empty. Serialised as a list of numbers, ascending.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Weekdays;
    /// let days = Weekdays::new([5, 1])?;
    /// assert_eq!(days.iter().collect::<Vec<_>>(), [1, 5]);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    Weekdays, Field::Days, 7
}

number_set! {
    /// Hours of the day, 0 to 23; never empty. Serialised as a list of numbers, ascending.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Hours;
    /// let hours = Hours::new([18, 6])?;
    /// assert_eq!(hours.iter().collect::<Vec<_>>(), [6, 18]);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    Hours, Field::Hours, 24
}

/// Hours between two runs, 1 to 23. Serialised as the number.
///
/// ```
/// use dbtcloud_core::schedule::HourInterval;
/// assert_eq!(HourInterval::new(6).map(HourInterval::hours), Ok(6));
/// assert!(HourInterval::new(24).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct HourInterval(u32);

impl HourInterval {
    /// An interval of 1 to 23 hours.
    ///
    /// ```
    /// use dbtcloud_core::schedule::HourInterval;
    /// let error = HourInterval::new(0).unwrap_err();
    /// assert_eq!(error.to_string(), r#"interval "0": expected a number from 1 to 23"#);
    /// ```
    pub fn new(hours: u32) -> Result<Self, ScheduleError> {
        if !(1..=23).contains(&hours) {
            return Err(ScheduleError::invalid(
                Field::Interval,
                &hours.to_string(),
                "a number from 1 to 23",
            ));
        }
        Ok(Self(hours))
    }

    /// The number of hours.
    ///
    /// ```
    /// use dbtcloud_core::schedule::HourInterval;
    /// assert_eq!(HourInterval::new(6).map(|interval| interval.hours()), Ok(6));
    /// ```
    pub fn hours(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for HourInterval {
    type Error = ScheduleError;

    fn try_from(hours: u32) -> Result<Self, Self::Error> {
        Self::new(hours)
    }
}

impl From<HourInterval> for u32 {
    fn from(interval: HourInterval) -> Self {
        interval.0
    }
}

/// On which days. Serialised as dbt Cloud's `schedule.date`.
///
/// ```
/// use dbtcloud_core::schedule::{DateRule, Weekdays};
/// let date = DateRule::DaysOfWeek { days: Weekdays::new([1, 5])? };
/// assert_eq!(serde_json::to_string(&date)?, r#"{"type":"days_of_week","days":[1,5]}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DateRule {
    /// Every day.
    EveryDay,
    /// On some days of the week.
    DaysOfWeek {
        /// The days.
        days: Weekdays,
    },
    /// As the expression says; the [`TimeRule`] beside it is kept and has no say.
    CustomCron {
        /// The expression.
        cron: CronExpression,
    },
    /// As the expression says, which a form made of an interval and days; the [`TimeRule`] has no say.
    IntervalCron {
        /// The expression.
        cron: CronExpression,
        /// The days the form showed, if it said so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        days: Option<Weekdays>,
    },
}

/// At which times of a day. Serialised as dbt Cloud's `schedule.time`.
///
/// ```
/// use dbtcloud_core::schedule::{HourInterval, TimeRule};
/// let time = TimeRule::EveryHour { interval: HourInterval::new(6)? };
/// assert_eq!(serde_json::to_string(&time)?, r#"{"type":"every_hour","interval":6}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TimeRule {
    /// Every so many hours from midnight on, starting over at midnight: every 7 hours is 0, 7, 14 and 21 o'clock.
    EveryHour {
        /// The interval.
        interval: HourInterval,
    },
    /// At the full hour, at some hours.
    AtExactHours {
        /// The hours.
        hours: Hours,
    },
}

/// A schedule put together from days and hours, and the cron expression it comes to.
///
/// Serialised as `{"date": …, "time": …, "zone": …}`; `zone` is `UTC` when absent.
///
/// ```
/// use dbtcloud_core::schedule::{Calendar, DateRule, Hours, TimeRule, Weekdays, Zone};
/// let date = DateRule::DaysOfWeek { days: Weekdays::new([1, 5])? };
/// let time = TimeRule::AtExactHours { hours: Hours::new([6, 18])? };
/// let calendar = Calendar::new(date, time, Zone::UTC)?;
/// assert_eq!(calendar.cron().as_str(), "0 6,18 * * 1,5");
/// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Calendar {
    date: DateRule,
    time: TimeRule,
    zone: Zone,
    cron: CronExpression,
}

impl Calendar {
    /// Resolves days and times to a cron expression.
    ///
    /// ```
    /// use dbtcloud_core::schedule::{Calendar, DateRule, HourInterval, TimeRule, Zone};
    /// let every = |hours| {
    ///     let time = TimeRule::EveryHour { interval: HourInterval::new(hours)? };
    ///     Calendar::new(DateRule::EveryDay, time, Zone::UTC)
    /// };
    /// assert_eq!(every(1)?.cron().as_str(), "0 * * * *");
    /// assert_eq!(every(6)?.cron().as_str(), "0 */6 * * *");
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn new(date: DateRule, time: TimeRule, zone: Zone) -> Result<Self, ScheduleError> {
        let hours = match time {
            // As dbt Cloud resolves it: no step for every hour.
            TimeRule::EveryHour { interval } if interval.hours() == 1 => "*".to_owned(),
            TimeRule::EveryHour { interval } => format!("*/{}", interval.hours()),
            TimeRule::AtExactHours { hours } => hours.list(),
        };
        let cron = match &date {
            DateRule::EveryDay => format!("0 {hours} * * *").parse()?,
            DateRule::DaysOfWeek { days } => format!("0 {hours} * * {}", days.list()).parse()?,
            DateRule::CustomCron { cron } | DateRule::IntervalCron { cron, .. } => cron.clone(),
        };
        Ok(Self { date, time, zone, cron })
    }

    /// The days.
    ///
    /// ```
    /// # use dbtcloud_core::schedule::{Calendar, DateRule, Hours, TimeRule, Zone};
    /// let time = TimeRule::AtExactHours { hours: Hours::new([6])? };
    /// let calendar = Calendar::new(DateRule::EveryDay, time, Zone::UTC)?;
    /// assert_eq!(calendar.date(), &DateRule::EveryDay);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn date(&self) -> &DateRule {
        &self.date
    }

    /// The times of day.
    ///
    /// ```
    /// # use dbtcloud_core::schedule::{Calendar, DateRule, Hours, TimeRule, Zone};
    /// let time = TimeRule::AtExactHours { hours: Hours::new([6])? };
    /// assert_eq!(Calendar::new(DateRule::EveryDay, time, Zone::UTC)?.time(), time);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn time(&self) -> TimeRule {
        self.time
    }

    /// The zone whose wall clock counts.
    ///
    /// ```
    /// # use dbtcloud_core::schedule::{Calendar, DateRule, Hours, TimeRule, Zone};
    /// let time = TimeRule::AtExactHours { hours: Hours::new([6])? };
    /// assert_eq!(Calendar::new(DateRule::EveryDay, time, Zone::UTC)?.zone(), Zone::UTC);
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn zone(&self) -> Zone {
        self.zone
    }

    /// The cron expression that days and times come to: dbt Cloud's `schedule.cron`.
    ///
    /// ```
    /// # use dbtcloud_core::schedule::{Calendar, DateRule, Hours, TimeRule, Zone};
    /// let time = TimeRule::AtExactHours { hours: Hours::new([6])? };
    /// let calendar = Calendar::new(DateRule::EveryDay, time, Zone::UTC)?;
    /// assert_eq!(calendar.cron().as_str(), "0 6 * * *");
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn cron(&self) -> &CronExpression {
        &self.cron
    }

    pub(super) fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        super::instant::next_after(&self.cron, self.zone, after)
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    date: DateRule,
    time: TimeRule,
    #[serde(default)]
    zone: Zone,
}

impl TryFrom<Stored> for Calendar {
    type Error = ScheduleError;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        Self::new(stored.date, stored.time, stored.zone)
    }
}

impl From<Calendar> for Stored {
    fn from(calendar: Calendar) -> Self {
        Self {
            date: calendar.date,
            time: calendar.time,
            zone: calendar.zone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(json: &str) -> String {
        serde_json::from_str::<Calendar>(json).unwrap().cron().to_string()
    }

    #[test]
    fn resolves_as_dbt_cloud_does() {
        // Recorded replies: {"cron": "0 * * * *", every_day, every_hour 1} and the interval_cron below.
        assert_eq!(
            cron(r#"{"date":{"type":"every_day"},"time":{"type":"every_hour","interval":1}}"#),
            "0 * * * *"
        );
        assert_eq!(
            cron(r#"{"date":{"type":"every_day"},"time":{"type":"every_hour","interval":7}}"#),
            "0 */7 * * *"
        );
        assert_eq!(
            cron(r#"{"date":{"type":"days_of_week","days":[0,6]},"time":{"type":"at_exact_hours","hours":[9,0]}}"#),
            "0 0,9 * * 0,6"
        );
        let interval = r#"{"date":{"type":"interval_cron","cron":"6 */12 * * 0,1,2,3,4,5,6","days":[0,1,2,3,4,5,6]},
            "time":{"type":"every_hour","interval":12}}"#;
        assert_eq!(cron(interval), "6 */12 * * 0,1,2,3,4,5,6");
        let custom = r#"{"date":{"type":"custom_cron","cron":"0 5 L * *"},"time":{"type":"every_hour","interval":1}}"#;
        assert_eq!(cron(custom), "0 5 L * *");
    }

    #[test]
    fn faults_name_the_field() {
        let fault = |json: &str| serde_json::from_str::<Calendar>(json).unwrap_err().to_string();
        assert!(
            fault(r#"{"date":{"type":"every_day"},"time":{"type":"every_hour","interval":24}}"#).contains("interval")
        );
        assert!(
            fault(r#"{"date":{"type":"days_of_week","days":[7]},"time":{"type":"every_hour","interval":1}}"#)
                .contains(r#"days "7": expected numbers below 7"#)
        );
        assert!(
            fault(r#"{"date":{"type":"every_day"},"time":{"type":"at_exact_hours","hours":[]}}"#)
                .contains(r#"hours "": expected numbers below 24, at least one"#)
        );
    }
}
