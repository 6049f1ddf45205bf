//! dbtcloud's artifacts on any store that [opendal](https://opendal.apache.org) speaks.
//!
//! [`OpendalArtifacts`] owns the layout of keys and what a put guarantees; which store it is, and with what
//! retries and time-outs, is the embedder's choice of [`opendal::Operator`].

mod artifacts;
mod failure;
mod layout;

pub use artifacts::OpendalArtifacts;
