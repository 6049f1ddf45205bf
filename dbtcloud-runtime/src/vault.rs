//! Envelope encryption of secrets: XChaCha20-Poly1305 with a keyring that can be rotated.
//!
//! An envelope is `v1.<key id>.<base64 of nonce and ciphertext>`; the context is authenticated with it.
//! Rotation: put a new key in front of the ring; old envelopes stay readable while their key is in the ring.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use dbtcloud_core::ports::Vault;
use dbtcloud_core::secret::{Sealed, Secret};
use dbtcloud_core::{Error, ErrorKind, Result};
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const VERSION: &str = "v1";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// The digits of a key's id.
const ID_DIGITS: usize = 8;
/// Keys a ring may hold.
pub const KEY_LIMIT: usize = 32;

/// A vault whose keys are in memory.
pub struct KeyringVault {
    /// The first is current; each with its id, the first 8 hex digits of its SHA-256.
    keys: Vec<(String, XChaCha20Poly1305)>,
}

impl std::fmt::Debug for KeyringVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl KeyringVault {
    /// A ring from text: one key a line, 32 bytes in base64, the current one first. Blank lines and lines
    /// that begin with `#` are passed over.
    ///
    /// # Errors
    /// `Invalid`, naming the line, without its content.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let expected = || Error::invalid("key", format!("line {number}: expected {KEY_BYTES} bytes in base64"));
            let bytes = Zeroizing::new(STANDARD.decode(line).map_err(|_| expected())?);
            if bytes.len() != KEY_BYTES {
                return Err(expected());
            }
            let id = hex::encode(&Sha256::digest(&*bytes)[..ID_DIGITS / 2]);
            keys.push((id, XChaCha20Poly1305::new(Key::from_slice(&bytes))));
        }
        if keys.is_empty() || keys.len() > KEY_LIMIT {
            return Err(Error::invalid(
                "key",
                format!("expected 1 to {KEY_LIMIT} keys, got {}", keys.len()),
            ));
        }
        Ok(Self { keys })
    }

    /// The text of a new key, for a key file.
    ///
    /// # Errors
    /// `Unavailable` when the operating system has no randomness.
    pub fn generate() -> Result<Secret> {
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        fill(&mut *key)?;
        Ok(Secret::new(STANDARD.encode(*key)))
    }
}

impl KeyringVault {
    /// Ids of the keys, the current one's first.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(id, _)| id.as_str())
    }
}

/// Ids of the keys that sealed what stands in a text, where a text is, or is JSON that has, an envelope; some may be
/// told more than once.
pub fn key_ids(text: &str) -> impl Iterator<Item = &str> {
    let begins = |at: usize| at == 0 || text.as_bytes()[at - 1] == b'"';
    text.match_indices("v1.")
        .filter(move |(at, _)| begins(*at))
        .filter_map(|(at, version)| {
            let (id, body) = text[at + version.len()..].split_once('.')?;
            let is_id = id.len() == ID_DIGITS && id.bytes().all(|c| c.is_ascii_hexdigit());
            let body = body.split('"').next()?;
            let sealed = STANDARD
                .decode(body)
                .is_ok_and(|bytes| bytes.len() >= NONCE_BYTES + TAG_BYTES);
            (is_id && sealed).then_some(id)
        })
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    rand::rngs::OsRng
        .try_fill_bytes(bytes)
        .map_err(|e| Error::unavailable("the operating system's randomness").because(e.to_string()))
}

/// A random text of `bytes` bytes of the operating system's randomness, safe in URLs and headers.
///
/// # Errors
/// `Unavailable` when the operating system has no randomness.
pub fn random_token(bytes: usize) -> Result<Secret> {
    let mut token = Zeroizing::new(vec![0u8; bytes]);
    fill(&mut token)?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(&*token)))
}

