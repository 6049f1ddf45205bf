//! Bad input, from people and from the world around: each gets one message that says what to do, and nothing else is
//! disturbed. Object stores are in `outage.rs`, databases of other versions also in `database/upgrade.rs`.

mod platform;
mod requests;
