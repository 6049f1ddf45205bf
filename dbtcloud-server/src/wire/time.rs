//! Instants and spans as the API writes and reads them.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use dbtcloud_core::Timestamp;

/// ISO 8601 with a `T`, microseconds and offset: v2 jobs, accounts and catalog objects.
pub(crate) fn iso(at: Timestamp) -> String {
    formatted(at, "%Y-%m-%dT%H:%M:%S%.6f+00:00")
}

/// With a space in place of the `T`: runs, steps and v3 objects.
pub(crate) fn spaced(at: Timestamp) -> String {
    formatted(at, "%Y-%m-%d %H:%M:%S%.6f+00:00")
}

/// The day alone, for people.
pub(crate) fn day(at: Timestamp) -> String {
    formatted(at, "%Y-%m-%d")
}

fn formatted(at: Timestamp, format: &str) -> String {
    at.to_chrono()
        .map_or_else(|| at.to_string(), |at| at.format(format).to_string())
}

/// An instant in either format, with `Z`, an offset or none (then UTC). A `+` that a query string turned
/// into a space is understood.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let repaired = || {
        let at = text.rfind(' ')?;
        DateTime::parse_from_rfc3339(&format!("{}+{}", &text[..at], &text[at + 1..])).ok()
    };
    let at = DateTime::parse_from_rfc3339(text)
        .ok()
        .or_else(|| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok())
        .or_else(repaired)
        .map(|at| at.with_timezone(&Utc))
        .or_else(|| {
            NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
                .ok()
                .map(|at| at.and_utc())
        })
        .or_else(|| {
            NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
                .ok()
                .map(|at| at.and_utc())
        })?;
    Some(Timestamp::from_micros(at.timestamp_micros()))
}

/// `HH:MM:SS`; the hours grow beyond two digits when they must.
pub(crate) fn clock(span: Duration) -> String {
    let seconds = span.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The largest unit and the one below it in words: `1 minute, 50 seconds`.
pub(crate) fn humanized(span: Duration) -> String {
    const UNITS: [(&str, u64); 6] = [
        ("year", 31_536_000),
        ("week", 604_800),
        ("day", 86_400),
        ("hour", 3_600),
        ("minute", 60),
        ("second", 1),
    ];
    let seconds = span.as_secs();
    let Some(first) = UNITS.iter().position(|(_, unit)| seconds >= *unit) else {
        return "0 seconds".to_owned();
    };
    let mut rest = seconds;
    let mut words = Vec::new();
    for (unit, length) in UNITS.into_iter().skip(first).take(2) {
        let count = rest / length;
        rest %= length;
        if count > 0 {
            words.push(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }));
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_utc_with_microseconds() {
        let at = Timestamp::from_micros(1_638_873_144_326_116);
        assert_eq!(spaced(at), "2021-12-07 10:32:24.326116+00:00");
        assert_eq!(iso(at), "2021-12-07T10:32:24.326116+00:00");
        for text in [
            "2021-12-07 10:32:24.326116+00:00",
            "2021-12-07T10:32:24.326116+00:00",
            "2021-12-07T10:32:24.326116Z",
            "2021-12-07T10:32:24.326116 00:00",
            "2021-12-07T11:32:24.326116+01:00",
            "2021-12-07T10:32:24.326116",
            "2021-12-07 10:32:24.326116",
        ] {
            assert_eq!(parse(text), Some(at), "{text}");
        }
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn spans_in_digits_and_words() {
        for (seconds, digits, words) in [
            (0, "00:00:00", "0 seconds"),
            (29, "00:00:29", "29 seconds"),
            (110, "00:01:50", "1 minute, 50 seconds"),
            (3_600, "01:00:00", "1 hour"),
            (3_661, "01:01:01", "1 hour, 1 minute"),
            (3_605, "01:00:05", "1 hour"),
            (360_000, "100:00:00", "4 days, 4 hours"),
        ] {
            let span = Duration::from_secs(seconds);
            assert_eq!((clock(span).as_str(), humanized(span).as_str()), (digits, words));
        }
    }
}
