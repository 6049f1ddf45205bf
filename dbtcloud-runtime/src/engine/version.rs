//! What a `dbt_version` string means, and the versions this engine was tested with.

use super::error::EngineError;

/// dbt-core that `latest` and the 1.11 track mean; the warm parent is tested with it.
pub const TESTED_CORE: &str = "1.11.16";
/// dbt-core that the 1.12 track means. It needs [`OVERRIDE_1_12`].
pub const TESTED_CORE_1_12: &str = "1.12.6";
/// dbt-duckdb installed beside the tested cores.
pub const TESTED_DUCKDB: &str = "1.11.1";
/// dbt-postgres installed beside the tested cores.
pub const TESTED_POSTGRES: &str = "1.11.0";
/// Python of an environment that names none.
pub const DEFAULT_PYTHON: &str = "3.11";

/// Pins of what decides behaviour below dbt-core, applied together with the tested cores only.
///
/// duckdb is here because its file format is not read by older libraries.
pub const TESTED_CONSTRAINTS: &[&str] = &[
    "dbt-adapters==1.24.5",
    "dbt-common==1.39.0",
    "duckdb==2.0.0",
    "mashumaro==3.14",
    "protobuf==6.33.6",
    "psycopg2-binary==2.9.13",
];

/// The uv override that makes dbt-core 1.12 installable from a package index alone.
///
/// 1.12 requires `dbt-core-experimental-parser`, whose source distribution downloads a binary from the vendor at
/// install time; it is used under `--use-v2-parser` only. An impossible marker drops it. Tested with 1.12.6: the
/// installation succeeds, and seed, run, test and docs generate work (`tests/engine_env.rs`).
pub const OVERRIDE_1_12: &str = "dbt-core-experimental-parser ; python_version < '3'\n";

/// A resolved dbt version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DbtVersion {
    /// dbt-core 1.x in a Python environment.
    Python {
        /// Version specifier for dbt-core: `==1.11.16` or `~=1.10.0`.
        specifier: String,
        /// Minor version: 11 of 1.11.
        minor: u32,
        /// Whether it is one of the versions named in this module.
        tested: bool,
    },
    /// dbt 2.x, a native binary. Experimental.
    Native,
}

/// Resolves a `dbt_version` as dbt Cloud's API spells it.
///
/// Release tracks (`latest`, `compatible`, `extended`, `fallback`, `versionless`, empty) mean [`TESTED_CORE`]. `1.11`,
/// `1.11.x`, `1.11.0-latest` and `1.11.0-pre` mean the tested patch release of that minor, or the newest one where
/// none is named here. `1.11.4` means exactly that. `2.x` and the fusion tracks mean the native engine.
///
/// # Errors
/// [`EngineError::UnknownVersion`] when it is none of these.
///
/// ```
/// use dbtcloud_runtime::engine::version::{resolve, DbtVersion};
/// assert_eq!(resolve("latest").unwrap(), resolve("1.11.0-latest").unwrap());
/// assert_eq!(resolve("2.0").unwrap(), DbtVersion::Native);
/// assert!(resolve("1.11; rm").is_err());
/// ```
pub fn resolve(text: &str) -> Result<DbtVersion, EngineError> {
    let text = text.trim();
    let unknown = || EngineError::UnknownVersion {
        version: text.chars().take(64).collect(),
    };
    match text {
        "" | "latest" | "compatible" | "extended" | "fallback" | "versionless" => {
            return Ok(track(11));
        }
        _ if text.contains("fusion") => return Ok(DbtVersion::Native),
        _ => {}
    }
    let (numbers, is_track) = match text.split_once('-') {
        Some((numbers, "latest" | "pre")) => (numbers, true),
        Some(_) => return Err(unknown()),
        None => (text, false),
    };
    let mut parts = numbers.split('.');
    let major: u32 = parts.next().and_then(|part| part.parse().ok()).ok_or_else(unknown)?;
    if major == 2
        && parts
            .clone()
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'*'))
    {
        return Ok(DbtVersion::Native);
    }
    if major != 1 {
        return Err(unknown());
    }
    let minor: u32 = parts.next().and_then(|part| part.parse().ok()).ok_or_else(unknown)?;
    let patch = parts.next();
    if parts.next().is_some() {
        return Err(unknown());
    }
    match patch {
        _ if is_track => Ok(track(minor)),
        None | Some("x" | "X" | "*") => Ok(track(minor)),
        Some(patch) => {
            let valid =
                patch.starts_with(|c: char| c.is_ascii_digit()) && patch.bytes().all(|b| b.is_ascii_alphanumeric());
            if !valid {
                return Err(unknown());
            }
            let exact = format!("1.{minor}.{patch}");
            let tested = exact == TESTED_CORE || exact == TESTED_CORE_1_12;
            Ok(DbtVersion::Python {
                specifier: format!("=={exact}"),
                minor,
                tested,
            })
        }
    }
}

