//! Reads the five fields of a cron expression, naming the field and what was expected of it when it cannot.
//!
//! The text is checked here; the `cron` crate then expands the fields into sets. It is given plain numbers only,
//! in its own terms: a field of seconds before, and days of the week that count from Sunday = 1.

use std::str::FromStr;

use cron::TimeUnitSpec;

use super::error::{Field, ScheduleError, cut};
use super::expression::Sets;

struct Unit {
    field: Field,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Unit = Unit {
    field: Field::Minute,
    low: 0,
    high: 59,
    names: &[],
};
const HOUR: Unit = Unit {
    field: Field::Hour,
    low: 0,
    high: 23,
    names: &[],
};
const DAY: Unit = Unit {
    field: Field::DayOfMonth,
    low: 1,
    high: 31,
    names: &[],
};
const MONTH: Unit = Unit {
    field: Field::Month,
    low: 1,
    high: 12,
    names: &[
        "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
    ],
};
const WEEKDAY: Unit = Unit {
    field: Field::DayOfWeek,
    low: 0,
    high: 7,
    names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
};

/// `low`, `low-high` or `low-high/step`, all inside the unit.
struct Item {
    low: u32,
    high: u32,
    step: u32,
}

impl Unit {
    fn invalid(&self, value: &str, expected: impl Into<String>) -> ScheduleError {
        ScheduleError::invalid(self.field, value, expected)
    }

    fn expected(&self) -> String {
        match self.names {
            [first, .., last] => format!(
                "a number from {} to {} or a name from {first} to {last}",
                self.low, self.high
            ),
            _ => format!("a number from {} to {}", self.low, self.high),
        }
    }

    fn number(&self, text: &str) -> Result<u32, ScheduleError> {
        if let Some(at) = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(self.low + u32::try_from(at).unwrap_or(0));
        }
        digits(text)
            .filter(|number| (self.low..=self.high).contains(number))
            .ok_or_else(|| self.invalid(text, self.expected()))
    }

    fn item(&self, text: &str) -> Result<Item, ScheduleError> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (text, None),
        };
        // Sunday counts once: the open end of `*` and `n/step` is Saturday.
        let open_end = if self.field == Field::DayOfWeek { 6 } else { self.high };
        let (low, high) = if range == "*" {
            (self.low, open_end)
        } else if let Some((low, high)) = range.split_once('-') {
            let (low, mut high) = (self.number(low)?, self.number(high)?);
            if self.field == Field::DayOfWeek && high == 0 && low > 0 {
                high = 7;
            }
            if low > high {
                return Err(self.invalid(text, "a range that goes up, or two ranges such as 22-23,0-5"));
            }
            (low, high)
        } else {
            let low = self.number(range)?;
            (low, if step.is_some() { open_end.max(low) } else { low })
        };
        let step = match step {
            None => 1,
            Some(step) => digits(step)
                .filter(|step| (1..=self.high).contains(step))
                .ok_or_else(|| self.invalid(text, format!("a step from 1 to {} after the slash", self.high)))?,
        };
        Ok(Item { low, high, step })
    }

    /// The items of a field; `L` and `?` have been taken out by the caller.
    fn items(&self, text: &str) -> Result<Vec<Item>, ScheduleError> {
        text.split(',').map(|item| self.item(item)).collect()
    }
}

fn digits(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// One field in the words of the `cron` crate: numbers, ranges and steps.
fn spell(items: &[Item]) -> String {
    let spelled: Vec<String> = items
        .iter()
        .map(|item| match item {
            Item { low, high, .. } if low == high => low.to_string(),
            Item { low, high, step: 1 } => format!("{low}-{high}"),
            Item { low, high, step } => format!("{low}-{high}/{step}"),
        })
        .collect();
    spelled.join(",")
}

/// Days of the week in the words of the `cron` crate, which counts Sunday as 1.
fn spell_weekdays(items: &[Item]) -> String {
    let spelled: Vec<String> = items
        .iter()
        .flat_map(|item| (item.low..=item.high).step_by(item.step as usize))
        .map(|day| (day % 7 + 1).to_string())
        .collect();
    spelled.join(",")
}

fn is_wild(text: &str) -> bool {
    text.starts_with(['*', '?'])
}

/// Reads five fields parted by single blanks.
pub(super) fn parse(text: &str) -> Result<Sets, ScheduleError> {
    let fields: Vec<&str> = text.split(' ').collect();
    let &[minute, hour, day, month, weekday] = fields.as_slice() else {
        let found = if text.is_empty() { 0 } else { fields.len() };
        return Err(ScheduleError::invalid(
            Field::Expression,
            text,
            format!("five fields (minute, hour, day of month, month, day of week), found {found}"),
        ));
    };

    let minutes = MINUTE.items(minute)?;
    let hours = HOUR.items(hour)?;
    let (numbered_days, last_day) = split_last_day(day);
    let days = match numbered_days {
        None => Vec::new(),
        Some(_) if day == "?" => DAY.items("*")?,
        Some(numbered) => DAY.items(&numbered).map_err(explain_day)?,
    };
    let months = MONTH.items(month)?;
    let weekdays = WEEKDAY.items(if weekday == "?" { "*" } else { weekday })?;

    let spelled_days = if days.is_empty() { "*".to_owned() } else { spell(&days) };
    let translated = format!(
        "0 {} {} {spelled_days} {} {}",
        spell(&minutes),
        spell(&hours),
        spell(&months),
        spell_weekdays(&weekdays)
    );
    let expanded = cron::Schedule::from_str(&translated).map_err(|_| {
        ScheduleError::invalid(
            Field::Expression,
            text,
            "a five-field cron expression such as \"0 6 * * MON\"",
        )
    })?;

    let sets = Sets {
        minutes: expanded.minutes().iter().fold(0, |set, minute| set | 1 << minute),
        hours: expanded.hours().iter().fold(0, |set, hour| set | 1 << hour),
        days: if days.is_empty() {
            0
        } else {
            expanded.days_of_month().iter().fold(0, |set, day| set | 1 << day)
        },
        last_day,
        months: expanded.months().iter().fold(0, |set, month| set | 1 << month),
        weekdays: expanded.days_of_week().iter().fold(0, |set, day| set | 1 << (day - 1)),
        minute_wild: is_wild(minute),
        days_wild: is_wild(day),
        weekdays_wild: is_wild(weekday),
    };
    if sets.ever_fires() {
        Ok(sets)
    } else {
        Err(ScheduleError::NeverFires { value: cut(text) })
    }
}

/// Takes `L` out of the list of days: what is left, if anything, and whether there was one.
fn split_last_day(day: &str) -> (Option<String>, bool) {
    let (last, numbered): (Vec<&str>, Vec<&str>) = day.split(',').partition(|item| item.eq_ignore_ascii_case("L"));
    ((!numbered.is_empty()).then(|| numbered.join(",")), !last.is_empty())
}

/// Adds `L` to what a day of the month may be.
fn explain_day(error: ScheduleError) -> ScheduleError {
    match error {
        ScheduleError::Invalid { expected, value, .. } if expected == DAY.expected() => {
            DAY.invalid(&value, format!("{expected}, or L for the last day of the month"))
        }
        other => other,
    }
}
