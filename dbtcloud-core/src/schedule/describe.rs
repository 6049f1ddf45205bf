//! Short English for a schedule. Says exactly what the sets say; when a list gets long it says it in ranges.

use super::expression::{ALL_HOURS, ALL_MINUTES, ALL_MONTHS, ALL_WEEKDAYS, CronExpression, Sets};
use super::zone::Zone;

/// More times of day than this are told as minutes of hours.
const TIMES_SHOWN: usize = 6;
const ALL_DAYS: u32 = u32::MAX - 1;

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Times, days, months and, unless it is UTC, the zone.
pub(super) fn expression(expression: &CronExpression, zone: Zone) -> String {
    let sets = expression.sets();
    let mut text = times(sets);
    for part in [days(sets), months(sets)].into_iter().flatten() {
        text.push(' ');
        text.push_str(&part);
    }
    if zone != Zone::UTC {
        text.push_str(" in ");
        text.push_str(zone.name());
    }
    text
}

/// Elapsed minutes, in hours where that is shorter.
pub(super) fn every(minutes: u32, offset: u32) -> String {
    let mut text = match (minutes / 60, minutes % 60) {
        (0, 1) => "Every minute".to_owned(),
        (1, 0) => "Every hour".to_owned(),
        (hours, 0) => format!("Every {hours} hours"),
        _ => format!("Every {minutes} minutes"),
    };
    if offset > 0 {
        text.push_str(&format!(", shifted by {offset} min"));
    }
    text
}

fn times(sets: &Sets) -> String {
    let minutes = members(sets.minutes);
    let hours = members(u64::from(sets.hours));
    let minutes_step = step(&minutes, 60);
    let every = match minutes_step {
        _ if sets.minutes == ALL_MINUTES => Some("Every minute".to_owned()),
        Some(step) => Some(format!("Every {step} minutes")),
        None => None,
    };
    if sets.hours == ALL_HOURS {
        return match (every, minutes.as_slice()) {
            (Some(every), _) => every,
            (None, [0]) => "Every hour".to_owned(),
            (None, _) => format!("Every hour at {}", numbered("minute", &minutes)),
        };
    }
    if let (&[minute], &[first, .., last]) = (minutes.as_slice(), hours.as_slice()) {
        if let Some(step) = step(&hours, 24).filter(|_| hours.len() > 2) {
            return format!("Every {step} hours from {first:02}:{minute:02}");
        }
        if hours.len() > 2 && consecutive(&hours) {
            return format!("Every hour from {first:02}:{minute:02} to {last:02}:{minute:02}");
        }
    }
    if minutes.len() * hours.len() <= TIMES_SHOWN {
        let times = hours
            .iter()
            .flat_map(|hour| minutes.iter().map(move |minute| format!("{hour:02}:{minute:02}")));
        return format!("At {}", joined(times.collect()));
    }
    match every {
        Some(every) => format!("{every} of {}", numbered("hour", &hours)),
        None => format!("At {} of {}", numbered("minute", &minutes), numbered("hour", &hours)),
    }
}

fn days(sets: &Sets) -> Option<String> {
    let of_month = (sets.days != ALL_DAYS).then(|| {
        let days = members(u64::from(sets.days));
        match (days.is_empty(), sets.last_day) {
            (true, _) => "on the last day of the month".to_owned(),
            (false, true) => format!("on {} and the last day of the month", numbered("day", &days)),
            (false, false) => format!("on {} of the month", numbered("day", &days)),
        }
    });
    let of_week = (sets.weekdays != ALL_WEEKDAYS).then(|| names(u64::from(sets.weekdays), 0, &WEEKDAYS));
    match (of_month, of_week) {
        // Either is enough and one of them is every day.
        (None, _) | (_, None) if sets.either_day() => None,
        (Some(of_month), Some(of_week)) if sets.either_day() => Some(format!("{of_month} or on {of_week}")),
        (Some(of_month), Some(of_week)) => Some(format!("{of_month} that are also a {of_week}")),
        (Some(of_month), None) => Some(of_month),
        (None, Some(of_week)) => Some(format!("on {of_week}")),
        (None, None) => None,
    }
}

fn months(sets: &Sets) -> Option<String> {
    (sets.months != ALL_MONTHS).then(|| format!("in {}", names(u64::from(sets.months), 1, &MONTHS)))
}

