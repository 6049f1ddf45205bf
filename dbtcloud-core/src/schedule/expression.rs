//! Five-field cron expressions, as crontab(5) has them, and the sets they stand for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Field, ScheduleError};
use super::parse::parse;

/// Longest cron expression accepted, in bytes.
pub const EXPRESSION_LIMIT: usize = 512;

/// A five-field cron expression: minute, hour, day of month, month, day of week.
///
/// | field | values | also |
/// |---|---|---|
/// | minute | 0–59 | |
/// | hour | 0–23 | |
/// | day of month | 1–31 | `L` the last day of the month, `?` as `*` |
/// | month | 1–12 | `JAN`–`DEC` |
/// | day of week | 0–7, Sunday is 0 and 7 | `SUN`–`SAT`, `?` as `*` |
///
/// Each field is `*`, or a list of numbers and ranges (`1,5-9`), each with an optional step: `*/15`, `10-40/5`,
/// and `5/20` for "from 5 on, every 20". Names are three letters of any case. A range goes upwards, except that
/// one of days may end on Sunday (`FRI-SUN`).
///
/// When **both** days are restricted, a day that satisfies **either** is chosen: `0 0 13 * 5` is every 13th and
/// every Friday (POSIX.1-2024, crontab, and crontab(5): "the command will be run when either field matches").
/// A field is unrestricted when it starts with `*` or `?`, as Vixie cron decides it; so with `*/2` in one of them
/// **both** have to match.
///
/// An expression that no day ever satisfies, such as 30 February, is refused. Text is kept as written, apart from
/// white space, which becomes single blanks: [`Display`](fmt::Display) and serde give it back.
///
/// ```
/// use dbtcloud_core::schedule::CronExpression;
/// let expression: CronExpression = " 30 6 *  * MON-FRI ".parse()?;
/// assert_eq!(expression.as_str(), "30 6 * * MON-FRI");
/// let error = "0 0 30 2 *".parse::<CronExpression>().unwrap_err();
/// assert!(error.to_string().contains("never fires"));
/// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronExpression {
    text: String,
    sets: Sets,
}

impl CronExpression {
    /// The expression as written, with single blanks between the fields.
    ///
    /// ```
    /// use dbtcloud_core::schedule::CronExpression;
    /// let expression: CronExpression = "0 6 * * 1".parse()?;
    /// assert_eq!(expression.as_str(), "0 6 * * 1");
    /// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
    /// ```
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the expression follows elapsed time across a change of the clock: it fires at least hourly, since
    /// its minute field starts with `*` or its hour field names every hour.
    ///
    /// ```
    /// use dbtcloud_core::schedule::CronExpression;
    /// let frequent = |text: &str| text.parse::<CronExpression>().map(|e| e.is_frequent());
    /// assert_eq!(frequent("*/15 * * * *"), Ok(true));
    /// assert_eq!(frequent("30 * * * *"), Ok(true));
    /// assert_eq!(frequent("0 */6 * * *"), Ok(false));
    /// assert_eq!(frequent("30 2 * * *"), Ok(false));
    /// ```
    pub fn is_frequent(&self) -> bool {
        self.sets.minute_wild || self.sets.hours == ALL_HOURS
    }

    pub(super) fn sets(&self) -> &Sets {
        &self.sets
    }
}

pub(super) const ALL_MINUTES: u64 = (1 << 60) - 1;
pub(super) const ALL_HOURS: u32 = (1 << 24) - 1;
pub(super) const ALL_MONTHS: u16 = 0x1ffe;
pub(super) const ALL_WEEKDAYS: u8 = 0x7f;

/// The five fields as sets of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sets {
    /// Bits 0–59.
    pub minutes: u64,
    /// Bits 0–23.
    pub hours: u32,
    /// Bits 1–31.
    pub days: u32,
    /// `L`.
    pub last_day: bool,
    /// Bits 1–12.
    pub months: u16,
    /// Bits 0–6, Sunday is 0.
    pub weekdays: u8,
    /// The minute field starts with `*`.
    pub minute_wild: bool,
    /// The day-of-month field starts with `*` or `?`.
    pub days_wild: bool,
    /// The day-of-week field starts with `*` or `?`.
    pub weekdays_wild: bool,
}

