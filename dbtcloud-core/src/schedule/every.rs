//! Runs on a fixed grid of elapsed minutes.

use serde::{Deserialize, Serialize};

use super::error::{Field, ScheduleError};
use crate::time::Timestamp;

/// Longest distance between two runs on a grid: one week, in minutes.
pub const EVERY_MINUTES_LIMIT: u32 = 7 * 24 * 60;

const MINUTE_MICROS: i64 = 60_000_000;

/// Every so many elapsed minutes, counted from the Unix epoch (1970-01-01T00:00Z) plus an offset.
///
/// Fires at every instant `epoch + offset + k × minutes`. No zone takes part, so a change of the clock neither
/// skips, repeats nor bunches anything: two runs are always exactly `minutes` apart. When `minutes` divides a
/// day the runs fall on the same times (UTC) every day, as `*/15` does; when it does not, as 7 or 50, they keep
/// their distance and wander through the day, where cron's `*/7` would start over every hour.
///
/// ```
/// use dbtcloud_core::Timestamp;
/// use dbtcloud_core::schedule::EveryMinutes;
/// let every = EveryMinutes::new(90)?.with_offset(15)?;
/// let noon = Timestamp::from_micros(1_767_268_800_000_000); // 2026-01-01T12:00Z
/// assert_eq!(every.next_after(noon).map(|at| at.to_string()).as_deref(), Some("2026-01-01T12:15:00.000000Z"));
/// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct EveryMinutes {
    minutes: u32,
    offset: u32,
}

impl EveryMinutes {
    /// Every `minutes` minutes, from 1 to [`EVERY_MINUTES_LIMIT`], with no offset.
    ///
    /// ```
    /// use dbtcloud_core::schedule::EveryMinutes;
    /// assert_eq!(EveryMinutes::new(15).map(EveryMinutes::minutes), Ok(15));
    /// assert!(EveryMinutes::new(0).is_err());
    /// ```
    pub fn new(minutes: u32) -> Result<Self, ScheduleError> {
        if !(1..=EVERY_MINUTES_LIMIT).contains(&minutes) {
            let expected = format!("a number from 1 to {EVERY_MINUTES_LIMIT}");
            return Err(ScheduleError::invalid(Field::Minutes, &minutes.to_string(), expected));
        }
        Ok(Self { minutes, offset: 0 })
    }

    /// The same grid, shifted by `offset` minutes; less than the distance between two runs.
    ///
    /// ```
    /// use dbtcloud_core::schedule::EveryMinutes;
    /// assert_eq!(EveryMinutes::new(15)?.with_offset(5)?.offset(), 5);
    /// assert!(EveryMinutes::new(15)?.with_offset(15).is_err());
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn with_offset(self, offset: u32) -> Result<Self, ScheduleError> {
        if offset >= self.minutes {
            let expected = format!("a number from 0 to {}, less than minutes", self.minutes - 1);
            return Err(ScheduleError::invalid(Field::Offset, &offset.to_string(), expected));
        }
        Ok(Self { offset, ..self })
    }

    /// Minutes between two runs.
    ///
    /// ```
    /// use dbtcloud_core::schedule::EveryMinutes;
    /// assert_eq!(EveryMinutes::new(15).map(|every| every.minutes()), Ok(15));
    /// ```
    pub fn minutes(self) -> u32 {
        self.minutes
    }

    /// Minutes from the Unix epoch to the first point of the grid.
    ///
    /// ```
    /// use dbtcloud_core::schedule::EveryMinutes;
    /// assert_eq!(EveryMinutes::new(15).map(|every| every.offset()), Ok(0));
    /// ```
    pub fn offset(self) -> u32 {
        self.offset
    }

    /// The first point of the grid after `after`; none at the end of the range of [`Timestamp`].
    ///
    /// ```
    /// use dbtcloud_core::Timestamp;
    /// use dbtcloud_core::schedule::EveryMinutes;
    /// let next = EveryMinutes::new(1)?.next_after(Timestamp::EPOCH);
    /// assert_eq!(next, Some(Timestamp::from_micros(60_000_000)));
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn next_after(self, after: Timestamp) -> Option<Timestamp> {
        let step = i64::from(self.minutes) * MINUTE_MICROS;
        let shift = i64::from(self.offset) * MINUTE_MICROS;
        let passed = after.as_micros().checked_sub(shift)?.div_euclid(step);
        let next = passed.checked_add(1)?.checked_mul(step)?.checked_add(shift)?;
        Some(Timestamp::from_micros(next))
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    minutes: u32,
    #[serde(default)]
    offset: u32,
}

impl TryFrom<Stored> for EveryMinutes {
    type Error = ScheduleError;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        Self::new(stored.minutes)?.with_offset(stored.offset)
    }
}

impl From<EveryMinutes> for Stored {
    fn from(EveryMinutes { minutes, offset }: EveryMinutes) -> Self {
        Self { minutes, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(count: i64) -> Timestamp {
        Timestamp::from_micros(count * MINUTE_MICROS)
    }

    #[test]
    fn the_grid_keeps_its_distance() {
        for (minutes, offset) in [(1, 0), (7, 3), (15, 0), (50, 49), (1440, 90), (EVERY_MINUTES_LIMIT, 1)] {
            let every = EveryMinutes::new(minutes).unwrap().with_offset(offset).unwrap();
            let mut at = every.next_after(minute(-100_000)).unwrap();
            for _ in 0..100 {
                let next = every.next_after(at).unwrap();
                assert_eq!(next.as_micros() - at.as_micros(), i64::from(minutes) * MINUTE_MICROS);
                assert_eq!(next.as_micros().rem_euclid(MINUTE_MICROS), 0);
                at = next;
            }
        }
    }

    #[test]
    fn strictly_after_and_never_skipping() {
        let every = EveryMinutes::new(10).unwrap().with_offset(5).unwrap();
        assert_eq!(every.next_after(minute(5)), Some(minute(15)));
        assert_eq!(every.next_after(minute(4)), Some(minute(5)));
        assert_eq!(every.next_after(Timestamp::from_micros(-1)), Some(minute(5)));
        assert_eq!(
            every.next_after(Timestamp::from_micros(5 * MINUTE_MICROS - 1)),
            Some(minute(5))
        );
        assert_eq!(every.next_after(minute(-6)), Some(minute(-5)));
    }

    #[test]
    fn limits_are_errors_or_none() {
        assert!(EveryMinutes::new(EVERY_MINUTES_LIMIT).is_ok());
        let error = EveryMinutes::new(EVERY_MINUTES_LIMIT + 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"minutes "10081": expected a number from 1 to 10080"#
        );
        let every = EveryMinutes::new(15).unwrap().with_offset(14).unwrap();
        assert_eq!(every.next_after(Timestamp::from_micros(i64::MAX)), None);
        assert_eq!(every.next_after(Timestamp::from_micros(i64::MIN)), None);
        assert!(serde_json::from_str::<EveryMinutes>(r#"{"minutes":0}"#).is_err());
        assert!(serde_json::from_str::<EveryMinutes>(r#"{"minutes":5,"offset":5}"#).is_err());
    }
}
