//! What dbtcloud's ports mean, executable.
//!
//! - [`memory`]: the model of every port, in memory: exact and simple;
//! - [`suite`]: one suite of cases per port; every adapter passes the same cases, the memory ones too;
//! - [`faults`]: wrappers that fail before, fail after and repeat calls, from a seed;
//! - [`wait`]: polling in place of sleeping.
//!
//! This crate is for tests, benchmarks and examples. It must never be part of a release build.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test-support library: to fail loudly at the first surprise is what it is for"
)]

pub mod faults;
pub mod memory;
pub mod suite;
pub mod wait;

#[doc(hidden)]
pub use dbtcloud_core::ports;