fn members(set: u64) -> Vec<u32> {
    (0..u64::BITS).filter(|bit| set & (1 << bit) != 0).collect()
}

/// The step of an even division of a whole that starts at 0, such as 0, 15, 30, 45 of 60.
fn step(members: &[u32], whole: u32) -> Option<u32> {
    let &[0, step, ..] = members else { return None };
    let even = whole.is_multiple_of(step) && members.iter().copied().eq((0..whole).step_by(step as usize));
    even.then_some(step)
}

fn consecutive(members: &[u32]) -> bool {
    members.windows(2).all(|pair| matches!(pair, [a, b] if a + 1 == *b))
}

fn numbered(noun: &str, members: &[u32]) -> String {
    let plural = if members.len() == 1 { "" } else { "s" };
    format!("{noun}{plural} {}", ranges(members, u32::to_string))
}

fn names(set: u64, first: u32, names: &[&str]) -> String {
    ranges(&members(set), |member| {
        names
            .get((member - first) as usize)
            .copied()
            .unwrap_or_default()
            .to_owned()
    })
}

/// A list in which three and more in a row become "a to b".
fn ranges(members: &[u32], show: impl Fn(&u32) -> String) -> String {
    let runs = members.chunk_by(|a, b| a + 1 == *b).flat_map(|run| match run {
        [first, _, .., last] if run.len() > 2 => {
            vec![format!("{} to {}", show(first), show(last))]
        }
        short => short.iter().map(&show).collect(),
    });
    joined(runs.collect())
}

fn joined(mut parts: Vec<String>) -> String {
    match parts.pop() {
        Some(last) if parts.is_empty() => last,
        Some(last) => format!("{} and {last}", parts.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_expression_says() {
        for (text, english) in [
            ("* * * * *", "Every minute"),
            ("*/15 * * * *", "Every 15 minutes"),
            (
                "*/7 * * * *",
                "Every hour at minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56",
            ),
            ("0 * * * *", "Every hour"),
            ("30 * * * *", "Every hour at minute 30"),
            ("0 */6 * * *", "Every 6 hours from 00:00"),
            ("6 */12 * * 0,1,2,3,4,5,6", "At 00:06 and 12:06"),
            ("0 */7 * * *", "At 00:00, 07:00, 14:00 and 21:00"),
            ("0 6 * * 1", "At 06:00 on Monday"),
            ("0 6,18 * * MON-FRI", "At 06:00 and 18:00 on Monday to Friday"),
            ("30 9-17 * * *", "Every hour from 09:30 to 17:30"),
            ("*/10 9-17 * * *", "Every 10 minutes of hours 9 to 17"),
            ("* 2 * * *", "Every minute of hour 2"),
            ("5,7 1-6,9 * * *", "At minutes 5 and 7 of hours 1 to 6 and 9"),
            ("0 0 1 * *", "At 00:00 on day 1 of the month"),
            (
                "0 0 1,15,L * *",
                "At 00:00 on days 1 and 15 and the last day of the month",
            ),
            (
                "0 0 L 2,6-8 *",
                "At 00:00 on the last day of the month in February and June to August",
            ),
            ("0 0 13 * 5", "At 00:00 on day 13 of the month or on Friday"),
            (
                "0 0 */10 * 5",
                "At 00:00 on days 1, 11, 21 and 31 of the month that are also a Friday",
            ),
            ("0 0 1-31 * 5", "At 00:00"),
            ("0 0 ? 1 SUN,SAT", "At 00:00 on Sunday and Saturday in January"),
        ] {
            let parsed: CronExpression = text.parse().unwrap();
            assert_eq!(super::expression(&parsed, Zone::UTC), english, "{text}");
        }
        let weekly: CronExpression = "0 6 * * 1".parse().unwrap();
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        assert_eq!(
            super::expression(&weekly, berlin),
            "At 06:00 on Monday in Europe/Berlin"
        );
    }

    #[test]
    fn grids() {
        assert_eq!(every(1, 0), "Every minute");
        assert_eq!(every(15, 0), "Every 15 minutes");
        assert_eq!(every(60, 0), "Every hour");
        assert_eq!(every(90, 15), "Every 90 minutes, shifted by 15 min");
        assert_eq!(every(120, 0), "Every 2 hours");
    }
}
