//! Months: what the history of runs is divided by, so that retention forgets one at a stroke. The id of a
//! run says its month; whatever hangs on a run is filed under the run's id.

use chrono::{Datelike, NaiveDate};
use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::time::Timestamp;

/// How many ids a month has. Runs are numbered by one count for all months; where it goes beyond, it begins
/// again, so an id comes back only after so many runs in a single month.
pub const RUN_IDS_PER_MONTH: u64 = 100_000_000;

/// A month of the calendar, UTC, from 1970 to 9999.
///
/// A run that is queued in it has an id `YYYYMM × 10⁸ + n` (see [`Month::run_id`]): of 14 digits, below
/// 2^53, growing from month to month.
///
/// ```
/// use dbtcloud_core::Timestamp;
/// use dbtcloud_core::run::Month;
/// let month = Month::of(Timestamp::from_micros(1_700_000_000_000_000));
/// assert_eq!(month.to_string(), "2023-11");
/// assert_eq!(month.run_id(17).get(), 20_231_100_000_017);
/// assert_eq!(Month::of_run(month.run_id(17)), Some(month));
/// assert_eq!(month.next().to_string(), "2023-12");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Month(u32);

impl Month {
    /// The first: January 1970. Earlier instants count as in it.
    pub const FIRST: Self = Self(197_001);
    /// The last: December 9999. Later instants count as in it.
    pub const LAST: Self = Self(999_912);

    /// The month with this number (`YYYYMM`), if there is one.
    pub const fn from_number(number: u32) -> Option<Self> {
        let month = number % 100;
        if number >= Self::FIRST.0 && number <= Self::LAST.0 && month >= 1 && month <= 12 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The month of an instant.
    pub fn of(at: Timestamp) -> Self {
        let Some(date) = at.to_chrono() else {
            return if at < Timestamp::EPOCH { Self::FIRST } else { Self::LAST };
        };
        let year = u32::try_from(date.year()).unwrap_or(0);
        Self((year * 100 + date.month()).clamp(Self::FIRST.0, Self::LAST.0))
    }

    /// The month that an id says; `None` for one that says none (it is older than this rule).
    pub fn of_run(id: RunId) -> Option<Self> {
        let number = u64::try_from(id.get()).ok()? / RUN_IDS_PER_MONTH;
        Self::from_number(u32::try_from(number).ok()?)
    }

    /// The id of the `n`th run there is, queued in this month.
    pub const fn run_id(self, n: u64) -> RunId {
        RunId::new((self.0 as u64 * RUN_IDS_PER_MONTH + n % RUN_IDS_PER_MONTH) as i64)
    }

    /// The lowest id of the month: every id of an earlier month is below, every other one of this month
    /// above.
    pub const fn first_id(self) -> RunId {
        self.run_id(0)
    }

    /// The month after it; after the last the number is no month of the calendar, and only its ids matter.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.0 % 100 >= 12 {
            Self(self.0 + 100 - 11)
        } else {
            Self(self.0 + 1)
        }
    }

    /// When it begins.
    pub fn start(self) -> Timestamp {
        let year = i32::try_from(self.0 / 100).unwrap_or(i32::MAX);
        let date = NaiveDate::from_ymd_opt(year, self.0 % 100, 1).unwrap_or(NaiveDate::MAX);
        Timestamp::from_micros(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
    }

    /// Its number, `YYYYMM`.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl From<Month> for u32 {
    fn from(month: Month) -> Self {
        month.0
    }
}

impl TryFrom<u32> for Month {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        Self::from_number(number).ok_or_else(|| format!("expected a month as YYYYMM, got {number}"))
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 100, self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Microseconds of about 1950 to 2150.
    fn instants() -> impl Strategy<Value = Timestamp> {
        (-631_152_000_000_000_i64..5_680_281_600_000_000).prop_map(Timestamp::from_micros)
    }

    proptest! {
        #[test]
        fn an_id_says_its_month(at in instants(), n in any::<u64>()) {
            let month = Month::of(at);
            let id = month.run_id(n);
            prop_assert_eq!(Month::of_run(id), Some(month));
            prop_assert!(month.first_id() <= id && id < month.next().first_id());
            prop_assert!(id.get() < 1 << 53);
            prop_assert_eq!(id.to_string().len(), 14);
        }

        #[test]
        fn a_later_month_has_higher_ids(a in instants(), b in instants(), n in any::<u64>(), m in any::<u64>()) {
            let (first, second) = (Month::of(a.min(b)), Month::of(a.max(b)));
            prop_assert!(first <= second);
            if first < second {
                prop_assert!(first.run_id(n) < second.run_id(m));
            }
        }

        #[test]
        fn a_month_begins_where_the_one_before_it_ends(at in instants()) {
            let month = Month::of(at);
            prop_assert_eq!(Month::of(month.start()), month);
            prop_assert_eq!(Month::of(month.next().start()), month.next());
            let last = Timestamp::from_micros(month.next().start().as_micros() - 1);
            prop_assert_eq!(Month::of(last), month);
        }

        #[test]
        fn numbers_of_one_month_differ_until_they_come_round(n in 0..RUN_IDS_PER_MONTH, more in 1..RUN_IDS_PER_MONTH) {
            let month = Month::of(Timestamp::EPOCH);
            prop_assert_ne!(month.run_id(n), month.run_id(n + more));
            prop_assert_eq!(month.run_id(n), month.run_id(n + RUN_IDS_PER_MONTH));
        }
    }

    #[test]
    fn what_is_no_month_is_none() {
        for number in [0, 1, 196_912, 197_000, 197_013, 202_699, 1_000_001, u32::MAX] {
            assert_eq!(Month::from_number(number), None, "{number}");
        }
        for id in [i64::MIN, -1, 0, 1, 99_999_999_999, 19_701_300_000_001, i64::MAX] {
            assert_eq!(Month::of_run(RunId::new(id)), None, "{id}");
        }
        assert_eq!(Month::of(Timestamp::from_micros(i64::MIN)), Month::FIRST);
        assert_eq!(Month::of(Timestamp::from_micros(i64::MAX)), Month::LAST);
        assert!(Month::LAST.next().first_id() > Month::LAST.run_id(RUN_IDS_PER_MONTH - 1));
        assert_eq!(serde_json::from_str::<Month>("202611").unwrap().to_string(), "2026-11");
        assert!(serde_json::from_str::<Month>("202613").is_err());
    }
}
