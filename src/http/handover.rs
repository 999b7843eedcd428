//! The hand-over: how a connection that serves an event stream gets its socket back from hyper.
//!
//! ```text
//! request + CanDetach -> handler -> head of the response, marked with its session
//!   service: leaves both on the desk and never answers -> hyper has nothing to write
//!   connection: sees that the desk is occupied and that hyper has flushed -> takes hyper apart -> detached.rs
//! ```
//!
//! Invariant: nothing of the response is written by hyper, and whatever it wrote before, to earlier requests, has
//! left it. What a client sends after the request (a body, requests that it did not wait with) is thrown away:
//! an endless answer with `Connection: close` is the last one (RFC 9112, section 9.6).

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tower::ServiceExt;

use super::framing::Framing;
use super::peer::Introduced;
use crate::clock;
use crate::session::Session;

/// In a request: its connection can let go of its socket.
#[derive(Clone, Copy)]
pub(super) struct CanDetach;

/// In a response: its body is this session. A response that is dropped on its way takes it along.
#[derive(Clone)]
pub(super) struct Detach(Arc<Mutex<Option<Session>>>);

impl Detach {
    pub(super) fn new(session: Session) -> Self {
        Self(Arc::new(Mutex::new(Some(session))))
    }
}

/// An event stream that waits for its socket.
pub(super) struct Parked {
    /// The head of the response, encoded.
    pub(super) head: Bytes,
    /// How the client tells where the body ends.
    pub(super) framing: Framing,
    /// What follows it.
    pub(super) session: Session,
}

/// Where the service of a connection leaves a stream for the connection itself.
pub(super) struct Desk<T = Parked>(Mutex<Place<T>>);

struct Place<T> {
    parked: Option<T>,
    /// Hyper has written everything since the stream was left here. It reads no request before the answer to the
    /// last one is written, but does not promise so.
    flushed: bool,
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        Self(Mutex::new(Place { parked: None, flushed: false }))
    }
}

impl<T> Desk<T> {
    fn leave(&self, parked: T) {
        *self.0.lock() = Place { parked: Some(parked), flushed: false };
    }

    /// Hyper has written all that it had.
    pub(super) fn flushed(&self) {
        self.0.lock().flushed = true;
    }

    /// The stream, once hyper holds nothing that the client lacks.
    pub(super) fn take(&self) -> Option<T> {
        let mut place = self.0.lock();
        if place.flushed { place.parked.take() } else { None }
    }
}

/// Answers a request, unless the answer is an event stream that the connection serves itself.
pub(super) async fn answer(
    router: Introduced,
    mut request: Request<Incoming>,
    desk: Arc<Desk>,
) -> Result<Response<Body>, Infallible> {
    let version = request.version();
    request.extensions_mut().insert(CanDetach);
    let mut response = router.oneshot(request.map(Body::new)).await?;
    let Some(Detach(session)) = response.extensions_mut().remove() else { return Ok(response) };
    let session = session.lock().take().expect("one response is served once");
    let framing = if version == Version::HTTP_11 { Framing::Chunked } else { Framing::UntilClose };
    let head = encode_head(framing, response.status(), response.headers());
    desk.leave(Parked { head, framing, session });
    pending().await
}

/// The head as hyper would write it, of a response that is the last one over its connection.
fn encode_head(framing: Framing, status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut head = BytesMut::with_capacity(512);
    head.put_slice(match framing {
        Framing::Chunked => b"HTTP/1.1 ",
        Framing::UntilClose => b"HTTP/1.0 ",
    });
    head.put_slice(status.as_str().as_bytes());
    head.put_slice(b" ");
    head.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.put_slice(b"\r\n");
    let mut put = |name: &HeaderName, value: &[u8]| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            head.put_slice(part);
        }
    };
    let replaced = [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    for (name, value) in headers.iter().filter(|(name, _)| !replaced.contains(name)) {
        put(name, value.as_bytes());
    }
    if !headers.contains_key(header::DATE) {
        put(&header::DATE, clock::http_date().as_bytes());
    }
    put(&header::CONNECTION, b"close");
    if framing == Framing::Chunked {
        put(&header::TRANSFER_ENCODING, b"chunked");
    }
    head.put_slice(b"\r\n");
    head.freeze()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_stream_is_taken_once_what_was_written_before_is_flushed() {
        let desk = Desk::default();
        desk.flushed();
        desk.leave("stream");
        assert_eq!(desk.take(), None, "what was flushed before does not count");
        desk.flushed();
        assert_eq!((desk.take(), desk.take()), (Some("stream"), None));
    }

    #[test]
    fn a_head_has_what_the_layers_added_and_ends_with_the_connection() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("vary", "origin"),
            ("vary", "accept"),
            ("content-length", "0"),
            ("transfer-encoding", "gzip, chunked"),
            ("connection", "keep-alive"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let head = encode_head(Framing::UntilClose, StatusCode::OK, &headers);
        let expected = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\nvary: origin\r\nvary: accept\r\n\
                        date: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: close\r\n\r\n";
        assert_eq!(head, expected);
        headers.remove("date");
        let head = encode_head(Framing::Chunked, StatusCode::OK, &headers);
        let text = std::str::from_utf8(&head).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\ndate: "), "{text}");
        assert!(text.ends_with("\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"), "{text}");
    }
}
