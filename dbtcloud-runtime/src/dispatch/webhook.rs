//! Webhooks: signed posts to URLs that people entered. They reach only addresses that the operator allows, follow no
//! redirect, read no more than the beginning of an answer, and take no longer than [`ANSWER_LIMIT`].

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use dbtcloud_core::catalog::{CatalogExt, Record};
use dbtcloud_core::id::{AccountId, WebhookId};
use dbtcloud_core::ports::{Addressee, Dispatch, DispatchState, Try};
use dbtcloud_core::secret::Secret;
use dbtcloud_core::webhook::{FAILURES_TO_DEACTIVATE, HookEvent, Webhook};
use dbtcloud_core::{Error, ErrorKind, Result, Timestamp};
use hmac::{Hmac, Mac};
use http_body_util::BodyExt;
use rand::TryRngCore;
use sha2::Sha256;

use super::{Carried, payload};
use crate::ControlPlane;
use crate::dial::{Client, Dialer, Reach};
use crate::plan::context;

/// How long an endpoint may take to answer, connecting included (dbt Cloud's rule).
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How much of an answer is kept.
pub const ANSWER_LIMIT_BYTES: usize = 4 * 1024;
/// Random bytes of a signing secret.
const SECRET_BYTES: usize = 32;

/// What an endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of the answer; none when there was none.
    pub code: Option<u16>,
    /// What went wrong; empty for a 2xx.
    pub error: String,
    /// The beginning of the answer's body.
    pub text: String,
}

/// Posts to webhooks.
#[derive(Clone, Debug)]
pub struct Webhooks {
    client: Client,
    reach: Reach,
}

impl Webhooks {
    /// Connections are opened by `dialer`: it says which addresses may be reached, and whom to believe.
    ///
    /// ```
    /// use dbtcloud_runtime::dial::{Dialer, Reach};
    /// use dbtcloud_runtime::dispatch::Webhooks;
    /// let webhooks = Webhooks::new(Dialer::plain().within(Reach::Private));
    /// # drop(webhooks);
    /// ```
    pub fn new(dialer: Dialer) -> Self {
        Self {
            reach: dialer.reach(),
            client: dialer.client(),
        }
    }

    /// Looks at a URL that somebody entered: `Ok` when it can be one of a webhook, and otherwise what was expected. Where
    /// its name leads is looked at when it is used.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn check(url: &str, webhooks: Option<&Self>) -> std::result::Result<(), String> {
        let expected = || "expected a URL such as https://example.com/hook, without user and password".to_owned();
        let url = url::Url::parse(url).map_err(|_| expected())?;
        if !["http", "https"].contains(&url.scheme()) || !url.username().is_empty() || url.password().is_some() {
            return Err(expected());
        }
        let address: Option<IpAddr> = match url.host().ok_or_else(expected)? {
            url::Host::Domain("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
            url::Host::Domain(_) => None,
            url::Host::Ipv4(address) => Some(address.into()),
            url::Host::Ipv6(address) => Some(address.into()),
        };
        let reach = webhooks.map_or(Reach::Any, |webhooks| webhooks.reach);
        match address {
            Some(address) if !reach.allows(address) => Err(format!(
                "expected an address that webhooks may lead to; this server allows {} ones (webhook_targets)",
                reach.name()
            )),
            _ => Ok(()),
        }
    }

    /// What a webhook is sent to try it out: the event's id and the body.
    pub fn sample(hook: &Record<Webhook>, event: HookEvent, at: Timestamp) -> (String, String) {
        let (id, body) = payload::sample(hook, event, at);
        (id, body.to_string())
    }

    /// A new signing secret.
    ///
    /// # Errors
    /// `Unavailable` when the machine has no randomness.
    pub fn new_secret() -> Result<Secret> {
        let mut bytes = [0; SECRET_BYTES];
        rand::rngs::OsRng
            .try_fill_bytes(&mut bytes)
            .map_err(|e| Error::unavailable("no randomness for a secret").because(e))?;
        Ok(Secret::new(hex::encode(bytes)))
    }

