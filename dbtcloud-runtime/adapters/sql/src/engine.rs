//! The two engines behind one face. A statement is an [`Sql`], its arguments are [`Value`]s, what comes
//! back is a [`Row`]; the ports know nothing else of either database.

mod link;
mod list;
mod options;
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
mod value;
#[cfg(feature = "sqlite")]
mod writer;

pub(crate) use link::{Link, Row};
pub(crate) use list::{Conditions, page};
pub use options::{Engine, Options};
pub(crate) use pool::Database;
pub(crate) use value::Value;

/// One statement in both dialects. Parameters are `$1`, `$2`, … in both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sql {
    /// For PostgreSQL.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) postgres: &'static str,
    /// For SQLite.
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(crate) sqlite: &'static str,
}

impl Sql {
    /// The same text for both.
    pub(crate) const fn both(text: &'static str) -> Self {
        Self {
            postgres: text,
            sqlite: text,
        }
    }

    /// A text for each.
    pub(crate) const fn each(postgres: &'static str, sqlite: &'static str) -> Self {
        Self { postgres, sqlite }
    }

    /// The text for one of them.
    pub(crate) const fn on(&self, engine: Engine) -> &'static str {
        match engine {
            Engine::Postgres => self.postgres,
            Engine::Sqlite => self.sqlite,
        }
    }
}

/// The arguments of a statement, each turned into a [`Value`].
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::engine::Value::from($value)),*] };
}
pub(crate) use args;
