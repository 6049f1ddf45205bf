//! The first account, its administrator and a token, so that there is somebody who may ask for the rest.

use dbtcloud_core::account::{Account, Token, TokenOwner, User};
use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt, Kind, Record};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::ports::Catalog;
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};
use rand::TryRngCore;

use crate::auth::digest;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// What a user's token begins with, so that a scanner can find one that leaked.
const TOKEN_PREFIX: &str = "dbtu_";

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Name of the account.
    pub account: String,
    /// Login of the administrator.
    pub email: String,
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
}

/// What was made. The token is nowhere else.
#[derive(Debug)]
pub struct Bootstrapped {
    /// The account.
    pub account: Record<Account>,
    /// The administrator.
    pub user: Record<User>,
    /// The token, in the only copy there is.
    pub token: Secret,
}

/// A new token text.
///
/// # Errors
/// `Unavailable` when the operating system has no randomness.
pub fn new_token() -> Result<Secret> {
    let mut bytes = [0u8; TOKEN_BYTES];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::unavailable("the operating system gave no randomness").because(error))?;
    Ok(Secret::new(format!("{TOKEN_PREFIX}{}", hex::encode(bytes))))
}

impl Bootstrap {
    /// Makes account, administrator and token; `None` when there is an account already, and then nothing is
    /// changed.
    ///
    /// # Errors
    /// Those of storage.
    pub async fn run(&self, catalog: &dyn Catalog, now: Timestamp) -> Result<Option<Bootstrapped>> {
        if self.email.trim().is_empty() || !self.email.contains('@') {
            return Err(Error::invalid("email", "expected an address"));
        }
        if !catalog.scan(Kind::Account, 0, 1).await?.is_empty() {
            return Ok(None);
        }
        let account = catalog
            .create_by(
                &Actor::Operator,
                AccountId::new(0),
                &Account::new(self.account.clone()),
                now,
            )
            .await?;
        let user = User {
            email: self.email.clone(),
            first_name: self.first_name.clone(),
            last_name: self.last_name.clone(),
            is_admin: true,
        };
        let user = match catalog.create_by(&Actor::Operator, account.id, &user, now).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::invalid("email", "expected an address that no other user has"));
            }
            other => other?,
        };
        let token = new_token()?;
        let record = Token {
            name: "bootstrap".to_owned(),
            owner: TokenOwner::User { user: user.id },
            digest: digest(token.expose()),
            expires_at: None,
        };
        catalog.create_by(&Actor::Operator, account.id, &record, now).await?;
        Ok(Some(Bootstrapped { account, user, token }))
    }
}
