//! The four-key status envelope around everything but raw files.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dbtcloud_core::Page;
use serde_json::{Map, Value, json};

/// The `status` block.
pub(crate) fn status(code: StatusCode, user_message: &str, developer_message: &str) -> Value {
    json!({
        "code": code.as_u16(),
        "is_success": code.is_success(),
        "user_message": user_message,
        "developer_message": developer_message,
    })
}

/// One object.
pub(crate) fn one(code: StatusCode, data: impl Into<Value>) -> Response {
    (
        code,
        Json(json!({ "status": status(code, "Success!", ""), "data": data.into() })),
    )
        .into_response()
}

/// One object that was read, changed or deleted. A deletion answers so too: clients parse its body.
pub(crate) fn ok(data: impl Into<Value>) -> Response {
    one(StatusCode::OK, data)
}

/// One object that was made.
pub(crate) fn created(data: impl Into<Value>) -> Response {
    one(StatusCode::CREATED, data)
}

/// What a list answers beside its items. `filters.limit` and `.offset` are always there: clients index them
/// without a guard, and their loops stop on `count` and `total_count`.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// The part that was asked for.
    pub(crate) page: Page,
    /// The other filters, as they were sent.
    pub(crate) filters: Map<String, Value>,
    /// The order that was asked for.
    pub(crate) order_by: Option<String>,
}

/// A page of a list.
pub(crate) fn list(items: Vec<Value>, total: u64, extra: Extra) -> Response {
    let mut filters = extra.filters;
    filters.insert("limit".to_owned(), extra.page.limit().into());
    filters.insert("offset".to_owned(), extra.page.offset().into());
    let extra = object! {
        "filters": filters,
        "order_by": extra.order_by,
        "pagination": json!({ "count": items.len(), "total_count": total }),
    };
    let body = object! {
        "status": status(StatusCode::OK, "Success!", ""),
        "data": items,
        "extra": extra,
    };
    Json(Value::Object(body)).into_response()
}

/// A short list that is never cut: all of it is the page.
pub(crate) fn whole(items: Vec<Value>, extra: Extra) -> Response {
    let total = items.len() as u64;
    list(items, total, extra)
}
