//! What [`Vault`] means.

use std::collections::BTreeSet;
use std::sync::Arc;

use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::ports::Vault;
use dbtcloud_core::secret::{Sealed, Secret};

use super::samples::{ODD_TEXT, kind};

cases! { $ vault_cases, vault, Vaults:
    what_was_sealed_opens,
    odd_secrets_come_back_as_they_went,
    an_envelope_does_not_show_the_secret,
    two_envelopes_are_never_alike,
    another_context_is_corrupt,
    garbage_is_corrupt,
    a_changed_envelope_never_opens_as_another_secret,
    a_rotated_out_key_still_opens,
    a_rotated_vault_seals_with_the_new_key,
    an_unknown_key_is_unavailable,
    an_envelope_survives_json,
}

/// The vaults of one story.
#[derive(Clone)]
pub struct Vaults {
    /// A vault with one key.
    pub vault: Arc<dyn Vault>,
    /// The same after a rotation: it has a new current key and knows the old one.
    pub rotated: Arc<dyn Vault>,
    /// A vault that knows neither of these keys.
    pub stranger: Arc<dyn Vault>,
}

const CONTEXT: &str = "connection.password";

async fn what_was_sealed_opens(vaults: Vaults) {
    let sealed = vaults.vault.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
    assert_eq!(vaults.vault.open(CONTEXT, &sealed).await.unwrap().expose(), "hunter2");
    assert_eq!(
        vaults.vault.open(CONTEXT, &sealed).await.unwrap().expose(),
        "hunter2",
        "as often as needed"
    );
}

async fn odd_secrets_come_back_as_they_went(vaults: Vaults) {
    for text in [
        "",
        " ",
        "\0",
        ODD_TEXT,
        &"k".repeat(100_000),
        "-----BEGIN KEY-----\nAAAA\n",
    ] {
        let sealed = vaults.vault.seal("", &Secret::new(text)).await.unwrap();
        assert_eq!(vaults.vault.open("", &sealed).await.unwrap().expose(), text);
    }
}

async fn an_envelope_does_not_show_the_secret(vaults: Vaults) {
    let sealed = vaults
        .vault
        .seal(CONTEXT, &Secret::new("correct-horse-battery"))
        .await
        .unwrap();
    assert!(!sealed.envelope().contains("horse"));
    assert!(!format!("{sealed:?}").contains(sealed.envelope()));
    assert!(
        !sealed.envelope().contains('\0'),
        "an envelope is text that a database can keep"
    );
}

async fn two_envelopes_are_never_alike(vaults: Vaults) {
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let sealed = vaults.vault.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
        seen.insert(sealed.envelope().to_owned());
    }
    assert_eq!(seen.len(), 100);
}

async fn another_context_is_corrupt(vaults: Vaults) {
    let sealed = vaults.vault.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
    for context in ["", "connection.passwor", "connection.password ", "repository.token"] {
        assert_eq!(
            kind(vaults.vault.open(context, &sealed).await),
            ErrorKind::Corrupt,
            "{context:?}"
        );
    }
}

async fn garbage_is_corrupt(vaults: Vaults) {
    for text in ["", "x", "....", "hunter2", "{}", ODD_TEXT] {
        assert_eq!(
            kind(vaults.vault.open(CONTEXT, &Sealed::new(text)).await),
            ErrorKind::Corrupt,
            "{text:?}"
        );
    }
}

async fn a_changed_envelope_never_opens_as_another_secret(vaults: Vaults) {
    let sealed = vaults.vault.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
    let envelope: Vec<char> = sealed.envelope().chars().collect();
    let mut changed = Vec::new();
    for index in 0..envelope.len() {
        let mut other = envelope.clone();
        other[index] = if other[index] == 'A' { 'B' } else { 'A' };
        changed.push(other.iter().collect::<String>());
        changed.push(envelope[..index].iter().collect());
    }
    for text in changed {
        match vaults.vault.open(CONTEXT, &Sealed::new(text.clone())).await {
            // Unused bits of an encoding may differ; the secret may not.
            Ok(secret) => assert_eq!(secret.expose(), "hunter2", "{text}"),
            // The name of the key is part of the envelope.
            Err(error) => {
                assert!(
                    [ErrorKind::Corrupt, ErrorKind::Unavailable].contains(&error.kind()),
                    "{text}: {error}"
                );
            }
        }
    }
}

async fn a_rotated_out_key_still_opens(vaults: Vaults) {
    let old = vaults.vault.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
    assert_eq!(vaults.rotated.open(CONTEXT, &old).await.unwrap().expose(), "hunter2");
    assert_eq!(kind(vaults.rotated.open("other", &old).await), ErrorKind::Corrupt);
}

async fn a_rotated_vault_seals_with_the_new_key(vaults: Vaults) {
    let new = vaults.rotated.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
    assert_eq!(vaults.rotated.open(CONTEXT, &new).await.unwrap().expose(), "hunter2");
    let by_old = vaults.vault.open(CONTEXT, &new).await;
    assert_eq!(
        kind(by_old),
        ErrorKind::Unavailable,
        "who has not got the new key yet cannot open it yet"
    );
}

async fn an_unknown_key_is_unavailable(vaults: Vaults) {
    let sealed = vaults.vault.seal(CONTEXT, &Secret::new("hunter2")).await.unwrap();
    assert_eq!(
        kind(vaults.stranger.open(CONTEXT, &sealed).await),
        ErrorKind::Unavailable
    );
}

async fn an_envelope_survives_json(vaults: Vaults) {
    let sealed = vaults.vault.seal(CONTEXT, &Secret::new(ODD_TEXT)).await.unwrap();
    let text = serde_json::to_string(&sealed).unwrap();
    let back: Sealed = serde_json::from_str(&text).unwrap();
    assert_eq!(vaults.vault.open(CONTEXT, &back).await.unwrap().expose(), ODD_TEXT);
}
