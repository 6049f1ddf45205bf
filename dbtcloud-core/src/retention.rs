//! Retention: how long what is over is kept, by the installation and, where it says so, by the account. What goes is
//! decided here; cleanup makes it go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::AccountId;
use crate::ports::Accounts;
use crate::time::Timestamp;

/// How long runs, their logs and their artifacts are kept where nobody says otherwise, in days (dbt Cloud's number).
pub const DEFAULT_RUN_DAYS: u32 = 365;
/// How long develop sessions that have ended are kept where nobody says otherwise, in days.
pub const DEFAULT_SESSION_DAYS: u32 = 30;
/// How long the audit log is kept where nobody says otherwise, in days.
pub const DEFAULT_AUDIT_DAYS: u32 = 365;
/// The most days that can be said, a hundred years; more is [`Days::FOREVER`].
pub const DAYS_LIMIT: u32 = 36_500;

/// A number of days from the end of something, or for ever.
///
/// ```
/// use dbtcloud_core::Timestamp;
/// use dbtcloud_core::retention::Days;
/// let now = Timestamp::from_micros(1_700_000_000_000_000);
/// assert_eq!(Days::new(1).unwrap().cutoff(now).unwrap().as_micros(), 1_699_913_600_000_000);
/// assert_eq!("0".parse(), Ok(Days::FOREVER));
/// assert_eq!(Days::FOREVER.cutoff(now), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Days(u32);

impl Days {
    /// Nothing goes. Written as 0.
    pub const FOREVER: Self = Self(0);

    /// So many days; `None` beyond [`DAYS_LIMIT`].
    pub const fn new(days: u32) -> Option<Self> {
        if days <= DAYS_LIMIT { Some(Self(days)) } else { None }
    }

    /// How many; 0 for ever.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// What ended before this instant is not kept any more. `None`: everything is.
    pub fn cutoff(self, now: Timestamp) -> Option<Timestamp> {
        let span = Duration::from_secs(u64::from(self.0) * 24 * 3600);
        (self != Self::FOREVER).then(|| now.minus(span))
    }
}

impl std::str::FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let days = text.trim().parse().ok().and_then(Self::new);
        days.ok_or_else(|| format!("expected a number of days from 0 (for ever) to {DAYS_LIMIT}, got '{text}'"))
    }
}

impl std::fmt::Display for Days {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("for ever"),
            1 => f.write_str("1 day"),
            days => write!(f, "{days} days"),
        }
    }
}

/// What is kept for a time of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kept {
    /// Runs that have ended, with everything that hangs on them.
    Runs,
    /// Logs of their steps.
    Logs,
    /// Files that they left.
    Artifacts,
    /// Develop sessions that have ended.
    Sessions,
    /// Entries of the audit log.
    Audit,
}

impl Kept {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Runs, Self::Logs, Self::Artifacts, Self::Sessions, Self::Audit];

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Logs => "logs",
            Self::Artifacts => "artifacts",
            Self::Sessions => "sessions",
            Self::Audit => "audit",
        }
    }
}

impl std::str::FromStr for Kept {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|kept| kept.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid("retention", format!("expected one of {names}, got '{text}'"))
        })
    }
}

/// How long everything is kept, each counted from the end of the run or session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// See [`Kept::Runs`].
    pub runs: Days,
    /// See [`Kept::Logs`]. A run takes its logs with it.
    pub logs: Days,
    /// See [`Kept::Artifacts`]. A run takes its artifacts with it.
    pub artifacts: Days,
    /// See [`Kept::Sessions`].
    pub sessions: Days,
    /// See [`Kept::Audit`].
    pub audit: Days,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            runs: Days(DEFAULT_RUN_DAYS),
            logs: Days(DEFAULT_RUN_DAYS),
            artifacts: Days(DEFAULT_RUN_DAYS),
            sessions: Days(DEFAULT_SESSION_DAYS),
            audit: Days(DEFAULT_AUDIT_DAYS),
        }
    }
}

