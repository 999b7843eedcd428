//! Peers: where a request comes from and over which scheme, through proxies that are trusted.
//!
//! Invariant: what a request claims about itself only counts where the next hop that is trusted says so; whoever is not
//! trusted can claim what they like. Neighbour: `limits.rs` counts by address.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, FORWARDED};
use http::request::Parts;
use http::uri::Scheme;
use http_body_util::BodyExt;
use ipnet::IpNet;
use tower::Service;

use super::waiting::Seat;
use crate::limits::Source;

/// Where the connection comes from, among a request's extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// TLS ends here.
    pub(super) is_tls: bool,
}

/// The router as one connection sees it: every request says where it comes from, and that the connection is of use.
#[derive(Clone)]
pub(super) struct Introduced {
    router: Router,
    peer: Peer,
    seat: Arc<Seat>,
}

impl Introduced {
    pub(super) fn new(router: Router, peer: Peer, seat: Arc<Seat>) -> Self {
        Self { router, peer, seat }
    }
}

impl<B> Service<Request<B>> for Introduced
where
    Router: Service<Request<B>, Response = Response, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.router.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let served = self.seat.serve();
        request.extensions_mut().insert(self.peer);
        let answering = self.router.call(request);
        Box::pin(async move {
            let response = answering.await?;
            if !is_event_stream(&response) {
                return Ok(response);
            }
            // A stream is under way as long as its body.
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _under_way = &served;
                    frame
                }))
            }))
        })
    }
}

fn is_event_stream(response: &Response) -> bool {
    let media = response.headers().get(CONTENT_TYPE);
    media.is_some_and(|media| media.as_bytes().starts_with(b"text/event-stream"))
}

/// Who is held to the limits of an address.
pub(super) fn source(request: &Parts, trusted: &[IpNet]) -> Source {
    Source::of(client(peer(request).address, &request.headers, trusted))
}

fn peer(request: &Parts) -> Peer {
    let unknown = Peer { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), is_tls: false };
    request.extensions.get().copied().unwrap_or(unknown)
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The scheme that the client used: what trusted proxies say, else `https` where TLS ends here. `None` where nobody says so:
/// a proxy that is not trusted may have ended TLS.
pub(super) fn scheme(request: &Parts, trusted: &[IpNet]) -> Option<Scheme> {
    let peer = peer(request);
    let mut said = Vec::new();
    if is_trusted(peer.address.to_canonical(), trusted) {
        said.extend(listed(&request.headers, "x-forwarded-proto").into_iter().flatten());
        let forwarded = listed(&request.headers, FORWARDED.as_str()).into_iter().flatten();
        said.extend(forwarded.filter_map(|element| parameter(element, "proto")));
    }
    let is = |scheme: &str| said.iter().any(|said| said.eq_ignore_ascii_case(scheme));
    // One hop of several over TLS: the stricter one.
    if is("https") {
        return Some(Scheme::HTTPS);
    }
    if is("http") {
        return Some(Scheme::HTTP);
    }
    peer.is_tls.then_some(Scheme::HTTPS)
}

/// The client's address: the peer's own, or what trusted proxies say about it.
///
/// Proxies append to what they were sent, so the list is read from its end until an address is not trusted. A
/// proxy takes care of one of the two headers and may pass the other on as the client sent it: where they do not
/// say the same, neither is believed.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let furthest = |hops: Vec<Option<IpAddr>>| {
        let mut last = peer;
        for hop in hops.into_iter().rev() {
            // What is no address was not written by a proxy that knew it.
            let Some(hop) = hop else { break };
            last = hop;
            if !is_trusted(hop, trusted) {
                break;
            }
        }
        last
    };
    let x_forwarded = listed(headers, "x-forwarded-for").map(|list| list.map(address).collect());
    let forwarded = listed(headers, FORWARDED.as_str()).map(|list| list.map(forwarded_for).collect());
    match (x_forwarded.map(furthest), forwarded.map(furthest)) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => peer,
    }
}

/// Reads any text as what a proxy says.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(text: &str) {
    let Ok(value) = http::HeaderValue::from_str(text) else { return };
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for name in [http::HeaderName::from_static("x-forwarded-for"), FORWARDED] {
        let headers = HeaderMap::from_iter([(name, value.clone())]);
        let _ = client(peer, &headers, &[IpNet::from(peer)]);
        assert_eq!(client(peer, &headers, &[]), peer, "nobody is trusted");
    }
}

/// The elements of a header that is a list, over all its lines. `None` where it is absent.
fn listed<'a>(headers: &'a HeaderMap, name: &str) -> Option<impl Iterator<Item = &'a str>> {
    let mut lines = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).peekable();
    lines.peek()?;
    Some(lines.flat_map(|line| line.split(',')).map(str::trim))
}

