//! Time zones by IANA name. The rules are those compiled in by `chrono-tz`: no file of the host is read.

use std::fmt;
use std::str::FromStr;

use chrono_tz::{TZ_VARIANTS, Tz};
use serde::{Deserialize, Serialize};

use super::error::{ScheduleError, cut};

/// Longest text that is compared with the known names when a name is unknown.
const SUGGESTION_LIMIT: usize = 64;

/// A time zone of the IANA database, such as `Europe/Berlin` or `UTC`.
///
/// Names are case-sensitive, as they are in the database. Serialised as the name.
///
/// ```
/// use dbtcloud_core::schedule::Zone;
/// let zone: Zone = "Europe/Berlin".parse()?;
/// assert_eq!(zone.name(), "Europe/Berlin");
/// let error = "Europe/Berlim".parse::<Zone>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     r#"time zone "Europe/Berlim": expected an IANA time zone name; did you mean "Europe/Berlin"?"#,
/// );
/// # Ok::<(), dbtcloud_core::schedule::ScheduleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(Tz);

impl Zone {
    /// Coordinated universal time: the zone of every dbt Cloud schedule.
    pub const UTC: Self = Self(Tz::UTC);

    /// The name in the IANA database.
    ///
    /// ```
    /// assert_eq!(dbtcloud_core::schedule::Zone::UTC.name(), "UTC");
    /// ```
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Every zone known to this build, in the order of the database.
    ///
    /// ```
    /// use dbtcloud_core::schedule::Zone;
    /// assert!(Zone::all().count() > 500);
    /// assert!(Zone::all().any(|zone| zone.name() == "Australia/Lord_Howe"));
    /// ```
    pub fn all() -> impl Iterator<Item = Self> {
        TZ_VARIANTS.iter().copied().map(Self)
    }

    pub(super) fn rules(self) -> Tz {
        self.0
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self::UTC
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Zone {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        name.parse::<Tz>().map(Self).map_err(|_| ScheduleError::UnknownZone {
            value: cut(name),
            nearest: nearest(name),
        })
    }
}

impl TryFrom<String> for Zone {
    type Error = ScheduleError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name().to_owned()
    }
}

/// The known name that looks most like `name`: spelled alike, or the same city.
fn nearest(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > SUGGESTION_LIMIT {
        return None;
    }
    let wanted = name.trim().replace(' ', "_").to_ascii_lowercase();
    let budget = (wanted.len() / 4).clamp(1, 3);
    TZ_VARIANTS
        .iter()
        .map(|zone| {
            let known = zone.name().to_ascii_lowercase();
            let city = known.rsplit('/').next().unwrap_or(&known);
            // The whole name first; a city alone ("berlin") is one step worse than a slip of the finger.
            let cost = distance(&wanted, &known).min(distance(&wanted, city) + 1);
            (cost, zone.name())
        })
        .min_by_key(|(cost, _)| *cost)
        .filter(|(cost, _)| *cost <= budget)
        .map(|(_, name)| name)
}

/// Levenshtein distance in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = i;
        let mut previous = i + 1;
        if let Some(first) = row.first_mut() {
            *first = previous;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(right.bytes()) {
            let cost = (diagonal + usize::from(a != b)).min(previous + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = cost;
            previous = cost;
        }
    }
    row.last().copied().unwrap_or(left.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggestion(name: &str) -> Option<&'static str> {
        match name.parse::<Zone>() {
            Err(ScheduleError::UnknownZone { nearest, .. }) => nearest,
            other => panic!("{name} gave {other:?}"),
        }
    }

    #[test]
    fn every_name_round_trips() {
        for zone in Zone::all() {
            assert_eq!(zone.name().parse::<Zone>(), Ok(zone));
            let json = serde_json::to_string(&zone).unwrap();
            assert_eq!(json, format!("\"{}\"", zone.name()));
            assert_eq!(serde_json::from_str::<Zone>(&json).unwrap(), zone);
        }
    }

    #[test]
    fn a_typo_names_the_nearest_zone() {
        assert_eq!(suggestion("europe/berlin"), Some("Europe/Berlin"));
        assert_eq!(suggestion("Berlin"), Some("Europe/Berlin"));
        assert_eq!(suggestion("America/New York"), Some("America/New_York"));
        assert_eq!(suggestion("America/Los_Angelos"), Some("America/Los_Angeles"));
        assert_eq!(suggestion("Asia/Calcuta"), Some("Asia/Calcutta"));
        assert_eq!(suggestion("utc"), Some("UTC"));
        assert_eq!(suggestion("Middle-earth/Hobbiton"), None);
        assert_eq!(suggestion(""), None);
        assert_eq!(suggestion(&"x".repeat(1_000_000)), None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
