//! The domain of dbtcloud: nouns, states, rules and ports.
//!
//! This crate decides and never acts. It performs no I/O, reads no clock and no environment: `now` is an
//! argument, the outside world is a trait in [`ports`]. What a port *means* is the contract suite in
//! `dbtcloud-contract`, which every adapter passes.
//!
//! Invariants held here:
//! - every lookup names the account it is for ([`id::AccountId`] is a parameter, never a remembered filter);
//! - a state changes only through `apply` ([`run::RunStatus::apply`], [`run::StepStatus::apply`],
//!   [`session::SessionStatus::apply`]); terminal states absorb;
//! - plain secrets exist only inside [`secret::Secret`], which prints as `***`; what is stored is
//!   [`secret::Sealed`].

pub mod account;
pub mod audit;
pub mod catalog;
pub mod connection;
pub mod environment;
pub mod error;
pub mod failpoint;
pub mod id;
pub mod job;
pub mod notification;
pub mod page;
pub mod ports;
pub mod project;
pub mod retention;
pub mod run;
pub mod schedule;
pub mod secret;
pub mod session;
pub mod time;
pub mod variable;
pub mod webhook;

pub use error::{Error, ErrorKind, Result};
pub use page::{Direction, Page, Paged};
pub use time::Timestamp;
