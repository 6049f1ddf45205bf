//! Why a schedule was refused: always the field, the value and what was expected of it.

use std::fmt;

use crate::error::Error;

/// Characters of a refused value that an error repeats; the rest is cut, so that an error stays one line.
pub const VALUE_SHOWN_LIMIT: usize = 80;

/// The part of a schedule that an error is about.
///
/// ```
/// use dbtcloud_core::schedule::Field;
/// assert_eq!(Field::DayOfMonth.to_string(), "day of month");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// The cron expression as a whole.
    Expression,
    /// First field of a cron expression.
    Minute,
    /// Second field of a cron expression.
    Hour,
    /// Third field of a cron expression.
    DayOfMonth,
    /// Fourth field of a cron expression.
    Month,
    /// Fifth field of a cron expression.
    DayOfWeek,
    /// The name of a time zone.
    Zone,
    /// Minutes between two runs.
    Minutes,
    /// Minutes by which a grid of runs is shifted.
    Offset,
    /// Hours between two runs.
    Interval,
    /// A set of days of the week.
    Days,
    /// A set of hours of the day.
    Hours,
}

impl Field {
    /// The name as it stands in messages.
    ///
    /// ```
    /// assert_eq!(dbtcloud_core::schedule::Field::Hour.name(), "hour");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expression => "cron expression",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
            Self::Zone => "time zone",
            Self::Minutes => "minutes",
            Self::Offset => "offset",
            Self::Interval => "interval",
            Self::Days => "days",
            Self::Hours => "hours",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A schedule that cannot be: the caller's fault, never worth a retry unchanged.
///
/// Becomes an [`Error`] of kind `Invalid` with field `schedule`.
///
/// ```
/// use dbtcloud_core::schedule::{CronExpression, Field};
/// let error = "0 25 * * *".parse::<CronExpression>().unwrap_err();
/// assert_eq!(error.field(), Field::Hour);
/// assert_eq!(error.value(), "25");
/// assert_eq!(error.to_string(), r#"hour "25": expected a number from 0 to 23"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A field holds something it cannot mean.
    #[error("{field} {value:?}: expected {expected}")]
    Invalid {
        /// The field.
        field: Field,
        /// What stood there, cut to [`VALUE_SHOWN_LIMIT`] characters.
        value: String,
        /// What may stand there.
        expected: String,
    },
    /// Every field is sound, yet no day on any calendar satisfies them together.
    #[error("cron expression {value:?} never fires: expected a day that exists in a chosen month")]
    NeverFires {
        /// The expression, cut to [`VALUE_SHOWN_LIMIT`] characters.
        value: String,
    },
    /// Not a name in the IANA time zone database.
    #[error("time zone {value:?}: expected {expected}", expected = zone_expected(*.nearest))]
    UnknownZone {
        /// The name given, cut to [`VALUE_SHOWN_LIMIT`] characters.
        value: String,
        /// The known name that looks most like it, when one does.
        nearest: Option<&'static str>,
    },
}

fn zone_expected(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("an IANA time zone name; did you mean {name:?}?"),
        None => "an IANA time zone name such as \"Europe/Berlin\" or \"UTC\"".to_owned(),
    }
}

impl ScheduleError {
    pub(super) fn invalid(field: Field, value: &str, expected: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            value: cut(value),
            expected: expected.into(),
        }
    }

    /// The field at fault.
    ///
    /// ```
    /// use dbtcloud_core::schedule::{Field, Zone};
    /// assert_eq!("Mars/Olympus".parse::<Zone>().unwrap_err().field(), Field::Zone);
    /// ```
    pub fn field(&self) -> Field {
        match self {
            Self::Invalid { field, .. } => *field,
            Self::NeverFires { .. } => Field::Expression,
            Self::UnknownZone { .. } => Field::Zone,
        }
    }

    /// What stood in the field, cut to [`VALUE_SHOWN_LIMIT`] characters.
    ///
    /// ```
    /// let error = "Mars/Olympus".parse::<dbtcloud_core::schedule::Zone>().unwrap_err();
    /// assert_eq!(error.value(), "Mars/Olympus");
    /// ```
    pub fn value(&self) -> &str {
        match self {
            Self::Invalid { value, .. } | Self::NeverFires { value } | Self::UnknownZone { value, .. } => value,
        }
    }

    /// What was expected there instead.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Zone;
    /// let error = "Europe/Berln".parse::<Zone>().unwrap_err();
    /// assert!(error.expected().contains("Europe/Berlin"));
    /// ```
    pub fn expected(&self) -> String {
        match self {
            Self::Invalid { expected, .. } => expected.clone(),
            Self::NeverFires { .. } => "a day that exists in a chosen month".to_owned(),
            Self::UnknownZone { nearest, .. } => zone_expected(*nearest),
        }
    }
}

impl From<ScheduleError> for Error {
    fn from(error: ScheduleError) -> Self {
        Error::invalid("schedule", error)
    }
}

pub(super) fn cut(value: &str) -> String {
    let mut shown: String = value.chars().take(VALUE_SHOWN_LIMIT).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_hostile_values_stay_one_short_line() {
        let value = format!("1\n2{}", "é".repeat(10_000));
        let error = ScheduleError::invalid(Field::Minute, &value, "a number");
        assert!(error.to_string().len() < 300);
        assert!(!error.to_string().contains('\n'));
    }

    #[test]
    fn becomes_an_invalid_error_of_the_schedule_field() {
        let error = Error::from(ScheduleError::invalid(Field::Hour, "25", "a number from 0 to 23"));
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
        assert_eq!(error.field(), Some("schedule"));
        assert_eq!(
            error.to_string(),
            r#"schedule: hour "25": expected a number from 0 to 23"#
        );
    }
}
