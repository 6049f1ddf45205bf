use bytes::Bytes;
use dbtcloud_core::Timestamp;

/// An argument of a statement.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// BIGINT.
    Int(Option<i64>),
    /// BOOLEAN, or INTEGER 0 and 1.
    Bool(bool),
    /// TEXT.
    Text(Option<String>),
    /// BYTEA or BLOB.
    Bytes(Bytes),
    /// `bigint[]`, or a JSON array as TEXT.
    Ints(Vec<i64>),
    /// `text[]`, or a JSON array as TEXT.
    Texts(Vec<String>),
    /// A JSON array of pairs, as TEXT on both engines.
    Pairs(Vec<(i64, Option<i64>)>),
}

#[cfg(feature = "postgres")]
pub(super) fn postgres(values: Vec<Value>) -> Result<sqlx::postgres::PgArguments, sqlx::Error> {
    use sqlx::Arguments;
    let mut arguments = sqlx::postgres::PgArguments::default();
    for value in values {
        match value {
            Value::Int(value) => arguments.add(value),
            Value::Bool(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(&value[..]),
            Value::Ints(values) => arguments.add(values),
            Value::Texts(values) => arguments.add(values),
            Value::Pairs(pairs) => arguments.add(pairs_json(&pairs)),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

#[cfg(feature = "sqlite")]
pub(super) fn sqlite(values: Vec<Value>) -> Result<sqlx::sqlite::SqliteArguments, sqlx::Error> {
    use sqlx::Arguments;
    let mut arguments = sqlx::sqlite::SqliteArguments::default();
    for value in values {
        match value {
            Value::Int(value) => arguments.add(value),
            Value::Bool(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value.to_vec()),
            Value::Ints(values) => arguments.add(serde_json::Value::from(values).to_string()),
            Value::Texts(values) => arguments.add(serde_json::Value::from(values).to_string()),
            Value::Pairs(pairs) => arguments.add(pairs_json(&pairs)),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn pairs_json(pairs: &[(i64, Option<i64>)]) -> String {
    let pairs: Vec<serde_json::Value> = pairs
        .iter()
        .map(|(first, second)| serde_json::json!([first, second]))
        .collect();
    serde_json::Value::from(pairs).to_string()
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(Some(i64::from(value)))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<Timestamp> for Value {
    fn from(value: Timestamp) -> Self {
        Self::Int(Some(value.as_micros()))
    }
}

impl From<Option<Timestamp>> for Value {
    fn from(value: Option<Timestamp>) -> Self {
        Self::Int(value.map(Timestamp::as_micros))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(ToOwned::to_owned))
    }
}

impl From<Bytes> for Value {
    fn from(value: Bytes) -> Self {
        Self::Bytes(value)
    }
}

impl From<Vec<i64>> for Value {
    fn from(values: Vec<i64>) -> Self {
        Self::Ints(values)
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Self::Texts(values)
    }
}

impl From<Vec<(i64, Option<i64>)>> for Value {
    fn from(pairs: Vec<(i64, Option<i64>)>) -> Self {
        Self::Pairs(pairs)
    }
}

macro_rules! from_ids {
    ($($id:ident),+) => {$(
        impl From<dbtcloud_core::id::$id> for Value {
            fn from(id: dbtcloud_core::id::$id) -> Self { Self::Int(Some(id.get())) }
        }
        impl From<Option<dbtcloud_core::id::$id>> for Value {
            fn from(id: Option<dbtcloud_core::id::$id>) -> Self { Self::Int(id.map(|id| id.get())) }
        }
    )+};
}
from_ids!(
    AccountId,
    EnvironmentId,
    JobId,
    ProjectId,
    RunId,
    SessionId,
    StepId,
    UserId
);
