//! Query parameters in every spelling that clients really send. Unknown parameters are ignored.

use std::collections::BTreeSet;

use dbtcloud_core::catalog::SortKey;
use dbtcloud_core::page::PAGE_LIMIT;
use dbtcloud_core::{Direction, Page, Timestamp};
use serde_json::{Map, Value};

use super::envelope::Extra;
use super::fault::Fault;
use super::time;

/// Values that one list parameter may hold.
pub(crate) const LIST_LIMIT: usize = 1_000;

/// The query of one request, in the order it was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

/// A list as text: `a,b`, `["a", "b"]`, `['a','b']`, `[a,b]`, or nothing.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim();
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .or_else(|| text.strip_prefix('(').and_then(|text| text.strip_suffix(')')))
        .unwrap_or(text);
    let bare = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    inner
        .split(',')
        .map(move |token| token.trim_matches(bare))
        .filter(|token| !token.is_empty())
}

impl Params {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self(
            url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The last value of a parameter, unless it is empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// All values of a list parameter, whichever way it is spelled; `None` when it was not sent.
    pub(crate) fn list(&self, name: &str) -> Option<Vec<&str>> {
        let mut sent = self.0.iter().filter(|(key, _)| key == name).peekable();
        sent.peek()?;
        Some(sent.flat_map(|(_, value)| tokens(value)).take(LIST_LIMIT).collect())
    }

    /// What is asked for beside the object itself.
    pub(crate) fn include(&self) -> Include {
        Include(
            self.list("include_related")
                .unwrap_or_default()
                .into_iter()
                .map(ToOwned::to_owned)
                .collect(),
        )
    }

    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>, Fault> {
        let number = |text: &str| text.trim().parse().map_err(|_| Fault::field(name, "expected a number"));
        self.text(name).map(number).transpose()
    }

    pub(crate) fn bool(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.text(name).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(Fault::field(name, "expected true or false")),
        }
    }

