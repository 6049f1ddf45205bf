//! What runs in dbtcloud: the scheduler, the driver and the agent of a run, the dbt engine, background
//! cleanup, and [`ControlPlane`], which puts them together over the ports of `dbtcloud-core`.
//!
//! This crate acts on what core decides. It names no adapter, reads no environment and no wall clock but
//! the one it is given, installs no subscriber, and may be instantiated more than once in a process.

pub mod agent;
pub mod blueprint;
pub mod census;
pub mod cleanup;
pub mod clock;
pub mod config;
mod desk;
pub mod dial;
pub mod dispatch;
mod driver;
pub mod engine;
pub mod lineage;
pub mod metrics;
pub mod outbox;
pub mod plan;
pub mod plane;
pub mod protocol;
pub mod scheduler;
mod segment;
pub mod trace;
pub mod vault;
mod wakeups;

pub use blueprint::Blueprint;
pub use config::{AgentLaunch, Config};
pub use plane::{Builder, ControlPlane, LiveCursor, LiveEvent, NotRetryable, Roles, Running};
