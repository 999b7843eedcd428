//! The accept loop: sockets to connections, and their end.
//!
//! Invariant: no connection outlives the drain: each hears of it and finishes its request, and the hard token
//! cuts what is left. Neighbour: `connection.rs` serves one socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::connection::Connection;
use super::metrics::HttpMetrics;
use super::peer::{Introduced, Peer};
use super::tls::Tls;
use crate::lifecycle::Scope;

/// A pause after an accept that failed for want of a resource, most often file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a connection that makes room needs to close.
const DISMISS_PAUSE: Duration = Duration::from_millis(1);

/// So many are accepted, and served if their request is there, before everybody else has their turn: thousands
/// that come at once would all stand before the next event.
const ACCEPTED_AT_ONCE: usize = 16;

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct ListenerOptions {
    /// How long a client may take for the head of a request.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is due.
    pub write_timeout: Duration,
    /// Whether event streams over HTTP/1 take their socket back from hyper.
    pub detach: bool,
    /// Connections that have not sent a whole head yet.
    pub waiting_max: usize,
}

/// Accepts until the drain begins, and returns when the last connection has ended.
pub(super) async fn serve(
    listener: TcpListener,
    (router, tls): (Router, Option<Arc<Tls>>),
    options: ListenerOptions,
    scope: Scope,
    metrics: HttpMetrics,
) {
    let connections = &metrics.connections;
    accept(&listener, (&router, tls.as_ref()), options, &scope, &metrics).await;
    // From here on nobody can connect, rather than wait for an answer that does not come.
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    (router, tls): (&Router, Option<&Arc<Tls>>),
    options: ListenerOptions,
    scope: &Scope,
    metrics: &HttpMetrics,
) {
    let HttpMetrics { connections, waiting, .. } = metrics;
    let (mut exhausted, mut accepted_at_once) = (false, 0);
    while let Some(accepted) = scope.soft().run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, address)) => {
                if std::mem::take(&mut exhausted) {
                    tracing::info!("connections are accepted again");
                }
                metrics.accepted.inc();
                let seat = waiting.take(options.waiting_max);
                let peer = Peer { address: address.ip(), is_tls: tls.is_some() };
                let connection = Connection {
                    router: Introduced::new(router.clone(), peer, Arc::clone(&seat)),
                    tls: tls.cloned(),
                    handshakes: metrics.handshakes.clone(),
                    options,
                    scope: scope.clone(),
                    tracker: connections.clone(),
                };
                connections.spawn(async move {
                    tokio::select! {
                        () = connection.serve(socket) => {}
                        () = seat.dismissed() => tracing::debug!("a connection without a request made room"),
                    }
                });
                accepted_at_once += 1;
                if accepted_at_once == ACCEPTED_AT_ONCE {
                    accepted_at_once = 0;
                    yield_now().await;
                }
            }
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(%error, "a connection was not accepted");
            }
            Err(error) => {
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::warn!(%error, connections = connections.len(), "connections cannot be accepted");
                }
                let makes_room = waiting.dismiss_oldest();
                sleep(if makes_room { DISMISS_PAUSE } else { ACCEPT_PAUSE }).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
