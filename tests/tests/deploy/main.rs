//! What is under `examples/deploy`: rendered by the programs that operators use, held to the binary's own words and to
//! what a restricted cluster lets in. Nothing here needs a cluster; those that do are in `tests/tests/kubernetes`.

mod chart;
mod others;
mod pods;
mod refused;
mod render;
mod settings;
