//! Executions as real processes: what the contract asks for, with the processes killed that can be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod belonging;
mod cancel;
mod contract;
mod ends;
mod start;
mod support;
