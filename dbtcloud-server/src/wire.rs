//! The shapes of dbt Cloud's API v2 and v3: numeric codes, envelopes, both time formats, every spelling of a
//! query parameter. Nothing outside this room knows a numeric code; nothing in it asks storage for anything.
//!
//! Sources: dbt Cloud's published OpenAPI documents and what its published clients send and read.

/// Builds a JSON object without the recursion limit of `json!`.
macro_rules! object {
    ($($key:literal : $value:expr),* $(,)?) => {{
        let mut map = serde_json::Map::new();
        $( map.insert($key.to_owned(), serde_json::json!($value)); )*
        map
    }};
}

pub(crate) mod account;
pub(crate) mod audit;
pub(crate) mod body;
pub(crate) mod codes;
pub(crate) mod connection;
pub(crate) mod credentials;
pub(crate) mod envelope;
pub(crate) mod environment;
pub(crate) mod extras;
pub(crate) mod fault;
pub(crate) mod job;
pub(crate) mod notification;
pub(crate) mod project;
pub(crate) mod query;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod secrets;
pub(crate) mod step;
pub(crate) mod time;
pub(crate) mod trigger;
pub(crate) mod user;
pub(crate) mod variable;
pub(crate) mod webhook;

use dbtcloud_core::Timestamp;
use dbtcloud_core::catalog::{Entity, Record};

/// Which of the two APIs a request came by. They differ in how they write times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/api/v2`: ISO 8601 with a `T`, except in runs and their steps.
    V2,
    /// `/api/v3`: a space in place of the `T`.
    V3,
}

impl Api {
    /// The API that a path belongs to.
    pub(crate) fn of_path(path: &str) -> Self {
        if path.starts_with("/api/v3") {
            Self::V3
        } else {
            Self::V2
        }
    }

    /// An instant as this API writes it.
    pub(crate) fn time(self, at: Timestamp) -> String {
        match self {
            Self::V2 => time::iso(at),
            Self::V3 => time::spaced(at),
        }
    }
}

/// `state` of a record: 1 active, 2 deleted.
pub(crate) fn state<T: Entity>(record: &Record<T>) -> i64 {
    if record.deleted {
        codes::STATE_DELETED
    } else {
        codes::STATE_ACTIVE
    }
}
