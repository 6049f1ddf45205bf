//! What the driver says, in the port's words. The text of a cause is kept as the source; a database URL
//! never gets this far.

use dbtcloud_core::{Error, ErrorKind};

/// What a person must do about a schema that is not the binary's.
pub(crate) const RUN_MIGRATE: &str = "run `dbtcloud migrate`";

/// What a driver's error means for the caller of a port.
pub(crate) fn translate(error: sqlx::Error) -> Error {
    judge(&error).because(error)
}

/// The same while the first connection is made: `place` is the host and port.
#[cfg(feature = "postgres")]
pub(crate) fn connecting(error: sqlx::Error, place: &str) -> Error {
    let url = |what: String| Error::invalid("database_url", what);
    let judged = match &error {
        // What rustls says of a certificate comes as an error of the connection.
        sqlx::Error::Io(cause) if cause.to_string().contains("not valid for name") => url(format!(
            "the certificate of {place} is for another host: name a host that it is for, or use sslmode=verify-ca"
        )),
        sqlx::Error::Io(cause) if cause.to_string().contains("UnknownIssuer") => url(format!(
            "no authority that is trusted vouches for the certificate of {place}: name its authority with sslrootcert"
        )),
        sqlx::Error::Io(cause) if cause.to_string().contains("invalid peer certificate") => {
            url(format!("the certificate of {place} is not valid; renew it"))
        }
        sqlx::Error::Io(cause) if cause.kind() == std::io::ErrorKind::NotFound && !place.starts_with('/') => {
            url("a file that sslrootcert, sslcert or sslkey names is not there".to_owned())
        }
        sqlx::Error::Io(_) => Error::unavailable(format!("database: cannot connect to postgresql at {place}")),
        sqlx::Error::Tls(cause) if cause.to_string().contains("does not support TLS") => url(format!(
            "{place} speaks no TLS: switch it on there (ssl = on), or where the network can be trusted use \
             sslmode=disable"
        )),
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => {
            url("TLS cannot be set up: check sslmode, sslrootcert, sslcert and sslkey".to_owned())
        }
        _ => judge(&error),
    };
    judged.because(error)
}

/// Whether the statement lost a race for a unique key.
pub(crate) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.is_unique_violation())
}

/// Whether SQLite's file was locked.
#[cfg(feature = "sqlite")]
pub(crate) fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.and_then(|code| code.parse::<i32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}

/// Whether the transaction lost against another one and may be tried again in another order.
pub(crate) fn is_deadlock(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|e| e.code())
        .is_some_and(|code| code == "40P01" || code == "40001")
}

fn judge(error: &sqlx::Error) -> Error {
    use sqlx::Error as E;
    match error {
        E::Database(database) => {
            let code = database.code().unwrap_or_default();
            if database.is_unique_violation() {
                return Error::new(
                    ErrorKind::AlreadyExists,
                    "database: a record with this key exists already",
                );
            }
            // SQLite's codes are numbers of up to four digits, PostgreSQL's have five characters.
            match code.parse::<i32>() {
                Ok(number) if code.len() < 5 => judge_sqlite(number, database.message()),
                _ => judge_postgres(&code, database.message()),
            }
        }
        E::PoolTimedOut => Error::unavailable("database: no connection within the time limit"),
        E::PoolClosed => Error::unavailable("database: this storage was closed"),
        E::Io(_) | E::Protocol(_) | E::WorkerCrashed => Error::unavailable("database: the connection was lost"),
        E::Tls(_) => Error::unavailable("database: no TLS connection; check sslmode and the certificates of the URL"),
        E::Configuration(_) => Error::invalid("database_url", "not understood"),
        E::Encode(_) => Error::new(ErrorKind::Invalid, "database: a value cannot be stored"),
        _ => Error::corrupt("database: an answer is not understood"),
    }
}

