//! A job's `schedule`: `date`, `time` and the resolved `cron`, and two fields of this server's own:
//! `time_zone` (an IANA name; UTC when absent) and `every_minutes`.

use dbtcloud_core::schedule::{
    Calendar, DateRule, EveryMinutes, Field, HourInterval, Hours, Schedule, ScheduleError, TimeRule, Weekdays, Zone,
};
use serde_json::{Map, Value, json};

use super::body::Fields;

/// The name, on the wire, of the part of a schedule that an error is about.
fn wire_field(error: &ScheduleError, cron: &'static str) -> &'static str {
    match error.field() {
        Field::Zone => "time_zone",
        Field::Minutes => "every_minutes",
        Field::Offset => "offset_minutes",
        Field::Interval => "time.interval",
        Field::Days => "date.days",
        Field::Hours => "time.hours",
        _ => cron,
    }
}

/// Reads the inside of a `schedule` object over the one there is. `None` when it says nothing or is at fault.
pub(crate) fn read(fields: &mut Fields, current: Option<&Schedule>) -> Option<Schedule> {
    let zone = match fields.raw("time_zone") {
        // A client that knows nothing of zones leaves the one there is.
        None => current.map(Schedule::zone).unwrap_or_default(),
        Some(Value::Null) => Zone::UTC,
        Some(_) => {
            let name = fields.take::<String>("time_zone")?;
            match name.parse::<Zone>() {
                Ok(zone) => zone,
                Err(error) => {
                    fields.reject("time_zone", error);
                    return None;
                }
            }
        }
    };
    let built = if fields.has("every_minutes") {
        every(fields)
    } else if fields.has("date") {
        calendar(fields, zone)
    } else if let Some(cron) = fields.take::<String>("cron") {
        Schedule::cron(&cron, zone.name()).map_err(|error| (wire_field(&error, "cron"), error))
    } else {
        return None;
    };
    match built {
        Ok(schedule) => Some(schedule),
        Err((field, error)) => {
            fields.reject(field, error);
            None
        }
    }
}

type Built = Result<Schedule, (&'static str, ScheduleError)>;

fn every(fields: &mut Fields) -> Built {
    let minutes = fields.take::<u32>("every_minutes").unwrap_or_default();
    let offset = fields.take::<u32>("offset_minutes").unwrap_or_default();
    EveryMinutes::new(minutes)
        .and_then(|every| every.with_offset(offset))
        .map(Schedule::EveryMinutes)
        .map_err(|error| (wire_field(&error, "cron"), error))
}

fn calendar(fields: &mut Fields, zone: Zone) -> Built {
    let top = fields.raw("cron").and_then(Value::as_str).map(ToOwned::to_owned);
    let named = |error: ScheduleError| (wire_field(&error, "date.cron"), error);
    let date = fields
        .nested("date", |date| -> Result<DateRule, (&'static str, ScheduleError)> {
            let kind = date.take::<String>("type").unwrap_or_default();
            let days = date.take::<Vec<u32>>("days");
            // The deprecated spelling has the expression at the top only.
            let (cron, at) = match date.take::<String>("cron") {
                Some(cron) => (cron, "date.cron"),
                None => (top.unwrap_or_default(), "cron"),
            };
            let parsed = || cron.parse().map_err(|error| (wire_field(&error, at), error));
            Ok(match kind.as_str() {
                "days_of_week" => DateRule::DaysOfWeek {
                    days: Weekdays::new(days.unwrap_or_default()).map_err(named)?,
                },
                "custom_cron" => DateRule::CustomCron { cron: parsed()? },
                "interval_cron" => DateRule::IntervalCron {
                    cron: parsed()?,
                    days: match days.filter(|days| !days.is_empty()) {
                        Some(days) => Some(Weekdays::new(days).map_err(named)?),
                        None => None,
                    },
                },
                other => {
                    if other != "every_day" {
                        date.reject("type", "expected every_day, days_of_week, custom_cron or interval_cron");
                    }
                    DateRule::EveryDay
                }
            })
        })
        .unwrap_or(Ok(DateRule::EveryDay))?;
    let time = fields
        .nested("time", |time| -> Result<TimeRule, (&'static str, ScheduleError)> {
            let kind = time.take::<String>("type");
            let interval = time.take::<u32>("interval").unwrap_or(1);
            let hours = time.take::<Vec<u32>>("hours").unwrap_or_default();
            match kind.as_deref() {
                Some("at_exact_hours") => Ok(TimeRule::AtExactHours {
                    hours: Hours::new(hours).map_err(named)?,
                }),
                Some("every_hour") | None => Ok(TimeRule::EveryHour {
                    interval: HourInterval::new(interval).map_err(named)?,
                }),
                Some(_) => {
                    time.reject("type", "expected every_hour or at_exact_hours");
                    Ok(TimeRule::EveryHour {
                        interval: HourInterval::new(1).map_err(named)?,
                    })
                }
            }
        })
        .unwrap_or_else(|| {
            Ok(TimeRule::EveryHour {
                interval: HourInterval::new(1).map_err(named)?,
            })
        })?;
    Calendar::new(date, time, zone).map(Schedule::Calendar).map_err(named)
}

/// A schedule; a job that has none shows dbt Cloud's default, which reads back as the same.
pub(crate) fn view(schedule: Option<&Schedule>) -> Map<String, Value> {
    let cron = schedule
        .and_then(Schedule::expression)
        .map_or("0 * * * *", |cron| cron.as_str());
    let (date, time) = match schedule {
        None | Some(Schedule::EveryMinutes(_)) => (
            json!({ "type": "every_day" }),
            json!({ "type": "every_hour", "interval": 1 }),
        ),
        Some(Schedule::Cron { expression, .. }) => (
            json!({ "type": "custom_cron", "cron": expression.as_str() }),
            json!({ "type": "every_hour", "interval": 1 }),
        ),
        Some(Schedule::Calendar(calendar)) => (json!(calendar.date()), json!(calendar.time())),
    };
    let mut view = object! {
        "cron": cron,
        "date": date,
        "time": time,
        "time_zone": schedule.map(Schedule::zone).unwrap_or_default().name(),
    };
    if let Some(Schedule::EveryMinutes(every)) = schedule {
        view.insert("cron".to_owned(), Value::Null);
        view.insert("every_minutes".to_owned(), every.minutes().into());
        view.insert("offset_minutes".to_owned(), every.offset().into());
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_value(value: Value) -> Result<Option<Schedule>, Vec<String>> {
        let mut fields = Fields::new(value.as_object().cloned().unwrap_or_default());
        let schedule = read(&mut fields, None);
        match fields.check() {
            Ok(()) => Ok(schedule),
            Err(fault) => Err(fault.names().into_iter().map(ToOwned::to_owned).collect()),
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        for value in [
            json!({"cron": "0 */2 * * 1-5"}),
            json!({"cron": "1 6 * * *", "date": {"type": "custom_cron", "cron": "1 6 * * *"},
                   "time": {"type": "every_hour", "interval": 1}, "time_zone": "Europe/Berlin"}),
            json!({"date": {"type": "every_day"}, "time": {"type": "at_exact_hours", "hours": [0, 12]}}),
            json!({"date": {"type": "days_of_week", "days": [1, 5]}, "time": {"type": "every_hour", "interval": 6}}),
            json!({"date": {"type": "interval_cron", "cron": "5 */3 * * 1", "days": [1]}}),
            json!({"every_minutes": 15, "offset_minutes": 5}),
        ] {
            let first = read_value(value.clone()).ok().flatten();
            assert!(first.is_some(), "{value}");
            let shown = view(first.as_ref());
            let again = read_value(Value::Object(shown.clone())).ok().flatten();
            assert_eq!(view(again.as_ref()), shown, "{value}");
        }
        let default = view(None);
        let read_back = read_value(Value::Object(default.clone())).ok().flatten();
        assert_eq!(view(read_back.as_ref()), default);
    }

    #[test]
    fn a_fault_names_its_field() {
        for (value, field) in [
            (json!({"cron": "99 * * * *"}), "cron"),
            (json!({"cron": "0 6 * *"}), "cron"),
            (json!({"cron": "0 6 * * *", "time_zone": "Mars/Olympus"}), "time_zone"),
            (json!({"date": {"type": "custom_cron", "cron": "x"}}), "date.cron"),
            (json!({"date": {"type": "custom_cron"}, "cron": "x"}), "cron"),
            (json!({"date": {"type": "fortnightly"}}), "date.type"),
            (json!({"date": {"type": "days_of_week", "days": [9]}}), "date.days"),
            (
                json!({"date": {"type": "every_day"}, "time": {"type": "every_hour", "interval": 25}}),
                "time.interval",
            ),
            (json!({"every_minutes": 0}), "every_minutes"),
        ] {
            assert_eq!(read_value(value.clone()), Err(vec![field.to_owned()]), "{value}");
        }
    }
}
