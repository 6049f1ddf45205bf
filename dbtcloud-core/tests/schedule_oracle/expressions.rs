//! Cron expressions as structures: spelled out for the crate under test, answered here from their meaning.

use chrono::{Datelike, NaiveDate};
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Item {
    Star,
    StarStep(u32),
    One(u32),
    OneStep(u32, u32),
    Range(u32, u32),
    RangeStep(u32, u32, u32),
    Last,
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub low: u32,
    /// The end of `*` and of `n/step`.
    pub open: u32,
    pub names: &'static [&'static str],
    pub named: bool,
    pub items: Vec<Item>,
}

const MONTHS: [&str; 12] = [
    "jan", "Feb", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const WEEKDAYS: [&str; 7] = ["SUN", "mon", "Tue", "WED", "THU", "FRI", "SAT"];

impl Spec {
    pub fn names_value(&self, value: u32) -> bool {
        self.items.iter().any(|item| match *item {
            Item::Star => true,
            Item::StarStep(step) => (value - self.low).is_multiple_of(step) && value <= self.open,
            Item::One(one) => value == one,
            Item::OneStep(from, step) => {
                value >= from && value <= self.open.max(from) && (value - from).is_multiple_of(step)
            }
            Item::Range(from, to) => (from..=to).contains(&value),
            Item::RangeStep(from, to, step) => (from..=to).contains(&value) && (value - from).is_multiple_of(step),
            Item::Last => false,
        })
    }

    pub fn starts_with_star(&self) -> bool {
        matches!(self.items[0], Item::Star | Item::StarStep(_))
    }

    pub fn has_last(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Last))
    }

    pub fn text(&self) -> String {
        let number = |value: u32| match self.names.get((value - self.low) as usize) {
            Some(name) if self.named => (*name).to_owned(),
            _ => value.to_string(),
        };
        let spelled = self.items.iter().map(|item| match *item {
            Item::Star => "*".to_owned(),
            Item::StarStep(step) => format!("*/{step}"),
            Item::One(one) => number(one),
            Item::OneStep(from, step) => format!("{}/{step}", number(from)),
            Item::Range(from, to) => format!("{}-{}", number(from), number(to)),
            Item::RangeStep(from, to, step) => format!("{}-{}/{step}", number(from), number(to)),
            Item::Last => "L".to_owned(),
        });
        spelled.collect::<Vec<_>>().join(",")
    }
}

#[derive(Clone, Debug)]
pub struct Expr {
    pub minute: Spec,
    pub hour: Spec,
    pub day: Spec,
    pub month: Spec,
    pub weekday: Spec,
}

impl Expr {
    pub fn text(&self) -> String {
        let fields = [&self.minute, &self.hour, &self.day, &self.month, &self.weekday];
        fields.map(Spec::text).join(" ")
    }

    pub fn names_date(&self, date: NaiveDate) -> bool {
        let last = date.month() != (date + chrono::Days::new(1)).month();
        let of_month = self.day.names_value(date.day()) || self.day.has_last() && last;
        let weekday = date.weekday().num_days_from_sunday();
        let of_week = self.weekday.names_value(weekday) || weekday == 0 && self.weekday.names_value(7);
        let chosen = if self.day.starts_with_star() || self.weekday.starts_with_star() {
            of_month && of_week
        } else {
            of_month || of_week
        };
        chosen && self.month.names_value(date.month())
    }

    pub fn is_frequent(&self) -> bool {
        self.minute.starts_with_star() || (0..24).all(|hour| self.hour.names_value(hour))
    }
}

fn spec(low: u32, high: u32, open: u32, names: &'static [&'static str], last: u32) -> impl Strategy<Value = Spec> {
    let span = high - low + 1;
    let item = prop_oneof![
        3 => Just(Item::Star),
        2 => (1..=open).prop_map(Item::StarStep),
        6 => (low..=high).prop_map(Item::One),
        1 => (low..=high, 1..=open).prop_map(|(from, step)| Item::OneStep(from, step)),
        2 => (low..=high, 0..span).prop_map(move |(from, more)| Item::Range(from, (from + more).min(high))),
        1 => (low..=high, 0..span, 1..=open)
            .prop_map(move |(from, more, step)| Item::RangeStep(from, (from + more).min(high), step)),
        last => Just(Item::Last),
    ];
    (prop::collection::vec(item, 1..4), any::<bool>()).prop_map(move |(items, named)| Spec {
        low,
        open,
        names,
        named,
        items,
    })
}

pub fn star(low: u32, open: u32) -> Spec {
    Spec {
        low,
        open,
        names: &[],
        named: false,
        items: vec![Item::Star],
    }
}

fn day_part() -> impl Strategy<Value = (Spec, Spec, Spec)> {
    prop_oneof![
        3 => Just((star(1, 31), star(1, 12), star(0, 6))),
        2 => (spec(1, 31, 31, &[], 2), spec(1, 12, 12, &MONTHS, 0), spec(0, 7, 6, &WEEKDAYS, 0)),
        1 => spec(0, 7, 6, &WEEKDAYS, 0).prop_map(|weekday| (star(1, 31), star(1, 12), weekday)),
        1 => spec(1, 31, 31, &[], 2).prop_map(|day| (day, star(1, 12), star(0, 6))),
    ]
}

pub fn expression() -> impl Strategy<Value = Expr> {
    (spec(0, 59, 59, &[], 0), spec(0, 23, 23, &[], 0), day_part()).prop_map(|(minute, hour, (day, month, weekday))| {
        Expr {
            minute,
            hour,
            day,
            month,
            weekday,
        }
    })
}

/// A field of plain items.
pub fn fixed(low: u32, open: u32, items: Vec<Item>) -> Spec {
    Spec {
        low,
        open,
        names: &[],
        named: false,
        items,
    }
}