    /// Numbers of a list parameter.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Fault> {
        let number = |text: &str| {
            text.parse()
                .map_err(|_| Fault::field(name, "expected a list of numbers"))
        };
        self.list(name)
            .map(|texts| texts.into_iter().map(number).collect())
            .transpose()
    }

    /// Numbers of `name` (or an alias) and of the same with `__in`, all of which must hold.
    pub(crate) fn one_of(&self, names: &[&str]) -> Result<Option<Vec<i64>>, Fault> {
        let mut wanted: Option<BTreeSet<i64>> = None;
        for name in names {
            for name in [(*name).to_owned(), format!("{name}__in")] {
                if let Some(numbers) = self.ints(&name)? {
                    let numbers: BTreeSet<i64> = numbers.into_iter().collect();
                    wanted = Some(match wanted {
                        Some(others) => others.intersection(&numbers).copied().collect(),
                        None => numbers,
                    });
                }
            }
        }
        Ok(wanted.map(|numbers| numbers.into_iter().collect()))
    }

    /// A pair of instants, inclusive.
    pub(crate) fn range(&self, name: &str) -> Result<Option<(Timestamp, Timestamp)>, Fault> {
        let bad = || Fault::field(name, "expected a list of two ISO 8601 times");
        let Some(texts) = self.list(name) else { return Ok(None) };
        match texts.as_slice() {
            [from, to] => Ok(Some((
                time::parse(from).ok_or_else(bad)?,
                time::parse(to).ok_or_else(bad)?,
            ))),
            _ => Err(bad()),
        }
    }

    /// `limit` (100 unless it is smaller; 0 means the default) and `offset`.
    pub(crate) fn page(&self) -> Result<Page, Fault> {
        let number = |name: &str, default: u32| match self.int(name)? {
            None => Ok(default),
            Some(number) if number < 0 => Err(Fault::field(name, "expected a number that is not negative")),
            Some(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        };
        let limit = match number("limit", PAGE_LIMIT)? {
            0 => PAGE_LIMIT,
            limit => limit,
        };
        Ok(Page::new(limit, number("offset", 0)?))
    }

    /// Which states a catalog list shows: `Some(deleted)` or all. Active ones unless said otherwise.
    pub(crate) fn deleted(&self) -> Result<Option<bool>, Fault> {
        match self.text("state").map(str::to_ascii_lowercase).as_deref() {
            None | Some("1" | "active") => Ok(Some(false)),
            Some("2" | "deleted") => Ok(Some(true)),
            Some("all") => Ok(None),
            Some(_) => Err(Fault::field("state", "expected 1, 2, 'active', 'deleted' or 'all'")),
        }
    }

    /// `order_by` without its sign, and the direction.
    pub(crate) fn order(&self) -> Option<(&str, Direction)> {
        let text = self.text("order_by")?;
        Some(match text.strip_prefix('-') {
            Some(name) => (name, Direction::Descending),
            None => (text, Direction::Ascending),
        })
    }

    /// The order of a catalog list. A key that is not known leaves the order by id: clients send some that
    /// this server does not keep.
    pub(crate) fn catalog_order(&self) -> (SortKey, Direction) {
        match self.order() {
            Some(("id" | "pk", direction)) => (SortKey::Id, direction),
            Some(("name", direction)) => (SortKey::Name, direction),
            Some(("created_at", direction)) => (SortKey::CreatedAt, direction),
            Some(("updated_at", direction)) => (SortKey::UpdatedAt, direction),
            _ => (SortKey::Id, Direction::Ascending),
        }
    }

    /// What a list repeats of the question.
    pub(crate) fn extra(&self, page: Page) -> Extra {
        const SAID_ELSEWHERE: [&str; 4] = ["include_related", "limit", "offset", "order_by"];
        let filters: Map<String, Value> = self
            .0
            .iter()
            .filter(|(name, _)| !SAID_ELSEWHERE.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect();
        Extra {
            page,
            filters,
            order_by: self.text("order_by").map(ToOwned::to_owned),
        }
    }
}

/// The set of `include_related`; values that are not known have no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Include(BTreeSet<String>);

impl Include {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(text: &str) -> String {
        url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
    }

    /// The seven spellings of a list of words.
    fn spellings(name: &str, words: &[String]) -> Vec<String> {
        let quoted = |quote: char, comma: &str| {
            let parts: Vec<_> = words.iter().map(|word| format!("{quote}{word}{quote}")).collect();
            format!("[{}]", parts.join(comma))
        };
        let repeated: Vec<_> = words.iter().map(|word| format!("{name}={word}")).collect();
        let (head, tail) = words.split_at(words.len() / 2);
        vec![
            format!("{name}={}", words.join(",")),
            format!("{name}={}", quoted('"', ", ")),
            format!("{name}={}", encode(&quoted('"', ", "))),
            format!("{name}={}", encode(&quoted('\'', ","))),
            format!("{name}=[{}]", words.join(",")),
            repeated.join("&"),
            format!("{name}={}&{name}={}", head.join(","), tail.join(",")),
            format!("x=1&{name}={}&{name}=", words.join(" , ")),
        ]
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_list_is_the_same_list(words in prop::collection::vec("[a-z_]{1,12}", 1..6)) {
            let wanted: BTreeSet<String> = words.iter().cloned().collect();
            for query in spellings("include_related", &words) {
                prop_assert_eq!(&Params::parse(Some(&query)).include().0, &wanted, "{}", query);
            }
        }

        #[test]
        fn every_spelling_of_in_is_the_same_set(numbers in prop::collection::btree_set(1i64..10_000, 1..8)) {
            let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
            let wanted: Vec<i64> = numbers.into_iter().collect();
            for query in spellings("status__in", &words) {
                let got = Params::parse(Some(&query)).one_of(&["status"]).ok().flatten();
                prop_assert_eq!(got.as_ref(), Some(&wanted), "{}", query);
            }
        }

        #[test]
        fn no_query_is_too_strange(query in ".{0,80}") {
            let params = Params::parse(Some(&query));
            let _ = (params.page(), params.include(), params.deleted(), params.range("limit"), params.order());
        }
    }

    #[test]
    fn empty_and_absent_ask_for_nothing() {
        for query in [None, Some(""), Some("include_related="), Some("include_related=[]")] {
            assert_eq!(Params::parse(query).include(), Include::default());
        }
        assert!(matches!(Params::parse(None).one_of(&["id", "pk"]), Ok(None)));
    }

    #[test]
    fn a_range_is_a_json_list_of_two_times() {
        let params = Params::parse(Some(
            "finished_at__range=[\"2026-01-01T00:00:00Z\",\"2026-01-02T00:00:00+00:00\"]&bad=[\"x\"]",
        ));
        let range = params.range("finished_at__range").ok().flatten();
        assert_eq!(range.map(|(from, to)| to.since(from).as_secs()), Some(86_400));
        assert!(params.range("bad").is_err());
    }

    #[test]
    fn limits_are_cut_and_never_negative() {
        let page = |query| {
            Params::parse(Some(query))
                .page()
                .ok()
                .map(|page| (page.limit(), page.offset()))
        };
        assert_eq!(page(""), Some((100, 0)));
        assert_eq!(page("limit=5000&offset=7"), Some((100, 7)));
        assert_eq!(page("limit=0"), Some((100, 0)));
        assert_eq!(page("limit=-1"), None);
        assert_eq!(page("offset=x"), None);
    }
}
