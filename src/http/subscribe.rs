//! `GET /events`, `GET /events/authenticated` and `GET /cursor`: from a request to a session, or to a refusal that a browser survives.
//!
//! Invariant: a bad cursor is never an HTTP error, and a temporary refusal never a status for a client that
//! asks for an event stream: an `EventSource` would not come back (HTML, "Server-sent events", 9.2.3). A session has
//! only channels that its caller may read, each looked at anew on every connection, whatever the cursor says.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;
use ulid::Ulid;

use super::access::may_subscribe;
use super::handover::{CanDetach, Detach};
use super::metrics;
use super::problem::{Code, Problem};
use super::query::{CURSOR_PARAMETERS, Query};
use super::stream::StreamBody;
use super::{App, json_response};
use crate::auth::Caller;
use crate::channel::Channel;
use crate::clock;
use crate::cursor::{Cursor, InvalidCursor, Start};
use crate::limits::{Refused, Source};
use crate::session::driver::now;
use crate::session::{Session, Subscription};
use crate::sse::{ClosingReason, encode_closing};

const REWIND_MAX: u32 = 100;
const METADATA_BYTES_MAX: usize = 1024;

/// `GET /events`.
pub(super) async fn subscribe(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(source): Extension<Source>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    can_detach: Option<Extension<CanDetach>>,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref())?;
    let channels = parse_channels(&app, &caller, &query)?;
    open(&app, (&caller, source), &method, (&headers, &query), channels, can_detach.is_some())
}

/// `GET /events/authenticated`: the user's own events beside the channels'.
pub(super) async fn subscribe_authenticated(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(source): Extension<Source>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    can_detach: Option<Extension<CanDetach>>,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref())?;
    let mut channels = parse_channels(&app, &caller, &query)?;
    // Nobody needs a right to what is addressed to them.
    channels.extend(caller.user().map(|user| Channel::of_user(user)).transpose()?);
    open(&app, (&caller, source), &method, (&headers, &query), channels, can_detach.is_some())
}

fn open(
    app: &Arc<App>,
    (caller, source): (&Caller, Source),
    method: &Method,
    (headers, query): (&HeaderMap, &Query),
    channels: Vec<Channel>,
    can_detach: bool,
) -> Result<Response, Problem> {
    let mut subscription = parse(app, headers, query, channels)?;
    if app.scope.soft().is_cancelled() {
        return Ok(refuse(headers, ClosingReason::Unavailable, app.options.session.retry));
    }
    if method == Method::HEAD {
        return Ok(stream_head(Body::empty()));
    }
    subscription.permit = match app.limits.admit(source, caller.user()) {
        Ok(permit) => Some(permit),
        Err(refused) if accepts_events(headers) => {
            return Ok(refuse(headers, reason_of(&refused), app.options.session.retry));
        }
        Err(refused) => return Err(refused.into()),
    };
    let (revocations, options) = (&app.access.revocations, &app.options.session);
    let session = Session::open_for(caller, revocations, &app.hub, options, subscription, now());
    if !can_detach {
        return Ok(stream_head(Body::new(StreamBody::new(session))));
    }
    let mut response = stream_head(Body::empty());
    response.extensions_mut().insert(Detach::new(session));
    Ok(response)
}

/// `GET /cursor`: a position to read before the page's state is loaded, and to subscribe from after.
pub(super) async fn cursor(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let channels = parse_channels(&app, &caller, &Query::parse(query.as_deref())?)?;
    let count = app.hub.partitions();
    let mut partitions: Vec<_> = channels.iter().map(|channel| channel.partition(count)).collect();
    partitions.sort_unstable();
    partitions.dedup();
    let first = partitions.first().copied().unwrap_or_default();
    if partitions.is_empty() {
        partitions.push(first);
    }
    let cursor = Cursor::new(partitions.into_iter().map(|p| (p, app.hub.latest(p))), first);
    Ok(json_response(http::StatusCode::OK, &serde_json::json!({ "cursor": cursor.to_string() })))
}

