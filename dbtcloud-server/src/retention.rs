//! `dbtcloud retention`: how long what is over is kept, and what an account says of it.

use dbtcloud_core::account::Account;
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::Catalog;
use dbtcloud_core::retention::{Days, Kept, OwnRetention, Retention};
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};

/// One thing that an account says: `runs=30`, or `runs=default` to say it no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saying {
    kept: Kept,
    days: Option<Days>,
}

impl std::str::FromStr for Saying {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected KIND=DAYS or KIND=default, such as logs=90, got '{text}'");
        let (kept, days) = text.split_once('=').ok_or_else(expected)?;
        Ok(Self {
            kept: kept.parse().map_err(|error: Error| error.to_string())?,
            days: match days {
                "default" => None,
                days => Some(days.parse()?),
            },
        })
    }
}

/// Lets an account say these things, beside what it says already; a line for each kind. Without any it only looks.
///
/// # Errors
/// `NotFound` when there is no such account; `Conflict` when it was changed at the same moment: again.
pub async fn say(
    catalog: &dyn Catalog,
    everybody: Retention,
    account: AccountId,
    sayings: &[Saying],
    now: Timestamp,
) -> Result<String> {
    let mut record = catalog.fetch::<Account>(account, account).await?;
    if !sayings.is_empty() {
        for saying in sayings {
            record.body.retention.set(saying.kept, saying.days);
        }
        record = catalog
            .save_by(&Actor::Operator, &record, now)
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::Conflict => Error::conflict("the account was changed at the same moment; say it again"),
                _ => error,
            })?;
    }
    Ok(told(everybody, &record.retention))
}

/// A line for each kind: how long it is kept, and who says so.
pub fn told(everybody: Retention, own: &OwnRetention) -> String {
    let line = |kept: Kept| {
        let who = if own.days(kept).is_some() {
            "the account"
        } else {
            "the installation"
        };
        format!("{}: {} ({who})\n", kept.name(), everybody.with(own).days(kept))
    };
    Kept::ALL.map(line).concat()
}
