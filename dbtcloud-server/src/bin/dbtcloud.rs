//! The `dbtcloud` binary.
fn main() {}
