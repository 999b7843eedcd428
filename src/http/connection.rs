//! One connection: which protocol it speaks, serving it, and when to give it up.
//!
//! Invariant: a client cannot hold a connection for nothing. The first bytes and every head have
//! `header_timeout`; a client that takes nothing of what is due for `write_timeout` is dropped, over HTTP/2 too,
//! where one stream that is not read costs the whole connection; an HTTP/2 connection without a request is
//! closed. The preface is looked at here, because the ready-made detection has no timer and hands nothing back.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::detached::Detached;
use super::handover::{self, Desk, Parked};
use super::listener::ListenerOptions;
use super::metrics::Handshake;
use super::peer::Introduced;
use super::socket;
use super::tls::{self, Tls};
use super::transport::Transport;
use crate::lifecycle::Scope;
use crate::metrics::Counters;

/// Bytes of a request's head, and about what hyper buffers for a client that does not read.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What an HTTP/2 client with prior knowledge begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An HTTP/2 peer that does not answer a ping for so long is gone.
const PING: Duration = Duration::from_secs(20);
/// Bytes that are handed over to a stream of HTTP/2 at a time: the size of a frame (RFC 9113, section 4.2).
const PIECE_BYTES_MAX: usize = 16 * 1024;
/// What an HTTP/2 client may send of its bodies before the broker takes it; held outside what bodies may hold together.
const BODY_WINDOW: u32 = 256 * 1024;
/// An HTTP/2 connection without a request is kept so long.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What a connection is served with.
pub(super) struct Connection {
    pub(super) router: Introduced,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) handshakes: Counters<Handshake>,
    pub(super) options: ListenerOptions,
    pub(super) scope: Scope,
    /// Waits for every connection, detached ones too.
    pub(super) tracker: TaskTracker,
}

impl Connection {
    /// Serves a socket to its end, or until it is an event stream's.
    pub(super) async fn serve(mut self, stream: TcpStream) {
        socket::prepare(&stream, self.options.write_timeout);
        match self.tls.take() {
            Some(tls) => self.serve_tls(stream, &tls).await,
            None => self.serve_plain(stream).await,
        }
    }

    async fn serve_plain(self, mut stream: TcpStream) {
        let Self { router, options, scope, tracker, .. } = self;
        let sniffed = timeout(options.header_timeout, sniff(&mut stream));
        let Some(Ok(Ok(begin))) = scope.soft().run_until_cancelled(sniffed).await else { return };
        let is_http2 = begin == PREFACE;
        let desk = Arc::new(Desk::default());
        let transport = Transport::new(stream, begin, options.write_timeout, Arc::clone(&desk));
        if is_http2 {
            serve_http2(transport, router, options, &scope).await;
        } else if let Some((stream, parked)) = serve_http1(transport, router, options, desk, &scope).await {
            tracker.spawn(Detached::new(stream, parked));
        }
    }

    /// Serves what TLS protects; the handshake has as long as a head.
    async fn serve_tls(self, stream: TcpStream, tls: &Tls) {
        let Self { router, handshakes, options, scope, .. } = self;
        let transport = Transport::new(stream, Vec::new(), options.write_timeout, Arc::default());
        handshakes.of(Handshake::Begun).inc();
        let handshake = timeout(options.header_timeout, tls.acceptor.accept(TokioIo::new(transport)));
        let stream = match scope.soft().run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => stream,
            Some(Ok(Err(error))) => {
                handshakes.of(Handshake::Failed).inc();
                return tracing::debug!(%error, "a TLS handshake failed");
            }
            Some(Err(_)) => {
                handshakes.of(Handshake::TimedOut).inc();
                return;
            }
            None => return,
        };
        handshakes.of(Handshake::Finished).inc();
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
        let stream = TokioIo::new(stream);
        if is_http2 {
            serve_http2(stream, router, options, &scope).await;
        } else {
            let service = TowerToHyperService::new(router);
            drive(http1_builder(options).serve_connection(stream, service), &scope).await;
        }
    }
}

/// Serves requests until the connection ends, is idle for too long, or has a stream that is not read.
async fn serve_http2(
    io: impl Read + Write + Send + Unpin + 'static,
    router: Introduced,
    options: ListenerOptions,
    scope: &Scope,
) {
    let activity = Arc::new(Activity::new());
    let connection = http2_builder().serve_connection(io, observed(router, Arc::clone(&activity)));
    tokio::select! {
        () = drive(connection, scope) => {}
        () = activity.given_up(options) => tracing::debug!("an HTTP/2 connection is idle or not read"),
    }
}

/// Serves requests until the connection ends, or becomes an event stream's.
async fn serve_http1(
    transport: Transport,
    router: Introduced,
    options: ListenerOptions,
    desk: Arc<Desk>,
    scope: &Scope,
) -> Option<(TcpStream, Parked)> {
    if !options.detach {
        drive(http1_builder(options).serve_connection(transport, TowerToHyperService::new(router)), scope)
            .await;
        return None;
    }
    let service = service_fn(|request| handover::answer(router.clone(), request, Arc::clone(&desk)));
    let mut connection = http1_builder(options).serve_connection(transport, service);
    let parked = tokio::select! {
        parked = until_parked(&mut connection, &desk) => parked,
        () = scope.soft().cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            let parked = until_parked(&mut connection, &desk);
            scope.hard().run_until_cancelled(parked).await?
        }
    };
    let parked = parked?;
    // What hyper read beyond the request is thrown away with it.
    Some((connection.into_parts().io.into_stream(), parked))
}

