//! Everything around the endpoints: slashes, request ids, access log, counting, time-outs, panics, and the
//! few pages that need no token.

mod pages;
#[cfg(feature = "cli")]
pub(crate) mod proxy;

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dbtcloud_runtime::trace::{Context, Span};
use futures::FutureExt;
use tower::ServiceExt;
use tracing::Instrument;

use crate::forwarded::Origin;
use crate::wire::fault::Fault;
use crate::{App, health, metrics, rest};

/// The header that names a request in logs and answers.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header that says to which trace a request belongs.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What is asked every few seconds and tells nothing in a trace.
const UNTRACED: [&str; 3] = ["/healthz", "/metrics", "/readyz"];
/// The longest request id that is taken over from a client.
const REQUEST_ID_LIMIT: usize = 64;

/// What a process answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doors {
    /// Everything.
    All,
    /// Health and metrics.
    Probes,
}

/// The whole router. The endpoints know paths without a trailing slash only; this takes it off before they
/// are looked up, so that both forms are the same and nobody is redirected.
pub(crate) fn compose(app: App, doors: Doors) -> Router {
    let limit = app.options.body_limit_bytes;
    let pages = Router::new()
        .route("/", get(pages::status))
        .route("/deploy/{account}/projects/{project}/runs/{id}", get(pages::run));
    let doors = match doors {
        Doors::All => rest::router().merge(pages),
        Doors::Probes => Router::new(),
    };
    let endpoints = doors
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::scrape))
        .fallback(rest::not_implemented)
        .method_not_allowed_fallback(rest::method_not_allowed)
        .layer(DefaultBodyLimit::max(limit))
        .layer(from_fn_with_state(app.clone(), bounded))
        .layer(from_fn_with_state(app.clone(), observed))
        .with_state(app);
    let service = tower::service_fn(move |request: Request| {
        let endpoints = endpoints.clone();
        async move {
            match without_slash(request) {
                Ok(request) => endpoints.oneshot(request).await,
                Err(fault) => Ok(fault.into_response()),
            }
        }
    });
    Router::new().fallback_service(service).layer(from_fn(caught))
}

/// The same request without the trailing slash of its path.
fn without_slash(mut request: Request) -> Result<Request, Fault> {
    let path = request.uri().path();
    if path.contains("//") {
        return Err(Fault::not_found(format!("{path} not found")));
    }
    let Some(stripped) = path.strip_suffix('/').filter(|stripped| !stripped.is_empty()) else {
        return Ok(request);
    };
    let text = match request.uri().query() {
        Some(query) => format!("{stripped}?{query}"),
        None => stripped.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(text).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    Ok(request)
}

/// A panic ends its request and nothing else.
async fn caught(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("a request panicked");
            Fault::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The server failed. Its log says why.",
            )
            .into_response()
        }
    }
}

/// A request that takes too long is ended. A live tail answers at once and then goes on: it is not bounded.
async fn bounded(State(app): State<App>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.options.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Fault::new(StatusCode::SERVICE_UNAVAILABLE, "This took too long. Please try again.").into_response(),
    }
}

/// Gives every request an id and a span, counts it, and writes one line of access log without query, body or
/// header: none of them is known to be free of secrets.
async fn observed(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(&app, &request);
    let method = request.method().clone();
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let caller = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let caller = caller.and_then(Context::parse);
    let context = app.plane.tracer().map_or(caller, |_| match caller {
        Some(caller) => caller.follow(),
        None => Context::begin().and_then(Context::follow),
    });
    if let Some(context) = context {
        request.extensions_mut().insert(context);
    }
    let origin = Origin::of(request.headers(), request.extensions(), &app.options.trusted_proxies);
    let client = origin.client.map(tracing::field::display);
    request.extensions_mut().insert(origin);
    let span = tracing::error_span!(
        "request",
        request_id = %id,
        method = %method,
        route = path,
        client,
        account_id = tracing::field::Empty
    );
    let begun = app.plane.clock().now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let ended = app.plane.clock().now();
    let took = ended.since(begun);
    let status = response.status().as_u16();
    app.metrics.observe(&method, &path, status, took);
    span.in_scope(|| {
        tracing::info!(target: "dbtcloud::access", status, took_micros = took.as_micros() as u64, "answered");
    });
    if let (Some(tracer), Some(context)) = (app.plane.tracer(), context.filter(|context| context.sampled))
        && !UNTRACED.contains(&path.as_str())
    {
        tracer.take(vec![Span {
            context,
            parent: caller.map(|caller| caller.span),
            name: format!("{method} {path}"),
            serves: true,
            began_at: begun,
            ended_at: ended,
            attributes: vec![
                ("http.request.method", method.as_str().into()),
                ("http.route", path.as_str().into()),
                ("http.response.status_code", i64::from(status).into()),
                ("dbtcloud.request_id", id.as_str().into()),
            ],
            failed: status >= 500,
        }]);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    if app.options.draining.is_cancelled() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The client's own id, if it is a plain one, or a new one.
fn request_id(app: &App, request: &Request) -> String {
    let sent = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain = |id: &&str| {
        !id.is_empty()
            && id.len() <= REQUEST_ID_LIMIT
            && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    sent.filter(plain)
        .map_or_else(|| app.metrics.next_id(), ToOwned::to_owned)
}

/// HTML that may load nothing and run nothing.
pub(crate) fn html(status: StatusCode, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (status, headers, Body::from(text)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_slash_is_taken_off_and_two_are_refused() {
        let path = |uri: &str| {
            let request = Request::builder().uri(uri).body(Body::empty()).ok()?;
            without_slash(request).ok().map(|request| request.uri().to_string())
        };
        assert_eq!(path("/a/b/?c=/d/").as_deref(), Some("/a/b?c=/d/"));
        assert_eq!(path("/a/b").as_deref(), Some("/a/b"));
        assert_eq!(path("/").as_deref(), Some("/"));
        assert_eq!(path("/a//b"), None);
        assert_eq!(path("/a/b//"), None);
    }
}
