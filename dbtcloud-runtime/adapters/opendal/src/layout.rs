//! Where an artifact stands in the store:
//!
//! ```text
//! <account>/<run>/steps/<n>/<path>
//! <account>/<run>/logs/<path>
//! .incoming/<account>/<run>/<unique>      on its way, where the store can rename
//! .check/<unique>                         for a moment, while the store is looked at
//! ```
//!
//! A part of a path keeps its text, for people who look into the store, except for what backends trim,
//! forbid or read as something else, which is percent-encoded; and a part longer than a directory entry may
//! be is cut, with a lone `%` where it goes on: `aaaa…%/aaaa…`.

use std::fmt::Write;

use dbtcloud_core::id::{AccountId, RunId};
use dbtcloud_core::ports::{Area, ArtifactKey, ArtifactPath};

/// The longest a part of a key is left; file systems allow 255 bytes, and the `%` is one.
const PART_LIMIT_BYTES: usize = 200;

/// Where the store is tried out; ends with `/`.
pub(crate) const CHECK: &str = ".check/";

/// The prefix of a run, or of one of its areas; ends with `/`.
pub(crate) fn prefix(account: AccountId, run: RunId, area: Option<Area>) -> String {
    match area {
        None => format!("{account}/{run}/"),
        Some(Area::Logs) => format!("{account}/{run}/logs/"),
        Some(Area::Step(step)) => format!("{account}/{run}/steps/{step}/"),
    }
}

/// Below it, by account and run as elsewhere, is what comes in.
pub(crate) const INCOMING: &str = ".incoming/";

/// Where a run's artifacts are while they come in; ends with `/`.
pub(crate) fn incoming(account: AccountId, run: RunId) -> String {
    format!("{INCOMING}{account}/{run}/")
}

/// The account or run of a directory of this name; `None` for what is not ours.
pub(crate) fn number(name: &str) -> Option<i64> {
    let digits = name.strip_suffix('/')?;
    digits.parse().ok().filter(|number: &i64| number.to_string() == digits)
}

/// Where an artifact is.
pub(crate) fn key(key: &ArtifactKey) -> String {
    let mut text = prefix(key.account, key.run, Some(key.area));
    for (index, part) in key.path.as_str().split('/').enumerate() {
        if index > 0 {
            text.push('/');
        }
        encode(part, &mut text);
    }
    text
}

/// What stands at `key` below the prefix of a run; `None` for what is not ours.
pub(crate) fn parse(run_prefix: &str, key: &str) -> Option<(Area, ArtifactPath)> {
    let rest = key.strip_prefix(run_prefix)?;
    let (area, path) = match rest.split_once('/')? {
        ("logs", path) => (Area::Logs, path),
        ("steps", rest) => {
            let (step, path) = rest.split_once('/')?;
            (Area::Step(step.parse().ok()?), path)
        }
        _ => return None,
    };
    Some((area, decode(path)?.parse().ok()?))
}

fn encode(part: &str, text: &mut String) {
    let mut length = 0;
    for c in part.chars() {
        let mut utf8 = [0; 4];
        let utf8 = c.encode_utf8(&mut utf8);
        let plain = !c.is_whitespace() && !c.is_control() && !"%\"#*:<>?\\^`{|}[]&$@=;,+".contains(c);
        let size = if plain { utf8.len() } else { 3 * utf8.len() };
        if length + size > PART_LIMIT_BYTES {
            text.push_str("%/");
            length = 0;
        }
        length += size;
        if plain {
            text.push(c);
        } else {
            for byte in utf8.bytes() {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => match rest.next()? {
                b'/' => {}
                high => {
                    let digit = |byte: u8| char::from(byte).to_digit(16);
                    let value = digit(*high)? * 16 + digit(*rest.next()?)?;
                    bytes.push(u8::try_from(value).ok()?);
                }
            },
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(path: &str) -> ArtifactKey {
        let path = path.parse().unwrap();
        ArtifactKey {
            account: AccountId::new(1),
            run: RunId::new(22),
            area: Area::Step(3),
            path,
        }
    }

    #[test]
    fn plain_names_stay_as_they_are() {
        assert_eq!(
            key(&key_of("compiled/shop-1/a_b.sql")),
            "1/22/steps/3/compiled/shop-1/a_b.sql"
        );
        assert_eq!(
            prefix(AccountId::new(1), RunId::new(22), Some(Area::Logs)),
            "1/22/logs/"
        );
    }

    #[test]
    fn every_path_comes_back() {
        for path in [
            "a",
            "a/b/c",
            " a /b ",
            "100%",
            "%2F",
            "%/x",
            "a%",
            "é/ß/日本",
            "\u{3000}x\u{a0}",
            "a?b#c*d:e",
            &"x".repeat(768),
            &format!("{}/{}", "ü".repeat(150), " ".repeat(255)),
            &"日".repeat(256),
        ] {
            let key = key(&key_of(path));
            assert!(key.split('/').all(|part| part.len() <= 255), "{key}");
            assert_eq!(key.trim(), key);
            let (area, back) = parse("1/22/", &key).unwrap();
            assert_eq!((area, back.as_str()), (Area::Step(3), path));
        }
    }

    #[test]
    fn what_is_not_ours_is_nothing() {
        for foreign in [
            "1/22/x",
            "1/22/steps/x/y",
            "1/22/steps/1",
            "1/22/logs/%zz",
            "1/22/logs/a%",
            "1/2/logs/a",
            "1/22/logs/%2E%2E",
        ] {
            assert_eq!(parse("1/22/", foreign), None, "{foreign}");
        }
    }
}