#[async_trait]
impl Vault for KeyringVault {
    async fn seal(&self, context: &str, secret: &Secret) -> Result<Sealed> {
        let (id, cipher) = self
            .keys
            .first()
            .ok_or_else(|| Error::unavailable("vault has no key"))?;
        let mut nonce = [0u8; NONCE_BYTES];
        fill(&mut nonce)?;
        let payload = Payload {
            msg: secret.expose().as_bytes(),
            aad: context.as_bytes(),
        };
        let sealed = cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| Error::new(ErrorKind::Invalid, "secret cannot be sealed"))?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&sealed);
        Ok(Sealed::new(format!("{VERSION}.{id}.{}", STANDARD.encode(bytes))))
    }

    async fn open(&self, context: &str, sealed: &Sealed) -> Result<Secret> {
        let broken = || Error::corrupt(format!("sealed secret ({context}) is not what was sealed"));
        let mut parts = sealed.envelope().splitn(3, '.');
        let (version, id, body) = match (parts.next(), parts.next(), parts.next()) {
            (Some(version), Some(id), Some(body)) => (version, id, body),
            _ => return Err(broken()),
        };
        if version != VERSION {
            return Err(broken());
        }
        let (_, cipher) = self.keys.iter().find(|(known, _)| known == id).ok_or_else(|| {
            Error::unavailable(format!(
                "key {id} that sealed a secret ({context}) is not in the key file"
            ))
        })?;
        let bytes = STANDARD.decode(body).map_err(|_| broken())?;
        if bytes.len() < NONCE_BYTES {
            return Err(broken());
        }
        let (nonce, text) = bytes.split_at(NONCE_BYTES);
        let payload = Payload {
            msg: text,
            aad: context.as_bytes(),
        };
        let plain = cipher
            .decrypt(XNonce::from_slice(nonce), payload)
            .map_err(|_| broken())?;
        String::from_utf8(plain).map(Secret::new).map_err(|_| broken())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn rotation_keeps_old_envelopes_readable_and_a_lost_key_says_which() {
        let (old, new) = (KeyringVault::generate().unwrap(), KeyringVault::generate().unwrap());
        let before = KeyringVault::from_text(old.expose()).unwrap();
        let sealed = before
            .seal("connection.password", &Secret::new("hunter2"))
            .await
            .unwrap();
        assert!(!sealed.envelope().contains("hunter2"));
        let both = KeyringVault::from_text(&format!("{}\n{}", new.expose(), old.expose())).unwrap();
        assert_eq!(
            both.open("connection.password", &sealed).await.unwrap().expose(),
            "hunter2"
        );
        let only_new = KeyringVault::from_text(new.expose()).unwrap();
        let error = only_new.open("connection.password", &sealed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn an_envelope_is_bound_to_its_context_and_to_every_bit() {
        let vault = KeyringVault::from_text(KeyringVault::generate().unwrap().expose()).unwrap();
        let sealed = vault.seal("a", &Secret::new("s")).await.unwrap();
        assert_eq!(vault.open("b", &sealed).await.unwrap_err().kind(), ErrorKind::Corrupt);
        let mut text = sealed.envelope().to_owned();
        let last = text.pop().unwrap();
        text.push(if last == 'A' { 'B' } else { 'A' });
        assert!(vault.open("a", &Sealed::new(text)).await.is_err());
    }

    #[tokio::test]
    async fn the_keys_of_envelopes_are_found_and_nothing_else_is() {
        let vault = KeyringVault::from_text(KeyringVault::generate().unwrap().expose()).unwrap();
        let id = vault.key_ids().next().unwrap().to_owned();
        let sealed = vault.seal("a", &Secret::new("s")).await.unwrap();
        let json = serde_json::json!({"name": "v1.", "other": "v1.00000000.x", "password": sealed}).to_string();
        assert_eq!(key_ids(&json).collect::<Vec<_>>(), [&id]);
        assert_eq!(key_ids(sealed.envelope()).collect::<Vec<_>>(), [&id]);
        let quoted = format!("see {}", sealed.envelope());
        assert_eq!(key_ids(&quoted).count(), 0, "an envelope begins where its text does");
    }

    #[test]
    fn a_bad_key_file_names_the_line_and_not_its_content() {
        let error = KeyringVault::from_text("# key\nnot-a-key").unwrap_err();
        assert!(error.to_string().contains("line 2"));
        assert!(!error.to_string().contains("not-a-key"));
    }
}