/// The `for` of an element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    address(parameter(element, "for")?)
}

/// A parameter of an element of `Forwarded`, without its quotes.
fn parameter<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut values =
        pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim());
    let value = values.next()?;
    Some(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

/// An address, perhaps in brackets, perhaps with a port.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    let bare = text.strip_prefix('[')?.strip_suffix(']')?;
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn found(peer: &str, lines: &[(&str, &str)]) -> String {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let trusted = ["10.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(pair) {
            headers.append(name, value);
        }
        client(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    /// Seen to fail with the first address of the list, which the client wrote.
    #[test]
    fn only_what_trusted_proxies_say_is_believed() {
        let xff = |value| ("x-forwarded-for", value);
        let fwd = |value| ("forwarded", value);
        for (peer, lines, expected) in [
            ("192.0.2.9", vec![xff("198.51.100.1")], "192.0.2.9"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("10.0.0.1", vec![xff("198.51.100.1")], "198.51.100.1"),
            ("::ffff:10.0.0.1", vec![xff("198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", vec![xff("1.2.3.4, 198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", vec![xff("1.2.3.4, 198.51.100.1, 10.0.0.2")], "198.51.100.1"),
            ("10.0.0.1", vec![xff("1.2.3.4"), xff("198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", vec![xff("10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("10.0.0.1", vec![xff("198.51.100.1, nonsense")], "10.0.0.1"),
            ("10.0.0.1", vec![xff("198.51.100.1:4711")], "198.51.100.1"),
            ("10.0.0.1", vec![xff("2001:db8::1")], "2001:db8::1"),
            ("::1", vec![fwd("for=198.51.100.1;proto=https;by=10.0.0.1")], "198.51.100.1"),
            ("::1", vec![fwd("For=\"[2001:db8::1]:4711\", for=10.0.0.2")], "2001:db8::1"),
            ("::1", vec![fwd("for=_hidden")], "::1"),
            ("::1", vec![fwd("proto=https")], "::1"),
            ("10.0.0.1", vec![xff("198.51.100.1"), fwd("for=198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", vec![xff("198.51.100.1"), fwd("for=1.2.3.4")], "10.0.0.1"),
        ] {
            assert_eq!(found(peer, &lines), expected, "{peer} {lines:?}");
        }
    }

    /// Seen to fail when a scheme counts whoever says it.
    #[test]
    fn a_scheme_counts_where_tls_ends_here_or_a_trusted_proxy_says_so() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let (near, far) = ("10.0.0.1", "198.51.100.1");
        let (https, http) = (Some(Scheme::HTTPS), Some(Scheme::HTTP));
        for (address, is_tls, lines, expected) in [
            (far, false, vec![], None),
            (far, true, vec![], https.clone()),
            (far, false, vec![("x-forwarded-proto", "https")], None),
            (far, true, vec![("x-forwarded-proto", "http"), ("forwarded", "proto=http")], https.clone()),
            (near, false, vec![("x-forwarded-proto", "https")], https.clone()),
            (near, false, vec![("x-forwarded-proto", "http")], http.clone()),
            (near, true, vec![("x-forwarded-proto", "http")], http.clone()),
            (near, false, vec![("x-forwarded-proto", "http, HTTPS")], https.clone()),
            (near, false, vec![("forwarded", "for=1.2.3.4;Proto=\"https\"")], https.clone()),
            (near, false, vec![("forwarded", "for=1.2.3.4")], None),
            (near, true, vec![("x-forwarded-proto", "gopher")], https),
        ] {
            let mut request = Request::get("/");
            for (name, value) in &lines {
                request = request.header(*name, *value);
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            parts.extensions.insert(Peer { address: address.parse().unwrap(), is_tls });
            assert_eq!(scheme(&parts, &trusted), expected, "{address} {is_tls} {lines:?}");
        }
    }

    proptest! {
        /// Whatever a client sends, it is counted as what the trusted proxy in front saw.
        #[test]
        fn nothing_that_a_client_writes_changes_its_address(
            lie in "[-a-z0-9.:,;=\"\\[\\] ]{0,40}"
        ) {
            let appended = format!("{lie}, 198.51.100.1");
            prop_assert_eq!(found("10.0.0.1", &[("x-forwarded-for", &appended)]), "198.51.100.1");
            let appended = format!("{lie}, for=198.51.100.1");
            prop_assert_eq!(found("10.0.0.1", &[("forwarded", &appended)]), "198.51.100.1");
        }
    }
}
