//! Reading a request's JSON object field by field, with every fault collected before anything is done.
//!
//! A field that is absent leaves what there is; `null` clears what may be absent and leaves the rest; fields
//! that nobody asks for are ignored. That is what makes a full object that was read, posted back, change
//! nothing, and a minimal one work.

use serde_json::{Map, Value};

use super::fault::Fault;

/// What a JSON value can be read as.
pub(crate) trait FromWire: Sized {
    /// What was expected, for the message.
    const EXPECTED: &'static str;
    /// The value, if it is one.
    fn from_wire(value: &Value) -> Option<Self>;
}

impl FromWire for String {
    const EXPECTED: &'static str = "expected a text";
    fn from_wire(value: &Value) -> Option<Self> {
        value.as_str().map(ToOwned::to_owned)
    }
}

impl FromWire for bool {
    const EXPECTED: &'static str = "expected true or false";
    fn from_wire(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(*value),
            // Form bodies and some scripts have texts.
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }
}

impl FromWire for i64 {
    const EXPECTED: &'static str = "expected a whole number";
    fn from_wire(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

impl FromWire for u64 {
    const EXPECTED: &'static str = "expected a whole number that is not negative";
    fn from_wire(value: &Value) -> Option<Self> {
        i64::from_wire(value).and_then(|number| u64::try_from(number).ok())
    }
}

impl FromWire for u32 {
    const EXPECTED: &'static str = "expected a whole number that is not negative";
    fn from_wire(value: &Value) -> Option<Self> {
        i64::from_wire(value).and_then(|number| u32::try_from(number).ok())
    }
}

impl<T: FromWire> FromWire for Vec<T> {
    const EXPECTED: &'static str = "expected a list";
    fn from_wire(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_wire).collect()
    }
}

impl FromWire for Map<String, Value> {
    const EXPECTED: &'static str = "expected an object";
    fn from_wire(value: &Value) -> Option<Self> {
        value.as_object().cloned()
    }
}

macro_rules! ids_from_wire {
    ($($id:ident),+) => {$(
        impl FromWire for dbtcloud_core::id::$id {
            const EXPECTED: &'static str = "expected an id";
            fn from_wire(value: &Value) -> Option<Self> {
                i64::from_wire(value).filter(|id| *id > 0).map(Self::new)
            }
        }
    )+};
}
ids_from_wire!(
    AccountId,
    ConnectionId,
    CredentialsId,
    EnvironmentId,
    ExtendedAttributesId,
    JobId,
    ProjectId,
    RepositoryId,
    UserId
);

/// A JSON object that is being read.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    faults: Map<String, Value>,
}

impl Fields {
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self {
            map,
            faults: Map::new(),
        }
    }

    /// Notes that a field cannot be what it is.
    pub(crate) fn reject(&mut self, name: &str, expected: impl std::fmt::Display) {
        self.faults
            .entry(name.to_owned())
            .or_insert_with(|| expected.to_string().into());
    }

    /// The raw value; `None` when absent.
    pub(crate) fn raw(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// Whether a field was sent and is not null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// The value; `None` when absent, null or at fault.
    pub(crate) fn take<T: FromWire>(&mut self, name: &str) -> Option<T> {
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        let read = T::from_wire(value);
        if read.is_none() {
            self.reject(name, T::EXPECTED);
        }
        read
    }

    /// Sets what cannot be absent. `null` leaves it.
    pub(crate) fn set<T: FromWire>(&mut self, name: &str, slot: &mut T) {
        if let Some(value) = self.take(name) {
            *slot = value;
        }
    }

    /// Sets or, with `null`, clears what can be absent.
    pub(crate) fn set_optional<T: FromWire>(&mut self, name: &str, slot: &mut Option<T>) {
        match self.map.get(name) {
            None => {}
            Some(Value::Null) => *slot = None,
            Some(_) => {
                if let Some(value) = self.take(name) {
                    *slot = Some(value);
                }
            }
        }
    }

    /// As [`Fields::set_optional`], with an empty text meaning none.
    pub(crate) fn set_optional_text(&mut self, name: &str, slot: &mut Option<String>) {
        self.set_optional(name, slot);
        if slot.as_ref().is_some_and(String::is_empty) {
            *slot = None;
        }
    }

    /// What must be sent.
    pub(crate) fn require<T: FromWire>(&mut self, name: &str) -> Option<T> {
        if !self.has(name) {
            self.reject(name, "This field is required.");
        }
        self.take(name)
    }

    /// Reads an object inside this one; its faults are named `outer.inner`.
    pub(crate) fn nested<R>(&mut self, name: &str, read: impl FnOnce(&mut Fields) -> R) -> Option<R> {
        let map = self.take::<Map<String, Value>>(name)?;
        let mut inner = Fields::new(map);
        let result = read(&mut inner);
        for (field, fault) in inner.faults {
            self.faults.insert(format!("{name}.{field}"), fault);
        }
        Some(result)
    }

    /// Whether the object says of itself that it is deleted (`state` 2).
    pub(crate) fn says_deleted(&mut self) -> bool {
        match self.take::<i64>("state") {
            None | Some(super::codes::STATE_ACTIVE) => false,
            Some(super::codes::STATE_DELETED) => true,
            Some(_) => {
                self.reject("state", "expected 1 (active) or 2 (deleted)");
                false
            }
        }
    }

    /// Every field but these.
    pub(crate) fn rest(&self, known: &[&str]) -> Map<String, Value> {
        let unknown = self.map.iter().filter(|(name, _)| !known.contains(&name.as_str()));
        unknown.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The faults, if there are any.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(Fault::fields(self.faults.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::new(value.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let mut fields = fields(json!({"a": 1, "b": "x", "c": {"d": []}, "e": null}));
        let (mut a, mut b) = (String::new(), 0i64);
        fields.set("a", &mut a);
        fields.set("b", &mut b);
        fields.nested("c", |inner| inner.take::<bool>("d"));
        fields.require::<String>("e");
        let fault = fields.check().err();
        assert_eq!(fault.as_ref().map(Fault::names), Some(vec!["a", "b", "c.d", "e"]));
    }

    #[test]
    fn absent_leaves_null_clears_what_can_be_absent() {
        let mut fields = fields(json!({"a": null, "b": null}));
        let (mut a, mut b, mut c) = ("kept".to_owned(), Some(1i64), Some(2i64));
        fields.set("a", &mut a);
        fields.set_optional("b", &mut b);
        fields.set_optional("c", &mut c);
        assert_eq!((a.as_str(), b, c), ("kept", None, Some(2)));
        assert!(fields.check().is_ok());
    }
}
