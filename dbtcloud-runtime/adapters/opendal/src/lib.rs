//! dbtcloud's artifacts on any store that [opendal](https://opendal.apache.org) speaks.
//!
//! [`OpendalArtifacts`] owns the layout of keys and what a put guarantees. Which store it is a URL says, and
//! [`Options`] with what credentials; or an embedder brings an [`opendal::Operator`] with its own layers.

mod artifacts;
mod failure;
mod files;
mod layout;
mod place;
mod transport;

pub use artifacts::OpendalArtifacts;
pub use files::Files;
pub use place::Options;
