//! The API over the memory adapters, in process: what published clients send, and what they must get.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails loudly at the first surprise"
)]

#[path = "api/world.rs"]
mod world;

#[path = "api/audit.rs"]
mod audit;
#[path = "api/auth.rs"]
mod auth;
#[path = "api/bad_input.rs"]
mod bad_input;
#[path = "api/contracts.rs"]
mod contracts;
#[path = "api/golden.rs"]
mod golden;
#[path = "api/live.rs"]
mod live;
#[path = "api/mounting.rs"]
mod mounting;
#[path = "api/notifications.rs"]
mod notifications;
#[path = "api/runs.rs"]
mod runs;
#[path = "api/variables.rs"]
mod variables;
#[path = "api/webhooks.rs"]
mod webhooks;
