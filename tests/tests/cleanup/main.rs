//! Background cleanup, chore by chore: it converges, it is idempotent, one that fails holds up no other, and a dry run
//! changes nothing.

mod chores;
mod flush;
mod orphans;
mod process;
mod retention;
mod stage;
