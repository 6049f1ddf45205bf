//! Fields that clients send and read back and nothing here acts on, each with its type and default.

use dbtcloud_core::catalog::Extras;
use serde_json::{Map, Value};

use super::body::Fields;

/// What a kept field holds, and what is shown when it was never sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    /// A switch.
    Bool(Option<bool>),
    /// A text.
    Text(Option<&'static str>),
    /// A number.
    Int(Option<i64>),
    /// A list of texts, empty by default.
    Texts,
}

impl Keep {
    fn default(self) -> Value {
        match self {
            Self::Bool(value) => value.into(),
            Self::Text(value) => value.into(),
            Self::Int(value) => value.into(),
            Self::Texts => Value::Array(Vec::new()),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Bool(_) => "expected true or false",
            Self::Text(_) => "expected a text",
            Self::Int(_) => "expected a whole number",
            Self::Texts => "expected a list of texts",
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Bool(_) => value.is_boolean(),
            Self::Text(_) => value.is_string(),
            Self::Int(_) => value.is_i64(),
            Self::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        }
    }
}

/// The kept fields of a kind of record.
pub(crate) type Table = &'static [(&'static str, Keep)];

/// Takes the fields of `table` over. `null` makes it the default again.
pub(crate) fn read(fields: &mut Fields, table: Table, extras: &mut Extras) {
    for (name, keep) in table {
        match fields.raw(name).cloned() {
            None => {}
            Some(Value::Null) => {
                extras.remove(*name);
            }
            Some(value) if keep.fits(&value) => {
                extras.insert((*name).to_owned(), value);
            }
            Some(_) => fields.reject(name, keep.expected()),
        }
    }
}

/// Shows every field of `table`.
pub(crate) fn show(extras: &Extras, table: Table, view: &mut Map<String, Value>) {
    for (name, keep) in table {
        view.insert(
            (*name).to_owned(),
            extras.get(*name).cloned().unwrap_or_else(|| keep.default()),
        );
    }
}
