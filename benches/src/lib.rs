//! What the benchmarks share: figures, the release build of the server, and programs to be measured.
//!
//! A figure is never printed alone: its yardstick ran beside it, in turns, in the same process of the same
//! machine, and the ratio is the median of the pairs' ratios. Absolute figures drift with the machine.

pub mod figures;
pub mod pgbench;
pub mod program;
pub mod queueing;
pub mod server;