    /// What stands in `Authorization`: the lower-case hex HMAC-SHA256 of the body.
    ///
    /// ```
    /// use dbtcloud_core::secret::Secret;
    /// let signature = dbtcloud_runtime::dispatch::Webhooks::signature(&Secret::new("key"), b"body");
    /// assert_eq!(signature.len(), 64);
    /// ```
    pub fn signature(secret: &Secret, body: &[u8]) -> String {
        match Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) {
            Ok(mut mac) => {
                mac.update(body);
                hex::encode(mac.finalize().into_bytes())
            }
            // A key of any length is one.
            Err(_) => String::new(),
        }
    }

    /// Posts once. What goes wrong stands in the answer.
    pub async fn post(&self, url: &str, secret: &Secret, body: &str) -> Answer {
        let failed = |code, error: String| Answer {
            code,
            error,
            text: String::new(),
        };
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("dbtcloud/", env!("CARGO_PKG_VERSION")))
            .header(AUTHORIZATION, Self::signature(secret, body.as_bytes()))
            .body(Body::from(body.to_owned()));
        let Ok(request) = request else {
            return failed(None, "the URL is none".to_owned());
        };
        let ended = tokio::time::Instant::now() + ANSWER_LIMIT;
        let answer = match tokio::time::timeout_at(ended, self.client.request(request)).await {
            Err(_) => return failed(None, format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
            Ok(Err(error)) => return failed(None, told(&error)),
            Ok(Ok(answer)) => answer,
        };
        let status = answer.status();
        let text = beginning(answer.into_body(), ended).await;
        let error = match status.as_u16() {
            200..=299 => String::new(),
            300..=399 => format!("answered {status}; redirects are not followed"),
            _ => format!("answered {status}"),
        };
        Answer {
            code: Some(status.as_u16()),
            error,
            text,
        }
    }
}

/// The beginning of a body, as far as it comes in time; the rest is not read.
async fn beginning(mut body: hyper::body::Incoming, ended: tokio::time::Instant) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_LIMIT_BYTES {
        match tokio::time::timeout_at(ended, body.frame()).await {
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Ok(None | Some(Err(_))) | Err(_) => break,
        }
    }
    bytes.truncate(ANSWER_LIMIT_BYTES);
    String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}")
}

/// An error and what is behind it, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line.replace('\0', "\u{fffd}")
}

/// Sends one dispatch to its webhook, as that is now.
pub(super) async fn carry(plane: &ControlPlane, hook: WebhookId, dispatch: &Dispatch) -> Result<Carried> {
    let hook = match plane.catalog().fetch::<Webhook>(dispatch.account, hook).await {
        Ok(hook) if hook.active => hook,
        Ok(_) => return Ok(Carried::Unwanted("the webhook is not active".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Carried::Unwanted("the webhook was deleted".to_owned()));
        }
        Err(error) => return Err(error),
    };
    let Some(webhooks) = plane.webhooks() else {
        return Err(Error::unavailable("this process sends no webhooks"));
    };
    let at = plane.clock().now();
    let answer = match plane.vault()?.open(context::WEBHOOK, &hook.secret).await {
        Ok(secret) => webhooks.post(&hook.url, &secret, &dispatch.body).await,
        Err(error) => Answer {
            code: None,
            error: format!("the webhook's secret cannot be opened: {error}"),
            text: String::new(),
        },
    };
    Ok(Carried::Tried(Try {
        at,
        code: answer.code,
        error: answer.error,
        answer: answer.text,
    }))
}

/// Stops a webhook after too many failed deliveries in a row (dbt Cloud's rule).
pub(super) async fn deactivate(plane: &ControlPlane, account: AccountId, hook: WebhookId) -> Result<()> {
    let last = plane
        .dispatches()
        .last_tries(Addressee::Webhook(hook), true, FAILURES_TO_DEACTIVATE)
        .await?;
    let mut hook = match plane.catalog().fetch::<Webhook>(account, hook).await {
        Ok(hook) if hook.active => hook,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let since = hook.active_since;
    let failed = last.iter().filter(|sent| {
        let at = sent.last.as_ref().map(|tried| tried.at);
        sent.state == DispatchState::Failed && at.is_some_and(|at| at >= since)
    });
    if failed.count() < FAILURES_TO_DEACTIVATE as usize {
        return Ok(());
    }
    let error = last
        .first()
        .and_then(|sent| sent.last.as_ref())
        .map(|tried| tried.error.as_str());
    hook.body.active = false;
    hook.body.deactivated = Some(format!(
        "Deactivated after {FAILURES_TO_DEACTIVATE} failed deliveries in a row; the last one: {}",
        error.unwrap_or_default()
    ));
    match plane.catalog().save(&hook, plane.clock().now()).await {
        Ok(_) => {
            tracing::warn!(
                account_id = account.get(),
                webhook = hook.id.get(),
                "webhook deactivated after failed deliveries in a row"
            );
            Ok(())
        }
        // Somebody edits it; the next failure looks again.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        Err(error) => Err(error),
    }
}
