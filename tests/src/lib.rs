//! What the tests across crates share: a private PostgreSQL, S3 and Azure server, and installations of the real
//! binary.

pub mod api;
pub mod azure;
pub mod between;
pub mod cluster;
pub mod disk;
pub mod fake;
pub mod hooks;
mod http;
pub mod installation;
pub mod postgres;
pub mod processes;
pub mod project;
pub mod released;
pub mod s3;
pub mod scrape;
pub mod server;
mod shared;
pub mod smtp;
pub mod tls;

/// The snippets of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