fn judge_postgres(code: &str, message: &str) -> Error {
    let unavailable = |text: &'static str| Error::unavailable(text);
    match code {
        "40001" | "40P01" => unavailable("database: lost against another transaction"),
        // The part of its month was made while the row was on its way.
        "23514" if message.contains("partition constraint") => {
            unavailable("database: lost against another transaction")
        }
        "55P03" => unavailable("database: a lock was not had within the time limit"),
        "57014" => unavailable("database: a statement took too long"),
        "25006" => read_only(),
        "53100" => unavailable("database: the server's disk is full; make room on it"),
        "53300" => {
            unavailable("database: the server has no connection left; raise max_connections or lower the pool size")
        }
        "28P01" | "28000" => Error::new(
            ErrorKind::Denied,
            "database: the server refused the login; check user, password and pg_hba.conf",
        ),
        "42501" => Error::new(
            ErrorKind::Denied,
            "database: the role lacks a privilege; make it the owner of the schema and its tables",
        ),
        "3D000" => Error::invalid("database_url", "the database does not exist; create it"),
        "42P01" | "42703" => unmigrated(),
        "22021" | "22P05" => Error::new(
            ErrorKind::Invalid,
            "database: a text has a character that cannot be stored",
        ),
        _ if code.starts_with("08") || code.starts_with("53") || code.starts_with("57P") => {
            unavailable("database: the server is not available")
        }
        "25P02" | "25P03" => unavailable("database: the transaction was ended by the server"),
        _ if code.starts_with("58") => unavailable("database: the server has trouble with its disk"),
        _ if code.starts_with("XX") => Error::corrupt("database: the server reports damage; restore a backup"),
        _ => Error::corrupt(format!("database: unexpected error {code}: {message}")),
    }
}

fn judge_sqlite(code: i32, message: &str) -> Error {
    // The low byte is the kind, the rest says more.
    match code & 0xff {
        5 | 6 => Error::unavailable("database: the file is locked by another process"),
        8 => Error::unavailable(
            "database: the file is read-only; check its owner and whether the file system can be written",
        ),
        9 => Error::unavailable("database: interrupted"),
        10 => Error::unavailable("database: the disk failed to read or write; check the file system"),
        13 => Error::unavailable("database: the disk is full; make room on it"),
        14 => Error::unavailable(
            "database: the file cannot be opened; check its path and owner, and whether the file system can be written",
        ),
        11 | 26 => Error::corrupt("database: the file is damaged or no database; restore a backup"),
        1 if message.starts_with("no such table") || message.starts_with("no such column") => unmigrated(),
        18 => Error::new(ErrorKind::Invalid, "database: a value is too big"),
        _ => Error::corrupt(format!("database: unexpected error {code}: {message}")),
    }
}

/// Of a server; of a file SQLite tells.
pub(crate) fn read_only() -> Error {
    Error::unavailable(
        "database: the server is read-only; name the primary and not a standby, or look at \
         default_transaction_read_only",
    )
}

fn unmigrated() -> Error {
    Error::unavailable(format!(
        "database: the schema is not that of this binary; {RUN_MIGRATE}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "sqlite")]
    async fn provoke(script: &'static str) -> Error {
        let url = "sqlite::memory:";
        let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(url)
            .await
            .unwrap();
        translate(sqlx::raw_sql(script).execute(&mut connection).await.unwrap_err())
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn a_full_disk_says_so() {
        let error =
            provoke("PRAGMA max_page_count = 3; CREATE TABLE a (b); CREATE TABLE c (d); CREATE TABLE e (f)").await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        assert!(error.to_string().contains("disk is full"), "{error}");
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn what_is_not_there_asks_for_a_migration() {
        let error = provoke("SELECT * FROM runs").await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(RUN_MIGRATE), "{error}");
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn what_cannot_be_is_corrupt() {
        let error = provoke("CREATE TABLE a (b CHECK (b > 0)); INSERT INTO a VALUES (0)").await;
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn every_code_of_postgresql_says_what_to_do() {
        for (code, kind) in [
            ("40P01", ErrorKind::Unavailable),
            ("40001", ErrorKind::Unavailable),
            ("55P03", ErrorKind::Unavailable),
            ("57014", ErrorKind::Unavailable),
            ("57P01", ErrorKind::Unavailable),
            ("57P03", ErrorKind::Unavailable),
            ("53100", ErrorKind::Unavailable),
            ("53300", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("25006", ErrorKind::Unavailable),
            ("25P03", ErrorKind::Unavailable),
            ("58030", ErrorKind::Unavailable),
            ("42P01", ErrorKind::Unavailable),
            ("28P01", ErrorKind::Denied),
            ("42501", ErrorKind::Denied),
            ("3D000", ErrorKind::Invalid),
            ("XX001", ErrorKind::Corrupt),
            ("23514", ErrorKind::Corrupt),
        ] {
            assert_eq!(judge_postgres(code, "text").kind(), kind, "{code}");
        }
        let told = "new row for relation \"runs_default\" violates partition constraint";
        assert_eq!(judge_postgres("23514", told).kind(), ErrorKind::Unavailable);
    }
}
