use async_trait::async_trait;

use crate::error::Result;
use crate::secret::{Sealed, Secret};

/// Seals secrets so that storage never holds a plain one.
#[async_trait]
pub trait Vault: Send + Sync {
    /// Seals a secret with the current key. `context` (for example `connection.password`) is bound into the
    /// envelope: it must be the same when it is opened. Two calls give two different envelopes.
    async fn seal(&self, context: &str, secret: &Secret) -> Result<Sealed>;

    /// Opens what `seal` sealed, also with a key that has been rotated out but is still known.
    ///
    /// Errors: `Corrupt` when the envelope or the context is not what was sealed; `Unavailable` when the
    /// key it names is not known here (a person must supply it).
    async fn open(&self, context: &str, sealed: &Sealed) -> Result<Secret>;
}