impl Retention {
    /// How long this is kept.
    pub const fn days(&self, kept: Kept) -> Days {
        match kept {
            Kept::Runs => self.runs,
            Kept::Logs => self.logs,
            Kept::Artifacts => self.artifacts,
            Kept::Sessions => self.sessions,
            Kept::Audit => self.audit,
        }
    }

    /// How long this is kept for itself: for ever when it goes with its run, and not before.
    fn alone(&self, kept: Kept) -> Days {
        let days = self.days(kept);
        let of_run = matches!(kept, Kept::Logs | Kept::Artifacts) && self.runs != Days::FOREVER;
        if of_run && days >= self.runs {
            Days::FOREVER
        } else {
            days
        }
    }

    /// The same with what an account says.
    #[must_use]
    pub fn with(self, own: &OwnRetention) -> Self {
        Self {
            runs: own.runs.unwrap_or(self.runs),
            logs: own.logs.unwrap_or(self.logs),
            artifacts: own.artifacts.unwrap_or(self.artifacts),
            sessions: own.sessions.unwrap_or(self.sessions),
            audit: own.audit.unwrap_or(self.audit),
        }
    }
}

/// What an account says in place of its installation; `None` where it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnRetention {
    /// See [`Kept::Runs`].
    pub runs: Option<Days>,
    /// See [`Kept::Logs`].
    pub logs: Option<Days>,
    /// See [`Kept::Artifacts`].
    pub artifacts: Option<Days>,
    /// See [`Kept::Sessions`].
    pub sessions: Option<Days>,
    /// See [`Kept::Audit`].
    pub audit: Option<Days>,
}

impl OwnRetention {
    /// What it says of this.
    pub const fn days(&self, kept: Kept) -> Option<Days> {
        match kept {
            Kept::Runs => self.runs,
            Kept::Logs => self.logs,
            Kept::Artifacts => self.artifacts,
            Kept::Sessions => self.sessions,
            Kept::Audit => self.audit,
        }
    }

    /// Says something else of this, or nothing any more.
    pub const fn set(&mut self, kept: Kept, days: Option<Days>) {
        match kept {
            Kept::Runs => self.runs = days,
            Kept::Logs => self.logs = days,
            Kept::Artifacts => self.artifacts = days,
            Kept::Sessions => self.sessions = days,
            Kept::Audit => self.audit = days,
        }
    }
}

/// Of whom that goes which ended before an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Of whom.
    pub accounts: Accounts,
    /// The instant.
    pub before: Timestamp,
}

/// The retention of a whole installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    everybody: Retention,
    own: BTreeMap<AccountId, Retention>,
}

impl Policy {
    /// Of what the installation says, and its accounts.
    pub fn new(everybody: Retention, accounts: impl IntoIterator<Item = (AccountId, OwnRetention)>) -> Self {
        let own = accounts
            .into_iter()
            .map(|(account, own)| (account, everybody.with(&own)));
        Self {
            everybody,
            own: own.filter(|(_, retention)| *retention != everybody).collect(),
        }
    }

    /// How long everything of an account is kept. One that nobody knows is like any other.
    pub fn of(&self, account: AccountId) -> &Retention {
        self.own.get(&account).unwrap_or(&self.everybody)
    }

    /// What goes, one rule for everybody who says nothing else, and one for each other account. No account is under
    /// two of them, and under none is what goes with its run in any case.
    pub fn rules(&self, kept: Kept, now: Timestamp) -> Vec<Rule> {
        let days = self.everybody.alone(kept);
        let others = self.own.iter().filter(|(_, own)| own.alone(kept) != days);
        let others: Vec<_> = others.map(|(account, own)| (*account, own.alone(kept))).collect();
        let but = others.iter().map(|(account, _)| *account).collect();
        let all = std::iter::once((Accounts::AllBut(but), days));
        let each = others.iter().map(|(account, days)| (Accounts::Only(*account), *days));
        let rules = all.chain(each).filter_map(|(accounts, days)| {
            let before = days.cutoff(now)?;
            Some(Rule { accounts, before })
        });
        rules.collect()
    }

