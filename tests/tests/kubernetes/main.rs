//! What runs on a Kubernetes cluster. `tests/run kubernetes` brings one up; with `KUBECONFIG` set it takes that one.

mod chart;
mod doctor;
mod executor;
mod failures;
mod faults;
mod many;
mod origin;
mod rights;
mod smoke;
mod spoiled;
mod stage;
mod story;
mod volume;
mod world;
