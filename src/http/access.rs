//! Access over HTTP: where a request carries its credential, what a route asks of its caller, and how a refusal
//! reads (RFC 6750).
//!
//! Invariant: no handler of a route that needs somebody runs before the caller is known and may be there; which
//! channels a caller may use, the handlers ask here. Neighbour: `auth.rs` decides, nothing here knows a key.

use std::borrow::Cow;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, Method, header};

use super::App;
use super::origin::Site;
use super::peer;
use super::problem::{Code, Problem};
use super::query::Query;
use super::subscribe::{accepts_events, refuse};
use crate::auth::{Caller, Rejection};
use crate::channel::{Channel, check_user};
use crate::clock;
use crate::config::cors::AllowedOrigins;
use crate::sse::ClosingReason;

/// What a route asks of its caller before its handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing; no credential is looked at.
    Nothing,
    /// As [`Needs::Nothing`], or an operator where `auth.protect_metrics` says so.
    Figures,
    /// Somebody who may subscribe to something; the handler asks for each channel.
    Reader,
    /// A credential that names a user.
    User,
    /// A credential; the handler asks for each channel.
    Writer,
    /// An administrator.
    Admin,
}

/// How a credential came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Header,
    Query,
    Cookie,
}

/// Who may pass, or the answer that says why not.
pub(super) async fn enter(app: &App, needs: Needs, request: &Parts) -> Result<Caller, Response> {
    caller(app, needs, request).await.map_err(|refused| match refused {
        Refused::Problem(problem) => problem.into_response(),
        Refused::ForNow(reason) => refuse(&request.headers, reason, app.options.session.retry),
    })
}

