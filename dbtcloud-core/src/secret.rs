//! Secrets: plain ones in memory, sealed ones at rest.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A plain secret. It prints as `***`, is wiped when dropped, and has no `Serialize` on purpose.
///
/// ```
/// use dbtcloud_core::secret::Secret;
/// let secret = Secret::new("hunter2");
/// assert_eq!(format!("{secret:?}"), "***");
/// assert_eq!(secret.expose(), "hunter2");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The plain value, for the one place that must hand it on.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A secret as it is stored: the vault's envelope (key id, nonce, ciphertext) as text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl Sealed {
    /// Wraps a vault's envelope.
    pub fn new(envelope: impl Into<String>) -> Self {
        Self(envelope.into())
    }

    /// The envelope, for the vault that opens it.
    pub fn envelope(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sealed(***)")
    }
}