    /// What ended before this instant is kept by nobody. `None` while somebody keeps everything.
    pub fn kept_by_nobody(&self, kept: Kept, now: Timestamp) -> Option<Timestamp> {
        let days: BTreeSet<Days> = std::iter::once(&self.everybody)
            .chain(self.own.values())
            .map(|retention| retention.alone(kept))
            .collect();
        let cutoffs: Option<Vec<Timestamp>> = days.into_iter().map(|days| days.cutoff(now)).collect();
        cutoffs?.into_iter().min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn days() -> impl Strategy<Value = Option<Days>> {
        proptest::option::of((0_u32..400).prop_map(Days))
    }

    fn policies() -> impl Strategy<Value = Policy> {
        let own = (days(), days()).prop_map(|(runs, logs)| OwnRetention {
            runs,
            logs,
            ..OwnRetention::default()
        });
        (days(), proptest::collection::vec(own, 0..6)).prop_map(|(everybody, own)| {
            let everybody = Retention {
                runs: everybody.unwrap_or(Days::FOREVER),
                ..Retention::default()
            };
            let accounts = (1..).map(AccountId::new).zip(own);
            Policy::new(everybody, accounts)
        })
    }

    proptest! {
        #[test]
        fn every_account_is_under_the_rule_of_its_own_days(policy in policies(), account in 1_i64..9) {
            let account = AccountId::new(account);
            for kept in Kept::ALL {
                let rules = policy.rules(kept, NOW);
                let mine: Vec<_> = rules.iter().filter(|rule| rule.accounts.has(account)).collect();
                let cutoff = policy.of(account).alone(kept).cutoff(NOW);
                prop_assert_eq!(mine.iter().map(|rule| rule.before).collect::<Vec<_>>(), cutoff.into_iter().collect::<Vec<_>>());
            }
        }

        #[test]
        fn what_nobody_keeps_goes_under_every_rule(policy in policies()) {
            for kept in Kept::ALL {
                if let Some(before) = policy.kept_by_nobody(kept, NOW) {
                    let rules = policy.rules(kept, NOW);
                    prop_assert!(!rules.is_empty() && rules.iter().all(|rule| before <= rule.before));
                    for account in (1..9).map(AccountId::new) {
                        prop_assert!(policy.of(account).alone(kept) != Days::FOREVER);
                    }
                }
            }
        }
    }

    #[test]
    fn an_account_may_keep_for_longer_shorter_or_ever() {
        let own = |runs| OwnRetention {
            runs: Some(Days(runs)),
            ..OwnRetention::default()
        };
        let accounts = [(1, own(10)), (2, own(0)), (3, own(365)), (4, OwnRetention::default())];
        let accounts = accounts.map(|(account, own)| (AccountId::new(account), own));
        let policy = Policy::new(Retention::default(), accounts);
        let rules = policy.rules(Kept::Runs, NOW);
        let whose: Vec<_> = rules.iter().map(|rule| rule.accounts.clone()).collect();
        let others = Accounts::AllBut(vec![AccountId::new(1), AccountId::new(2)]);
        assert_eq!(whose, [others, Accounts::Only(AccountId::new(1))]);
        assert_eq!(policy.kept_by_nobody(Kept::Runs, NOW), None);
        // Of account 2 alone: everybody else's go with their runs.
        let logs: Vec<_> = policy.rules(Kept::Logs, NOW);
        assert_eq!(logs.len(), 1);
        assert_eq!(logs[0].accounts, Accounts::Only(AccountId::new(2)));
        assert_eq!(
            serde_json::from_str::<OwnRetention>(r#"{"runs": 10}"#).unwrap(),
            own(10)
        );
        assert!("-1".parse::<Days>().is_err() && "36501".parse::<Days>().is_err() && "x".parse::<Days>().is_err());
    }
}
