//! Everything that is not a success, in dbt Cloud's words and codes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dbtcloud_core::{Error, ErrorKind};
use serde_json::{Map, Value, json};

use super::envelope;

/// Seconds after which a client may try again when storage could not be asked.
const RETRY_AFTER_SECONDS: &str = "1";

/// A refusal on its way to the client.
#[derive(Debug)]
pub(crate) struct Fault {
    status: StatusCode,
    message: String,
    fields: Map<String, Value>,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            fields: Map::new(),
        }
    }

    /// 400 with the reason beside each field.
    pub(crate) fn fields(fields: Map<String, Value>) -> Self {
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let message = format!(
            "The request was invalid. Please double check the provided data: {}.",
            names.join(", ")
        );
        Self {
            status: StatusCode::BAD_REQUEST,
            message,
            fields,
        }
    }

    /// 400 about one field.
    pub(crate) fn field(name: &str, expected: impl std::fmt::Display) -> Self {
        Self::fields(Map::from_iter([(name.to_owned(), Value::from(expected.to_string()))]))
    }

    /// 401: no token, a malformed one or one that is not known.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "Authentication failed: expected 'Authorization: Token <token>' or 'Authorization: Bearer <token>' with a token that is valid.",
        )
    }

    /// 403: the token is known and may not do this.
    pub(crate) fn forbidden(needs: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            format!("This token does not have the permissions to do this: it needs {needs}."),
        )
    }

    /// 404, also for what the token may not see.
    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("{what}. It does not exist, or this token has no permissions to see it."),
        )
    }

    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<&str> {
        self.fields.keys().map(String::as_str).collect()
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::not_found(error),
            ErrorKind::Invalid => {
                let field = error.field().unwrap_or("body").to_owned();
                let text = error.to_string();
                let reason = text.strip_prefix(&format!("{field}: ")).unwrap_or(&text).to_owned();
                Self::field(&field, reason)
            }
            ErrorKind::AlreadyExists => Self::field("body", error),
            ErrorKind::Denied => Self::new(StatusCode::FORBIDDEN, format!("{error}. This needs other permissions.")),
            // A full queue and a record that others keep changing: both pass by waiting.
            ErrorKind::Conflict => Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            ErrorKind::Unavailable | ErrorKind::Fenced => {
                tracing::warn!(error = %error.chain(), "request could not be served");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "This cannot be done just now. Please try again.",
                )
            }
            _ => {
                tracing::error!(error = %error.chain(), "request failed");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "The server failed. Its log says why.",
                )
            }
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let data = match self.status {
            StatusCode::BAD_REQUEST => Value::Object(self.fields),
            _ => Value::Null,
        };
        let status = envelope::status(self.status, &self.message, "");
        let mut response = (self.status, Json(json!({ "status": status, "data": data }))).into_response();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Token"));
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
            }
            _ => {}
        }
        response
    }
}
