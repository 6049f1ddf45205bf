//! The two pages that a browser sees: where it is, and where the links of the API lead. A console is yet to
//! come. Pages know no token, so a run's page tells nothing of the run but how to ask for it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::html;
use crate::App;

/// Text that cannot be read as HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:4rem auto;padding:0 1rem;color:#1b1f24}}\
         code,pre{{font:14px/1.5 ui-monospace,monospace;background:#f2f4f6;border-radius:4px;padding:.1rem .3rem}}\
         pre{{padding:1rem;overflow-x:auto}}h1{{font-size:1.5rem}}</style></head><body>{body}</body></html>\n",
        title = escape(title),
    )
}

/// `/`: answers 200 without a token; clients test their connection so.
pub(crate) async fn status(State(app): State<App>) -> Response {
    status_of(&app.plane.config().instance)
}

/// The same of a process by its name.
pub(crate) fn status_of(instance: &str) -> Response {
    let body = format!(
        "<h1>dbtcloud</h1><p>Version {version}. This server speaks dbt Cloud's API.</p>\
         <ul><li>API: <code>/api/v2/</code> and <code>/api/v3/</code></li>\
         <li>Health: <a href=\"healthz\">healthz</a>, <a href=\"readyz\">readyz</a></li>\
         <li>Metrics: <a href=\"metrics\">metrics</a></li></ul>\
         <p>Documentation: <code>{docs}</code></p><p>This process is <code>{instance}</code>.</p>",
        version = escape(env!("CARGO_PKG_VERSION")),
        docs = escape(env!("CARGO_PKG_REPOSITORY")),
        instance = escape(instance),
    );
    html(StatusCode::OK, page("dbtcloud", &body))
}

/// Where `href` of a run leads. Nothing of the run is told: whoever opens the page has shown no token.
pub(crate) async fn run(Path((account, project, id)): Path<(String, String, String)>) -> Response {
    let number = |text: &str| text.parse::<i64>().ok().filter(|id| *id > 0);
    let (Some(account), Some(_), Some(id)) = (number(&account), number(&project), number(&id)) else {
        return html(StatusCode::NOT_FOUND, page("Not found", "<h1>Not found</h1>"));
    };
    let body = format!(
        "<h1>Run {id}</h1><p>Ask for it with a token:</p>\
         <pre>curl -H \"Authorization: Token $DBT_CLOUD_API_TOKEN\" \\\n  \
         \"$DBT_CLOUD_URL/api/v2/accounts/{account}/runs/{id}/?include_related=run_steps\"</pre>\
         <p>Follow it while it runs:</p>\
         <pre>curl -N -H \"Authorization: Token $DBT_CLOUD_API_TOKEN\" \\\n  \
         \"$DBT_CLOUD_URL/api/v2/accounts/{account}/runs/{id}/events/\"</pre>"
    );
    html(StatusCode::OK, page(&format!("Run {id}"), &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_html() {
        assert_eq!(escape("<script>\"&'"), "&lt;script&gt;&quot;&amp;&#39;");
    }
}
