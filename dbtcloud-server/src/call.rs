//! One authenticated request: who asks, of which account, with what parameters and body.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use dbtcloud_core::Timestamp;
use dbtcloud_core::id::{AccountId, ProjectId};
use dbtcloud_runtime::ControlPlane;
use dbtcloud_runtime::trace::Context;
use serde_json::{Map, Value};

use crate::App;
use crate::auth::{Identity, Right, token_in};
use crate::forwarded::Origin;
use crate::wire::Api;
use crate::wire::body::Fields;
use crate::wire::fault::Fault;
use crate::wire::query::Params;

/// What a handler answers.
pub(crate) type Answer = Result<Response, Fault>;

/// One authenticated request.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) app: App,
    pub(crate) who: Arc<Identity>,
    /// The account of the path; the token's own where the path names none.
    pub(crate) account: AccountId,
    pub(crate) api: Api,
    pub(crate) params: Params,
    /// Scheme, host and prefix of this server, for `href`.
    pub(crate) base: String,
    pub(crate) headers: HeaderMap,
    /// The trace that what is set off by this request belongs to.
    pub(crate) trace: Option<Context>,
    path: Vec<(String, String)>,
}

impl Call {
    pub(crate) fn plane(&self) -> &ControlPlane {
        &self.app.plane
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.app.plane.clock().now()
    }

    /// A part of the path as text.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.path
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// A part of the path as an id. What is no positive number names nothing: 404.
    pub(crate) fn id(&self, name: &str) -> Result<i64, Fault> {
        let text = self.text(name);
        let id = text.parse::<i64>().ok().filter(|id| *id > 0);
        id.ok_or_else(|| Fault::not_found(format!("{name} '{text}' not found")))
    }

    /// The project of the path, where it names one.
    pub(crate) fn project(&self) -> Result<Option<ProjectId>, Fault> {
        if self.path.iter().any(|(key, _)| key == "project") {
            self.id("project").map(|id| Some(ProjectId::new(id)))
        } else {
            Ok(None)
        }
    }

    /// Refuses unless they may. A thing that they may not even read is not there.
    pub(crate) fn demand(&self, right: Right, project: Option<ProjectId>) -> Result<(), Fault> {
        if self.who.may(right, project) {
            return Ok(());
        }
        if right == Right::Read || !self.who.may(Right::Read, project) {
            return Err(match project {
                Some(project) => Fault::not_found(format!("project {project} not found")),
                None => Fault::forbidden(right.name()),
            });
        }
        Err(Fault::forbidden(right.name()))
    }
}

/// Who asks, by the `Authorization` header.
async fn identify(app: &App, parts: &Parts) -> Result<Identity, Fault> {
    let header = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = header.and_then(token_in).ok_or_else(Fault::unauthenticated)?;
    app.authenticator
        .authenticate(token)
        .await?
        .ok_or_else(Fault::unauthenticated)
}

fn base(app: &App, parts: &Parts) -> String {
    if let Some(url) = &app.options.public_url {
        return url.trim_end_matches('/').to_owned();
    }
    // Whoever asks is told the name by which it asked.
    match parts.extensions.get::<Origin>() {
        Some(origin) => origin.base(),
        None => Origin::of(&parts.headers, &parts.extensions, &app.options.trusted_proxies).base(),
    }
}

impl FromRequestParts<App> for Call {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let who = Arc::new(identify(app, parts).await?);
        tracing::Span::current().record("account_id", who.account.get());
        let raw = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|_| Fault::field("path", "expected UTF-8"))?;
        let path: Vec<_> = raw
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut call = Self {
            app: app.clone(),
            account: who.account,
            who,
            api: Api::of_path(parts.uri.path()),
            params: Params::parse(parts.uri.query()),
            base: base(app, parts),
            headers: parts.headers.clone(),
            trace: parts.extensions.get().copied(),
            path,
        };
        if call.path.iter().any(|(key, _)| key == "account") {
            let asked = AccountId::new(call.id("account")?);
            if asked != call.account {
                return Err(Fault::not_found(format!("account {asked} not found")));
            }
            call.account = asked;
        }
        Ok(call)
    }
}

/// The body of a request as fields. None, an empty one and `null` are an empty object; a form is one too.
pub(crate) struct Body(pub(crate) Fields);

impl FromRequest<App> for Body {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &App) -> Result<Self, Fault> {
        let form = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
        let limit = app.options.body_limit_bytes;
        let too_large = || {
            Fault::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The request was too large: expected at most {limit} bytes."),
            )
        };
        let bytes = Bytes::from_request(request, app)
            .await
            .map_err(|rejection| match rejection {
                axum::extract::rejection::BytesRejection::FailedToBufferBody(
                    axum::extract::rejection::FailedToBufferBody::LengthLimitError(_),
                ) => too_large(),
                _ => Fault::field("body", "it broke off"),
            })?;
        // Some clients say "form" and send JSON.
        if form && !bytes.trim_ascii_start().starts_with(b"{") {
            return Ok(Self(Fields::new(read_form(&bytes))));
        }
        if bytes.trim_ascii().is_empty() {
            return Ok(Self(Fields::default()));
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(Value::Null) => Ok(Self(Fields::default())),
            Ok(Value::Object(map)) => Ok(Self(Fields::new(map))),
            Ok(_) => Err(Fault::field("body", "expected a JSON object")),
            Err(error) => Err(Fault::field("body", format!("expected JSON: {error}"))),
        }
    }
}

fn read_form(bytes: &[u8]) -> Map<String, Value> {
    let mut map = Map::new();
    for (name, value) in url::form_urlencoded::parse(bytes).into_owned() {
        match map.get_mut(&name) {
            None => {
                map.insert(name, value.into());
            }
            Some(Value::Array(values)) => values.push(value.into()),
            Some(first) => *first = Value::Array(vec![first.take(), value.into()]),
        }
    }
    map
}
