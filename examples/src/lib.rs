//! Runnable examples; see the targets in `Cargo.toml`.
