//! dbtcloud on one machine: [`LocalExecutor`] runs executions as processes, [`DirectoryVolume`] keeps
//! volumes as directories.
//!
//! This room touches processes and directories and decides nothing. It reads no environment and installs
//! nothing in the process that embeds it; what it knows is in the directory it was given, so that any
//! process that opens the same directory sees and ends the same executions.

mod directory;
mod executor;
mod lock;
mod processes;
mod spec;
mod supervisor;
mod tree;
mod volume;

pub use executor::LocalExecutor;
pub use volume::DirectoryVolume;
