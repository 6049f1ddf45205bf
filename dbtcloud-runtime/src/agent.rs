//! The agent of a run (being written).
