use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::ports::Vault;
use dbtcloud_core::secret::{Sealed, Secret};

/// A vault that marks and does **not** encrypt: for tests only. It keeps every other promise of the port:
/// context and envelope are checked, every envelope is another one, keys have names and can be unknown.
#[derive(Clone, Debug)]
pub struct TransparentVault {
    current: String,
    known: Vec<String>,
    count: Arc<AtomicU64>,
}

impl TransparentVault {
    /// A vault whose only key has this name.
    pub fn new(key: &str) -> Self {
        Self {
            current: key.to_owned(),
            known: vec![key.to_owned()],
            count: Arc::default(),
        }
    }

    /// The same vault with another current key; the old ones stay known.
    #[must_use]
    pub fn rotated(&self, key: &str) -> Self {
        let mut known = self.known.clone();
        known.push(key.to_owned());
        Self {
            current: key.to_owned(),
            known,
            count: Arc::clone(&self.count),
        }
    }
}

/// FNV-1a; notices an accident, not an attacker.
fn checksum(parts: &[&str]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    sum
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<String> {
    let digits = text
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(digits.collect::<Option<Vec<u8>>>()?).ok()
}

#[async_trait]
impl Vault for TransparentVault {
    async fn seal(&self, context: &str, secret: &Secret) -> Result<Sealed> {
        let count = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let body = hex(secret.expose().as_bytes());
        let sum = checksum(&[&self.current, &count, context, &body]);
        Ok(Sealed::new(format!(
            "transparent.{}.{count}.{sum:016x}.{body}",
            hex(self.current.as_bytes())
        )))
    }

    async fn open(&self, context: &str, sealed: &Sealed) -> Result<Secret> {
        let bad = || Error::corrupt("the envelope is not what was sealed");
        let parts: Vec<&str> = sealed.envelope().split('.').collect();
        let ["transparent", key, count, sum, body] = parts.as_slice() else {
            return Err(bad());
        };
        let key = unhex(key).ok_or_else(bad)?;
        if !self.known.contains(&key) {
            return Err(Error::unavailable("the envelope's key is not known here"));
        }
        if *sum != format!("{:016x}", checksum(&[&key, count, context, body])) {
            return Err(bad());
        }
        Ok(Secret::new(unhex(body).ok_or_else(bad)?))
    }
}