/// Why a request does not pass.
enum Refused {
    Problem(Problem),
    /// A browser's `EventSource` has to come back by itself.
    ForNow(ClosingReason),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

async fn caller(app: &App, needs: Needs, request: &Parts) -> Result<Caller, Refused> {
    let is_protected = needs != Needs::Figures || app.options.protect_metrics;
    if needs == Needs::Nothing || !is_protected {
        return Ok(app.access.nobody());
    }
    let query = Query::parse(request.uri.query())?;
    if app.access.is_open() {
        let user = self_styled_user(needs, &query)?;
        return Ok(user.map_or_else(|| app.access.nobody(), |user| Caller::anybody(Some(user))));
    }
    let presented = presented(&request.headers, &query, &app.options.cookie)
        .map_err(|rejection| Problem::from(app.access.counted(rejection)))?;
    let credential = presented.as_ref().map(|(_, credential)| &**credential);
    let identified = app.access.identify(credential, clock::unix_ms()).await;
    let caller = identified.map_err(|rejection| match rejection {
        Rejection::KeysUnavailable(_) | Rejection::UnknownKey(_) if asks_for_events(request) => {
            Refused::ForNow(ClosingReason::Unavailable)
        }
        rejection => Problem::from(rejection).into(),
    })?;
    if matches!(presented, Some((Carrier::Cookie, _))) {
        let site = Site::of(request, peer::scheme(request, &app.options.trusted_proxies));
        check_page(&app.options.allowed_origins, &site, request)?;
    }
    needs.check(&caller)?;
    Ok(caller)
}

/// Whether an `EventSource` waits for the answer; a program that merely takes events does not.
fn asks_for_events(request: &Parts) -> bool {
    let path = request.uri.path();
    request.method == Method::GET
        && matches!(path, "/events" | "/events/authenticated")
        && accepts_events(&request.headers)
}

/// At an open broker a subscriber says who they are.
fn self_styled_user(needs: Needs, query: &Query) -> Result<Option<Arc<str>>, Problem> {
    if !matches!(needs, Needs::Reader | Needs::User) {
        return Ok(None);
    }
    let user = query.single("user")?.filter(|user| !user.is_empty());
    if let Some(user) = user {
        check_user(user).map_err(|invalid| Problem::query("user", invalid.to_string()))?;
    } else if needs == Needs::User {
        return Err(Problem::query("user", "without access control it says whose events are asked for"));
    }
    Ok(user.map(Arc::from))
}

/// A browser sends the cookie with whatever any page asks for, so the page has to be one of this site's or of a
/// listed origin where the request changes something.
fn check_page(allowed: &AllowedOrigins, site: &Site, request: &Parts) -> Result<(), Problem> {
    if matches!(request.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let origin = request.headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    if origin.is_some_and(|origin| site.is_origin(origin) || allowed.lists(origin)) {
        return Ok(());
    }
    Err(Problem::new(
        Code::ForbiddenOrigin,
        format!(
            "a write that a cookie authenticates needs the Origin of this site, or one of cors.allowed_origins, and it \
             is {}; programs send the token as Authorization: Bearer",
            origin.unwrap_or("absent")
        ),
    ))
}

impl Needs {
    fn check(self, caller: &Caller) -> Result<(), Problem> {
        let is_met = match self {
            Self::Nothing => true,
            Self::Figures => caller.is_operator(),
            Self::Reader => !caller.is_anonymous() || caller.may_subscribe_anywhere(),
            Self::User => caller.user().is_some(),
            Self::Writer => !caller.is_anonymous(),
            Self::Admin => caller.is_admin(),
        };
        if is_met {
            return Ok(());
        }
        if caller.is_anonymous() {
            return Err(Rejection::Missing("this needs a token".to_owned()).into());
        }
        Err(Problem::new(
            Code::Forbidden,
            match self {
                Self::User => "the token names no user (sub)",
                Self::Figures => "this needs an API key, or an administrator's token (auth.protect_metrics)",
                _ => "this needs an administrator's token",
            },
        ))
    }
}

/// The credential of a request. The first place that has one decides: a bad one there is not rescued elsewhere.
fn presented<'a>(
    headers: &'a HeaderMap,
    query: &'a Query,
    cookie: &str,
) -> Result<Option<(Carrier, Cow<'a, str>)>, Rejection> {
    let mut bearers =
        headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| bearer(value.as_bytes()));
    if let Some(first) = bearers.next() {
        if bearers.next().is_some() {
            return Err(Rejection::ambiguous("the request has several Authorization headers"));
        }
        let text = std::str::from_utf8(first).unwrap_or_default().trim();
        return Ok(Some((Carrier::Header, Cow::Borrowed(text))));
    }
    let several = |_| Rejection::ambiguous("the query has several parameters access_token");
    if let Some(token) = query.single("access_token").map_err(several)?.filter(|token| !token.is_empty()) {
        return Ok(Some((Carrier::Query, Cow::Borrowed(token))));
    }
    Ok(cookie_of(headers, cookie).filter(|value| !value.is_empty()).map(|value| (Carrier::Cookie, value)))
}

/// The value of a cookie. Those beside it may hold any bytes (RFC 6265, section 5.4).
fn cookie_of<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<Cow<'a, str>> {
    let lines = headers.get_all(header::COOKIE).iter().map(http::HeaderValue::as_bytes);
    lines.flat_map(|cookies| cookies.split(|byte| *byte == b';')).find_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let value = pair[at + 1..].strip_prefix(b"\"").unwrap_or(&pair[at + 1..]);
        let value = value.strip_suffix(b"\"").unwrap_or(value);
        (&pair[..at] == wanted.as_bytes()).then(|| String::from_utf8_lossy(value))
    })
}

/// What follows the scheme, which is written in any case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && (rest.is_empty() || rest.starts_with(b" "));
    is_bearer.then_some(rest)
}

/// The caller must be allowed to read the channel.
pub(super) fn may_subscribe(caller: &Caller, channel: &Channel) -> Result<(), Problem> {
    if caller.may_subscribe(channel) { Ok(()) } else { Err(not_allowed(caller, "subscribe to", channel)) }
}

/// The caller must be allowed to write to the channel.
pub(super) fn may_publish(caller: &Caller, channel: &Channel) -> Result<(), Problem> {
    if caller.may_publish(channel) { Ok(()) } else { Err(not_allowed(caller, "publish to", channel)) }
}

