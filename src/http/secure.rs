//! Headers that every answer carries for the sake of browsers.
//!
//! Invariant: what a handler says itself goes before what is added here.

use axum::response::Response;
use http::{HeaderName, HeaderValue, header};

/// Nobody guesses a type, and nothing is kept: answers belong to whoever asked.
const ALWAYS: [(HeaderName, &str); 2] =
    [(header::X_CONTENT_TYPE_OPTIONS, "nosniff"), (header::CACHE_CONTROL, "no-store")];

/// A page of this broker's loads its own scripts and nobody else's, is shown in no frame, and tells no other site
/// where it was.
const HTML: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// Adds what the answer lacks.
pub(super) async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_html = media.is_some_and(|media| media.trim_start().to_ascii_lowercase().starts_with("text/html"));
    let html = HTML.iter().filter(|_| is_html);
    for (name, value) in ALWAYS.iter().chain(html) {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    async fn answered(given: &[(HeaderName, &'static str)]) -> http::HeaderMap {
        let mut response = Response::new(Body::empty());
        for (name, value) in given {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        secure(response).await.headers().clone()
    }

    #[tokio::test]
    async fn pages_are_shut_in_and_every_answer_is_private() {
        let json = answered(&[(header::CONTENT_TYPE, "application/json")]).await;
        assert_eq!(json[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(json[header::CACHE_CONTROL], "no-store");
        assert!(!json.contains_key(header::CONTENT_SECURITY_POLICY));
        let page = answered(&[(header::CONTENT_TYPE, "Text/HTML; charset=utf-8")]).await;
        assert_eq!(page[header::X_FRAME_OPTIONS], "DENY");
        assert!(page[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("frame-ancestors 'none'"));
        let own = [(header::CACHE_CONTROL, "max-age=60"), (header::CONTENT_TYPE, "text/javascript")];
        assert_eq!(answered(&own).await[header::CACHE_CONTROL], "max-age=60");
    }
}
