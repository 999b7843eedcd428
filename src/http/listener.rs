//! The accept loop: sockets to connections, and their end.
//!
//! Invariant: no connection outlives the drain: each hears of it and finishes its request, and the hard token
//! cuts what is left. Neighbour: `connection.rs` serves one socket.

use std::io;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::connection::Connection;
use super::metrics::HttpMetrics;
use crate::lifecycle::Scope;

/// A pause after an accept that failed for want of a resource, most often file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct ListenerOptions {
    /// How long a client may take for the head of a request.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is due.
    pub write_timeout: Duration,
    /// Whether event streams over HTTP/1 take their socket back from hyper.
    pub detach: bool,
}

/// Accepts until the drain begins, and returns when the last connection has ended.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    options: ListenerOptions,
    scope: Scope,
    metrics: HttpMetrics,
) {
    let connections = &metrics.connections;
    accept(&listener, &router, options, &scope, &metrics).await;
    // From here on nobody can connect, rather than wait for an answer that does not come.
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    options: ListenerOptions,
    scope: &Scope,
    metrics: &HttpMetrics,
) {
    let connections = &metrics.connections;
    let mut exhausted = false;
    while let Some(accepted) = scope.soft().run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, _)) => {
                if std::mem::take(&mut exhausted) {
                    tracing::info!("connections are accepted again");
                }
                metrics.accepted.inc();
                let connection = Connection {
                    router: router.clone(),
                    options,
                    scope: scope.clone(),
                    tracker: connections.clone(),
                };
                connections.spawn(connection.serve(socket));
            }
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(%error, "a connection was not accepted");
            }
            Err(error) => {
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::warn!(%error, connections = connections.len(), "connections cannot be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
