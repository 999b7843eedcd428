//! Guards before every handler: the size of the head, and the protection of an open broker, through which only
//! programs and pages of this machine get.
//!
//! A page on another origin could reach a loopback port by a name of its own that resolves to 127.0.0.1 (DNS
//! rebinding), and any page may send simple requests anywhere. So `Host` must be a loopback name, and
//! `Origin`, where a browser sends one, loopback or listed. Health checks are excepted.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header;

use super::connection::HEAD_BYTES_MAX;
use super::problem::{Code, Problem};
use crate::config::cors::AllowedOrigins;

/// Who may use an open broker beside this machine's own pages.
pub(super) type Allowed = Arc<AllowedOrigins>;

/// Refuses a head that is too large; hyper does so too, but only when it has not all arrived at once.
pub(super) async fn limited_head(request: Request, next: Next) -> Response {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let uri = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if uri + headers.sum::<usize>() > HEAD_BYTES_MAX {
        let detail = format!("path, query and headers have at most {HEAD_BYTES_MAX} bytes");
        return Problem::new(Code::HeadTooLarge, detail).into_response();
    }
    next.run(request).await
}

/// Refuses requests that a page of somebody else may have caused.
pub(super) async fn loopback_only(State(allowed): State<Allowed>, request: Request, next: Next) -> Response {
    match check(&allowed, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn check(allowed: &AllowedOrigins, request: &Request) -> Result<(), Problem> {
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return Ok(());
    }
    // Every one that is there: which of them another program takes for the right one, nobody knows.
    let all = |name| request.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    if let Some(host) = all(header::HOST).chain(authority).find(|host| !is_loopback(host)) {
        return Err(Problem::new(
            Code::ForbiddenHost,
            format!(
                "Host is {host:?}; without access control the broker answers to localhost, 127.0.0.1 and [::1] only"
            ),
        ));
    }
    let foreign = |origin: &&str| !allowed.allows(origin) && !is_loopback_origin(origin);
    if let Some(origin) = all(header::ORIGIN).find(foreign) {
        return Err(Problem::new(
            Code::ForbiddenOrigin,
            format!("Origin is {origin:?}; add it to cors.allowed_origins if its pages may use this broker"),
        ));
    }
    Ok(())
}

/// Whether an `Origin` is one of this machine's.
fn is_loopback_origin(origin: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority))
}

/// Whether `host[:port]` names this machine's loopback interface.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_and_origin_of_a_request_is_looked_at() {
        let allowed = AllowedOrigins::Listed(Vec::new());
        let check = |uri: &str, headers: &[(&str, &str)]| {
            let request = headers
                .iter()
                .fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
            check(&allowed, &request.body(axum::body::Body::empty()).unwrap())
                .map_err(|problem| problem.code())
        };
        assert_eq!(check("/events", &[("host", "localhost"), ("origin", "http://localhost:1")]), Ok(()));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(check("/events", &twice), Err(Code::ForbiddenHost));
        assert_eq!(check("http://evil.example/events", &[("host", "localhost")]), Err(Code::ForbiddenHost));
        let origins = [("origin", "http://localhost"), ("origin", "http://evil.example")];
        assert_eq!(check("/events", &origins), Err(Code::ForbiddenOrigin));
        assert_eq!(check("/healthz", &twice), Ok(()));
    }

    #[test]
    fn only_names_of_the_loopback_interface_pass() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:8080",
            "app.localhost",
            "localhost.",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "192.168.0.1",
            "[::2]",
            "0.0.0.0",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
