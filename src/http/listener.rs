//! The accept loop: sockets to connections, and their end.
//!
//! Invariant: no connection outlives the drain: each hears of it and finishes its request, and the hard token
//! cuts what is left. A client that sends its head too slowly, or takes nothing for `write_timeout`, is
//! dropped.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_io_timeout::TimeoutStream;
use tokio_util::task::TaskTracker;

use crate::lifecycle::Scope;

/// Bytes of a request's head, and about what hyper buffers for a client that does not read.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// A pause after an accept that failed for want of a resource, most often file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct ListenerOptions {
    /// How long a client may take for the head of a request.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is due.
    pub write_timeout: Duration,
}

/// Accepts until the drain begins, and returns when the last connection has ended.
pub(super) async fn serve(listener: TcpListener, router: Router, options: ListenerOptions, scope: Scope) {
    let connections = TaskTracker::new();
    accept(&listener, &router, options, &scope, &connections).await;
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
    connections: &TaskTracker,
) {
    while let Some(accepted) = scope.soft().run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, _)) => {
                let connection = serve_connection(socket, router.clone(), options, scope.clone());
                connections.spawn(connection);
            }
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(%error, "a connection was not accepted");
            }
            Err(error) => {
                tracing::warn!(%error, "connections cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn serve_connection(socket: TcpStream, router: Router, options: ListenerOptions, scope: Scope) {
    // Events are small and due now.
    let _ = socket.set_nodelay(true);
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(options.write_timeout));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(false);
    builder.http2().timer(TokioTimer::new()).max_send_buf_size(HEAD_BYTES_MAX);
    let connection =
        builder.serve_connection(TokioIo::new(Box::pin(socket)), TowerToHyperService::new(router));
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
    if let Err(error) = result {
        tracing::debug!(error, "a connection ended with an error");
    }
}
