//! What the tests across crates share: a private PostgreSQL, and installations of the real binary.

pub mod api;
pub mod installation;
pub mod postgres;
pub mod processes;
pub mod project;
pub mod scrape;

/// The snippets of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