fn not_allowed(caller: &Caller, what: &str, channel: &Channel) -> Problem {
    if caller.is_anonymous() {
        return Rejection::Missing(format!("to {what} channel {channel} a token is needed")).into();
    }
    Problem::new(Code::Forbidden, format!("the token does not allow to {what} channel {channel}"))
        .with("channel", channel.as_str())
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let code = match rejection {
            Rejection::Missing(_) => Code::TokenRequired,
            Rejection::Invalid(..) | Rejection::UnknownKey(_) => Code::TokenInvalid,
            Rejection::Expired(_) => Code::TokenExpired,
            Rejection::Revoked => Code::TokenRevoked,
            Rejection::KeysUnavailable(_) => Code::Unavailable,
        };
        let problem = Self::new(code, rejection.to_string());
        match rejection {
            Rejection::KeysUnavailable(_) => problem.retry_after(std::time::Duration::from_secs(2)),
            Rejection::UnknownKey(wait) => problem.retry_after(wait),
            _ => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |value: &str| HeaderValue::from_bytes(value.as_bytes()).unwrap();
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), line(value))).collect()
    }

    fn found(pairs: &[(&'static str, &'static str)], query: &str) -> Option<(Carrier, String)> {
        let query = Query::parse(Some(query)).unwrap();
        let headers = headers(pairs);
        let found = presented(&headers, &query, "headwater_token").unwrap();
        found.map(|(carrier, token)| (carrier, token.into_owned()))
    }

    #[test]
    fn the_first_place_that_has_a_credential_decides() {
        let is = |carrier, token: &str| Some((carrier, token.to_owned()));
        let cookie = ("cookie", "a=1; headwater_token=c; b=2");
        for scheme in ["Bearer h", "bearer h", "BEARER   h "] {
            assert_eq!(
                found(&[("authorization", scheme), cookie], "access_token=q"),
                is(Carrier::Header, "h")
            );
        }
        assert_eq!(
            found(&[("authorization", "Basic eDp5"), cookie], "access_token=q"),
            is(Carrier::Query, "q")
        );
        assert_eq!(found(&[cookie], "access_token="), is(Carrier::Cookie, "c"));
        assert_eq!(
            found(&[("cookie", "x_headwater_token=c"), ("cookie", "headwater_token=\"d\"")], ""),
            is(Carrier::Cookie, "d")
        );
        // What others put into the line is not this one's fault: seen to fail where a line with other bytes is dropped.
        for others in ["name=Müller; headwater_token=c", "headwater_token=c; name=\u{fffd}"] {
            assert_eq!(found(&[("cookie", others)], ""), is(Carrier::Cookie, "c"), "{others}");
        }
        let bytes = HeaderValue::from_bytes(b"a=\xff; headwater_token=c; b=\xfe").unwrap();
        let line = HeaderMap::from_iter([(header::COOKIE, bytes)]);
        assert_eq!(cookie_of(&line, "headwater_token").as_deref(), Some("c"));
        let bytes = HeaderValue::from_bytes(b"headwater_token=c\xff").unwrap();
        let line = HeaderMap::from_iter([(header::COOKIE, bytes)]);
        assert_ne!(
            cookie_of(&line, "headwater_token").as_deref(),
            Some("c"),
            "a bad one is none of the good"
        );
        for nothing in ["headwater_token=", "headwater_token", "=headwater_token", ""] {
            assert_eq!(found(&[("cookie", nothing)], ""), None);
        }
        // A header that promises a token and holds none is a bad one, not none.
        assert_eq!(found(&[("authorization", "Bearer"), cookie], ""), is(Carrier::Header, ""));
        assert_eq!(found(&[("authorization", "Bearerh")], ""), None);
        let twice = headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        assert!(presented(&twice, &Query::parse(None).unwrap(), "c").is_err());
        let twice = Query::parse(Some("access_token=a&access_token=b")).unwrap();
        assert!(presented(&headers(&[]), &twice, "c").is_err());
    }
}