/// Polls a connection to its end, or until it has left an event stream on the desk.
async fn until_parked(
    connection: &mut (impl Future<Output = hyper::Result<()>> + Unpin),
    desk: &Desk,
) -> Option<Parked> {
    poll_fn(|cx| {
        let ended = Pin::new(&mut *connection).poll(cx);
        match desk.take() {
            Some(parked) => Poll::Ready(Some(parked)),
            None => ended.map(|result| {
                note_error(result);
                None
            }),
        }
    })
    .await
}

/// Reads the first bytes: until they differ from the preface of HTTP/2, or are all of it.
async fn sniff(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut begin = Vec::with_capacity(PREFACE.len());
    while begin.len() < PREFACE.len() && PREFACE.starts_with(&begin) {
        let rest = (PREFACE.len() - begin.len()) as u64;
        if socket.take(rest).read_buf(&mut begin).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(begin)
}

fn http1_builder(options: ListenerOptions) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(false);
    builder
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .initial_stream_window_size(BODY_WINDOW)
        .initial_connection_window_size(BODY_WINDOW)
        .max_send_buf_size(HEAD_BYTES_MAX);
    builder
}

/// Polls a connection to its end, or until the hard token cuts it.
async fn drive(connection: impl GracefulConnection<Error = hyper::Error>, scope: &Scope) {
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = scope.soft().cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut connection => result,
                () = scope.hard().cancelled() => return,
            }
        }
    };
    note_error(result);
}

fn note_error(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// What the streams of an HTTP/2 connection are doing.
struct Activity(Mutex<Streams>);

struct Streams {
    open: usize,
    /// When the last one ended, or the connection began.
    idle_since: Instant,
    ever_used: bool,
    /// When data was last handed over that the connection has not come back from, per stream.
    offered: slab::Slab<Option<Instant>>,
}

impl Activity {
    fn new() -> Self {
        let offered = slab::Slab::new();
        Self(Mutex::new(Streams { open: 0, idle_since: Instant::now(), ever_used: false, offered }))
    }

    /// Returns when there is nothing to wait for: no request came, or a stream is not read.
    async fn given_up(&self, options: ListenerOptions) {
        loop {
            let wait = {
                let streams = self.0.lock();
                let stalled = streams.offered.iter().filter_map(|(_, at)| *at).min();
                let idle_max = if streams.ever_used { IDLE_MAX } else { options.header_timeout };
                let idle = (streams.open == 0).then(|| streams.idle_since + idle_max);
                [stalled.map(|at| at + options.write_timeout), idle].into_iter().flatten().min()
            };
            let now = Instant::now();
            match wait {
                Some(at) if at <= now => return,
                // What begins in the meantime is looked at in good time.
                Some(at) => sleep((at - now).min(options.write_timeout)).await,
                None => sleep(options.write_timeout.min(options.header_timeout)).await,
            }
        }
    }

    fn begin(self: &Arc<Self>) -> Stream {
        let mut streams = self.0.lock();
        streams.open += 1;
        streams.ever_used = true;
        Stream { activity: Arc::clone(self), key: streams.offered.insert(None) }
    }
}

/// One request and the body of its answer.
struct Stream {
    activity: Arc<Activity>,
    key: usize,
}

impl Stream {
    fn offer(&self, at: Option<Instant>) {
        self.activity.0.lock().offered[self.key] = at;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = self.activity.0.lock();
        streams.offered.remove(self.key);
        streams.open -= 1;
        streams.idle_since = Instant::now();
    }
}

/// The router, with every stream noted in `activity`.
fn observed(
    router: Introduced,
    activity: Arc<Activity>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<ObservedBody>,
    Error = Infallible,
    Future: Send + 'static,
> {
    service_fn(move |request: Request<Incoming>| {
        let stream = activity.begin();
        let router = router.clone();
        async move {
            let response = router.oneshot(request.map(Body::new)).await?;
            Ok(response.map(|body| ObservedBody { body, rest: Bytes::new(), stream }))
        }
    })
}

/// A body that notes when it was last taken from, in pieces: HTTP/2 comes back for more only when the client's
/// window has let through what it took, so the piece is how fine progress is seen.
struct ObservedBody {
    body: Body,
    /// Of a chunk that is being handed over.
    rest: Bytes,
    stream: Stream,
}

impl ObservedBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = self.poll_piece(cx);
        self.stream.offer(polled.is_ready().then(Instant::now));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = http_body::SizeHint::new();
        hint.set_lower(body.lower() + rest);
        body.upper().into_iter().for_each(|upper| hint.set_upper(upper + rest));
        hint
    }
}