fn track(minor: u32) -> DbtVersion {
    let (specifier, tested) = match minor {
        11 => (format!("=={TESTED_CORE}"), true),
        12 => (format!("=={TESTED_CORE_1_12}"), true),
        _ => (format!("~=1.{minor}.0"), false),
    };
    DbtVersion::Python {
        specifier,
        minor,
        tested,
    }
}

/// The requirement for an adapter beside a dbt-core.
pub(super) fn adapter_requirement(adapter: &str, minor: u32, tested: bool) -> String {
    match adapter {
        "duckdb" if tested => format!("dbt-duckdb=={TESTED_DUCKDB}"),
        "postgres" if tested => format!("dbt-postgres=={TESTED_POSTGRES}"),
        // The client libraries of the thrift method are an extra of that package.
        "spark" if minor >= 8 => "dbt-spark[PyHive]".into(),
        // Before 1.8 an adapter and dbt-core had to be of one minor version.
        _ if minor < 8 => format!("dbt-{adapter}~=1.{minor}.0"),
        _ => format!("dbt-{adapter}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn specifier(text: &str) -> String {
        match resolve(text).unwrap() {
            DbtVersion::Python { specifier, .. } => specifier,
            DbtVersion::Native => "native".into(),
        }
    }

    #[test]
    fn strings_of_the_api_have_a_meaning() {
        for text in [
            "",
            "latest",
            "compatible",
            "extended",
            "versionless",
            "1.11",
            "1.11.x",
            "1.11.0-latest",
            "1.11.0-pre",
            "1.11.*",
        ] {
            assert_eq!(specifier(text), format!("=={TESTED_CORE}"), "{text}");
        }
        assert_eq!(specifier("1.12.0-latest"), format!("=={TESTED_CORE_1_12}"));
        assert_eq!(specifier("1.10"), "~=1.10.0");
        assert_eq!(specifier("1.9.0-latest"), "~=1.9.0");
        assert_eq!(specifier("1.11.4"), "==1.11.4");
        assert_eq!(specifier("1.11.0rc1"), "==1.11.0rc1");
        for text in ["2.0", "2.0.0a4", "latest-fusion", "fusion-nightly", "2.x"] {
            assert_eq!(specifier(text), "native", "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "3.0",
            "banana",
            "1.",
            "1.11.4 --index-url x",
            "1.11.4;x",
            "1.11.4.5",
            "1.11-foo",
            "-r x",
            "0.21.0",
        ] {
            assert!(resolve(text).is_err(), "{text}");
        }
    }

    #[test]
    fn adapters_follow_the_core() {
        assert_eq!(adapter_requirement("duckdb", 11, true), "dbt-duckdb==1.11.1");
        assert_eq!(adapter_requirement("postgres", 7, false), "dbt-postgres~=1.7.0");
        assert_eq!(adapter_requirement("snowflake", 10, false), "dbt-snowflake");
    }
}