impl Sets {
    /// Whether both day fields are restricted, so that either is enough.
    pub fn either_day(&self) -> bool {
        !self.days_wild && !self.weekdays_wild
    }

    /// Whether any day of any year satisfies the day and month fields.
    pub fn ever_fires(&self) -> bool {
        const LONGEST: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        self.either_day()
            || self.last_day
            || (1..).zip(LONGEST).any(|(month, length)| {
                self.months & (1 << month) != 0 && (1..=length).any(|day| self.days & (1 << day) != 0)
            })
    }
}

impl FromStr for CronExpression {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > EXPRESSION_LIMIT {
            return Err(ScheduleError::invalid(
                Field::Expression,
                text,
                format!("at most {EXPRESSION_LIMIT} bytes, found {}", text.len()),
            ));
        }
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let sets = parse(&text)?;
        Ok(Self { text, sets })
    }
}

impl TryFrom<String> for CronExpression {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CronExpression> for String {
    fn from(expression: CronExpression) -> Self {
        expression.text
    }
}

impl fmt::Display for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CronExpression").field(&self.text).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(text: &str) -> Sets {
        *text.parse::<CronExpression>().unwrap().sets()
    }

    fn refusal(text: &str) -> (Field, String) {
        let error = text.parse::<CronExpression>().unwrap_err();
        (error.field(), error.to_string())
    }

    fn bits(set: impl Into<u64>) -> Vec<u32> {
        let set = set.into();
        (0..64).filter(|bit| set & (1 << bit) != 0).collect()
    }

    #[test]
    fn fields_expand_as_in_crontab() {
        assert_eq!(bits(sets("*/20 * * * *").minutes), [0, 20, 40]);
        assert_eq!(bits(sets("5/20 * * * *").minutes), [5, 25, 45]);
        assert_eq!(bits(sets("10-30/7,59,00 * * * *").minutes), [0, 10, 17, 24, 59]);
        assert_eq!(bits(sets("0 9-17/4 * * *").hours), [9, 13, 17]);
        assert_eq!(bits(sets("0 0 * jan,Jun-AUG *").months), [1, 6, 7, 8]);
        assert_eq!(sets("* * * * *").minutes, ALL_MINUTES);
        assert_eq!(sets("* * * * *").hours, ALL_HOURS);
        assert_eq!(sets("* * * * *").months, ALL_MONTHS);
        assert_eq!(sets("* * ? * ?").weekdays, ALL_WEEKDAYS);
        assert_eq!(bits(sets("0 0 1,L * *").days), [1]);
        assert!(sets("0 0 1,L * *").last_day);
        assert_eq!(bits(sets("0 0 l * *").days), [0; 0]);
        assert!(sets("0 0 l * *").last_day);
    }

    #[test]
    fn sunday_is_0_and_7_and_sun() {
        for text in ["0", "7", "SUN", "0,7", "sun", "0-0", "7-7", "*/7", "7/2", "SUN-SUN"] {
            assert_eq!(bits(sets(&format!("0 0 * * {text}")).weekdays), [0], "{text}");
        }
        assert_eq!(bits(sets("0 0 * * 1").weekdays), [1]);
        assert_eq!(bits(sets("0 0 * * 5-7").weekdays), [0, 5, 6]);
        assert_eq!(bits(sets("0 0 * * FRI-SUN").weekdays), [0, 5, 6]);
        assert_eq!(bits(sets("0 0 * * 1-5").weekdays), [1, 2, 3, 4, 5]);
        assert_eq!(bits(sets("0 0 * * MON-FRI/2").weekdays), [1, 3, 5]);
        assert_eq!(bits(sets("0 0 * * 1/2").weekdays), [1, 3, 5]);
        assert_eq!(sets("0 0 * * 0-7").weekdays, ALL_WEEKDAYS);
        assert_eq!(sets("0 0 * * 1-7").weekdays, ALL_WEEKDAYS);
    }

    #[test]
    fn errors_name_the_field_and_what_was_expected() {
        for (text, field, message) in [
            (
                "60 * * * *",
                Field::Minute,
                r#"minute "60": expected a number from 0 to 59"#,
            ),
            (
                "0 24 * * *",
                Field::Hour,
                r#"hour "24": expected a number from 0 to 23"#,
            ),
            (
                "0 0 0 * *",
                Field::DayOfMonth,
                r#"day of month "0": expected a number from 1 to 31, or L for the last day of the month"#,
            ),
            (
                "0 0 * 13 *",
                Field::Month,
                r#"month "13": expected a number from 1 to 12 or a name from JAN to DEC"#,
            ),
            (
                "0 0 * * 8",
                Field::DayOfWeek,
                r#"day of week "8": expected a number from 0 to 7 or a name from SUN to SAT"#,
            ),
            (
                "*/60 * * * *",
                Field::Minute,
                r#"minute "*/60": expected a step from 1 to 59 after the slash"#,
            ),
            (
                "0 0 * * * *",
                Field::Expression,
                "cron expression \"0 0 * * * *\": expected five fields (minute, hour, day of month, month, day of week), found 6",
            ),
            (
                "0 22-4 * * *",
                Field::Hour,
                r#"hour "22-4": expected a range that goes up, or two ranges such as 22-23,0-5"#,
            ),
        ] {
            assert_eq!(refusal(text), (field, message.to_owned()));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            " ",
            "x",
            "@daily",
            "* * * *",
            "* * * * * *",
            "* * * * * * *",
            "0 0 * * MONDAY",
            "0 0 * * 5L",
            "0 0 * * 5#2",
            "0 0 15W * *",
            "0 0 LW * *",
            "0 0 L-3 * *",
            "? * * * *",
            "* ? * * *",
            "* * * ? *",
            "* * ?/2 * *",
            "* * 1,? * *",
            "** * * * *",
            "*-5 * * * *",
            "1,,2 * * * *",
            ",1 * * * *",
            "1, * * * *",
            "1- * * * *",
            "-1 * * * *",
            "+1 * * * *",
            "1/ * * * *",
            "1/0 * * * *",
            "/5 * * * *",
            "1/2/3 * * * *",
            "1-2-3 * * * *",
            "1.5 * * * *",
            "99999999999 * * * *",
            "0x1 * * * *",
            "١ * * * *",
            "0 0 * MON *",
            "0 0 * * JAN",
            "0 JAN * * *",
            "0 0 ,L * *",
            "*5 * * * *",
            "0 0 * * -",
        ] {
            assert!(text.parse::<CronExpression>().is_err(), "{text:?} was accepted");
        }
        let long = format!("0{} * * * *", ",0".repeat(EXPRESSION_LIMIT));
        assert!(refusal(&long).1.contains("at most 512 bytes"));
    }

    #[test]
    fn days_that_never_come_are_refused() {
        for text in ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "0 0 30-31 FEB ?", "0 0 31 4 */2"] {
            assert!(refusal(text).1.contains("never fires"), "{text}");
        }
        for text in ["0 0 29 2 *", "0 0 30 2 1", "0 0 31 2-3 *", "0 0 30,L 2 *", "0 0 L 2 *"] {
            assert!(text.parse::<CronExpression>().is_ok(), "{text}");
        }
    }

    #[test]
    fn text_is_kept_but_for_white_space() {
        let expression: CronExpression = "\t5  */2\n* * Mon ".parse().unwrap();
        assert_eq!(expression.to_string(), "5 */2 * * Mon");
        assert_eq!(serde_json::to_string(&expression).unwrap(), "\"5 */2 * * Mon\"");
        assert!(
            serde_json::from_str::<CronExpression>("\"61 * * * *\"")
                .unwrap_err()
                .to_string()
                .contains("minute")
        );
    }
}