fn parse(
    app: &App,
    headers: &HeaderMap,
    query: &Query,
    channels: Vec<Channel>,
) -> Result<Subscription, Problem> {
    let filter = match query.single("filters")?.filter(|text| !text.is_empty()) {
        Some(json) => app.hub.filters.compile(json)?,
        None => None,
    };
    check_metadata(query)?;
    let connection = Ulid::from_parts(clock::unix_ms(), rand::random());
    Ok(Subscription {
        connection: format!("{}.{connection}", app.options.session.node).into(),
        channels,
        start: parse_start(headers, query, app.hub.partitions())?,
        filter,
        envelope: query.switch("envelope")?,
        permit: None,
    })
}

fn parse_channels(app: &App, caller: &Caller, query: &Query) -> Result<Vec<Channel>, Problem> {
    let lists = query.all("channels").chain(query.all("channel"));
    let mut channels = Vec::new();
    for name in lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()) {
        let channel = Channel::parse(name)?;
        may_subscribe(caller, &channel)?;
        if !channels.contains(&channel) {
            channels.push(channel);
        }
        if channels.len() > app.options.channels_per_connection {
            let max = app.options.channels_per_connection;
            let detail =
                format!("one connection has at most {max} channels (limits.channels_per_connection)");
            return Err(Problem::new(Code::TooManyChannels, detail));
        }
    }
    Ok(channels)
}

/// The header wins: on automatic reconnects a browser repeats the old URL with a fresh header.
fn parse_start(
    headers: &HeaderMap,
    query: &Query,
    partitions: u16,
) -> Result<Result<Start, InvalidCursor>, Problem> {
    let rewind = query.number("rewind", 0..=REWIND_MAX)?.filter(|count| *count > 0);
    let from_header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
    let from_query = || CURSOR_PARAMETERS.iter().find_map(|name| query.first(name));
    let cursor = from_header.filter(|text| !text.is_empty()).or_else(from_query).unwrap_or_default();
    Ok(match (cursor, rewind) {
        ("", Some(count)) => Ok(Start::Rewind(count)),
        (cursor, _) => Start::parse(cursor, partitions),
    })
}

fn check_metadata(query: &Query) -> Result<(), Problem> {
    let Some(metadata) = query.single("metadata")?.filter(|text| !text.is_empty()) else { return Ok(()) };
    if metadata.len() > METADATA_BYTES_MAX {
        return Err(Problem::query("metadata", format!("at most {METADATA_BYTES_MAX} bytes of JSON")));
    }
    serde_json::from_str::<Value>(metadata).map(drop).map_err(|error| Problem::query("metadata", error))
}

fn stream_head(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// How an event stream words that it cannot be had now.
fn reason_of(refused: &Refused) -> ClosingReason {
    match refused {
        Refused::Full => ClosingReason::Overloaded,
        Refused::Limited { .. } | Refused::TooMany(..) => ClosingReason::RateLimited,
    }
}

/// Whether the client reads event streams, as a browser's `EventSource` says.
pub(super) fn accepts_events(headers: &HeaderMap) -> bool {
    let mut accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.any(|accept| accept.contains("text/event-stream"))
}

/// A temporary refusal, in the form that the client survives.
pub(super) fn refuse(headers: &HeaderMap, reason: ClosingReason, retry: Duration) -> Response {
    let code = match reason {
        ClosingReason::Overloaded => Code::Overloaded,
        ClosingReason::RateLimited => Code::RateLimited,
        _ => Code::Unavailable,
    };
    if !accepts_events(headers) {
        let problem = Problem::new(code, "this node takes no event streams now");
        return problem.retry_after(Duration::from_secs(2)).into_response();
    }
    // Spread from one to three times the usual delay: whoever is refused comes back later than others.
    let retry_ms = retry.mul_f64(1.0 + 2.0 * rand::random::<f64>()).as_millis();
    let mut body = BytesMut::new();
    body.put(encode_closing(reason, Some(u64::try_from(retry_ms).unwrap_or(u64::MAX))));
    let mut response = stream_head(Body::from(body.freeze()));
    metrics::mark(&mut response, code);
    response
}
