use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};

use crate::engine::{Database, Engine, Options, Sql, args};
use crate::gather::Gathering;

const NOW: Sql = Sql::each(
    "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now",
    "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now",
);

/// All storage ports on one database. Cheap to clone; clones share the connections.
#[derive(Clone, Debug)]
pub struct SqlStorage {
    pub(crate) database: Database,
    pub(crate) gathering: Gathering,
}

impl SqlStorage {
    /// Connects to `postgres://user:password@host/database`, `sqlite:///path/to/file` or
    /// `sqlite::memory:`.
    ///
    /// On `Ok` the database has answered once. The schema is not touched: see [`SqlStorage::migrate`].
    ///
    /// Errors: `Invalid` for a URL that is not understood, `Denied` when the login is refused,
    /// `Unavailable` when nobody answers or the file cannot be opened, `Corrupt` when the file is no
    /// database. No text has the URL or a password in it.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        Ok(Self {
            database: Database::connect(url, &options).await?,
            gathering: Gathering::default(),
        })
    }

    /// Which engine it is.
    pub fn engine(&self) -> Engine {
        self.database.engine()
    }

    /// How many connections there are now: those that wait, and those that work.
    pub fn connections(&self) -> (u32, u32) {
        self.database.connections()
    }

    /// What the database's clock says; SQLite has this machine's. Errors: `Unavailable`.
    pub async fn server_time(&self) -> Result<Timestamp> {
        let mut reader = self.database.read().await?;
        let row = reader.link().one(&NOW, args![]).await?;
        Ok(Timestamp::from_micros(row.int("now")?))
    }

    /// Closes all connections. Every later call is `Unavailable`.
    pub async fn close(&self) {
        self.database.close().await;
    }
}

/// Refuses a NUL: PostgreSQL cannot store it in a text, and what one engine refuses both refuse.
pub(crate) fn no_nul(field: &'static str, text: &str) -> Result<()> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => Err(Error::invalid(
            field,
            format!("expected a text without a NUL, got one at byte {at}"),
        )),
    }
}

/// The same for a text that may be absent.
pub(crate) fn no_nul_in(field: &'static str, text: Option<&str>) -> Result<()> {
    text.map_or(Ok(()), |text| no_nul(field, text))
}

/// An unsigned number as the databases have it.
pub(crate) fn signed(field: &'static str, number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::invalid(field, format!("expected at most {}, got {number}", i64::MAX)))
}

/// JSON of something of ours.
pub(crate) fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("{what} cannot be written as JSON")).because(e))
}

/// Refuses a NUL in any text of a JSON document, where it is written `\u0000`.
pub(crate) fn no_nul_json(field: &'static str, json: &str) -> Result<()> {
    let found = json.match_indices("\\u0000").any(|(at, _)| {
        // After an even number of backslashes the one that was found begins the escape.
        json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0
    });
    if found {
        Err(Error::invalid(field, "expected text without a NUL"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_found_in_json_and_a_quoted_escape_is_none() {
        for (text, refused) in [
            ("a\0b", true),
            ("\\\0", true),
            ("\\u0000", false),
            ("\\\\u0000", false),
            ("plain", false),
            ("\0", true),
        ] {
            let json = to_json("text", &[text]).unwrap();
            assert_eq!(no_nul_json("text", &json).is_err(), refused, "{json}");
        }
    }
}
